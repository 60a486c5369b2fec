//! The back end of several hosts with several ranks each, on one machine: the ranks say which host they are on.

use regatta_comm::conformance::{self, join_all, on_all};
use regatta_comm::store::{MemoryStore, Store};
use regatta_comm::{Error, ProcessGroup, ReduceOp, Rendezvous, Transport, thread};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Hosts of two ranks each; the last has one if the world is odd, and then all goes over TCP.
fn make(world: usize) -> Vec<ProcessGroup> {
    on_hosts(world, |rank| rank / 2)
}

fn on_hosts(world: usize, host: impl Fn(usize) -> usize + Sync) -> Vec<ProcessGroup> {
    let store = Arc::new(MemoryStore::new());
    join_all(world, |rank| {
        let transport = Transport::Hier(Some(format!("host {}", host(rank))));
        Rendezvous::new(store.clone(), rank, world).transport(transport).join()
    })
}

regatta_comm::conformance_tests!(make);

#[test]
fn the_back_end_fits_where_the_ranks_are() {
    let name = |groups: Vec<ProcessGroup>| groups[0].backend_name();
    assert_eq!(name(on_hosts(4, |rank| rank / 2)), "hier");
    assert_eq!(name(on_hosts(2, |_| 0)), "shm");
    assert_eq!(name(on_hosts(3, |rank| rank / 2)), "tcp", "unequal hosts");
    assert_eq!(name(on_hosts(4, |rank| rank % 2)), "tcp", "ranks not in a row");
    let store = Arc::new(MemoryStore::new());
    let groups =
        join_all(2, |rank| Rendezvous::new(store.clone(), rank, 2).transport(Transport::Hier(None)).join());
    assert_eq!(name(groups), "shm", "found out");
}

/// Large calls of all kinds that take the hierarchical way; their results as bits.
fn large(group: &ProcessGroup) -> Vec<Vec<u64>> {
    use conformance::{Sample, Values};
    use half::{bf16, f16};
    fn one<T: Sample>(group: &ProcessGroup, n: usize, op: ReduceOp, root: usize) -> Vec<Vec<u64>> {
        let mut data: Vec<T> = Values::new(group.rank() as u64 + 1).some(n);
        let mut all = vec![T::default(); n * group.world_size()];
        group.all_gather(&data, &mut all).unwrap();
        group.all_reduce(&mut data, op).unwrap();
        let mut told: Vec<T> = Values::new(group.rank() as u64 + 9).some(n);
        group.broadcast(&mut told, root).unwrap();
        [data, all, told].map(|v| v.into_iter().map(Sample::bits).collect()).into()
    }
    let mut results = one::<f32>(group, 300_001, ReduceOp::Sum, 3);
    results.extend(one::<f32>(group, 20_000, ReduceOp::Mean, 0));
    results.extend(one::<f64>(group, 30_001, ReduceOp::Mean, 1));
    results.extend(one::<f16>(group, 50_003, ReduceOp::Mean, 2));
    results.extend(one::<bf16>(group, 50_001, ReduceOp::Sum, 2));
    results.extend(one::<i64>(group, 10_001, ReduceOp::Max, 1));
    results
}

#[test]
fn large_calls_have_the_same_bits_as_over_threads() {
    for hosts in [2, 3] {
        let world = 2 * hosts;
        let ours = on_all(&make, world, |group| {
            assert_eq!(group.backend_name(), "hier");
            large(&group)
        });
        let theirs = Mutex::new(vec![Vec::new(); world]);
        thread::run(world, |group| theirs.lock().unwrap()[group.rank()] = large(&group));
        assert!(ours == theirs.into_inner().unwrap(), "{hosts} hosts");
    }
}

#[test]
fn every_survivor_learns_in_the_ranks_of_the_whole_who_left_in_the_middle() {
    let ends = on_all(&make, 4, |group| {
        group.barrier().unwrap();
        if group.rank() == 2 {
            return None;
        }
        let started = Instant::now();
        let end = group.all_reduce(&mut vec![1f32; 500_000], ReduceOp::Sum);
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        Some(end)
    });
    for end in ends.into_iter().flatten() {
        assert!(matches!(end, Err(Error::PeerLost { rank: 2, .. })), "{end:?}");
    }
}

#[test]
fn a_large_call_that_others_do_not_make_is_a_mismatch_or_names_the_missing() {
    let ends = on_all(&make, 4, |group| match group.rank() {
        3 => group.broadcast(&mut vec![1f32; 500_000], 0),
        _ => group.all_reduce(&mut vec![1f32; 500_000], ReduceOp::Sum),
    });
    for end in ends {
        assert!(matches!(end, Err(Error::Mismatch { .. })), "{end:?}");
    }
    let ends = on_all(&make, 4, |group| {
        group.barrier().unwrap();
        if group.rank() == 1 {
            while group.health().over.is_none() {
                std::thread::yield_now();
            }
            return None;
        }
        Some(group.within(Duration::from_millis(400)).all_reduce(&mut vec![1f32; 500_000], ReduceOp::Sum))
    });
    let ends: Vec<_> = ends.into_iter().flatten().collect();
    assert!(
        ends.iter().any(|e| matches!(e, Err(Error::Deadline { missing, .. }) if *missing == [1])),
        "{ends:?}"
    );
    for end in ends {
        assert!(matches!(end, Err(Error::Deadline { .. } | Error::Aborted { .. })), "{end:?}");
    }
}

/// A store in which ranks but the first of a host are sent to a socket that is not there, so that no descriptor is passed.
#[derive(Debug, Default)]
struct NoPassing(MemoryStore);

impl Store for NoPassing {
    fn get(&self, key: &str, within: Duration) -> regatta_comm::Result<Option<Vec<u8>>> {
        self.0.get(key, within)
    }
    fn set(&self, key: &str, value: &[u8], within: Duration) -> regatta_comm::Result<()> {
        if !key.contains("host0") || !key.ends_with("/shm") {
            return self.0.set(key, value, within);
        }
        let host = String::from_utf8(value.to_vec()).unwrap();
        let (boot, _) = host.split_once('\n').unwrap();
        self.0.set(key, format!("{boot}\nregatta-nobody-listens").as_bytes(), within)
    }
    fn lease(&self, key: &str, value: &[u8], ttl: Duration, within: Duration) -> regatta_comm::Result<()> {
        self.0.lease(key, value, ttl, within)
    }
    fn wait(&self, key: &str, within: Duration) -> regatta_comm::Result<Vec<u8>> {
        self.0.wait(key, within)
    }
    fn add(&self, key: &str, delta: i64, within: Duration) -> regatta_comm::Result<i64> {
        self.0.add(key, delta, within)
    }
    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        within: Duration,
    ) -> regatta_comm::Result<Vec<u8>> {
        self.0.compare_set(key, expected, new, within)
    }
    fn delete(&self, key: &str, within: Duration) -> regatta_comm::Result<bool> {
        self.0.delete(key, within)
    }
}

#[test]
fn where_one_host_cannot_share_memory_all_ranks_of_all_hosts_go_over_tcp() {
    let store = Arc::new(NoPassing::default());
    let groups = join_all(4, |rank| {
        let transport = Transport::Hier(Some(format!("host {}", rank / 2)));
        let who = Rendezvous::new(store.clone(), rank, 4).transport(transport);
        who.within(Duration::from_secs(10)).join()
    });
    assert!(groups.iter().all(|group| group.backend_name() == "tcp"));
    std::thread::scope(|scope| {
        for group in groups {
            scope.spawn(move || {
                let mut sum = [group.rank() as i64; 3];
                group.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
                assert_eq!(sum, [6; 3]);
            });
        }
    });
}
