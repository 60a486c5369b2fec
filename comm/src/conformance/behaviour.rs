//! That calls start, finish and fail as promised.

use super::{Make, Values, on_all};
use crate::{Error, ReduceOp};
use std::time::{Duration, Instant};

/// Generous enough for a loaded machine, and still far from a deadline's 60 seconds.
const SOON: Duration = Duration::from_secs(5);

/// Messages of all sizes between all pairs, both ways at once.
pub fn messages_pass(make: &Make) {
    for world in [2, 3, 5] {
        on_all(make, world, |g| {
            let others = || (0..world).filter(|r| *r != g.rank());
            for n in [0, 1, 1000, 30_000] {
                let mail = |from: usize, to: usize| Values::new((from * 100 + to) as u64).some::<i64>(n);
                let sends: Vec<_> =
                    others().map(|to| g.start_send(mail(g.rank(), to), to).expect("a send starts")).collect();
                let mut got = vec![0; n];
                for from in others() {
                    g.recv(&mut got, from).expect("mail comes");
                    assert_eq!(got, mail(from, g.rank()), "{n} from {from}");
                }
                for send in sends {
                    send.wait().expect("mail was taken");
                }
            }
        });
    }
}

/// Started calls finish in order, whoever tests or waits, and give their memory back.
pub fn started_calls_finish(make: &Make) {
    for world in [1, 2, 4] {
        on_all(make, world, |g| {
            let total = (world * (world + 1) / 2) as f32;
            let mine = g.rank() as f32 + 1.0;
            let mut works = Vec::new();
            let mut buckets = Vec::new();
            for i in 0..50 {
                works.push(g.start_all_reduce(vec![mine; 10 + i * 400], ReduceOp::Sum).expect("it starts"));
                if i % 8 == 0 {
                    let mut bucket = g.alloc_bucket(4 * 30_000).expect("memory for a bucket");
                    bucket.as_mut_slice::<f32>().fill(mine);
                    buckets.push(
                        g.start_all_reduce_part::<f32>(bucket, 0..30_000, ReduceOp::Sum).expect("it starts"),
                    );
                }
            }
            let gathered = g.start_all_gather(vec![g.rank() as i32; 3]).expect("it starts");
            let scattered = g.start_reduce_scatter(vec![1i32; 2 * world], ReduceOp::Sum).expect("it starts");
            let spread = g.start_broadcast(vec![g.rank() as u8; 9], world - 1).expect("it starts");
            let turned = g.start_all_to_all(vec![g.rank() as i64; world]).expect("it starts");
            let barrier = g.start_barrier().expect("it starts");
            let started = Instant::now();
            while !barrier.test().expect("it moves") {
                assert!(started.elapsed() < SOON * 4, "testing alone finishes calls");
                std::thread::yield_now();
            }
            barrier.wait().expect("it was finished");
            for (i, work) in works.into_iter().enumerate() {
                assert!(work.test().expect("it moves"), "calls finish in order");
                assert_eq!(work.wait().expect("it finishes"), vec![total; 10 + i * 400]);
            }
            for work in buckets {
                assert!(work.wait().expect("it finishes").as_slice::<f32>().iter().all(|x| *x == total));
            }
            let ranks = || 0..world;
            assert_eq!(
                gathered.wait().expect("it finishes").1,
                ranks().flat_map(|r| [r as i32; 3]).collect::<Vec<_>>()
            );
            assert_eq!(scattered.wait().expect("it finishes").1, vec![world as i32; 2]);
            assert_eq!(spread.wait().expect("it finishes"), vec![world as u8 - 1; 9]);
            assert_eq!(turned.wait().expect("it finishes").1, ranks().map(|r| r as i64).collect::<Vec<_>>());
        });
    }
}

/// The last of many started calls can be waited for first, and dropping one finishes it.
pub fn order_of_waiting_is_free(make: &Make) {
    on_all(make, 3, |g| {
        let mut works: Vec<_> =
            (0..10).map(|i| g.start_all_reduce(vec![i; 5000], ReduceOp::Max).expect("it starts")).collect();
        let last = works.pop().expect("ten were started");
        assert_eq!(last.wait().expect("it finishes"), vec![9; 5000]);
        drop(works);
        g.barrier().expect("the group is fine");
    });
}

/// A split makes groups of those with one color, in the order of their keys; the old group goes on.
pub fn split_groups_work(make: &Make) {
    on_all(make, 5, |g| {
        let even = g.rank() % 2 == 0;
        // Keys turn the order around.
        let part = match g.split(Some(u64::from(even)), (10 - g.rank()) as u64) {
            // Groups made by hand, not by a rendezvous, say that they cannot.
            Err(Error::NotAvailable { .. }) => return,
            part => part.expect("it splits").expect("every rank has a color"),
        };
        assert_eq!(part.world_size(), if even { 3 } else { 2 });
        let mut ranks = vec![0; part.world_size()];
        part.all_gather(&[g.rank() as i32], &mut ranks).expect("the part works");
        assert_eq!(ranks, if even { vec![4, 2, 0] } else { vec![3, 1] });
        let none = g.split((g.rank() == 1).then_some(7), 0).expect("it splits");
        assert_eq!(none.map(|p| p.world_size()), (g.rank() == 1).then_some(1));
        g.barrier().expect("the old group goes on");
    });
}

/// Ranks that call different things all get a typed error, at once.
pub fn mismatches_are_told_to_everyone(make: &Make) {
    type Odd = fn(&crate::ProcessGroup) -> crate::Result<()>;
    let odd: [(&str, Odd); 6] = [
        ("count", |g| g.all_reduce(&mut [0f32; 11], ReduceOp::Sum)),
        ("type", |g| g.all_reduce(&mut [0i32; 10], ReduceOp::Sum)),
        ("operation", |g| g.all_reduce(&mut [0f32; 10], ReduceOp::Max)),
        ("kind", |g| g.broadcast(&mut [0f32; 10], 0)),
        ("barrier", |g| g.barrier()),
        ("size", |g| g.all_reduce(&mut [0f32; 100_000], ReduceOp::Sum)),
    ];
    for (what, odd) in odd {
        let started = Instant::now();
        let ends = on_all(make, 3, |g| {
            g.barrier().expect("all are there");
            let end = match g.rank() {
                1 => odd(&g),
                _ => g.all_reduce(&mut [0f32; 10], ReduceOp::Sum),
            };
            let after = g.barrier();
            assert!(matches!(after, Err(Error::Mismatch { .. })), "{what}: afterwards {after:?}");
            end
        });
        for end in ends {
            assert!(matches!(end, Err(Error::Mismatch { .. })), "{what}: {end:?}");
        }
        assert!(started.elapsed() < SOON, "{what} took {:?}", started.elapsed());
    }
}

/// Wrong arguments are refused before anything is sent.
pub fn arguments_leave_the_group_usable(make: &Make) {
    on_all(make, 2, |g| {
        let other = 1 - g.rank();
        let wrong = [
            g.all_reduce(&mut [true; 3], ReduceOp::Sum),
            g.all_reduce(&mut [1i32; 3], ReduceOp::Mean),
            g.broadcast(&mut [1f32; 3], 2),
            g.all_gather(&[1f32; 3], &mut [0.0; 5]),
            g.reduce_scatter(&[1f32; 5], &mut [0.0; 3], ReduceOp::Sum),
            g.send(&[1f32], g.rank()),
            g.recv(&mut [1f32], 7),
            g.gather(&[1f32], &mut [0.0; 2], other),
        ];
        for (i, end) in wrong.into_iter().enumerate() {
            assert!(
                matches!(&end, Err(e @ Error::InvalidArgument { .. }) if e.leaves_group_usable()),
                "{i}: {end:?}"
            );
        }
        let mut x = [g.rank() as f32];
        g.all_reduce(&mut x, ReduceOp::Sum).expect("the group is fine");
        assert_eq!(x, [1.0]);
    });
}

/// A call that waits in vain ends at its deadline and names who is missing; the others learn of it.
pub fn deadline_names_the_missing(make: &Make) {
    let ends = on_all(make, 3, |g| {
        g.barrier().expect("all are there");
        if g.rank() == 2 {
            // Comes much too late, by the others' clock.
            while g.health().over.is_none() {
                std::thread::yield_now();
            }
            return g.barrier();
        }
        let started = Instant::now();
        let end = g.within(Duration::from_millis(300)).barrier();
        let waited = started.elapsed();
        // Whoever began first gives up for both.
        let early = matches!(end, Err(Error::Deadline { .. })) && waited < Duration::from_millis(290);
        assert!(!early && waited < SOON, "waited {waited:?}");
        end
    });
    assert!(
        ends.iter().any(|e| matches!(e, Err(Error::Deadline { missing, .. }) if missing.contains(&2))),
        "nobody names rank 2: {ends:?}"
    );
    for end in &ends {
        assert!(matches!(end, Err(Error::Deadline { .. } | Error::Aborted { .. })), "{end:?}");
    }
}

/// An abort ends the calls of all ranks, and gives its reason.
pub fn abort_reaches_everyone(make: &Make) {
    let ends = on_all(make, 4, |g| {
        // Rank 3 may be out of it, and end the group, before another has seen that all are there.
        g.barrier()?;
        let started = Instant::now();
        if g.rank() == 3 {
            g.abort("the tide is out");
        }
        let end = g.all_reduce(&mut vec![1f32; 100_000], ReduceOp::Sum);
        assert!(started.elapsed() < SOON, "took {:?}", started.elapsed());
        assert!(g.health().over.is_some());
        end
    });
    for end in ends {
        assert!(
            matches!(&end, Err(Error::Aborted { by: 3, reason, .. }) if reason.contains("the tide is out")),
            "{end:?}"
        );
    }
}

/// A rank that leaves is missed by those who still need it, and by nobody else.
pub fn leaving_is_noticed(make: &Make) {
    on_all(make, 3, |g| {
        g.barrier().expect("all are there");
        if g.rank() == 1 {
            return;
        }
        let started = Instant::now();
        let end = g.barrier();
        assert!(matches!(end, Err(Error::PeerLost { rank: 1, .. })), "{end:?}");
        assert!(started.elapsed() < SOON, "took {:?}", started.elapsed());
    });
}
