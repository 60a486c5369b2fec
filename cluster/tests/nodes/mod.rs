//! The nodes of a test cluster on this host: how to break one, and how to put it back.

#[path = "../host/mod.rs"]
mod host;

use std::cell::Cell;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) use host::*;
use rustix::process::Signal;

fn run_folder() -> PathBuf {
    PathBuf::from(std::env::var_os("REGATTA_TEST_SLURM").expect("a cluster"))
}

/// What one of Slurm's tools says.
pub(crate) fn tool(name: &str, args: &[&str]) -> String {
    let said = Command::new(name).args(args).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
}

/// Waits until no job and no broken node is left.
pub(crate) fn all_idle(within: Duration) {
    let since = Instant::now();
    while tool("sinfo", &["-h", "-N", "-p", "main", "-t", "idle", "-o", "%N"]).lines().count() != 3 {
        let left = || [tool("sinfo", &["-N", "-l"]), tool("squeue", &["-l"])].concat();
        assert!(since.elapsed() < within, "not all nodes are idle within {within:?}:\n{}", left());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends what a test before may have left, so that a failure is one test's alone; a node that was taken out of service for a
/// process that would not die comes back.
pub(crate) fn settle(within: Duration) {
    tool("scancel", &["--me"]);
    tool("scontrol", &["update", "NodeName=n[1-3]", "State=RESUME"]);
    all_idle(within);
}

/// A node: its daemon, with what is needed to start that again. It is whole again when it is dropped.
pub(crate) struct Node {
    pub(crate) name: String,
    broken: Cell<bool>,
    daemon: i32,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Node {
    pub(crate) fn find(name: &str) -> Self {
        let daemon = std::fs::read_to_string(run_folder().join("pid").join(name)).unwrap();
        let daemon = daemon.trim().parse().unwrap();
        let parts = |what| -> Vec<String> {
            read(daemon, what).split('\0').filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let variable =
            |text: String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let variables = parts("environ").into_iter().filter_map(variable).collect();
        Self {
            name: name.to_owned(),
            broken: Cell::new(false),
            daemon,
            arguments: parts("cmdline"),
            variables,
        }
    }

    /// Its daemon, and every process of every job on it, with those that watch over them.
    fn processes(&self) -> Vec<i32> {
        let mark = format!("SLURMD_NODENAME={}", self.name);
        let here = |pid: &i32| environment_of(*pid).split('\0').any(|variable| variable == mark);
        let mut found: Vec<i32> = pids().into_iter().filter(here).collect();
        let watchers: Vec<i32> = found.iter().filter_map(|pid| parent(*pid)).collect();
        found.extend(watchers.into_iter().filter(|pid| read(*pid, "comm").starts_with("slurmstepd")));
        found.push(self.daemon);
        found
    }

    fn all(&self, what: Signal) {
        // Watchers first, so that none of them tells of what befalls the others.
        for pid in self.processes().into_iter().rev() {
            signal(pid, what);
        }
    }

    /// The power goes.
    pub(crate) fn kill(&self) {
        self.broken.set(true);
        self.all(Signal::KILL);
    }

    /// Everything stands still, and every connection stays open.
    pub(crate) fn stop(&self) {
        self.broken.set(true);
        self.all(Signal::STOP);
    }

    /// Goes on, or boots again.
    pub(crate) fn restore(&self) {
        self.broken.set(false);
        self.all(Signal::CONT);
        if alive(self.daemon) {
            return;
        }
        let mut daemon = Command::new(&self.arguments[0]);
        daemon.args(&self.arguments[1..]).env_clear().envs(self.variables.iter().cloned());
        let mut daemon =
            daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::fs::write(run_folder().join("pid").join(&self.name), daemon.id().to_string()).unwrap();
        std::thread::spawn(move || daemon.wait());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.broken.get() {
            self.restore();
        }
    }
}
