//! The second line of defence: a tiny process that outlives the driver only to kill what the driver left.
//!
//! The kernel kills a worker when its driver dies (PDEATHSIG), but not the worker's own children. The sentinel holds the
//! reading end of a pipe whose writing end only the driver has; when the driver is gone, however it went, the pipe ends,
//! and the sentinel kills every process group it was told of and every process that carries the spawner's mark.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

use super::sys;

#[derive(Debug)]
pub(super) struct Sentinel {
    pid: u32,
    writer: Option<OwnedFd>,
    /// Kept so that writing to a sentinel somebody killed is no SIGPIPE.
    _reader: OwnedFd,
}

impl Sentinel {
    pub(super) fn start(marker: &str, cgroup: Option<OwnedFd>) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&writer, true)?;
        let pid = sys::fork_sentinel(reader.as_fd(), cgroup.as_ref().map(AsFd::as_fd), marker)?;
        Ok(Self { pid, writer: Some(writer), _reader: reader })
    }

    /// Tells of a new group. Until then its processes are found by their mark alone.
    pub(super) fn remember(&self, group: u32) {
        self.tell(group as i32);
    }

    /// Tells that a group is dead. Call it before its leader is reaped: after that the number may be another's.
    pub(super) fn forget(&self, group: u32) {
        self.tell(-(group as i32));
    }

    /// A sentinel that somebody killed is not worth failing for: it is the second line.
    fn tell(&self, message: i32) {
        if let Some(writer) = &self.writer {
            let _ = rustix::io::write(writer, &message.to_ne_bytes());
        }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.writer = None;
        sys::reap(self.pid);
    }
}
