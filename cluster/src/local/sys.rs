//! The system calls the local spawner needs and no safe wrapper offers: what a child does between fork and exec, and the
//! sentinel, a process forked without exec. The only `unsafe` of this crate's engines.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::CpuSet;

/// What a worker's process does to itself before it becomes the program.
pub(super) struct ChildSetup {
    /// The driver's process id: where it is no longer the parent, the child must not start.
    pub(super) parent: u32,
    /// The CPUs to stay on.
    pub(super) cpus: Option<CpuSet>,
}

/// Signals a driver may have ignored, which exec would hand on: a worker must be able to die of them.
const RESET: [libc::c_int; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGCHLD];

/// Makes the command's process lead a group of its own and die with the thread that spawns it.
pub(super) fn on_child(command: &mut Command, setup: ChildSetup) {
    command.process_group(0);
    let prepare = move || {
        // SAFETY: plain system calls on integers and on memory that the closure owns; all are async-signal-safe.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) != 0 {
                return Err(io::Error::last_os_error());
            }
            // Whoever lost its parent before the line above will never get the signal.
            if libc::getppid() as u32 != setup.parent {
                libc::_exit(127);
            }
            for signal in RESET {
                libc::signal(signal, libc::SIG_DFL);
            }
            // Should the host run out of memory, the kernel must choose a worker, not the driver of all.
            let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(score, c"500".as_ptr().cast(), 3);
            libc::close(score);
        }
        match &setup.cpus {
            Some(cpus) => rustix::thread::sched_setaffinity(None, cpus).map_err(io::Error::from),
            None => Ok(()),
        }
    };
    // SAFETY: the closure makes only async-signal-safe system calls and does not allocate; dropping it happens in the driver.
    unsafe { command.pre_exec(prepare) };
}

/// Forks the sentinel, which reads `pipe` until no driver holds its other end. Returns its process id.
///
/// `marker` is what the environment of every process descended from a worker holds, wherever that has moved; `cgroup` the
/// folder of the control group around all of them, if there is one.
pub(super) fn fork_sentinel(
    pipe: BorrowedFd<'_>,
    cgroup: Option<BorrowedFd<'_>>,
    marker: &str,
) -> io::Result<u32> {
    let (pipe, marker) = (pipe.as_raw_fd(), marker.as_bytes());
    let cgroup = cgroup.map_or(-1, |folder| folder.as_raw_fd());
    // SAFETY: the child calls nothing but `watch`, which makes raw system calls on its own stack and never returns, so no
    // lock, allocator or destructor of the driver is touched after the fork.
    unsafe {
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => watch(pipe, cgroup, marker),
            pid => Ok(pid as u32),
        }
    }
}

/// Waits for a child that is about to end, so that no zombie stays.
pub(super) fn reap(pid: u32) {
    // SAFETY: a null status is allowed; the process is our own child, so the call ends when it does.
    unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), 0) };
}

/// The most groups a sentinel remembers; a host runs fewer workers than that.
const GROUPS: usize = 16_384;

/// The sentinel's whole life. Messages are process groups: positive to remember, negative to forget.
///
/// SAFETY: call only in a fresh fork, with `pipe` open for reading; makes async-signal-safe calls only.
unsafe fn watch(pipe: RawFd, cgroup: RawFd, marker: &[u8]) -> ! {
    let mut groups = [0 as libc::pid_t; GROUPS];
    let mut message = [0u8; 4096];
    // SAFETY: raw system calls; every pointer is to the live locals above, with their true lengths.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"regatta-sentry".as_ptr());
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
        // Holding any other descriptor would keep the driver's sockets, pipes and terminal open after its death.
        let kept = [libc::fcntl(pipe, libc::F_DUPFD, 2), libc::fcntl(cgroup, libc::F_DUPFD, 2)];
        libc::dup2(kept[0], 0);
        // Where there is no control group this closes what was there.
        libc::close(1);
        libc::dup2(kept[1], 1);
        libc::syscall(libc::SYS_close_range, 2 as libc::c_uint, libc::c_uint::MAX, 0 as libc::c_uint);
        loop {
            let n = libc::read(0, message.as_mut_ptr().cast(), message.len());
            if n < 0 && *libc::__errno_location() == libc::EINTR {
                continue;
            }
            if n <= 0 {
                break;
            }
            for bytes in message[..n as usize].chunks_exact(4) {
                remember(&mut groups, i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
            }
        }
        for group in groups.iter().filter(|&&group| group > 1) {
            libc::kill(-group, libc::SIGKILL);
        }
        for _ in 0..16 {
            if !sweep(marker) {
                break;
            }
        }
        for _ in 0..1000 {
            if dissolve(1) {
                break;
            }
            libc::poll(std::ptr::null_mut(), 0, 5);
        }
        libc::_exit(0)
    }
}

fn remember(groups: &mut [libc::pid_t; GROUPS], group: libc::pid_t) {
    let (sought, put) = if group > 0 { (0, group) } else { (-group, 0) };
    if let Some(slot) = groups.iter_mut().find(|slot| **slot == sought) {
        *slot = put;
    }
}

/// Calls with the name of every entry of a folder, null-terminated, without allocation.
///
/// SAFETY: makes async-signal-safe calls only, on its own stack, and so must `each`.
unsafe fn for_entries(folder: RawFd, mut each: impl FnMut(&[u8])) {
    const NAME: usize = 19;
    let mut entries = [0u8; 8192];
    // SAFETY: raw system calls on a local with its true length; the kernel's records are read within `n`.
    unsafe {
        libc::lseek(folder, 0, libc::SEEK_SET);
        loop {
            let n = libc::syscall(libc::SYS_getdents64, folder, entries.as_mut_ptr(), entries.len());
            if n <= 0 {
                return;
            }
            let mut at = 0usize;
            while at + NAME < n as usize {
                let length = u16::from_ne_bytes([entries[at + 16], entries[at + 17]]) as usize;
                if length <= NAME {
                    return;
                }
                each(&entries[at + NAME..(at + length).min(n as usize)]);
                at += length;
            }
        }
    }
}

/// Kills every process whose environment holds the marker; whether there was one.
///
/// SAFETY: as `for_entries`.
unsafe fn sweep(marker: &[u8]) -> bool {
    let mut found = false;
    // SAFETY: raw system calls; `/proc` stays open while its entries are looked at.
    unsafe {
        let proc = libc::open(c"/proc".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY);
        for_entries(proc, |name| {
            let pid = number(name);
            if pid > 1 && pid != libc::getpid() && marked(proc, pid, marker) {
                found |= libc::kill(pid, libc::SIGKILL) == 0;
            }
        });
        libc::close(proc);
    }
    found
}

/// Kills what is in a control group and removes it with those inside; whether it is gone.
///
/// SAFETY: as `for_entries`.
unsafe fn dissolve(folder: RawFd) -> bool {
    let mut path = [0u8; 4096];
    // SAFETY: raw system calls; names from the kernel end in a zero byte, and so does `path`, one byte longer than is read.
    unsafe {
        let kill = libc::openat(folder, c"cgroup.kill".as_ptr(), libc::O_WRONLY);
        if kill < 0 {
            // No control group, or none any more.
            return true;
        }
        libc::write(kill, c"1".as_ptr().cast(), 1);
        libc::close(kill);
        for_entries(folder, |name| {
            if name.first() == Some(&b'w') {
                libc::unlinkat(folder, name.as_ptr().cast(), libc::AT_REMOVEDIR);
            }
        });
        let length = path.len() - 1;
        let link = c"/proc/self/fd/1".as_ptr();
        libc::readlink(link, path.as_mut_ptr().cast(), length) > 0 && libc::rmdir(path.as_ptr().cast()) == 0
    }
}

/// The number a null-terminated name stands for; 0 where it is none.
fn number(name: &[u8]) -> libc::pid_t {
    let mut value: libc::pid_t = 0;
    for byte in name.iter().take_while(|byte| **byte != 0) {
        if !byte.is_ascii_digit() {
            return 0;
        }
        value = value.wrapping_mul(10).wrapping_add((byte - b'0') as libc::pid_t);
    }
    value
}

/// Whether the process's environment holds the marker.
///
/// SAFETY: as `sweep`; `proc` is a descriptor of `/proc`.
unsafe fn marked(proc: RawFd, pid: libc::pid_t, marker: &[u8]) -> bool {
    let mut path = [0u8; 32];
    let mut digits = [0u8; 12];
    let (mut value, mut from) = (pid, digits.len());
    while value > 0 {
        from -= 1;
        digits[from] = b'0' + (value % 10) as u8;
        value /= 10;
    }
    let pid_text = &digits[from..];
    path[..pid_text.len()].copy_from_slice(pid_text);
    path[pid_text.len()..pid_text.len() + 8].copy_from_slice(b"/environ");
    let mut window = [0u8; 16_384];
    let mut kept = 0;
    // SAFETY: `path` ends in a zero byte; reads go into `window` within its length.
    unsafe {
        let file = libc::openat(proc, path.as_ptr().cast(), libc::O_RDONLY);
        if file < 0 {
            return false;
        }
        let found = loop {
            let n = libc::read(file, window[kept..].as_mut_ptr().cast(), window.len() - kept);
            if n <= 0 {
                break false;
            }
            let filled = kept + n as usize;
            if window[..filled].windows(marker.len()).any(|part| part == marker) {
                break true;
            }
            kept = filled.min(marker.len());
            window.copy_within(filled - kept..filled, 0);
        };
        libc::close(file);
        found
    }
}
