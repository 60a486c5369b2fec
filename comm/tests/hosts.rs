//! Two hosts on this machine: network namespaces with a wire between them that can be slowed down and cut, in one direction too.
//! This test binary runs itself again as each rank, and as the store.
//!
//! Skipped, and said so, unless run as root with `ip`, `tc`, `nsenter` and `unshare`. Nothing outside of the namespaces changes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_comm::store::{StoreServer, TcpStore, Token};
use regatta_comm::{Error, ReduceOp, Reform, Rendezvous};

const ROLE: &str = "REGATTA_TEST_ROLE";
const STORE: &str = "REGATTA_TEST_STORE";
const WORLD: &str = "REGATTA_TEST_WORLD";
/// The address of each host.
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
/// The deadline of a collective.
const WITHIN: Duration = Duration::from_secs(3);
const NUMBERS: usize = 1 << 20;

fn token() -> Token {
    Token::new("a test's secret")
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\n: {text}").unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: the body of a process on a host, if this one is one.
#[test]
fn body() {
    match std::env::var(ROLE) {
        Ok(role) if role == "store" => {
            let listener = TcpListener::bind((ADDRESSES[0], 0)).unwrap();
            let server = StoreServer::start(listener, token()).unwrap();
            say(&server.address().to_string());
            // Until the test lets go of its end.
            std::io::stdin().read_line(&mut String::new()).unwrap();
        }
        Ok(rank) => rank_body(rank.parse().unwrap()),
        Err(_) => {}
    }
}

/// Does what the test says on its input, line by line.
fn rank_body(rank: usize) {
    let number = |name: &str| std::env::var(name).unwrap().parse::<usize>().unwrap();
    let store = Arc::new(TcpStore::new(std::env::var(STORE).unwrap(), token()));
    let who = Rendezvous::new(store, rank, number(WORLD)).token(token()).within(Duration::from_secs(20));
    let mut group = who.join().unwrap().within(WITHIN);
    say(&format!("joined over {}", group.backend_name()));
    for order in std::io::stdin().lines() {
        let started = Instant::now();
        let said = match order.unwrap().as_str() {
            "sum" => {
                let mut data: Vec<f32> = (0..NUMBERS).map(|at| ((at * 7 + rank) % 13) as f32).collect();
                match group.all_reduce(&mut data, ReduceOp::Sum) {
                    Ok(()) => {
                        let bytes: Vec<u8> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
                        format!("sum {}", blake3::hash(&bytes).to_hex())
                    }
                    Err(error) => format!("failed {} ({error})", kind(&error)),
                }
            }
            "reform" => {
                match group.reform(&Reform { at_least: number(WORLD) / 2 + 1, ..Reform::default() }) {
                    Ok(next) => {
                        group = next.within(WITHIN);
                        format!("goes on as rank {} of {}", group.rank(), group.world_size())
                    }
                    Err(error) => format!("stays behind {} ({error})", kind(&error)),
                }
            }
            other => panic!("{other}"),
        };
        say(&format!("{said} after {} ms", started.elapsed().as_millis()));
    }
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::PeerLost { .. } => "lost",
        Error::Deadline { .. } => "deadline",
        Error::Aborted { .. } => "aborted",
        Error::Excluded { .. } => "excluded",
        Error::Store { .. } => "store",
        _ => "otherwise",
    }
}

/// What the sum of all ranks has to be.
fn expected(world: usize) -> String {
    let sum = |at: usize| (0..world).map(|rank| ((at * 7 + rank) % 13) as f32).sum::<f32>();
    let bytes: Vec<u8> = (0..NUMBERS).flat_map(|at| sum(at).to_le_bytes()).collect();
    format!("sum {}", blake3::hash(&bytes).to_hex())
}

/// A process that ends with the test.
struct Process {
    child: Child,
    orders: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

impl Process {
    fn start(mut command: Command) -> Process {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Process { orders: child.stdin.take(), child, lines }
    }

    fn order(&mut self, what: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{what}").unwrap();
    }

    /// What it says next. Its own deadlines are this test's: it says something, or ends.
    fn says(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "it ended without a word");
            if let Some(said) = line.strip_prefix(": ") {
                return said.trim().to_owned();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two namespaces and the wire between them. All of it goes with the processes that hold it.
struct Hosts([Process; 2]);

impl Hosts {
    /// Lays the wire, or says why the test is skipped.
    fn new() -> Option<Hosts> {
        let missing = |tool: &&&str| {
            let path = std::env::var("PATH").unwrap_or_default();
            !path.split(':').any(|folder| Path::new(folder).join(tool).exists())
        };
        if let Some(tool) = ["ip", "tc", "nsenter", "unshare"].iter().find(missing) {
            eprintln!("skipped: there is no `{tool}`");
            return None;
        }
        let holder = || {
            let mut command = Command::new("unshare");
            Process::start({
                command.args([
                    "--net",
                    "sh",
                    "-c",
                    "ip link set lo up && echo ': up' && exec cat >/dev/null",
                ]);
                command
            })
        };
        let may = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
        if !may.is_ok_and(|status| status.success()) {
            eprintln!("skipped: network namespaces are for root");
            return None;
        }
        let mut hosts = Hosts([holder(), holder()]);
        for host in &mut hosts.0 {
            assert_eq!(host.says(), "up");
        }
        let other = hosts.0[1].child.id().to_string();
        hosts.run(0, &["ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", &other]);
        for (host, address) in ADDRESSES.iter().enumerate() {
            hosts.run(host, &["ip", "address", "add", &format!("{address}/24"), "dev", "wire"]);
            hosts.run(host, &["ip", "link", "set", "wire", "up"]);
        }
        Some(hosts)
    }

    fn on(&self, host: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0[host].child.id())).arg(program);
        command
    }

    fn run(&self, host: usize, words: &[&str]) -> String {
        let said = self.on(host, words[0]).args(&words[1..]).output().unwrap();
        assert!(said.status.success(), "{words:?}: {}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap()
    }

    fn myself(&self, host: usize, role: &str) -> Command {
        let mut command = self.on(host, std::env::current_exe().unwrap().to_str().unwrap());
        command.args(["--exact", "body", "--nocapture"]).env(ROLE, role).env("MASTER_ADDR", ADDRESSES[0]);
        command
    }

    /// A store on the first host, and as many ranks on each as it says, joined.
    fn crew(&self, on_each: [usize; 2]) -> (Process, Vec<Process>) {
        let mut store = Process::start(self.myself(0, "store"));
        let address = store.says();
        let world = on_each[0] + on_each[1];
        let mut ranks: Vec<Process> = (0..world)
            .map(|rank| {
                let mut command = self.myself(usize::from(rank >= on_each[0]), &rank.to_string());
                command.env(STORE, &address).env(WORLD, world.to_string());
                Process::start(command)
            })
            .collect();
        let over = if on_each[0] == on_each[1] && on_each[0] > 1 { "hier" } else { "tcp" };
        for rank in &mut ranks {
            assert_eq!(rank.says(), format!("joined over {over}"));
        }
        (store, ranks)
    }

    /// Bytes that left each host.
    fn sent(&self) -> [u64; 2] {
        [0, 1].map(|host| {
            let told = self.run(host, &["cat", "/proc/net/dev"]);
            let wire = told.lines().find_map(|line| line.trim().strip_prefix("wire:")).expect("the wire");
            wire.split_whitespace().nth(8).and_then(|bytes| bytes.parse().ok()).expect("its bytes")
        })
    }

    /// What this host sends is heard by nobody; it hears all.
    fn mute(&self, host: usize) {
        let other = ADDRESSES[1 - host];
        self.run(
            host,
            &[
                "ip",
                "neigh",
                "replace",
                other,
                "lladdr",
                "02:00:00:00:00:99",
                "dev",
                "wire",
                "nud",
                "permanent",
            ],
        );
    }

    fn heal(&self, host: usize) {
        self.run(host, &["ip", "neigh", "del", ADDRESSES[1 - host], "dev", "wire"]);
    }
}

fn all_say(ranks: &mut [Process]) -> Vec<String> {
    ranks.iter_mut().map(Process::says).collect()
}

#[test]
fn a_large_sum_crosses_the_wire_once_for_a_host_and_is_right() {
    let Some(hosts) = Hosts::new() else { return };
    let (_store, mut ranks) = hosts.crew([2, 2]);
    let before = hosts.sent();
    ranks.iter_mut().for_each(|rank| rank.order("sum"));
    for said in all_say(&mut ranks) {
        assert!(said.starts_with(&expected(4)), "{said}");
    }
    let bytes = (NUMBERS * 4) as f64;
    for (host, (after, before)) in hosts.sent().into_iter().zip(before).enumerate() {
        // Each host sends its half of the sums' parts, and then its half of the sums; once for a rank would be twice that.
        let times = (after - before) as f64 / bytes;
        eprintln!("host {host} sent {times:.2} times the numbers");
        assert!((0.9..1.3).contains(&times), "host {host}: {times:.2}");
    }
}

#[test]
fn a_slow_wire_is_slow_and_no_failure() {
    let Some(hosts) = Hosts::new() else { return };
    let (_store, mut ranks) = hosts.crew([2, 2]);
    for host in 0..2 {
        let slow = "tc qdisc replace dev wire root tbf rate 50mbit burst 64kb latency 200ms";
        hosts.run(host, &slow.split(' ').collect::<Vec<_>>());
    }
    ranks.iter_mut().for_each(|rank| rank.order("sum"));
    for said in all_say(&mut ranks) {
        assert!(said.starts_with(&expected(4)), "{said}");
        // Four megabytes at 50 Mbit/s take 0.67 s, or the wire is not slow.
        let took: u64 = said.rsplit(' ').nth(1).unwrap().parse().unwrap();
        assert!(took >= 500, "{said}");
    }
}

/// TCP-2 over hosts: every rank's call ends by its deadline, also on the side that still hears the other.
#[test]
fn a_wire_that_is_cut_in_one_direction_ends_the_call_on_both_sides() {
    let Some(hosts) = Hosts::new() else { return };
    for mute in 0..2 {
        let (_store, mut ranks) = hosts.crew([2, 2]);
        hosts.mute(mute);
        let since = Instant::now();
        ranks.iter_mut().for_each(|rank| rank.order("sum"));
        for said in all_say(&mut ranks) {
            assert!(said.starts_with("failed "), "{said}");
        }
        assert!(since.elapsed() < WITHIN * 4, "{:?}", since.elapsed());
        hosts.heal(mute);
    }
}

/// The majority, which has the store, agrees on who goes on. The minority never gets as far as a group that could commit, not
/// while it is cut off, and not when it is back.
#[test]
fn the_minority_of_a_partition_cannot_go_on() {
    let Some(hosts) = Hosts::new() else { return };
    let (_store, mut ranks) = hosts.crew([2, 1]);
    hosts.mute(0);
    hosts.mute(1);
    ranks.iter_mut().for_each(|rank| rank.order("sum"));
    for said in all_say(&mut ranks) {
        assert!(said.starts_with("failed "), "{said}");
    }
    ranks.iter_mut().for_each(|rank| rank.order("reform"));
    let (majority, minority) = ranks.split_at_mut(2);
    for (rank, said) in all_say(majority).into_iter().enumerate() {
        assert!(said.starts_with(&format!("goes on as rank {rank} of 2")), "{said}");
    }
    let cut_off = minority[0].says();
    assert!(cut_off.starts_with("stays behind "), "{cut_off}");
    majority.iter_mut().for_each(|rank| rank.order("sum"));
    for said in all_say(majority) {
        assert!(said.starts_with(&expected(2)), "{said}");
    }
    hosts.heal(0);
    hosts.heal(1);
    minority[0].order("reform");
    let back = minority[0].says();
    assert!(back.starts_with("stays behind excluded"), "{back}");
    majority.iter_mut().for_each(|rank| rank.order("sum"));
    for said in all_say(majority) {
        assert!(said.starts_with(&expected(2)), "{said}");
    }
}
