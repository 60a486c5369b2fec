//! Saving and loading through the public API: any number of ranks to any other, renamed and partial loads, what a busy
//! or hung store does, who may commit, what stays.

mod common;

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::*;
use proptest::prelude::*;
use regatta_checkpoint::fs::sim::{Fault, SimFs};
use regatta_checkpoint::fs::{Bytes, Entry, File, Fs};
use regatta_checkpoint::select::{Mismatch, Rename, Rules, Wanted, select};
use regatta_checkpoint::store::FileStore;
use regatta_checkpoint::*;

fn store_on(disk: impl Fs + 'static) -> Arc<dyn Store> {
    Arc::new(FileStore::on(disk))
}

fn rank_reads(checkpoint: &Checkpoint, rank: u32, world: u32) {
    let local = Local::new(checkpoint.manifest().step, rank, world);
    let mut buffers: Vec<Vec<u8>> = local.items.iter().map(|(_, _, data)| vec![0xEE; data.len()]).collect();
    let mut targets: Vec<Target<'_>> = local
        .tensors()
        .iter()
        .zip(&local.items)
        .zip(&mut buffers)
        .map(|((tensor, (spec, ..)), to)| Target { name: spec.name, region: Some(tensor.region()), to })
        .collect();
    checkpoint.read_into(&mut targets, 2).unwrap();
    for ((spec, _, expected), found) in local.items.iter().zip(&buffers) {
        assert!(found == expected, "{} on rank {rank} of {world}", spec.name);
    }
}

#[test]
fn a_save_that_another_rank_has_begun_is_not_collected() {
    let folder = tempfile::tempdir().unwrap();
    let store = store::open(folder.path().to_str().unwrap()).unwrap();
    let torn = |name: &str| {
        let torn = folder.path().join("checkpoints").join(name);
        std::fs::create_dir_all(&torn).unwrap();
        std::fs::write(torn.join("shard-00001-of-00002.safetensors"), b"on its way").unwrap();
        torn
    };
    let (given_up, ahead) = (torn("step-000001.g1.0001aaaaaaaa"), torn("step-000003.g1.0003aaaaaaaa"));
    let live: CheckpointName = "step-000002.g1.0002aaaaaaaa".parse().unwrap();
    let policy =
        collect::Policy { retention: &Retention::last(1), torn: collect::Torn::Fenced, live: Some(&live) };
    let decisions = collect::plan(&*store, &policy).unwrap();
    assert!(collect::carry_out(&*store, &decisions).failures.is_empty());
    assert!(!given_up.exists() && ahead.exists(), "{decisions:?}");
}

#[test]
fn what_could_not_be_removed_is_not_said_to_be() {
    let config = SaverConfig { retention: Retention::last(1), ..config() };
    let removed_on = |disk: &SimFs, patience: Duration| {
        let mut savers = build_all(&config, &store_on(disk.clone()), group(1)).unwrap();
        for step in 1..=2 {
            save_all(&mut savers, step).remove(0).unwrap();
            savers[0].finish(LIMIT).unwrap();
        }
        // Collecting follows the commit.
        let (begun, mut removed) = (Instant::now(), vec![]);
        while removed.is_empty() && begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(5));
            removed = savers[0].take_removed();
        }
        removed
    };
    let disk = SimFs::new();
    let removed = removed_on(&disk, LIMIT);
    assert!(matches!(&removed[..], [name] if name.starts_with("step-000001")), "{removed:?}");
    let doomed = |operation: &String| operation.starts_with("remove") && operation.ends_with("/COMMIT");
    let first = disk.operations().iter().position(doomed).unwrap();

    let stubborn = SimFs::new();
    stubborn.inject(first, Fault::Errors(io::ErrorKind::PermissionDenied));
    assert_eq!(removed_on(&stubborn, Duration::from_millis(500)), Vec::<String>::new());
    let listed = catalog::list(&*store_on(stubborn)).unwrap();
    assert!(listed.len() == 2 && listed.iter().all(|one| one.status.word() == "committed"), "{listed:?}");
}

#[test]
fn any_world_size_loads_what_any_other_saved() {
    for saved in 1..=8 {
        let store = store_on(SimFs::new());
        let mut savers = build_all(&config(), &store, group(saved)).unwrap();
        save_all(&mut savers, 5).into_iter().for_each(|outcome| drop(outcome.unwrap()));
        let found = recover::newest(store, Verify::Full).unwrap().checkpoint;
        assert_whole(&found);
        for world in 1..=8 {
            (0..world).for_each(|rank| rank_reads(&found, rank, world));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// A tensor of any shape, saved in chunks along one dimension, read in chunks along another.
    #[test]
    fn any_tensor_is_resharded_bit_for_bit(
        shape in prop::collection::vec(0u64..7, 0..4),
        (from, to) in (1u64..=8, 1u64..=8),
        (along, across) in (0usize..4, 0usize..4),
        replicated in any::<bool>(),
        min_split in 0u64..40,
    ) {
        let spec = Spec { name: "t", dtype: Dtype::F16, shape: shape.clone(), sharded: None };
        let all = content(&spec, 3);
        let store = store_on(SimFs::new());
        let config = SaverConfig { min_split_bytes: min_split, ..config() };
        let mut savers = build_all(&config, &store, group(from as u32)).unwrap();
        let whole = replicated || shape.is_empty();
        let tickets: Vec<Saved> = savers.iter_mut().enumerate().map(|(rank, saver)| {
            let region = if whole { Region::whole(&shape) } else { Region::chunk(&shape, along % shape.len(), rank as u64, from) };
            let data = cut(&spec, &all, &region);
            let placement = if whole { Placement::Replicated } else { Placement::Part(region) };
            let tensor = [Tensor { name: "t", dtype: Dtype::F16, shape: &shape, placement, data: &data }];
            saver.save(&Save::new(1, &tensor)).unwrap()
        }).collect();
        for ticket in tickets {
            ticket.wait(LIMIT).unwrap();
        }
        let found = recover::newest(store, Verify::Full).unwrap().checkpoint;
        for rank in 0..to {
            let region = if shape.is_empty() { Region::whole(&shape) } else { Region::chunk(&shape, across % shape.len(), rank, to) };
            prop_assert_eq!(&*found.region("t", &region).unwrap(), &cut(&spec, &all, &region)[..]);
        }
    }
}

#[test]
fn ranks_recover_the_same_checkpoint_together() {
    let disk = SimFs::new();
    let store = store_on(disk.clone());
    let mut savers = build_all(&config(), &store, group(3)).unwrap();
    for step in 1..=2 {
        save_all(&mut savers, step).into_iter().for_each(|outcome| drop(outcome.unwrap()));
    }
    let newest = catalog::names(&*store).unwrap().remove(0);
    disk.flip(&newest.path("shard-00001-of-00003.safetensors"), 1000, 2);
    let found = std::thread::scope(|scope| {
        let store = &store;
        let ranks: Vec<_> = group(2)
            .into_iter()
            .map(|rank| {
                scope
                    .spawn(move || recover::newest_among(store.clone(), &*rank, Verify::Full, LIMIT).unwrap())
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
    });
    for one in found {
        assert_eq!(one.checkpoint.manifest().step, 1);
        assert_eq!(one.damaged.len(), 1, "every rank is told of the damage: {:?}", one.damaged);
    }
}

#[test]
fn a_moved_folder_loads() {
    let folder = tempfile::tempdir().unwrap();
    let store = store::open(folder.path().join("here").to_str().unwrap()).unwrap();
    let mut savers = build_all(&config(), &store, group(2)).unwrap();
    save_all(&mut savers, 9).into_iter().for_each(|outcome| drop(outcome.unwrap()));
    drop(savers);
    std::fs::rename(folder.path().join("here"), folder.path().join("there")).unwrap();
    let moved = store::open_existing(folder.path().join("there").to_str().unwrap()).unwrap();
    assert_whole(&recover::newest(moved, Verify::Full).unwrap().checkpoint);
    let hint = std::fs::read_to_string(folder.path().join("there/LATEST")).unwrap();
    assert!(hint.starts_with("checkpoints/step-000009.g1."), "{hint}");
}

#[test]
fn what_does_not_fit_is_listed_all_at_once() {
    let store = store_on(SimFs::new());
    let mut savers = build_all(&config(), &store, group(1)).unwrap();
    save_all(&mut savers, 1).remove(0).unwrap();
    let found = recover::newest(store, Verify::Full).unwrap().checkpoint;
    let want =
        |name: &str, dtype, shape: &[u64]| Wanted { name: name.to_owned(), dtype, shape: shape.to_vec() };
    let wanted = [
        want("model.layer.weight", Dtype::BF16, &[16, 9]),
        want("model.layer.bias", Dtype::F16, &[6]),
        want("head", Dtype::F32, &[2]),
    ];
    let mut rules = Rules {
        rename: vec![Rename { from: "layer.".into(), to: "model.layer.".into() }],
        ..Rules::default()
    };
    rules.only = vec!["layer.".into(), "mask".into()];
    let Err(Error::Mismatch(wrong)) = select(found.manifest(), &wanted, &rules) else {
        panic!("it does not fit")
    };
    assert_eq!(wrong.len(), 3, "{wrong:?}");
    assert!(wrong.contains(&Mismatch::Missing { name: "head".into() }));
    assert!(wrong.contains(&Mismatch::Unused { saved: "mask".into(), name: "mask".into() }));
    assert!(
        wrong
            .iter()
            .any(|one| one.to_string() == "model.layer.bias: the model has F16[6], the checkpoint F16[5]")
    );
    let fits = Rules { allow_missing: true, allow_unused: true, ..rules };
    let names = select(found.manifest(), &wanted[..1], &fits).unwrap();
    assert_eq!(names["model.layer.weight"], "layer.weight");
}

#[test]
fn states_have_versions() {
    let store = store_on(SimFs::new());
    let mut savers = build_all(&config(), &store, group(1)).unwrap();
    save_all(&mut savers, 7).remove(0).unwrap();
    let found = recover::newest(store, Verify::Full).unwrap().checkpoint;
    let migrated: (u64, u32, f64, bool) = found
        .state(0, 2, |version, mut state| {
            assert_eq!(version, 1);
            state.as_array_mut().ok_or("no list")?.push(true.into());
            Ok(state)
        })
        .unwrap();
    assert_eq!(migrated, (7, 0, 7.0 / 3.0, true));
    assert!(matches!(found.state::<()>(0, 0, |_, s| Ok(s)), Err(Error::NewerSchema { found: 1, .. })));
    assert!(found.state::<()>(1, 1, |_, s| Ok(s)).unwrap_err().to_string().contains("there is no rank 1"));
}

#[test]
fn a_rank_that_fails_fails_the_save_everywhere_and_the_next_one_works() {
    let store = store_on(SimFs::new());
    let mut savers = build_all(&config(), &store, group(2)).unwrap();
    save_all(&mut savers, 1).into_iter().for_each(|outcome| drop(outcome.unwrap()));
    let short = vec![0u8; 3];
    let wrong = [Tensor::replicated("x", Dtype::F32, &[1], &short)];
    let first = start(&mut savers[0], 2, 0, 2).unwrap();
    assert!(matches!(savers[1].save(&Save::new(2, &wrong)), Err(Error::Invalid(_))));
    let error = first.wait(LIMIT).unwrap_err();
    assert!(matches!(error, Error::SaveFailed { step: 2, rank: 1, .. }), "{error}");
    // Different lists of replicated tensors are found out, too.
    let good = vec![0u8; 4];
    let other = [Tensor::replicated("x", Dtype::F32, &[1], &good)];
    let (a, b) = (start(&mut savers[0], 3, 0, 2).unwrap(), savers[1].save(&Save::new(3, &other)).unwrap());
    let error = a.wait(LIMIT).unwrap_err().to_string();
    assert!(error.contains("rank 1") && error.contains("not that of rank 0"), "{error}");
    b.wait(LIMIT).unwrap_err();
    save_all(&mut savers, 4).into_iter().for_each(|outcome| drop(outcome.unwrap()));
    assert_eq!(catalog::list(&*store).unwrap().len(), 2);
}

#[test]
fn a_lost_peer_fails_the_save_before_the_deadline() {
    let store = store_on(SimFs::new());
    let ranks = LocalGroup::new(2);
    let leaver = ranks[1].clone();
    let ranks = ranks.into_iter().map(|rank| Arc::new(rank) as Arc<dyn Coordinator>).collect();
    let mut savers = build_all(&config(), &store, ranks).unwrap();
    let began = Instant::now();
    let saved = start(&mut savers[0], 1, 0, 2).unwrap();
    leaver.leave("killed");
    let error = saved.wait(LIMIT).unwrap_err().to_string();
    assert!(error.contains("killed") && began.elapsed() < Duration::from_secs(30), "{error}");
    assert!(catalog::names(&*store).unwrap().is_empty(), "what was written is gone");
}

/// A disk on which one operation waits for a word.
#[derive(Debug, Clone)]
struct Gated {
    inner: SimFs,
    gate: Arc<Mutex<Option<Gate>>>,
}

#[derive(Debug)]
struct Gate {
    operation: &'static str,
    arrived: Sender<()>,
    wait: Receiver<()>,
}

impl Gated {
    fn new() -> Gated {
        Gated { inner: SimFs::new(), gate: Arc::default() }
    }

    /// Stops the next operation that this begins; it goes on when the first is dropped, and says that it arrived by
    /// the second.
    fn close(&self, operation: &'static str) -> (Sender<()>, Receiver<()>) {
        let ((open, wait), (arrived, arrival)) = (channel(), channel());
        *self.gate.lock().unwrap() = Some(Gate { operation, arrived, wait });
        (open, arrival)
    }

    fn pass(&self, operation: String) {
        let gate = self.gate.lock().unwrap().take_if(|gate| operation.ends_with(gate.operation));
        if let Some(gate) = gate {
            let _ = gate.arrived.send(());
            let _ = gate.wait.recv();
        }
    }
}

impl Fs for Gated {
    fn create_folder(&self, path: &str) -> io::Result<()> {
        self.inner.create_folder(path)
    }
    fn create(&self, path: &str, size: u64) -> io::Result<Box<dyn File>> {
        self.pass(format!("create {path}"));
        self.inner.create(path, size)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.pass(format!("rename {to}"));
        self.inner.rename_new(from, to)
    }
    fn sync_folder(&self, path: &str) -> io::Result<()> {
        self.inner.sync_folder(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        self.inner.list(path)
    }
    fn open(&self, path: &str) -> io::Result<Arc<dyn Bytes>> {
        self.inner.open(path)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.remove(path)
    }
    fn remove_folder(&self, path: &str) -> io::Result<()> {
        self.inner.remove_folder(path)
    }
    fn free_space(&self) -> io::Result<Option<u64>> {
        self.inner.free_space()
    }
    fn root(&self) -> String {
        "gated disk".to_owned()
    }
}

#[test]
fn hung_storage_blocks_neither_the_step_nor_a_wait_beyond_its_limit() {
    let disk = Gated::new();
    let store = store_on(disk.clone());
    let config = SaverConfig { deadline_seconds: 0.2, wait_seconds: 0.1, ..config() };
    let mut saver = config.build(store.clone(), Arc::new(Solo)).unwrap();
    start(&mut saver, 1, 0, 1).unwrap().wait(LIMIT).unwrap();
    let (open, arrival) = disk.close(".safetensors");
    let began = Instant::now();
    let hung = start(&mut saver, 2, 0, 1).unwrap();
    arrival.recv_timeout(LIMIT).unwrap();
    assert!(matches!(hung.wait(Duration::from_millis(10)), Err(Error::Timeout { .. })));
    assert!(matches!(start(&mut saver, 3, 0, 1), Err(Error::Timeout { .. })), "it waits for its limit");
    wait_until("the deadline", || began.elapsed() > Duration::from_millis(250));
    let error = start(&mut saver, 4, 0, 1).unwrap_err();
    assert!(matches!(error, Error::Hung { step: 2, .. }), "{error}");
    assert_eq!(saver.stats().in_flight, Some(2));
    assert_eq!(recover::newest(store.clone(), Verify::Full).unwrap().checkpoint.manifest().step, 1);
    drop(open);
    saver.finish(LIMIT).unwrap();
    start(&mut saver, 5, 0, 1).unwrap().wait(LIMIT).unwrap();
}

#[test]
fn a_busy_saver_skips_on_all_ranks_and_counts_it() {
    let disk = Gated::new();
    let store = store_on(disk.clone());
    let config = SaverConfig { when_busy: WhenBusy::Skip, ..config() };
    let mut savers = build_all(&config, &store, group(2)).unwrap();
    let save_both = |savers: &mut [Saver], step| {
        let (left, right) = savers.split_at_mut(1);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| start(&mut right[0], step, 1, 2).unwrap());
            let one = start(&mut left[0], step, 0, 2).unwrap();
            [one, other.join().unwrap()]
        })
    };
    let (open, _arrival) = disk.close("shard-00000-of-00002.safetensors");
    let first = save_both(&mut savers, 1);
    let second = save_both(&mut savers, 2);
    assert!(second.iter().all(|saved| matches!(saved, Saved::Skipped { .. })), "{second:?}");
    drop(open);
    first.into_iter().for_each(|saved| assert!(saved.wait(LIMIT).unwrap().is_some()));
    savers.iter().for_each(|saver| saver.finish(LIMIT).unwrap());
    let third = save_both(&mut savers, 3);
    third.into_iter().for_each(|saved| assert!(saved.wait(LIMIT).unwrap().is_some()));
    assert_eq!(savers.iter().map(|saver| saver.stats().skipped).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_zombie_stopped_just_before_its_commit_cannot_commit_after_its_successor_began() {
    let disk = Gated::new();
    let store = store_on(disk.clone());
    let with_generation = |generation| SaverConfig { generation: Some(generation), ..config() };
    let mut zombie = with_generation(7).build(store.clone(), Arc::new(Solo)).unwrap();
    start(&mut zombie, 10, 0, 1).unwrap().wait(LIMIT).unwrap();
    zombie.finish(LIMIT).unwrap();
    // Stopped between the last look at the fence and the rename of COMMIT.
    let (open, arrival) = disk.close("/COMMIT");
    let late = start(&mut zombie, 20, 0, 1).unwrap();
    arrival.recv_timeout(LIMIT).unwrap();
    let successor_disk = store_on(disk.inner.clone());
    let mut successor = with_generation(8).build(successor_disk.clone(), Arc::new(Solo)).unwrap();
    drop(open);
    let error = late.wait(LIMIT).unwrap_err();
    assert!(matches!(error, Error::Fenced { ours: 7, current: 8, .. }), "{error}");
    zombie.finish(LIMIT).unwrap();
    let error = start(&mut zombie, 30, 0, 1).unwrap().wait(LIMIT).unwrap_err();
    assert!(matches!(error, Error::Fenced { ours: 7, current: 8, .. }), "{error}");
    start(&mut successor, 11, 0, 1).unwrap().wait(LIMIT).unwrap();
    successor.finish(LIMIT).unwrap();
    assert_eq!(recover::newest(successor_disk.clone(), Verify::Full).unwrap().checkpoint.manifest().step, 11);
    assert!(catalog::list(&*successor_disk).unwrap().iter().all(|one| one.status.word() == "committed"));
    let error = with_generation(7).build(store, Arc::new(Solo)).unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
}

#[test]
fn a_full_disk_is_found_out_before_anything_is_written() {
    let disk = SimFs::new();
    let store = store_on(disk.clone());
    let mut saver = config().build(store, Arc::new(Solo)).unwrap();
    disk.set_free_space(100);
    let before = disk.operations().len();
    let error = start(&mut saver, 1, 0, 1).unwrap().wait(LIMIT).unwrap_err().to_string();
    assert!(error.contains("not enough space") && error.contains("100 are free"), "{error}");
    assert!(!disk.operations()[before..].iter().any(|operation| operation.contains("shard")));
}

#[test]
fn an_unwritable_store_is_found_out_when_the_saver_is_built() {
    let disk = SimFs::new();
    disk.inject(0, Fault::Errors(io::ErrorKind::ReadOnlyFilesystem));
    let error = config().build(store_on(disk), Arc::new(Solo)).unwrap_err().to_string();
    assert!(error.contains("read-only"), "{error}");
}

#[test]
fn the_rules_of_retention_hold_together() {
    let store = store_on(SimFs::new());
    let best = Best { metric: "loss".into(), mode: Mode::Min, count: 1 };
    let retention = Retention { last: Some(1), best: Some(best), every: Some(10) };
    let mut saver = SaverConfig { retention, ..config() }.build(store.clone(), Arc::new(Solo)).unwrap();
    let data = vec![0u8; 4];
    let tensors = [Tensor::replicated("x", Dtype::F32, &[1], &data)];
    let losses =
        [(1, f64::NAN), (2, 0.1), (3, -f64::NAN), (10, 0.5), (11, 0.4), (12, 0.3), (13, 0.6), (14, 0.7)];
    for (step, loss) in losses {
        saver.save(&Save::new(step, &tensors).metric("loss", loss)).unwrap().wait(LIMIT).unwrap();
        saver.finish(LIMIT).unwrap();
        if step == 11 {
            let donor = catalog::names(&*store).unwrap().remove(0);
            collect::pin(&*store, &donor, "trial-3").unwrap();
        }
    }
    let steps =
        |store: &dyn Store| catalog::names(store).unwrap().iter().map(|name| name.step).collect::<Vec<_>>();
    // The last, and one more good one; the pinned one; the multiple of ten; the best.
    assert_eq!(steps(&*store), [14, 13, 11, 10, 2]);
    let donor = catalog::names(&*store).unwrap().remove(2);
    assert!(collect::remove(&*store, &donor).unwrap_err().to_string().contains("pinned by trial-3"));
    assert_eq!(steps(&*store).len(), 5, "a pinned checkpoint stays whole");
    Checkpoint::open(store.clone(), &donor, Verify::Full).unwrap();
    collect::unpin(&*store, &donor, "trial-3").unwrap();
    saver.save(&Save::new(15, &tensors)).unwrap().wait(LIMIT).unwrap();
    saver.finish(LIMIT).unwrap();
    assert_eq!(steps(&*store), [15, 14, 10, 2]);
}

#[test]
fn the_report_says_what_it_cost() {
    let store = store_on(SimFs::new());
    let mut saver = config().build(store, Arc::new(Solo)).unwrap();
    let first = start(&mut saver, 1, 0, 1).unwrap().wait(LIMIT).unwrap().unwrap();
    let second = start(&mut saver, 2, 0, 1).unwrap().wait(LIMIT).unwrap().unwrap();
    assert!(first.interval_seconds.is_none() && second.interval_seconds.unwrap() > 0.0);
    assert!(second.written_bytes > second.staged_bytes && second.staged_bytes > 3000);
    assert!(second.blocked_seconds > 0.0 && second.blocked_seconds < second.total_seconds);
    saver.finish(LIMIT).unwrap();
    let stats = saver.stats();
    assert_eq!((stats.committed, stats.failed, stats.skipped, stats.in_flight), (2, 0, 0, None));
    assert!(stats.age_seconds.unwrap() >= 0.0);
}

#[test]
fn zstd_shards_load_and_are_smaller() {
    let store = store_on(SimFs::new());
    let config = SaverConfig { encoding: Encoding::Zstd, ..config() };
    let zeros = vec![0u8; 1 << 20];
    let tensors = [Tensor::replicated("zeros", Dtype::U8, &[1 << 20], &zeros)];
    let mut saver = config.build(store.clone(), Arc::new(Solo)).unwrap();
    let report = saver.save(&Save::new(1, &tensors)).unwrap().wait(LIMIT).unwrap().unwrap();
    assert!(report.written_bytes < report.staged_bytes / 10);
    let found = recover::newest(store, Verify::Full).unwrap().checkpoint;
    assert!(*found.tensor("zeros").unwrap() == zeros[..]);
    assert!(found.verify_hashes().is_empty());
}

/// Large shards go past the page cache where the file system allows it, all but their odd end.
#[test]
fn a_shard_of_an_odd_size_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = store::open(folder.path().to_str().unwrap()).unwrap();
    let mut saver = config().build(store.clone(), Arc::new(Solo)).unwrap();
    for (step, size) in [(1, 4_194_305u64), (2, 9_000_001), (3, 16 << 20)] {
        let spec = Spec { name: "large", dtype: Dtype::U8, shape: vec![size], sharded: None };
        let data = content(&spec, step);
        let tensors = [Tensor::replicated("large", Dtype::U8, &spec.shape, &data)];
        saver.save(&Save::new(step, &tensors)).unwrap().wait(LIMIT).unwrap();
        let found = recover::newest(store.clone(), Verify::Full).unwrap().checkpoint;
        assert!(*found.tensor("large").unwrap() == data[..]);
        assert!(found.verify_hashes().is_empty());
    }
}
