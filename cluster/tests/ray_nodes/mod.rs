//! The nodes of a test cluster of Ray on this host: how to break one, and how to put it back.

#[path = "../host/mod.rs"]
mod host;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) use host::*;
use rustix::process::Signal;

/// The folder of the running cluster.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(std::env::var_os("REGATTA_TEST_RAY").expect("a cluster"))
}

/// The dashboard.
pub(crate) fn address() -> String {
    std::env::var("REGATTA_TEST_RAY_ADDRESS").expect("a cluster")
}

/// What the dashboard says, in its own words.
pub(crate) fn ask(method: &str, path: &str, body: &str) -> String {
    let token = std::env::var("RAY_AUTH_TOKEN").expect("a token");
    let host = address().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Waits until all nodes are up and no placement group is left.
pub(crate) fn all_idle(within: Duration) {
    eventually(within, || {
        let groups = ask("GET", "/api/v0/placement_groups?detail=true", "");
        let held = ["CREATED", "PENDING", "RESCHEDULING"];
        let free = !held.iter().any(|state| groups.contains(&format!("\"state\": \"{state}\"")));
        (up() == 3 && free).then_some(())
    });
}

/// How many nodes are up, as far as the cluster knows.
fn up() -> usize {
    ask("GET", "/api/v0/nodes?detail=true", "").matches("\"state\": \"ALIVE\"").count()
}

/// A node: the session of its daemon, and the workers on it, which have sessions of their own. It is whole again when it is
/// dropped.
pub(crate) struct Node {
    pub(crate) name: String,
    broken: Cell<bool>,
}

impl Node {
    pub(crate) fn find(name: &str) -> Self {
        Self { name: name.to_owned(), broken: Cell::new(false) }
    }

    fn daemon(&self) -> i32 {
        let pid = std::fs::read_to_string(folder().join("pid").join(&self.name)).unwrap();
        pid.trim().parse().unwrap()
    }

    fn processes(&self) -> Vec<i32> {
        let (daemon, mark) = (self.daemon().to_string(), format!("REGATTA_NODE={}", self.name));
        let here = |pid: &i32| {
            let stat = read(*pid, "stat");
            let session = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3));
            session == Some(daemon.as_str())
                || environment_of(*pid).split('\0').any(|variable| variable == mark)
        };
        pids().into_iter().filter(here).collect()
    }

    fn all(&self, what: Signal) {
        // Workers first, so that nothing of the node tells of what befalls them.
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
        if alive(self.daemon()) {
            return;
        }
        // Its second life must not meet its first in a cluster that has not seen the end of that.
        eventually(Duration::from_secs(60), || (up() < 3).then_some(()));
        let script = folder().join(format!("{}.sh", self.name));
        let mut daemon = Command::new("setsid");
        daemon.arg("/bin/sh").arg(script).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut daemon = daemon.spawn().unwrap();
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
