//! Control groups (version 2), where this driver may make them: a worker's whole family in one place that none can leave.
//!
//! They add to what works everywhere: `cgroup.kill` reaches even a daemon that wiped its environment, and where the memory
//! controller is delegated the kernel itself holds the limit, with no moment between two looks. Where there are none (older
//! kernels, most containers) the process group, the mark and the watch on memory do their work alone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::resource::Bytes;

/// How spawners' groups are called, before the mark that begins with the driver's process id.
const PREFIX: &str = "regatta-";

/// The spawner's own group, inside the driver's; its workers' are inside it.
#[derive(Debug)]
pub(super) struct SpawnerGroup {
    folder: PathBuf,
}

/// One worker's group.
#[derive(Debug)]
pub(super) struct WorkerGroup {
    folder: PathBuf,
}

impl SpawnerGroup {
    /// Makes it; `None` where that is not possible, which is common and no error.
    pub(super) fn make(mark: &str) -> Option<Self> {
        let own = own_group()?;
        tidy_up(&own);
        let folder = own.join(format!("{PREFIX}{mark}"));
        fs::create_dir(&folder).ok()?;
        let group = Self { folder };
        let usable =
            writable(&group.folder.join("cgroup.kill")) && writable(&group.folder.join("cgroup.procs"));
        usable.then_some(group)
    }

    /// Its folder, open, for the sentinel.
    pub(super) fn open(&self) -> Option<OwnedFd> {
        File::open(&self.folder).ok().map(OwnedFd::from)
    }

    /// Makes a worker's group, limited to this much memory if the kernel will do it.
    pub(super) fn worker(&self, name: &str, memory: Bytes) -> io::Result<WorkerGroup> {
        let folder = self.folder.join(name);
        fs::create_dir(&folder)?;
        let group = WorkerGroup { folder };
        if memory.0 > 0 {
            group.limit(memory);
        }
        Ok(group)
    }
}

impl Drop for SpawnerGroup {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// Removes what a driver left that was killed together with its sentinel. Only empty groups can be removed.
fn tidy_up(own: &Path) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let driver = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if driver.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

/// Removes a group and those inside: a worker may have been a driver too, killed before it could tidy up.
fn remove(folder: &Path) {
    for inside in fs::read_dir(folder).into_iter().flatten().flatten() {
        if inside.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&inside.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

impl WorkerGroup {
    /// Takes a process in, with what it starts from now on. The kernel may need tens of milliseconds for it, which is why the
    /// attendant does it while the worker is already starting.
    pub(super) fn take_in(&self, pid: u32) {
        let _ = fs::write(self.folder.join("cgroup.procs"), pid.to_string());
    }

    /// Without a memory controller there is no such file, and the watch does it.
    fn limit(&self, memory: Bytes) {
        let file = |name: &str| self.folder.join(name);
        if writable(&file("memory.max")) {
            let _ = fs::write(file("memory.swap.max"), "0");
            let _ = fs::write(file("memory.oom.group"), "1");
            let _ = fs::write(file("memory.max"), memory.0.to_string());
        }
    }

    /// The most memory it used, if the kernel ended it for using more than it may.
    pub(super) fn out_of_memory(&self) -> Option<Bytes> {
        let events = fs::read_to_string(self.folder.join("memory.events")).ok()?;
        let kills: u64 =
            events.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()?;
        let peak = fs::read_to_string(self.folder.join("memory.peak")).ok();
        let peak = peak.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        (kills > 0).then_some(Bytes(peak))
    }

    /// Kills everything in it.
    pub(super) fn kill(&self) {
        let _ = fs::write(self.folder.join("cgroup.kill"), "1");
    }

    /// Whether nothing runs in it, by then.
    pub(super) fn wait_empty(&self, deadline: Instant) -> bool {
        loop {
            let events = fs::read_to_string(self.folder.join("cgroup.events")).unwrap_or_default();
            if !events.lines().any(|line| line == "populated 1") {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for WorkerGroup {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

fn writable(file: &Path) -> bool {
    OpenOptions::new().write(true).open(file).is_ok()
}

/// The folder of the group this process is in.
fn own_group() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    group_folder(&groups, &mounts)
}

fn group_folder(groups: &str, mounts: &str) -> Option<PathBuf> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let below = Path::new(own).strip_prefix(root).ok()?;
        file_system.starts_with("cgroup2 ").then(|| Path::new(at).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_wherever_it_is_mounted() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = group_folder("0::/user.slice/a.scope\n", mounts);
        assert_eq!(found, Some("/sys/fs/cgroup/user.slice/a.scope".into()));
        let hybrid = "31 24 0:27 / /c/memory rw - cgroup cgroup rw,memory\n32 24 0:28 /box /c/u rw - cgroup2 none rw\n";
        assert_eq!(group_folder("4:memory:/x\n0::/box/in\n", hybrid), Some("/c/u/in".into()));
        assert_eq!(group_folder("4:memory:/x\n", hybrid), None);
    }

    /// A folder in place of the kernel's, for a memory controller is seldom delegated where tests run.
    #[test]
    fn the_limit_is_written_and_its_breach_read() {
        let folder = tempfile::tempdir().unwrap();
        let group = WorkerGroup { folder: folder.path().to_owned() };
        group.limit(Bytes::mib(1));
        assert!(!folder.path().join("memory.max").exists(), "without a controller nothing is written");
        fs::write(folder.path().join("memory.max"), "max").unwrap();
        group.limit(Bytes::mib(1));
        assert_eq!(fs::read_to_string(folder.path().join("memory.max")).unwrap(), "1048576");
        assert_eq!(group.out_of_memory(), None);
        fs::write(folder.path().join("memory.events"), "low 0\noom 1\noom_kill 0\n").unwrap();
        assert_eq!(group.out_of_memory(), None);
        fs::write(folder.path().join("memory.events"), "low 0\noom 1\noom_kill 2\n").unwrap();
        fs::write(folder.path().join("memory.peak"), "1048576\n").unwrap();
        assert_eq!(group.out_of_memory(), Some(Bytes::mib(1)));
    }
}
