//! The TCP back end: results, failures, strangers.

use regatta_comm::store::{MemoryStore, Token};
use regatta_comm::{Error, ProcessGroup, ReduceOp, Rendezvous, Transport};
use std::sync::Arc;
use std::time::Duration;

/// Runs `body` as each rank of a world connected over TCP.
fn run<T: Send>(world: usize, body: impl Fn(ProcessGroup) -> T + Sync) -> Vec<T> {
    let store = Arc::new(MemoryStore::default());
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world)
            .map(|rank| {
                let who = Rendezvous::new(store.clone(), rank, world)
                    .transport(Transport::Tcp)
                    .within(Duration::from_secs(30));
                let body = &body;
                scope.spawn(move || body(who.join().unwrap()))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn sums_of_every_size() {
    for world in 1..=5 {
        run(world, |g| {
            for n in [0usize, 1, 7, 1000, 5000, 70_000, 300_001, 1_000_003] {
                let mut x: Vec<f32> = (0..n).map(|i| (g.rank() + 1) as f32 * (i % 7) as f32).collect();
                g.all_reduce(&mut x, ReduceOp::Sum).unwrap();
                let ranks = (world * (world + 1) / 2) as f32;
                assert!(x.iter().enumerate().all(|(i, v)| *v == ranks * (i % 7) as f32), "{world} {n}");
            }
            let r = g.all_reduce(&mut vec![0f32; 1 + g.rank()], ReduceOp::Sum);
            assert!(world == 1 || matches!(r, Err(Error::Mismatch { .. })), "{r:?}");
        });
    }
    let _ = Token::insecure("x");
}
