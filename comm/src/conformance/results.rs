//! That collectives give what the reference says, for every type, operation, size and world.

use super::{Make, Sample, Values, expected, on_all};
use crate::{DType, Kind, ProcessGroup, ReduceOp};
use half::{bf16, f16};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Elements in a block: none, few, odd, beyond a one-shot message, beyond a slot.
const SIZES: [usize; 6] = [0, 1, 7, 1000, 9_001, 70_001];
const WORLDS: std::ops::RangeInclusive<usize> = 1..=8;

/// The inputs of all ranks for one case; every rank can make them all.
fn inputs<T: Sample>(world: usize, n: usize, seed: u64) -> Vec<Vec<T>> {
    (0..world).map(|r| Values::new(seed ^ (r as u64) << 32).some(n)).collect()
}

fn same<T: Sample>(got: &[T], want: &[T], what: &dyn Fn() -> String) {
    assert_eq!(got.len(), want.len(), "{}", what());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.bits() == w.bits(), "{}: element {i} is {g:?}, not {w:?}", what());
    }
}

/// Calls one collective on `n` elements a block, starting `skew` elements into a vector, and checks it.
fn check<T: Sample>(g: &ProcessGroup, kind: Kind, op: ReduceOp, root: usize, n: usize, skew: usize) {
    let (rank, world) = (g.rank(), g.world_size());
    let wide = matches!(kind, Kind::ReduceScatter | Kind::Scatter | Kind::AllToAll);
    let all = inputs::<T>(world, if wide { n * world } else { n }, n as u64 * 31 + kind as u64);
    let want = expected(kind, op, root, &all, rank);
    // A view that begins anywhere in its memory.
    let shifted = [vec![T::default(); skew], all[rank].clone()].concat();
    let (mut own, mut out) = (shifted.clone(), vec![T::default(); skew + want.len()]);
    let input = &shifted[skew..];
    let place = &mut own[skew..];
    let got: &[T] = match kind {
        Kind::AllReduce => g.all_reduce(place, op).map(|()| &*place),
        Kind::Reduce => g.reduce(place, op, root).map(|()| &*place),
        Kind::Broadcast => g.broadcast(place, root).map(|()| &*place),
        Kind::ReduceScatter => g.reduce_scatter(input, &mut out[skew..], op).map(|()| &out[skew..]),
        Kind::AllGather => g.all_gather(input, &mut out[skew..]).map(|()| &out[skew..]),
        Kind::Gather => g.gather(input, &mut out[skew..], root).map(|()| &out[skew..]),
        Kind::Scatter => {
            let input = if rank == root { input } else { &[] };
            g.scatter(input, &mut out[skew..], root).map(|()| &out[skew..])
        }
        Kind::AllToAll => g.all_to_all(input, &mut out[skew..]).map(|()| &out[skew..]),
        other => panic!("{other:?} is tested elsewhere"),
    }
    .unwrap_or_else(|e| panic!("{kind:?} {} {op} of {n} at rank {rank} of {world}: {e}", T::DTYPE));
    same(got, &want, &|| format!("{kind:?} {} {op} of {n} at rank {rank} of {world}", T::DTYPE));
}

fn reductions<T: Sample>(g: &ProcessGroup) {
    for op in ReduceOp::ALL.into_iter().filter(|op| T::DTYPE.supports(*op)) {
        // The largest size takes other paths than the smaller ones, but not other ones for each operation.
        let sizes = match (op, T::DTYPE) {
            (ReduceOp::Sum, DType::F32) => &SIZES[..],
            (ReduceOp::Sum | ReduceOp::Mean, _) => &SIZES[..5],
            _ => &SIZES[..4],
        };
        for (i, n) in sizes.iter().enumerate() {
            check::<T>(g, Kind::AllReduce, op, 0, *n, i % 3);
            check::<T>(g, Kind::ReduceScatter, op, 0, *n, i % 3);
            check::<T>(g, Kind::Reduce, op, i % g.world_size(), *n, i % 3);
        }
    }
}

/// Every reduction of every type and operation.
pub fn reductions_agree_with_the_reference(make: &Make) {
    for world in WORLDS {
        on_all(make, world, |g| {
            reductions::<f32>(&g);
            reductions::<f64>(&g);
            reductions::<f16>(&g);
            reductions::<bf16>(&g);
            reductions::<i32>(&g);
            reductions::<i64>(&g);
            reductions::<u8>(&g);
            reductions::<bool>(&g);
        });
    }
}

fn copies<T: Sample>(g: &ProcessGroup, sizes: &[usize]) {
    for kind in [Kind::Broadcast, Kind::AllGather, Kind::Gather, Kind::Scatter, Kind::AllToAll] {
        for (i, n) in sizes.iter().enumerate() {
            check::<T>(g, kind, ReduceOp::Sum, i % g.world_size(), *n, i % 3);
        }
    }
}

/// Everything that only moves values.
pub fn copies_agree_with_the_reference(make: &Make) {
    for world in WORLDS {
        on_all(make, world, |g| {
            copies::<f32>(&g, &SIZES);
            copies::<f64>(&g, &SIZES[..5]);
            copies::<f16>(&g, &SIZES[..4]);
            copies::<bf16>(&g, &SIZES[..4]);
            copies::<i32>(&g, &SIZES[..4]);
            copies::<i64>(&g, &SIZES[..4]);
            copies::<u8>(&g, &SIZES[..5]);
            copies::<bool>(&g, &SIZES[..5]);
        });
    }
}

fn buckets<T: Sample>(g: &ProcessGroup) {
    for n in [0, 1, 1000, 60_007] {
        let mut bucket = g.alloc_bucket(n * size_of::<T>()).expect("memory for a bucket");
        assert_eq!(bucket.len(), n * size_of::<T>());
        assert!(bucket.as_slice::<u8>().iter().all(|b| *b == 0), "buckets begin as zero");
        for op in ReduceOp::ALL.into_iter().filter(|op| T::DTYPE.supports(*op)) {
            let all = inputs::<T>(g.world_size(), n, n as u64);
            for part in [0..n, n / 3..n, n / 2..n / 2, 0..n / 2 + n % 2] {
                bucket.as_mut_slice::<T>().copy_from_slice(&all[g.rank()]);
                g.all_reduce_part::<T>(&mut bucket, part.clone(), op).expect("a bucket reduces");
                let mut want = all[g.rank()].clone();
                want[part.clone()]
                    .copy_from_slice(&expected(Kind::AllReduce, op, 0, &all, g.rank())[part.clone()]);
                same(bucket.as_slice(), &want, &|| format!("bucket {} {op} {part:?} of {n}", T::DTYPE));
                // The others may still be comparing what is about to be overwritten.
                g.barrier().expect("all compared");
            }
        }
    }
}

/// Reductions in the group's own memory, whole and in parts.
pub fn buckets_agree_with_the_reference(make: &Make) {
    for world in [1, 2, 3, 8] {
        on_all(make, world, |g| {
            buckets::<f32>(&g);
            buckets::<bf16>(&g);
            buckets::<u8>(&g);
        });
    }
}

/// Random sequences of calls with random sizes, as a property: the reference always agrees.
pub fn random_sequences_agree_with_the_reference(make: &Make) {
    const KINDS: [Kind; 8] = [
        Kind::AllReduce,
        Kind::ReduceScatter,
        Kind::AllGather,
        Kind::Broadcast,
        Kind::Reduce,
        Kind::Gather,
        Kind::Scatter,
        Kind::AllToAll,
    ];
    for seed in 0..6 {
        on_all(make, 2 + seed % 4, |g| {
            // The same on every rank.
            let mut values = Values::new(seed as u64);
            for _ in 0..60 {
                let kind = KINDS[values.below(8) as usize];
                let op = ReduceOp::ALL[values.below(5) as usize];
                let (root, skew) = (values.below(g.world_size() as u64) as usize, values.below(5) as usize);
                let n = match values.below(4) {
                    0 => values.below(40_000) as usize,
                    1 => values.below(5_000) as usize,
                    _ => values.below(100) as usize,
                };
                match values.below(3) {
                    0 => check::<f32>(&g, kind, op, root, n, skew),
                    1 => check::<bf16>(&g, kind, op, root, n, skew),
                    _ => check::<f64>(&g, kind, op, root, n, skew),
                }
            }
        });
    }
}

/// Sums whose value depends on their order are the same bits on every rank and in every run.
pub fn results_are_bit_identical(make: &Make) {
    let sums = |_: usize| {
        on_all(make, 5, |g| {
            let mut bits = Vec::new();
            for n in [3, 999, 50_001] {
                let mut x: Vec<f32> = Values::new(g.rank() as u64).some(n);
                x.iter_mut().for_each(|x| *x = if x.is_nan() { 1e-3 } else { *x * 1.1 });
                let mut bucket = g.alloc_bucket(n * 4).expect("memory for a bucket");
                bucket.as_mut_slice::<f32>().copy_from_slice(&x);
                g.all_reduce(&mut x, ReduceOp::Sum).expect("it sums");
                g.all_reduce_bucket::<f32>(&mut bucket, ReduceOp::Sum).expect("it sums");
                assert_eq!(x, bucket.as_slice::<f32>(), "a bucket and a slice have the same sum");
                bits.extend(x.iter().map(|x| x.to_bits()));
            }
            bits
        })
    };
    let runs: Vec<_> = (0..3).flat_map(sums).collect();
    assert!(runs.iter().all(|bits| *bits == runs[0]), "15 ranks have not the same bits");
}

/// Nobody leaves a barrier before all have come.
pub fn barrier_holds_everyone(make: &Make) {
    for world in WORLDS {
        let come = AtomicUsize::new(0);
        on_all(make, world, |g| {
            for round in 1..=50 {
                come.fetch_add(1, Ordering::SeqCst);
                g.barrier().expect("all come");
                assert!(come.load(Ordering::SeqCst) >= round * world, "left before all had come");
            }
        });
    }
}
