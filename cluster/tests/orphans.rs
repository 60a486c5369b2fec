//! Invariant I6 for the local spawner: nothing is left behind, whatever ends the driver.
//!
//! The driver under test is this test binary, run again with `REGATTA_TEST_DRIVER` naming what it should do; each of its
//! processes carries a mark of the test's own in the environment, so that leftovers are found wherever they moved.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use regatta_cluster::conformance::{line, sh};
use regatta_cluster::local::{LocalConfig, LocalNode, LocalSpawner, Pinning};
use regatta_cluster::{GangRequest, Launch, Placement, Resources, Spawner};

const ROLE: &str = "REGATTA_TEST_DRIVER";
const MARK: &str = "REGATTA_TEST_MARK";

/// A worker as nasty as can be: ignores SIGTERM, and leaves a child in its group and a daemon out of it.
const FAMILY: &str = "trap '' TERM; sleep 1000 & setsid sh -c 'sleep 1000 & exec sleep 1000' & \
                      setsid sh -c 'exec sleep 1000' & sleep 0.05; echo ready; while :; do sleep 0.2; done";

fn driver_spawner() -> LocalSpawner {
    let nodes = ["a", "b"].map(|name| LocalNode::simulated(name, Resources::cpus(2))).to_vec();
    LocalSpawner::new(LocalConfig { nodes, pinning: Pinning::Never, ..LocalConfig::default() }).unwrap()
}

/// Not a test but the driver: does nothing unless a test below runs it.
#[test]
fn driver() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let spawner = driver_spawner();
    runtime.block_on(async {
        let request = GangRequest::new("g", 3, Resources::cpus(1)).placement(Placement::Spread);
        let lease = spawner.acquire(request).await.unwrap();
        let mut events = spawner.launch(lease.id, Launch::new(sh(FAMILY))).await.unwrap();
        for _ in 0..3 {
            line(&mut events, "ready").await;
        }
        say("all ready");
        match role.as_str() {
            "wait" => std::thread::sleep(Duration::from_secs(600)),
            "exit" => std::process::exit(3),
            "abort" => std::process::abort(),
            "panic" => panic!("as ordered"),
            "drop" => drop(spawner),
            "lose the thread" => {
                spawner.end_spawning_thread();
                std::thread::sleep(Duration::from_secs(600));
            }
            other => unreachable!("{other}"),
        }
    });
}

#[allow(clippy::print_stdout)]
fn say(text: &str) {
    println!("\n{text}");
}

struct Driver {
    child: Child,
    mark: String,
}

impl Driver {
    /// Runs the driver until its workers are ready.
    fn start(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["driver", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(MARK, &mark)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let ready = stdout.lines().map_while(Result::ok).any(|line| line == "all ready");
        assert!(ready, "the driver did not get its workers");
        Self { child, mark }
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// The processes that carry the mark, other than the driver itself.
    fn family(&self) -> Vec<String> {
        let marker = format!("{MARK}={}", self.mark);
        let carries = |path: &Path| {
            let environ = std::fs::read(path.join("environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
        };
        let processes = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| carries(&entry.path()));
        let names = processes.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|pid| *pid != self.pid()).collect()
    }

    /// The control groups its spawner made, if it could.
    fn groups(&self) -> Vec<PathBuf> {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("").to_owned();
        let folders = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|mount| Path::new(mount).join(&own));
        let inside = folders.iter().flat_map(std::fs::read_dir).flatten().flatten();
        let prefix = format!("regatta-{}-", self.pid());
        inside
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect()
    }

    /// All of them are gone, soon, and their control groups.
    fn nothing_is_left(self, within: Duration) {
        let start = Instant::now();
        while !self.family().is_empty() {
            let left = self.family();
            assert!(
                start.elapsed() < within,
                "left behind after {within:?}: {:?}",
                left.iter().map(|p| name(p)).collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        while !self.groups().is_empty() {
            assert!(start.elapsed() < within, "left behind after {within:?}: {:?}", self.groups());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name(pid: &str) -> String {
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid}: {}", command.replace('\0', " "))
}

fn signal(pid: &str, signal: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_driver_killed_with_9_leaves_nothing() {
    let driver = Driver::start("wait");
    assert!(
        driver.family().len() >= 12,
        "the test must see workers, their children and daemons: {:?}",
        driver.family()
    );
    signal(&driver.pid(), "-KILL");
    driver.nothing_is_left(SOON);
}

#[test]
fn however_a_driver_ends_it_leaves_nothing() {
    for role in ["exit", "abort", "panic", "drop"] {
        Driver::start(role).nothing_is_left(SOON);
    }
}

#[test]
fn a_terminated_or_crashed_driver_leaves_nothing() {
    for how in ["-TERM", "-ILL"] {
        let driver = Driver::start("wait");
        signal(&driver.pid(), how);
        driver.nothing_is_left(SOON);
    }
}

/// The sentinel alone may stay: it serves a driver that lives.
#[test]
fn a_lost_spawning_thread_takes_every_worker_along() {
    let driver = Driver::start("lose the thread");
    let start = Instant::now();
    while driver.family().iter().any(|pid| !name(pid).contains("driver")) {
        assert!(start.elapsed() < SOON, "left behind: {:?}", driver.family());
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(&driver.pid(), "-KILL");
    driver.nothing_is_left(SOON);
}

/// Each line of defence holds the workers by itself: without the sentinel the kernel still kills them.
#[test]
fn without_its_sentinel_a_driver_still_takes_its_workers_along() {
    let mut driver = Driver::start("wait");
    let sentinel =
        driver.family().into_iter().find(|pid| name(pid).contains("driver")).expect("there is a sentinel");
    let workers: Vec<String> = driver.family().into_iter().filter(|pid| name(pid).contains("trap")).collect();
    signal(&sentinel, "-KILL");
    signal(&driver.pid(), "-KILL");
    let start = Instant::now();
    while driver.family().iter().any(|pid| workers.contains(pid)) {
        assert!(start.elapsed() < SOON, "workers left behind");
        std::thread::sleep(Duration::from_millis(2));
    }
    // What no defence was left for goes by hand, and the empty control groups by the next spawner.
    driver.family().iter().for_each(|pid| drop(Command::new("kill").args(["-KILL", pid]).status()));
    while !driver.family().is_empty() {
        assert!(start.elapsed() < SOON, "killed by hand and still there");
        std::thread::sleep(Duration::from_millis(2));
    }
    driver.child.wait().unwrap();
    drop(driver_spawner());
    driver.nothing_is_left(SOON);
}

/// I6 over many rounds; `REGATTA_I6_ROUNDS=200` for the long run.
#[test]
fn nothing_is_left_behind_round_after_round() {
    let rounds = std::env::var("REGATTA_I6_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let make = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The first runtime opens what all of the process's runtimes share and keep.
    drop(make());
    let before = files();
    let runtime = make();
    let spawner = driver_spawner();
    let within = files();
    for round in 0..rounds {
        if round % 4 == 3 {
            let driver = Driver::start("wait");
            std::thread::sleep(Duration::from_millis(u64::from(round % 7)));
            signal(&driver.pid(), "-KILL");
            driver.nothing_is_left(SOON);
            continue;
        }
        let mark = format!("round-{round}-{}", std::process::id());
        runtime.block_on(one_round(&spawner, round, &mark));
        assert_eq!(marked(&mark), Vec::<String>::new(), "round {round}");
        assert!(spawner.nodes().iter().all(|node| node.free == node.total), "round {round}");
    }
    assert!(files() <= within, "descriptors leak: {} where there were {within}", files());
    drop(spawner);
    drop(runtime);
    assert!(files() <= before, "descriptors leak: {} where there were {before}", files());
}

/// A nasty gang, ended in one of three ways.
async fn one_round(spawner: &LocalSpawner, round: u32, mark: &str) {
    let lease = spawner.acquire(GangRequest::new("g", 2, Resources::cpus(1))).await.unwrap();
    let end = if round.is_multiple_of(4) { "exit 5" } else { "while :; do sleep 0.2; done" };
    let script = FAMILY.replace("while :; do sleep 0.2; done", end);
    let launch = Launch::new(sh(&script).env("REGATTA_TEST_ROUND", mark));
    let mut events = spawner.launch(lease.id, launch).await.unwrap();
    line(&mut events, "ready").await;
    match round % 4 {
        0 => while events.next().await.is_some() {},
        1 => spawner.kill(lease.id, Duration::from_millis(20)).await.unwrap(),
        _ => {}
    }
    spawner.release(lease.id).await.unwrap();
}

fn marked(mark: &str) -> Vec<String> {
    let marker = format!("REGATTA_TEST_ROUND={mark}");
    let carries = |pid: &String| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(carries)
        .map(|pid| name(&pid))
        .collect()
}
