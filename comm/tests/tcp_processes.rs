//! TCP between processes that die or stop: this test binary runs itself again as each rank.

use regatta_comm::store::{StoreServer, TcpStore, Token};
use regatta_comm::{Error, ReduceOp, Rendezvous, Transport};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const RANK: &str = "REGATTA_TEST_RANK";
const STORE: &str = "REGATTA_TEST_STORE";
const WITHIN_MS: &str = "REGATTA_TEST_WITHIN_MS";
const WORLD: usize = 3;

/// Not a test of its own: the body of a rank, if this process is one.
#[test]
fn rank_body() {
    let Ok(rank) = std::env::var(RANK) else { return };
    let token = Token::new("a test's secret");
    let store = Arc::new(TcpStore::new(std::env::var(STORE).unwrap(), token.clone()));
    let within = Duration::from_millis(std::env::var(WITHIN_MS).unwrap().parse().unwrap());
    let who = Rendezvous::new(store, rank.parse().unwrap(), WORLD).token(token).transport(Transport::Tcp);
    let group = who.join().unwrap().within(within);
    let mut data = vec![1f32; 200_000];
    let mut said = std::io::stdout();
    let mut rounds = 0;
    loop {
        let started = Instant::now();
        let end = group.all_reduce(&mut data, ReduceOp::Max);
        rounds += 1;
        if rounds == 3 {
            writeln!(said, "\nthree rounds done").unwrap();
            said.flush().unwrap();
        }
        let text = match end {
            Ok(()) => continue,
            Err(Error::PeerLost { rank, .. }) => format!("lost {rank}"),
            Err(Error::Deadline { missing, .. }) => format!("deadline {missing:?}"),
            Err(Error::Aborted { by, .. }) => format!("aborted {by}"),
            Err(other) => format!("other {other}"),
        };
        writeln!(said, "\n{text} after {}", started.elapsed().as_millis()).unwrap();
        return;
    }
}

struct Rank {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Rank {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the rank ended without saying {text:?}");
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(within: Duration) -> (StoreServer, Vec<Rank>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = StoreServer::start(listener, Token::new("a test's secret")).unwrap();
    let ranks = (0..WORLD)
        .map(|rank| {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "rank_body", "--nocapture"])
                .env(RANK, rank.to_string())
                .env(STORE, server.address().to_string())
                .env(WITHIN_MS, within.as_millis().to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap());
            Rank { child, lines }
        })
        .collect();
    (server, ranks)
}

#[test]
fn tcp_1_every_survivor_of_a_kill_names_the_dead_rank_at_once() {
    for victim in 0..WORLD {
        let (_server, mut ranks) = start(Duration::from_secs(60));
        for rank in &mut ranks {
            rank.wait_for("three rounds done");
        }
        let started = Instant::now();
        ranks[victim].signal("-KILL");
        for (number, rank) in ranks.iter_mut().enumerate().filter(|(number, _)| *number != victim) {
            let line = rank.wait_for(" after ");
            assert!(line.starts_with(&format!("lost {victim} ")), "rank {number}: {line}");
        }
        // One second on a quiet machine, which the benchmark holds; a loaded one gets some more.
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

#[test]
fn tcp_2_a_stopped_rank_ends_the_call_at_the_deadline_and_finds_itself_out_when_it_wakes() {
    let (_server, mut ranks) = start(Duration::from_secs(2));
    for rank in &mut ranks {
        rank.wait_for("three rounds done");
    }
    ranks[1].signal("-STOP");
    for number in [0, 2] {
        let line = ranks[number].wait_for(" after ");
        let honest = line.starts_with("deadline [1]") || line.starts_with("aborted ");
        assert!(honest, "rank {number}: {line}");
    }
    ranks[1].signal("-CONT");
    let line = ranks[1].wait_for(" after ");
    assert!(line.starts_with("aborted ") || line.starts_with("lost "), "the sleeper: {line}");
}
