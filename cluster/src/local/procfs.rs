//! What `/proc` knows of a worker's processes: how much memory they use, which of them remain, which have slipped away.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use rustix::process::{Pid, Signal, kill_process};

/// Memory of a process and all its descendants: private memory of each, and shared memory once, since a gang's workers all
/// map the same segments.
pub(super) fn memory_of_tree(pid: u32) -> u64 {
    let (mut private, mut shared) = (0, 0);
    let mut open = vec![pid];
    // A bound, should numbers be reused while we walk.
    for _ in 0..10_000 {
        let Some(pid) = open.pop() else { break };
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let kib = |field: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(field))?;
            value.split_whitespace().next()?.parse::<u64>().ok()
        };
        private += kib("RssAnon:").unwrap_or(0) + kib("VmSwap:").unwrap_or(0);
        shared = shared.max(kib("RssShmem:").unwrap_or(0));
        open.extend(children(pid));
    }
    (private + shared) * 1024
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of_thread = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("children")).ok();
    let lists: Vec<String> = threads.flatten().filter_map(of_thread).collect();
    lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The state letter and the process group of a process.
fn state_and_group(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may itself hold brackets and blanks.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(1)?.parse().ok()?))
}

/// Whether a process of this group still lives; zombies do not.
pub(super) fn group_lives(group: u32) -> bool {
    let Some(pid) = Pid::from_raw(group as i32) else { return false };
    rustix::process::test_kill_process_group(pid).is_ok()
        && processes().any(|pid| {
            state_and_group(pid).is_some_and(|(state, its)| its == group && !matches!(state, 'Z' | 'X'))
        })
}

/// Kills every process whose environment has this variable, wherever it has moved: a daemon has left its group and parent,
/// but carries the mark. Whether there was one.
pub(super) fn kill_marked(name: &str, value: &str) -> bool {
    let marker = format!("{name}={value}");
    let marked = |pid: &u32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == std::ffi::OsStr::new(&marker).as_bytes())
    };
    let mut found = false;
    for pid in processes().filter(marked) {
        found |= Pid::from_raw(pid as i32).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
    }
    found
}
