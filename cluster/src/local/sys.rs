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
/// `marker` is what the environment of every process descended from a worker holds, wherever that has moved.
pub(super) fn fork_sentinel(pipe: BorrowedFd<'_>, marker: &str) -> io::Result<u32> {
    let (pipe, marker) = (pipe.as_raw_fd(), marker.as_bytes());
    // SAFETY: the child calls nothing but `watch`, which makes raw system calls on its own stack and never returns, so no
    // lock, allocator or destructor of the driver is touched after the fork.
    unsafe {
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => watch(pipe, marker),
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
unsafe fn watch(pipe: RawFd, marker: &[u8]) -> ! {
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
        libc::dup2(pipe, 0);
        libc::syscall(libc::SYS_close_range, 1 as libc::c_uint, libc::c_uint::MAX, 0 as libc::c_uint);
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
        libc::_exit(0)
    }
}

fn remember(groups: &mut [libc::pid_t; GROUPS], group: libc::pid_t) {
    let (sought, put) = if group > 0 { (0, group) } else { (-group, 0) };
    if let Some(slot) = groups.iter_mut().find(|slot| **slot == sought) {
        *slot = put;
    }
}

/// Kills every process whose environment holds the marker; whether there was one. Without allocation, for the sentinel.
///
/// SAFETY: makes async-signal-safe calls only, on its own stack.
unsafe fn sweep(marker: &[u8]) -> bool {
    let mut found = false;
    let mut entries = [0u8; 8192];
    // SAFETY: raw system calls; pointers are to locals with their true lengths; the kernel's records are read within `n`.
    unsafe {
        let proc = libc::open(c"/proc".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY);
        loop {
            let n = libc::syscall(libc::SYS_getdents64, proc, entries.as_mut_ptr(), entries.len());
            if n <= 0 {
                break;
            }
            let mut at = 0usize;
            while at + 19 < n as usize {
                let length = u16::from_ne_bytes([entries[at + 16], entries[at + 17]]) as usize;
                if length == 0 {
                    break;
                }
                let pid = number(&entries[at + 19..(at + length).min(n as usize)]);
                if pid > 1 && pid != libc::getpid() && marked(proc, pid, marker) {
                    found |= libc::kill(pid, libc::SIGKILL) == 0;
                }
                at += length;
            }
        }
        libc::close(proc);
    }
    found
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
