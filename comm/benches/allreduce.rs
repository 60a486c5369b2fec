//! All-reduce between processes of this host, f32 sums: the contestant that `cargo xtask bench comm` asks.
//!
//! It reads case names from stdin, like `shm2_1MB`, `staged2_64KB`, `shm4_resnet18` or `tcp2_16MB`, and answers each with a line
//! `{"us", "bound_us"}`: the time of one call on the slowest rank, median over repeats, and for two ranks in shared memory what the same bytes
//! take at this machine's streaming bandwidth. It is its own ranks: for each transport and world it is executed again, once a rank, and
//! these wait in a read between the cases.

#[path = "allreduce/bound.rs"]
mod bound;
#[path = "allreduce/crew.rs"]
mod crew;

use crew::{Crew, Outcome, RANK};
use regatta_comm::{Bucket, ProcessGroup, ReduceOp, Transport};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

/// PyTorch DDP's buckets of ResNet-18's gradients, in bytes.
const RESNET18: [usize; 3] = [2_052_000, 28_852_224, 15_853_824];
/// Sizes by name: the parts of one call, and how many calls are timed together.
const SIZES: [(&str, &[usize], usize); 6] = [
    ("1KB", &[1 << 10], 2000),
    ("64KB", &[64 << 10], 500),
    ("1MB", &[1 << 20], 60),
    ("16MB", &[16 << 20], 5),
    ("100MB", &[100_000_000], 1),
    ("resnet18", &RESNET18, 2),
];
const REPEATS: usize = 5;

fn main() -> Outcome<()> {
    match std::env::var(RANK) {
        Ok(rank) => be_rank(&rank),
        // `cargo bench` and `cargo test` pass flags of their own; only what stdin asks is measured.
        Err(_) => be_contestant(),
    }
}

fn be_contestant() -> Outcome<()> {
    let mut crews: HashMap<(String, usize), Crew> = HashMap::new();
    for case in std::io::stdin().lines() {
        let case = case?;
        let (kind, size) = case.trim().split_once('_').ok_or("a case is like shm2_1MB")?;
        let (how, world) = kind.split_at(kind.len() - 1);
        let world: usize = world.parse()?;
        let transport = if how == "tcp" { "tcp" } else { "shm" };
        let crew = match crews.entry((transport.into(), world)) {
            std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                // The ranks inherit it.
                let memory = bound::share()?;
                free.insert(Crew::start(world, &format!("{transport} {}", bound::number(&memory)))?)
            }
        };
        let answer = crew.ask(&format!("{how} {size}"))?;
        let mut out = std::io::stdout().lock();
        write!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn be_rank(who: &str) -> Outcome<()> {
    let (place, more) = crew::place(who)?;
    let [transport, memory] = more[..] else { return Err("two more words say how it is measured".into()) };
    let (rank, world) = (place.rank, place.world_size);
    let transport: Transport = transport.parse()?;
    let group = place.transport(transport).join()?;
    if std::thread::available_parallelism()?.get() >= world {
        bound::pin(rank);
    }
    let arena = bound::Arena::map(memory, rank)?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (how, size) = line.split_once(' ').ok_or("two words say what is asked")?;
        let answer = measure(&group, &arena, how, size)?;
        if rank == 0 {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{answer}")?;
            out.flush()?;
        }
    }
    Ok(())
}

/// The median over the repeats of the slowest rank's time for one of `calls` calls, in microseconds.
fn time(
    group: &ProcessGroup,
    calls: usize,
    mut call: impl FnMut() -> regatta_comm::Result<()>,
) -> Outcome<f64> {
    let mut times = Vec::new();
    for repeat in 0..REPEATS + 2 {
        group.barrier()?;
        let started = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        let mut slowest = [started.elapsed().as_secs_f64() * 1e6 / calls as f64];
        group.all_reduce(&mut slowest, ReduceOp::Max)?;
        if repeat >= 2 {
            times.push(slowest[0]);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn measure(group: &ProcessGroup, arena: &bound::Arena, how: &str, size: &str) -> Outcome<Value> {
    let (_, parts, calls) = SIZES.into_iter().find(|(name, ..)| *name == size).ok_or("no such size")?;
    let group = &group.within(Duration::from_secs(120));
    let us = if how == "shm" {
        let mut buckets: Vec<Bucket> =
            parts.iter().map(|n| group.alloc_bucket(*n)).collect::<regatta_comm::Result<_>>()?;
        for bucket in &mut buckets {
            bucket.as_mut_slice::<f32>().fill(1e-30);
        }
        time(group, calls, || reduce_buckets(group, &mut buckets))?
    } else {
        let mut tensors: Vec<Vec<f32>> = parts.iter().map(|n| vec![1e-30; n / 4]).collect();
        time(group, calls, || tensors.iter_mut().try_for_each(|t| group.all_reduce(t, ReduceOp::Sum)))?
    };
    let total: usize = parts.iter().sum();
    if group.world_size() != 2 || how == "tcp" {
        return Ok(json!({"us": us}));
    }
    let bound = time(group, calls, || {
        arena.stream(total, false);
        Ok(())
    })?;
    let bypassing = time(group, calls, || {
        arena.stream(total, true);
        Ok(())
    })?;
    Ok(json!({"us": us, "bound_us": bound.min(bypassing)}))
}

fn reduce_buckets(group: &ProcessGroup, buckets: &mut Vec<Bucket>) -> regatta_comm::Result<()> {
    if let [bucket] = &mut buckets[..] {
        return group.all_reduce_bucket::<f32>(bucket, ReduceOp::Sum);
    }
    let works = buckets
        .drain(..)
        .map(|b| {
            let count = b.len() / 4;
            group.start_all_reduce_part::<f32>(b, 0..count, ReduceOp::Sum)
        })
        .collect::<regatta_comm::Result<Vec<_>>>()?;
    for work in works {
        buckets.push(work.wait()?);
    }
    Ok(())
}
