//! The power goes at every file operation of a save: the checkpoint before or the new one is there, whole; and the new
//! one if it was acknowledged.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use common::*;
use regatta_checkpoint::fs::Fs;
use regatta_checkpoint::fs::sim::{Fault, Loss, SimFs};
use regatta_checkpoint::store::FileStore;
use regatta_checkpoint::*;

/// Tells when a rank has written its part and waits for the others, so that the ranks can be made to run one after
/// the other: the same operations in the same order every time.
struct Stepped {
    inner: LocalGroup,
    waiting: Arc<AtomicU32>,
}

impl Coordinator for Stepped {
    fn rank(&self) -> u32 {
        self.inner.rank()
    }

    fn world_size(&self) -> u32 {
        self.inner.world_size()
    }

    fn gather(&self, key: &str, message: Vec<u8>, deadline: Instant) -> Result<Vec<Vec<u8>>> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.inner.gather(key, message, deadline)
    }

    fn broadcast(&self, key: &str, message: Vec<u8>, deadline: Instant) -> Result<Vec<u8>> {
        self.inner.broadcast(key, message, deadline)
    }
}

struct Group {
    savers: Vec<Saver>,
    waiting: Arc<AtomicU32>,
}

fn store_on(disk: &SimFs) -> Arc<dyn Store> {
    // Small writes, so that a shard takes several.
    Arc::new(FileStore::on(disk.clone()).with_chunk(700))
}

fn build(disk: &SimFs, world: u32) -> Result<Group> {
    let waiting = Arc::new(AtomicU32::new(0));
    let ranks = LocalGroup::new(world)
        .into_iter()
        .map(|inner| Arc::new(Stepped { inner, waiting: waiting.clone() }) as Arc<dyn Coordinator>)
        .collect();
    let config = SaverConfig { retention: Retention::last(1), ..config() };
    Ok(Group { savers: build_all(&config, &store_on(disk), ranks)?, waiting })
}

/// Saves with one rank after the other, `first` first. Says whether any rank was told of success.
fn save(group: &mut Group, step: u64, first: u32) -> bool {
    let world = group.savers.len() as u32;
    group.waiting.store(0, Ordering::SeqCst);
    let mut tickets = Vec::new();
    for turn in 0..world {
        let rank = (first + turn) % world;
        tickets.push(start(&mut group.savers[rank as usize], step, rank, world).unwrap());
        wait_until("a rank's part", || group.waiting.load(Ordering::SeqCst) == turn + 1);
    }
    let acknowledged = tickets.into_iter().map(|ticket| ticket.wait(LIMIT).is_ok()).collect::<Vec<_>>();
    group.savers.iter().for_each(|saver| saver.finish(LIMIT).unwrap());
    acknowledged.contains(&true)
}

fn losses() -> Vec<Loss> {
    let seeds = std::env::var("REGATTA_CRASH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    [Loss::All, Loss::Nothing].into_iter().chain((0..seeds).map(Loss::Some)).collect()
}

/// Whatever was lost: the old or the new one loads, whole, and a successor saves on and leaves nothing torn.
fn assert_recovers(crashed: &SimFs, loss: Loss, old: &[u64], new: u64, acknowledged: bool, context: &str) {
    let disk = crashed.after_power_cut(loss);
    let context = format!("{context}, {loss:?}");
    let found = match recover::newest(store_on(&disk), Verify::Full) {
        Ok(found) => found,
        Err(error) => {
            assert!(old.is_empty() && !acknowledged, "{context}: {error}");
            return;
        }
    };
    let step = found.checkpoint.manifest().step;
    assert!(found.damaged.is_empty(), "{context}: {:?}", found.damaged);
    assert!(step == new || Some(&step) == old.last(), "{context}: found step {step}");
    assert!(step == new || !acknowledged, "{context}: step {new} was acknowledged, found step {step}");
    assert_whole(&found.checkpoint);

    let mut successor = build(&disk, 1).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(save(&mut successor, new + 1, 0), "{context}: {:?}", successor.savers[0].stats());
    let listed = catalog::list(&*store_on(&disk)).unwrap();
    assert!(listed.iter().all(|folder| folder.status.word() == "committed"), "{context}: {listed:?}");
    assert!(listed.len() <= 3, "{context}: {listed:?}");
}

fn crash_everywhere(world: u32, first: u32) {
    // The first run tells how many operations there are; every later one loses power at one of them.
    let mut total = usize::MAX;
    let mut cut = 0;
    while cut < total {
        let disk = SimFs::new();
        let mut group = build(&disk, world).unwrap();
        // Two before, of which the retention of the third removes one: that is cut at every operation, too.
        assert!(save(&mut group, 1, first) && save(&mut group, 2, first));
        let before = disk.operations().len();
        if total != usize::MAX {
            disk.inject(before + cut, Fault::PowerCut);
        }
        let acknowledged = save(&mut group, 3, first);
        if total == usize::MAX {
            assert!(acknowledged);
            total = disk.operations().len() - before;
            assert!(total > 20, "a save has {total} operations");
            continue;
        }
        let operation = disk.operations().last().unwrap().clone();
        drop(group);
        for loss in losses() {
            let context = format!("{world} ranks, power cut at operation {cut} of {total} ({operation})");
            assert_recovers(&disk, loss, &[1, 2], 3, acknowledged, &context);
        }
        cut += 1;
    }
}

#[test]
fn power_cut_at_every_operation_1_rank() {
    crash_everywhere(1, 0);
}

#[test]
fn power_cut_at_every_operation_2_ranks() {
    crash_everywhere(2, 0);
    crash_everywhere(2, 1);
}

#[test]
fn power_cut_at_every_operation_4_ranks() {
    crash_everywhere(4, 1);
}

#[test]
fn power_cut_at_every_operation_of_the_first_save_and_before() {
    let total = {
        let disk = SimFs::new();
        let mut group = build(&disk, 1).unwrap();
        assert!(save(&mut group, 1, 0));
        disk.operations().len()
    };
    for cut in 0..total {
        let disk = SimFs::new();
        disk.inject(cut, Fault::PowerCut);
        let acknowledged = build(&disk, 1).is_ok_and(|mut group| save(&mut group, 1, 0));
        for loss in losses() {
            assert_recovers(
                &disk,
                loss,
                &[],
                1,
                acknowledged,
                &format!("first save, power cut at {cut} of {total}"),
            );
        }
    }
}

#[test]
fn an_error_at_every_operation_fails_the_save_and_nothing_else() {
    use std::io::ErrorKind;
    for kind in [ErrorKind::StorageFull, ErrorKind::Other, ErrorKind::ReadOnlyFilesystem] {
        for world in [1, 2] {
            let mut operation = 0;
            loop {
                let disk = SimFs::new();
                let mut group = build(&disk, world).unwrap();
                assert!(save(&mut group, 1, 0));
                disk.inject(disk.operations().len() + operation, Fault::Error(kind));
                let before = disk.operations().len();
                let acknowledged = save(&mut group, 2, 0);
                if disk.operations().len() <= before + operation {
                    assert!(acknowledged && operation > 15);
                    break;
                }
                // It is the same saver that goes on.
                let found = recover::newest(store_on(&disk), Verify::Full).unwrap();
                assert_eq!(
                    found.checkpoint.manifest().step,
                    if acknowledged { 2 } else { 1 },
                    "operation {operation}"
                );
                assert!(save(&mut group, 3, 0), "operation {operation}: {:?}", group.savers[0].stats());
                let listed = catalog::list(&*store_on(&disk)).unwrap();
                assert!(
                    listed.iter().all(|folder| folder.status.word() == "committed"),
                    "{operation}: {listed:?}"
                );
                operation += 1;
            }
        }
    }
}

#[test]
fn short_writes_are_continued() {
    let disk = SimFs::new();
    let mut group = build(&disk, 1).unwrap();
    for operation in disk.operations().len()..disk.operations().len() + 12 {
        disk.inject(operation, Fault::ShortWrite);
    }
    assert!(save(&mut group, 1, 0));
    assert_whole(&recover::newest(store_on(&disk), Verify::Full).unwrap().checkpoint);
}

#[test]
fn what_is_on_the_disk_after_a_failed_save_is_what_was_before() {
    let disk = SimFs::new();
    let mut group = build(&disk, 1).unwrap();
    assert!(save(&mut group, 1, 0));
    let before = disk.list("checkpoints").unwrap();
    let writes = disk.operations().len() + 3;
    disk.inject(writes, Fault::Error(std::io::ErrorKind::StorageFull));
    assert!(!save(&mut group, 2, 0));
    assert_eq!(disk.list("checkpoints").unwrap(), before);
    assert!(group.savers[0].stats().last_failure.unwrap().contains("free some space"));
}
