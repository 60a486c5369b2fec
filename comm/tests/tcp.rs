//! The TCP back end: the same bits as any other, and what becomes of a group when something goes wrong.

mod tcp_common;

use regatta_comm::{Call, DType, Error, Kind, ProcessGroup, ReduceOp, Region, thread};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tcp_common::{Rewritten, Treatment, join, run, who};

/// Values that sums of a few stay exact enough to compare, and inexact enough that their order shows.
fn bytes_of(dtype: DType, count: usize, seed: u64) -> Vec<u64> {
    let mut bytes = Vec::with_capacity(count * dtype.size());
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = (state % 2001) as f64 / 7.0 - 140.0;
        match dtype {
            DType::F32 => bytes.extend((value as f32).to_le_bytes()),
            DType::F64 => bytes.extend(value.to_le_bytes()),
            DType::F16 => bytes.extend(half::f16::from_f64(value).to_le_bytes()),
            DType::BF16 => bytes.extend(half::bf16::from_f64(value).to_le_bytes()),
            DType::I32 => bytes.extend((state as i32).to_le_bytes()),
            DType::I64 => bytes.extend((state as i64).to_le_bytes()),
            DType::U8 => bytes.push(state as u8),
            DType::Bool => bytes.push((state & 1) as u8),
        }
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
}

/// The region of the first `bytes` of memory that lives through the call.
fn region(memory: &mut [u64], bytes: usize) -> Region {
    // SAFETY: the memory is the caller's own until the call has returned.
    unsafe { Region::new(memory.as_mut_ptr().cast(), bytes) }
}

/// Every collective once; all outputs.
fn everything(group: &ProcessGroup, dtype: DType, op: ReduceOp, count: usize) -> Vec<Vec<u64>> {
    let (rank, world, root) = (group.rank(), group.world_size(), group.world_size() - 1);
    let kinds = [
        Kind::AllReduce,
        Kind::ReduceScatter,
        Kind::AllGather,
        Kind::Broadcast,
        Kind::Reduce,
        Kind::Gather,
        Kind::Scatter,
        Kind::AllToAll,
        Kind::Barrier,
    ];
    let mut outputs = Vec::new();
    for kind in kinds {
        let count = if kind == Kind::Barrier { 0 } else { count };
        let call = Call::new(kind, dtype, count).op(op).root(root);
        let (reads, writes) = call.blocks(rank, world);
        let mut input = bytes_of(dtype, count * reads, (rank * 31 + kind as usize) as u64 + 1);
        let mut output = vec![0; (count * writes * dtype.size()).div_ceil(8)];
        let from = region(&mut input, count * reads * dtype.size());
        let to = region(&mut output, count * writes * dtype.size());
        let ticket = group.submit(call.memory(from, to)).unwrap();
        group.wait(ticket).unwrap();
        outputs.push(output);
    }
    outputs
}

#[test]
fn tcp_5_every_collective_has_the_same_bits_as_over_threads() {
    for world in [1, 2, 3, 5] {
        for (dtype, op, count) in [
            (DType::F32, ReduceOp::Sum, 20_001),
            (DType::F32, ReduceOp::Mean, 7),
            (DType::F16, ReduceOp::Mean, 30_003),
            (DType::BF16, ReduceOp::Sum, 1000),
            (DType::F64, ReduceOp::Product, 9_001),
            (DType::I32, ReduceOp::Sum, 3),
            (DType::I64, ReduceOp::Min, 0),
            (DType::U8, ReduceOp::Max, 70_007),
            (DType::Bool, ReduceOp::Min, 13),
        ] {
            let ours = run(world, |group| everything(&group, dtype, op, count));
            let theirs = Mutex::new(vec![Vec::new(); world]);
            thread::run(world, |group| {
                theirs.lock().unwrap()[group.rank()] = everything(&group, dtype, op, count);
            });
            assert!(ours == theirs.into_inner().unwrap(), "{world} ranks, {op} of {count} {dtype}");
        }
    }
}

#[test]
fn reductions_in_place_at_the_edges_of_pieces() {
    const PIECE: usize = 256 << 10;
    run(3, |group| {
        for bytes in [16 << 10, 32 << 10, 33 << 10, 3 * PIECE - 64, 3 * PIECE, 3 * PIECE + 4, 7 * PIECE + 12]
        {
            let mut data: Vec<i32> = (0..bytes as i32 / 4).map(|i| i ^ group.rank() as i32).collect();
            let sum: Vec<i32> = (0..bytes as i32 / 4).map(|i| i + (i ^ 1) + (i ^ 2)).collect();
            group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            assert!(data == sum, "{bytes}");
            let mut data: Vec<i32> = (0..bytes as i32 / 4).map(|i| i ^ group.rank() as i32).collect();
            group.reduce(&mut data, ReduceOp::Sum, 1).unwrap();
            assert!(group.rank() != 1 || data == sum, "{bytes}");
            group.broadcast(&mut data, 1).unwrap();
            assert!(data == sum, "{bytes}");
        }
    });
}

#[test]
fn started_calls_overlap_and_finish_in_order() {
    run(3, |group| {
        let works: Vec<_> = (0..20)
            .map(|i| group.start_all_reduce(vec![i as f64; 1 + i * 5000], ReduceOp::Sum).unwrap())
            .collect();
        for (i, work) in works.into_iter().enumerate() {
            assert_eq!(work.wait().unwrap(), vec![3.0 * i as f64; 1 + i * 5000]);
        }
    });
}

#[test]
fn sends_wait_for_no_collective_and_keep_their_order() {
    run(3, |group| {
        let (next, previous) = ((group.rank() + 1) % 3, (group.rank() + 2) % 3);
        let collective = (group.rank() == 0).then(|| group.start_barrier().unwrap());
        let small = group.start_send(vec![group.rank() as i32], next).unwrap();
        let large = group.start_send(vec![group.rank() as i64; 300_000], next).unwrap();
        let mut one = [0i32];
        group.recv(&mut one, previous).unwrap();
        let many = group.start_recv(vec![0i64; 300_000], previous).unwrap().wait().unwrap();
        assert_eq!(one, [previous as i32]);
        assert!(many.iter().all(|v| *v == previous as i64));
        small.wait().unwrap();
        large.wait().unwrap();
        let collective = collective.unwrap_or_else(|| group.start_barrier().unwrap());
        collective.wait().unwrap();
    });
}

#[test]
fn a_mismatch_is_told_to_all_ranks_at_once() {
    type Body = fn(&ProcessGroup) -> Result<(), Error>;
    let wrong: [Body; 4] = [
        |g| g.all_reduce(&mut [0f32; 8], ReduceOp::Max),
        |g| g.all_reduce(&mut [0f64; 8], ReduceOp::Sum),
        |g| g.all_reduce(&mut [0f32; 9], ReduceOp::Sum),
        |g| g.broadcast(&mut [0f32; 8], 0),
    ];
    for odd in wrong {
        let started = Instant::now();
        for result in run(3, |group| match group.rank() {
            2 => odd(&group),
            _ => group.all_reduce(&mut [0f32; 8], ReduceOp::Sum),
        }) {
            assert!(matches!(result, Err(Error::Mismatch { .. })), "{result:?}");
        }
        assert!(started.elapsed() < Duration::from_secs(15));
    }
    for result in run(2, |group| match group.rank() {
        0 => group.send(&[1f32, 2.0], 1).and_then(|()| group.barrier()),
        _ => group.recv(&mut [0f64; 2], 0),
    }) {
        assert!(matches!(result, Err(Error::Mismatch { .. })), "{result:?}");
    }
}

#[test]
fn tcp_1_all_survivors_learn_who_left_and_the_group_stays_over() {
    let results = run(4, |group| {
        if group.rank() == 1 {
            return None;
        }
        let (started, first) = (Instant::now(), group.all_reduce(&mut [0f32; 100_000], ReduceOp::Sum));
        let waited = started.elapsed();
        assert!(group.barrier().is_err() && group.health().over.is_some());
        Some((first, waited))
    });
    for (result, waited) in results.into_iter().flatten() {
        assert!(matches!(result, Err(Error::PeerLost { rank: 1, generation: 0, .. })), "{result:?}");
        assert!(waited < Duration::from_secs(10), "{waited:?}");
    }
}

#[test]
fn a_rank_that_leaves_after_its_last_call_disturbs_nobody() {
    for _ in 0..20 {
        for result in run(3, |group| group.all_reduce(&mut [1f32; 50_000], ReduceOp::Sum)) {
            result.unwrap();
        }
    }
}

#[test]
fn tcp_2_a_rank_that_does_not_come_is_named_at_the_deadline() {
    let results = run(3, |group| {
        group.barrier().unwrap();
        if group.rank() == 2 {
            // Stays connected, and waits for the others' verdict without taking part.
            loop {
                match group.health().over {
                    Some(over) => return Err(over),
                    None => std::thread::yield_now(),
                }
            }
        }
        let within = if group.rank() == 0 { Duration::from_millis(300) } else { Duration::from_secs(30) };
        let error = group.within(within).barrier().unwrap_err();
        Ok((group.rank(), error))
    });
    for result in results {
        match result {
            Ok((0, error)) => {
                assert!(
                    matches!(&error, Error::Deadline { rank: 0, missing, .. } if *missing == [2]),
                    "{error}"
                );
            }
            Ok((_, error)) => assert!(matches!(error, Error::Aborted { by: 0, .. }), "{error}"),
            Err(over) => assert!(over.contains("[2]"), "{over}"),
        }
    }
}

#[test]
fn an_abort_wakes_every_waiting_rank_with_its_reason() {
    let results = run(3, |group| {
        if group.rank() == 1 {
            group.abort("the loss is not a number");
        }
        group.barrier()
    });
    for result in results {
        let Err(Error::Aborted { by: 1, reason, .. }) = result else { panic!("{result:?}") };
        assert_eq!(reason, "the loss is not a number");
    }
}

#[test]
fn an_abort_from_another_thread_ends_a_waiting_call() {
    run(2, |group| {
        group.barrier().unwrap();
        if group.rank() == 1 {
            let handle = group.clone();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| group.barrier());
                handle.abort("enough");
                assert!(matches!(waiting.join().unwrap(), Err(Error::Aborted { .. })));
            });
        } else {
            assert!(matches!(group.recv(&mut [0u8], 1), Err(Error::Aborted { by: 1, .. })));
        }
    });
}

/// Two ranks with something between them; what an all_reduce of 4 MB came to on each.
fn through(treatment: Treatment, within: Duration) -> Vec<Result<Vec<f32>, Error>> {
    let store = Rewritten::new(treatment);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..2)
            .map(|rank| {
                let store = store.clone();
                scope.spawn(move || {
                    let group = join(store, rank, 2)?.within(within);
                    let mut data = vec![1f32; 1 << 20];
                    let outcome = group.all_reduce(&mut data, ReduceOp::Sum).map(|()| data);
                    // Nobody leaves before both have their own outcome.
                    if outcome.is_ok() { group.barrier().and(outcome) } else { outcome }
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn a_relay_between_ranks_changes_nothing() {
    for result in through(Treatment::Relay, Duration::from_secs(60)) {
        assert_eq!(result.unwrap(), vec![2f32; 1 << 20]);
    }
}

#[test]
fn tcp_3_a_flipped_bit_anywhere_is_corruption_and_never_a_value() {
    for at in [0, 5, 17, 33, 41, 47, 48, 1000, 200_000] {
        let results = through(Treatment::Flip(at), Duration::from_secs(60));
        for result in &results {
            let Err(error) = result else { panic!("byte {at} was believed") };
            assert!(matches!(error, Error::Corrupt { .. }), "byte {at}: {error}");
        }
    }
}

#[test]
fn a_cut_in_the_middle_of_a_frame_is_a_lost_peer() {
    for result in through(Treatment::Cut(100_000), Duration::from_secs(60)) {
        assert!(matches!(result, Err(Error::PeerLost { .. })), "{result:?}");
    }
}

#[test]
fn tcp_2_a_half_open_connection_ends_at_the_deadline() {
    let started = Instant::now();
    let results = through(Treatment::Swallow(100_000), Duration::from_millis(500));
    assert!(results.iter().any(|r| matches!(r, Err(Error::Deadline { .. }))), "{results:?}");
    for result in results {
        assert!(matches!(result, Err(Error::Deadline { .. } | Error::Aborted { .. })), "{result:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn tcp_4_strangers_get_nothing_and_hold_nobody_up() {
    let store = Rewritten::new(Treatment::Strangers);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let store = store.clone();
            scope.spawn(move || join(store, rank, 2).unwrap().barrier().unwrap());
        }
    });
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "the silent ones would have held it up for five seconds"
    );
    let heard = store.heard();
    assert!(heard.iter().all(|bytes| *bytes <= 40), "a stranger heard more than the challenge: {heard:?}");
    assert_eq!(heard.len(), 6);
}

#[test]
fn tcp_4_a_wrong_token_is_denied() {
    use regatta_comm::store::Token;
    let store = Rewritten::new(Treatment::None);
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| who(store.clone(), 0, 2).within(Duration::from_secs(2)).join());
        let imposter = who(store.clone(), 1, 2).token(Token::new("guess")).join().unwrap_err();
        assert!(matches!(imposter, Error::Denied { .. }), "{imposter}");
        let error = honest.join().unwrap().unwrap_err();
        assert!(matches!(&error, Error::Deadline { missing, .. } if *missing == [1]), "{error}");
    });
}

#[test]
fn a_rank_of_an_older_generation_is_excluded_and_the_new_one_forms() {
    let store = Rewritten::new(Treatment::None);
    std::thread::scope(|scope| {
        let of = |rank: usize, generation: u64| {
            let mut who = who(store.clone(), rank, 2);
            who.generation = generation;
            who
        };
        let first = scope.spawn({
            let who = of(0, 7);
            move || who.join().unwrap().barrier().unwrap()
        });
        store.copy_when_there("world/g7/tcp/0", "world/g6/tcp/0");
        let zombie = of(1, 6).join().unwrap_err();
        assert!(matches!(zombie, Error::Excluded { rank: 1, generation: 6, .. }), "{zombie}");
        let group = of(1, 7).join().unwrap();
        assert_eq!(group.generation(), 7);
        group.barrier().unwrap();
        first.join().unwrap();
    });
}
