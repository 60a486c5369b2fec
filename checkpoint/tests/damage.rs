//! A flipped bit is found wherever it is, and named; the checkpoint before is taken.

mod common;

use std::sync::Arc;

use common::*;
use regatta_checkpoint::fs::Fs;
use regatta_checkpoint::fs::sim::SimFs;
use regatta_checkpoint::manifest::Commit;
use regatta_checkpoint::store::FileStore;
use regatta_checkpoint::*;

fn two_checkpoints(world: u32, encoding: Encoding) -> (SimFs, Arc<dyn Store>, CheckpointName) {
    let disk = SimFs::new();
    let store: Arc<dyn Store> = Arc::new(FileStore::on(disk.clone()));
    let config = SaverConfig { encoding, ..config() };
    let mut savers = build_all(&config, &store, group(world)).unwrap();
    for step in 1..=2 {
        save_all(&mut savers, step).into_iter().for_each(|outcome| drop(outcome.unwrap()));
    }
    let newest = catalog::names(&*store).unwrap().remove(0);
    (disk, store, newest)
}

fn assert_every_flip_is_found(world: u32, encoding: Encoding, stride: usize) {
    let (disk, store, newest) = two_checkpoints(world, encoding);
    for entry in disk.list(&newest.folder()).unwrap() {
        let path = newest.path(&entry.name);
        for byte in (0..entry.size as usize).step_by(stride) {
            let bit = (byte.wrapping_mul(5) % 8) as u8;
            disk.flip(&path, byte, bit);
            let found = recover::newest(store.clone(), Verify::Full)
                .unwrap_or_else(|error| panic!("{path}, byte {byte}, bit {bit}: {error}"));
            assert_eq!(found.checkpoint.manifest().step, 1, "{path}, byte {byte}, bit {bit} was not found");
            assert!(
                found
                    .damaged
                    .iter()
                    .any(|damage| damage.file == entry.name && damage.checkpoint == newest.to_string()),
                "{path}, byte {byte}: {:?}",
                found.damaged
            );
            disk.flip(&path, byte, bit);
        }
    }
    assert_eq!(recover::newest(store, Verify::Full).unwrap().checkpoint.manifest().step, 2);
}

#[test]
fn a_flipped_bit_anywhere_is_found_and_named() {
    assert_every_flip_is_found(1, Encoding::Plain, 1);
}

#[test]
fn a_flipped_bit_is_found_among_shards_of_several_ranks() {
    assert_every_flip_is_found(2, Encoding::Plain, 7);
}

#[test]
fn a_flipped_bit_is_found_in_compressed_shards() {
    assert_every_flip_is_found(1, Encoding::Zstd, 3);
}

#[test]
fn all_bits_of_commit_are_covered() {
    let (disk, store, newest) = two_checkpoints(1, Encoding::Plain);
    let path = newest.path(names::COMMIT);
    let size = disk.open(&path).unwrap().bytes().len();
    for (byte, bit) in (0..size).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
        disk.flip(&path, byte, bit);
        let found = recover::newest(store.clone(), Verify::Full).unwrap();
        assert_eq!(found.checkpoint.manifest().step, 1, "byte {byte}, bit {bit}");
        disk.flip(&path, byte, bit);
    }
}

#[test]
fn a_damaged_tensor_is_named() {
    let (disk, store, newest) = two_checkpoints(1, Encoding::Plain);
    let opened = Checkpoint::open(store.clone(), &newest, Verify::OnRead).unwrap();
    let piece = &opened.entry("momentum").unwrap().pieces[0];
    let file = opened.manifest().files[piece.file].name.clone();
    disk.flip(&newest.path(&file), piece.start as usize + 100, 3);
    let damage = recover::newest(store.clone(), Verify::Full).unwrap().damaged;
    assert_eq!(damage.len(), 1);
    assert!(damage[0].detail.contains("`momentum`") && damage[0].file == file, "{damage:?}");
    // Without the full check it is found when it is read, and only then.
    let found = recover::newest(store, Verify::OnRead).unwrap().checkpoint;
    assert_eq!(found.manifest().step, 2);
    found.tensor("embed.weight").unwrap();
    let error = found.tensor("momentum").unwrap_err().to_string();
    assert!(error.contains("`momentum`"), "{error}");
    let mut whole = vec![0; 301 * 4];
    let target = Target { name: "momentum", region: None, to: &mut whole };
    assert!(found.read_into(&mut [target], 2).is_err());
}

#[test]
fn a_newer_schema_is_refused_and_not_passed_over() {
    let (disk, store, newest) = two_checkpoints(1, Encoding::Plain);
    let path = newest.path(names::COMMIT);
    let bytes = disk.open(&path).unwrap().bytes().to_vec();
    let commit = Commit { schema: 2, ..Commit::parse(&bytes).unwrap() };
    store.replace(&path, &commit.to_bytes()).unwrap();
    let error = recover::newest(store, Verify::Full).unwrap_err();
    assert!(matches!(error, Error::NewerSchema { found: 2, supported: 1, .. }), "{error}");
    assert!(error.to_string().contains("use the release that wrote it or a newer one"));
}
