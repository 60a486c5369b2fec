//! Whatever the bytes of a manifest, a COMMIT or a shard's head: reading them neither panics nor allocates more than in
//! proportion to the file.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::*;
use regatta_checkpoint::fs::Fs;
use regatta_checkpoint::fs::sim::SimFs;
use regatta_checkpoint::manifest::{Commit, Manifest};
use regatta_checkpoint::store::FileStore;
use regatta_checkpoint::*;

/// Remembers the largest allocation.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller keeps `realloc`'s contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// The watch is the whole process's: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

fn two_checkpoints(world: u32) -> (SimFs, Arc<dyn Store>, CheckpointName) {
    let disk = SimFs::new();
    let store: Arc<dyn Store> = Arc::new(FileStore::on(disk.clone()));
    let mut savers = build_all(&config(), &store, group(world)).unwrap();
    for step in 1..=2 {
        save_all(&mut savers, step).into_iter().for_each(|outcome| drop(outcome.unwrap()));
    }
    let newest = catalog::names(&*store).unwrap().remove(0);
    (disk, store, newest)
}

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Changes bytes, digits, lengths and order at random; digits most, as numbers are what is acted upon.
fn mutate(bytes: &mut Vec<u8>, state: &mut u64) {
    for _ in 0..1 + next(state) % 4 {
        let at = (next(state) as usize) % bytes.len().max(1);
        match next(state) % 6 {
            0 if at < bytes.len() => bytes[at] ^= 1 << (next(state) % 8),
            1 => bytes.truncate(at),
            2 => {
                let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
                if !digits.is_empty() {
                    let at = digits[next(state) as usize % digits.len()];
                    let number = [u64::MAX, 1 << 40, 1 << 62, next(state), 0][next(state) as usize % 5];
                    bytes.splice(at..at + 1, number.to_string().bytes());
                }
            }
            3 => {
                let end = (at + (next(state) as usize) % 64).min(bytes.len());
                let part = bytes[at.min(end)..end].to_vec();
                let to = (next(state) as usize) % (bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            4 if bytes.len() >= 8 => bytes[..8].copy_from_slice(&next(state).to_le_bytes()),
            _ if at < bytes.len() => bytes[at] = next(state) as u8,
            _ => {}
        }
    }
}

#[test]
fn no_bytes_make_a_reader_panic_or_allocate_beyond_the_file() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (disk, _, newest) = two_checkpoints(2);
    let seeds = [names::MANIFEST, names::COMMIT, "shard-00000-of-00002.safetensors"]
        .map(|file| disk.open(&newest.path(file)).unwrap().bytes().to_vec());
    let rounds = std::env::var("REGATTA_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4000);
    let mut state = 1;
    for round in 0..rounds {
        let which = round % seeds.len();
        let mut bytes = seeds[which].clone();
        mutate(&mut bytes, &mut state);
        LARGEST.store(0, Ordering::Relaxed);
        match which {
            0 => drop(Manifest::parse(&bytes)),
            1 => drop(Commit::parse(&bytes)),
            _ => drop(header::parse(&bytes)),
        }
        // A parsed value is larger than its text by a constant factor; no number in it may decide how much larger.
        let largest = LARGEST.load(Ordering::Relaxed);
        assert!(
            largest <= 16 * bytes.len() + (64 << 10),
            "round {round}: {largest} bytes for {}",
            bytes.len()
        );
    }
}

/// The same through the store, with hashes made to match: the numbers themselves have to be checked.
#[test]
fn a_manifest_that_lies_is_refused() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (disk, store, newest) = two_checkpoints(1);
    let original = disk.open(&newest.path(names::MANIFEST)).unwrap().bytes().to_vec();
    let mut state = 7;
    for round in 0..400 {
        let mut bytes = original.clone();
        mutate(&mut bytes, &mut state);
        store.replace(&newest.path(names::MANIFEST), &bytes).unwrap();
        let commit = Commit::of(&bytes, newest.generation).to_bytes();
        store.replace(&newest.path(names::COMMIT), &commit).unwrap();
        LARGEST.store(0, Ordering::Relaxed);
        match recover::newest(store.clone(), Verify::Full) {
            Ok(found) => {
                for name in found.checkpoint.manifest().tensors.keys() {
                    found.checkpoint.tensor(name).unwrap();
                }
            }
            Err(Error::NewerSchema { .. }) => {}
            Err(error) => panic!("round {round}: {error}"),
        }
        let largest = LARGEST.load(Ordering::Relaxed);
        assert!(largest < 1 << 20, "round {round}: {largest} bytes were allocated");
    }
}
