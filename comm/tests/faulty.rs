//! The decorator that fails on demand: each fault does what it says, and nothing more.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_comm::store::{StoreServer, TcpStore, Token};
use regatta_comm::{Error, Fault, Faulty, ProcessGroup, ReduceOp, Rendezvous, Result, Transport, thread};

const STORE: &str = "REGATTA_FAULTY_STORE";

/// Sums of one rank after another call, where rank 1's call number `at` meets `fault`.
fn sums(fault: Fault, at: u64) -> Vec<Result<Vec<i32>>> {
    thread::run(2, |group| {
        let rank = group.rank();
        let group =
            group.wrap(|inner| Faulty::new(inner, move |n, _| (rank == 1 && n == at).then_some(fault)));
        (0..3)
            .map(|_| {
                let work = group.start_all_reduce(vec![1, 2, rank as i32], ReduceOp::Sum)?;
                Ok(work.wait()?[2])
            })
            .collect()
    })
}

#[test]
fn a_delayed_call_is_late_and_right() {
    let delay = Duration::from_millis(80);
    let started = Instant::now();
    for sums in sums(Fault::Delay(delay), 1) {
        assert_eq!(sums.unwrap(), [1, 1, 1]);
    }
    assert!(started.elapsed() >= delay);
}

#[test]
fn a_corrupted_call_differs_on_its_rank_alone() {
    let [first, second] = sums(Fault::Corrupt, 1).try_into().unwrap();
    assert_eq!(first.unwrap(), [1, 1, 1]);
    // The last byte of the output, one bit of it.
    assert_eq!(second.unwrap(), [1, 1 ^ (0x10 << 24), 1]);
}

fn group(rank: usize, store: &str) -> ProcessGroup {
    let token = Token::new("a secret of this test");
    let who = Rendezvous::new(Arc::new(TcpStore::new(store, token.clone())), rank, 2);
    who.token(token).transport(Transport::Shm).join().expect("both join")
}

/// Not a test of its own: the process that dies.
#[test]
fn child() {
    let Ok(store) = std::env::var(STORE) else { return };
    let group = group(1, &store).wrap(|inner| Faulty::new(inner, |n, _| (n == 2).then_some(Fault::Die)));
    loop {
        group.barrier().expect("rank 0 goes on");
    }
}

#[test]
fn a_dying_rank_is_gone_before_its_call() {
    let server =
        StoreServer::start(TcpListener::bind("127.0.0.1:0").unwrap(), Token::new("a secret of this test"));
    let server = server.unwrap();
    let store = server.address().to_string();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--test-threads=1"])
        .env(STORE, &store)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let group = group(0, &store);
    group.barrier().unwrap();
    group.barrier().unwrap();
    let end = group.barrier().unwrap_err();
    assert!(matches!(end, Error::PeerLost { rank: 1, .. }), "{end}");
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}
