//! This host's processes, for tests that break clusters which stand on it.
#![allow(dead_code, reason = "the tests of each cluster use a part of it")]

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Waits until there is something.
pub(crate) fn eventually<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        match look() {
            Some(found) => return found,
            None if since.elapsed() > within => panic!("it did not happen within {within:?}"),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

pub(crate) fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

pub(crate) fn read(pid: i32, what: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default()).into_owned()
}

pub(crate) fn environment_of(pid: i32) -> String {
    read(pid, "environ")
}

pub(crate) fn parent(pid: i32) -> Option<i32> {
    let status = read(pid, "status");
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

pub(crate) fn alive(pid: i32) -> bool {
    let stat = read(pid, "stat");
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Waits until none of the processes is left.
pub(crate) fn gone(pids: &[i32], within: Duration) {
    eventually(within, || (!pids.iter().any(|pid| alive(*pid))).then_some(()));
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        kill_process(pid, signal).ok();
    }
}
