//! Ranks that fail in the middle: the others are told, and none of them waits.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_comm::store::{StoreServer, TcpStore, Token};
use regatta_comm::{Rendezvous, Transport};
use regatta_torch::Error;
use regatta_torch::autograd::GradHook;
use regatta_torch::params;

use super::{Net, config, parallel, ranks, samples};

/// A hook of the user's fails on one rank: that rank gets its error, the others learn which rank it was and why.
#[test]
fn a_failure_of_one_ranks_own_is_told_to_the_others() {
    let outcomes = ranks(3, |group| {
        let rank = group.rank();
        let net = Net::new(1);
        let (x, y) = samples(4, rank as i64);
        let weight = params::parameters(&net.vs).remove(2).1;
        let _hook = (rank == 1)
            .then(|| GradHook::register(&weight, 0, |_| Err("a hook of the user's".into())).unwrap());
        let model = parallel(&net, group.within(Duration::from_secs(50)), config())?;
        let began = Instant::now();
        let outcome = model.backward(&net.loss(&x, &y));
        assert!(began.elapsed() < Duration::from_secs(20), "nobody waits for the deadline");
        outcome
    });
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match outcome.unwrap_err() {
            Error::Hook(inner) if rank == 1 => assert_eq!(inner.to_string(), "a hook of the user's"),
            Error::Group(regatta_comm::Error::Aborted { by: 1, reason, .. }) => {
                assert!(reason.contains("a hook of the user's"), "{reason}")
            }
            other => panic!("rank {rank}: {other}"),
        }
    }
}

const WHO: &str = "REGATTA_DDP_RANK";
const WORLD: usize = 3;
const VICTIM: usize = 1;
/// The promise is 250 ms on a host that is not overloaded; this still tells it from a deadline.
const TOLD_WITHIN: f64 = 5.0;

/// Seconds on the clock that all processes share.
fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

fn tell(what: &str) {
    use std::io::Write;
    use std::os::fd::AsFd;
    // Straight to the descriptor: the test harness captures what is printed.
    let mut out = std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned().unwrap());
    out.write_all(format!("\n@ {:.6} {what}\n", now()).as_bytes()).unwrap();
}

/// Not a test of its own: what the processes run. The victim dies in a gradient hook, in the middle of its fourth backward pass.
#[test]
fn child() {
    let Ok(who) = std::env::var(WHO) else { return };
    let (rank, store) = who.split_once(' ').unwrap();
    let rank: usize = rank.parse().unwrap();
    regatta_torch::threads::set(1).unwrap();
    let token = Token::new("a secret of this test");
    let store = Arc::new(TcpStore::new(store, token.clone()));
    let group = Rendezvous::new(store, rank, WORLD).token(token).transport(Transport::Shm).join().unwrap();
    let net = Net::new(rank as i64);
    let pass = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = pass.clone();
    let weight = params::parameters(&net.vs).remove(2).1;
    let _hook = GradHook::register(&weight, 0, move |_| {
        if rank == VICTIM && seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 3 {
            tell("died");
            std::process::abort();
        }
        Ok(())
    })
    .unwrap();
    let model = parallel(&net, group, config()).unwrap();
    let (x, y) = samples(8, rank as i64);
    for step in 0.. {
        match model.backward(&net.loss(&x, &y)) {
            Ok(()) => assert!(step < 3, "a pass without the victim succeeded"),
            Err(Error::Group(regatta_comm::Error::PeerLost { rank: VICTIM, .. })) => return tell("lost"),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_rank_that_dies_in_backward_is_named_to_the_others_at_once() {
    let token = Token::new("a secret of this test");
    let store = StoreServer::start(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), token).unwrap();
    let start = |rank: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["faults::child", "--exact", "--nocapture"])
            .env(WHO, format!("{rank} {}", store.address()))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap()
    };
    let mut children: Vec<_> = (0..WORLD).map(start).collect();
    let told: Vec<(f64, String)> = children
        .iter_mut()
        .map(|child| {
            let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            let line = lines.filter(|l| l.starts_with("@ ")).last().expect("each says how it ended");
            let _ = child.wait();
            let (at, what) = line[2..].split_once(' ').unwrap();
            (at.parse().unwrap(), what.to_owned())
        })
        .collect();
    let died = &told[VICTIM];
    assert_eq!(died.1, "died");
    for (rank, (at, what)) in told.iter().enumerate().filter(|(r, _)| *r != VICTIM) {
        assert_eq!(what, "lost", "rank {rank}");
        assert!(at - died.0 < TOLD_WITHIN, "rank {rank} was told after {:.3} s", at - died.0);
    }
}
