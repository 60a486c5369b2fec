//! All-reduces of f32 that travel as bf16, against a plain reference.

mod tcp_common;

use half::bf16;
use regatta_comm::conformance::join_all;
use regatta_comm::store::MemoryStore;
use regatta_comm::tcp::Wire;
use regatta_comm::{Error, ProcessGroup, ReduceOp};
use std::sync::Arc;
use std::time::Duration;

fn make(world: usize) -> Vec<ProcessGroup> {
    let store = Arc::new(MemoryStore::default());
    join_all(world, |rank| tcp_common::who(store.clone(), rank, world).wire(Wire::Bf16).join())
}

fn value(rank: usize, i: usize) -> f32 {
    ((i * 2_654_435_761 + rank * 40_503) % 20_011) as f32 * 0.001 - 10.0
}

/// Rounded, summed in f32 in rank order, rounded once.
fn reference(world: usize, n: usize, op: ReduceOp) -> Vec<u32> {
    let one = |i: usize| {
        let mut sum = bf16::from_f32(value(0, i)).to_f32();
        for rank in 1..world {
            sum += bf16::from_f32(value(rank, i)).to_f32();
        }
        if op == ReduceOp::Mean {
            sum *= 1.0 / world as f32;
        }
        bf16::from_f32(sum).to_f32().to_bits()
    };
    (0..n).map(one).collect()
}

#[test]
fn every_rank_has_the_bits_of_the_reference_at_every_size() {
    for world in [1, 2, 3] {
        std::thread::scope(|scope| {
            for group in make(world) {
                scope.spawn(move || {
                    for n in [0, 1, 5, 1000, 33_000, 300_001] {
                        for op in [ReduceOp::Sum, ReduceOp::Mean] {
                            let mut data: Vec<f32> = (0..n).map(|i| value(group.rank(), i)).collect();
                            group.all_reduce(&mut data, op).unwrap();
                            let bits: Vec<u32> = data.iter().map(|x| x.to_bits()).collect();
                            assert!(bits == reference(world, n, op), "{op} of {n} by {world}");
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn other_types_and_calls_stay_exact() {
    std::thread::scope(|scope| {
        for group in make(2) {
            scope.spawn(move || {
                let third = 1.0 / 3.0;
                let mut long = [third; 3];
                group.all_reduce(&mut long, ReduceOp::Sum).unwrap();
                assert_eq!(long, [2.0 * third; 3]);
                let mut told = [third as f32; 3];
                group.broadcast(&mut told, 1).unwrap();
                assert_eq!(told, [third as f32; 3]);
            });
        }
    });
}

#[test]
fn ranks_that_disagree_do_not_meet() {
    let store = Arc::new(MemoryStore::default());
    let ends = std::thread::scope(|scope| {
        let ranks = [Wire::Exact, Wire::Bf16].into_iter().enumerate().map(|(rank, wire)| {
            let who = tcp_common::who(store.clone(), rank, 2).wire(wire).within(Duration::from_secs(2));
            scope.spawn(move || who.join().map(|_| ()))
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(matches!(ends[1], Err(Error::Denied { .. })), "{ends:?}");
    assert!(ends[0].is_err(), "{ends:?}");
}
