//! The thread beside each worker: reads what it writes, watches its memory, carries out orders, and sees it out.
//!
//! The order of a worker's end matters. Its group is killed while its leader is still unreaped, so that the group's number
//! cannot yet be another's; daemons that left the group are found by their mark; only then is the leader reaped, and only
//! when nothing of it runs any more is the end told. Whoever has heard of the end may give its GPU to the next.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::cgroup::{SpawnerGroup, WorkerGroup};
use super::launcher::Launcher;
use super::output::{Lines, text};
use super::procfs;
use super::sentinel::Sentinel;
use super::worker::{Fate, Worker};
use crate::env;
use crate::resource::Bytes;
use crate::spawner::{Exit, Reason, Stream, WorkerEvent};

/// How long output is still read after every process that could write it was killed.
const DRAIN: Duration = Duration::from_secs(1);
/// How long the killed processes of a worker may take to go.
const GOING: Duration = Duration::from_secs(5);

/// What an attendant needs of the spawner.
#[derive(Clone, Debug)]
pub(super) struct Office {
    pub(super) sentinel: Arc<Sentinel>,
    pub(super) launcher: Launcher,
    pub(super) cgroup: Option<Arc<SpawnerGroup>>,
    pub(super) memory_check: Duration,
}

pub(super) struct Attendant {
    worker: Arc<Worker>,
    /// Before `office`, whose group must be empty when it is dropped.
    cgroup: Option<WorkerGroup>,
    office: Office,
    child: Child,
    process: OwnedFd,
    group: Pid,
    outputs: [Output; 2],
    asked: bool,
    memory_due: Option<Instant>,
}

struct Output {
    stream: Stream,
    pipe: Option<Box<dyn Pipe>>,
    lines: Lines,
}

trait Pipe: Read + AsFd + Send {}
impl<T: Read + AsFd + Send> Pipe for T {}

impl Output {
    fn new(stream: Stream, pipe: Option<impl Pipe + 'static>) -> Self {
        Self { stream, pipe: pipe.map(|pipe| Box::new(pipe) as Box<dyn Pipe>), lines: Lines::default() }
    }
}

impl Attendant {
    /// Puts a thread beside a fresh child. Where that fails the child is still the caller's to end.
    pub(super) fn start(
        worker: Arc<Worker>,
        mut child: Child,
        cgroup: Option<WorkerGroup>,
        office: Office,
    ) -> Result<(), (Child, io::Error)> {
        let parts = (|| {
            let group = Pid::from_child(&child);
            let process = pidfd_open(group, PidfdFlags::empty())?;
            let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
            stdout.iter().try_for_each(|pipe| rustix::io::ioctl_fionbio(pipe, true))?;
            stderr.iter().try_for_each(|pipe| rustix::io::ioctl_fionbio(pipe, true))?;
            let outputs = [Output::new(Stream::Stdout, stdout), Output::new(Stream::Stderr, stderr)];
            Ok::<_, io::Error>((group, process, outputs))
        })();
        let (group, process, outputs) = match parts {
            Ok(parts) => parts,
            Err(error) => return Err((child, error)),
        };
        let memory_due = (worker.seat.resources.memory.0 > 0).then(Instant::now);
        // The child travels through a channel so that a thread that cannot be made does not take it along.
        let (hand_over, given) = std::sync::mpsc::sync_channel(1);
        let pid = worker.pid;
        let spawned =
            thread::Builder::new().name(format!("regatta-w{pid}")).stack_size(256 * 1024).spawn(move || {
                if let Ok(child) = given.recv() {
                    let asked = false;
                    let mut attendant =
                        Self { worker, cgroup, office, child, process, group, outputs, asked, memory_due };
                    attendant.cgroup.iter().for_each(|cgroup| cgroup.take_in(pid));
                    attendant.attend();
                    attendant.see_out();
                }
            });
        match spawned {
            Ok(_) => {
                let _ = hand_over.send(child);
                Ok(())
            }
            Err(error) => Err((child, error)),
        }
    }

    /// Until the process has ended.
    fn attend(&mut self) {
        loop {
            let [process, bell] =
                [&self.process, self.worker.bell()].map(|fd| PollFd::new(fd, PollFlags::IN));
            let mut fds = vec![process, bell];
            fds.extend(self.outputs.iter().filter_map(|output| {
                output.pipe.as_ref().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN))
            }));
            let polled = poll(&mut fds, self.timeout().as_ref());
            let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            let (ended, rung) = (ready(&fds[0]), ready(&fds[1]));
            let readable = fds[2..].iter().any(ready);
            drop(fds);
            if polled.is_err_and(|error| error != rustix::io::Errno::INTR) {
                // Cannot happen with descriptors of our own; better a short sleep than a hot loop.
                thread::sleep(Duration::from_millis(10));
            }
            if rung {
                let _ = rustix::io::read(self.worker.bell(), &mut [0u8; 8]);
            }
            if readable {
                self.read_outputs();
            }
            if ended {
                return;
            }
            self.carry_out_orders();
            self.check_memory();
        }
    }

    /// Until the next thing that comes by the clock.
    fn timeout(&self) -> Option<Timespec> {
        let desk = self.worker.desk();
        let due = [desk.kill_at, desk.idle_until, self.memory_due].into_iter().flatten().min()?;
        // At least a millisecond: an order already carried out must not make the loop hot.
        let left = due.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        Timespec::try_from(left).ok()
    }

    fn carry_out_orders(&mut self) {
        let now = Instant::now();
        let mut desk = self.worker.desk();
        if desk.idle_until.is_some_and(|until| now >= until) {
            desk.idle_until = None;
            desk.fate.get_or_insert(Fate::Cancelled);
            desk.kill_at = Some(now);
        }
        let Some(kill_at) = desk.kill_at else { return };
        if now >= kill_at {
            desk.kill_at = Some(now + Duration::from_secs(1));
            drop(desk);
            let _ = kill_process_group(self.group, Signal::KILL);
        } else if !std::mem::replace(&mut self.asked, true) {
            drop(desk);
            let _ = kill_process_group(self.group, Signal::TERM);
        }
    }

    fn check_memory(&mut self) {
        let now = Instant::now();
        if self.memory_due.is_none_or(|due| now < due) {
            return;
        }
        self.memory_due = Some(now + self.office.memory_check);
        let limit = self.worker.seat.resources.memory;
        let used = Bytes(procfs::memory_of_tree(self.worker.pid));
        if used > limit {
            self.worker.desk().fate.get_or_insert(Fate::OutOfMemory { limit, used });
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }

    fn read_outputs(&mut self) {
        let mut buffer = [0u8; 32 * 1024];
        for at in 0..self.outputs.len() {
            let Some(pipe) = &mut self.outputs[at].pipe else { continue };
            match pipe.read(&mut buffer) {
                Ok(0) => self.close(at),
                Ok(n) => self.pass_on(at, &buffer[..n]),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => self.close(at),
            }
        }
    }

    fn pass_on(&mut self, at: usize, read: &[u8]) {
        let Self { worker, outputs, .. } = self;
        let Output { stream, lines, .. } = &mut outputs[at];
        let post = worker.desk().post.clone();
        let mut each = |line: &[u8]| {
            let Some(post) = &post else { return };
            let text = text(line);
            post.record.lock().unwrap_or_else(PoisonError::into_inner).line(*stream, line, text.clone());
            post.events.line(post.slot, *stream, text);
        };
        lines.feed(read, &mut each);
        if read.is_empty() {
            lines.flush(each);
        }
    }

    fn close(&mut self, at: usize) {
        self.outputs[at].pipe = None;
        self.pass_on(at, &[]);
    }

    fn see_out(mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
        let going = Instant::now() + GOING;
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
            cgroup.wait_empty(going);
        }
        while procfs::kill_marked(env::WORKER, &self.worker.id.0) && Instant::now() < going {
            thread::sleep(Duration::from_millis(1));
        }
        self.drain();
        self.office.sentinel.forget(self.worker.pid);
        let status = self.child.wait();
        while procfs::group_lives(self.worker.pid) && Instant::now() < going {
            thread::sleep(Duration::from_millis(1));
        }
        if Instant::now() >= going {
            let (worker, group) = (&self.worker.id, self.worker.pid);
            tracing::error!(%worker, group, "killed processes of a worker are still there: they hang in the kernel");
        }
        self.tell(status);
    }

    /// Reads what was written before the end. Every writer is dead, so the pipes end at once, unless one hides well.
    fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN;
        while self.outputs.iter().any(|output| output.pipe.is_some()) && Instant::now() < deadline {
            let mut fds: Vec<PollFd<'_>> = self
                .outputs
                .iter()
                .filter_map(|output| output.pipe.as_ref())
                .map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN))
                .collect();
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 }));
            drop(fds);
            self.read_outputs();
        }
        for at in 0..self.outputs.len() {
            if self.outputs[at].pipe.is_some() {
                self.close(at);
            }
        }
    }

    /// Lets go of everything first: whoever hears of the end finds no descriptor and no control group of it.
    fn tell(self, status: io::Result<ExitStatus>) {
        let (worker, launcher) = (self.worker.clone(), self.office.launcher.clone());
        let limit = worker.seat.resources.memory;
        let used = self.cgroup.as_ref().and_then(WorkerGroup::out_of_memory);
        let killed_by_kernel = used.map(|used| Fate::OutOfMemory { limit, used: used.max(limit) });
        drop(self);
        let mut desk = worker.desk();
        desk.ended = true;
        let (post, fate) = (desk.post.take(), desk.fate.take().or(killed_by_kernel));
        drop(desk);
        worker.set_ended();
        let Some(post) = post else { return };
        let tail = post.record.lock().unwrap_or_else(PoisonError::into_inner).tail.take();
        let slot = post.slot;
        let lost = |cause: String| WorkerEvent::Lost { slot, cause };
        post.events.send(match (status, fate) {
            (Err(error), _) => lost(format!("its end could not be learned: {error}")),
            (_, Some(Fate::Lost(cause))) => lost(cause),
            (Ok(status), None) if status.signal() == Some(libc::SIGKILL) && launcher.is_gone() => {
                lost("the thread that spawned it ended, and the kernel killed it with that thread".into())
            }
            (Ok(status), fate) => WorkerEvent::Exited { slot, exit: exit(status, fate, tail) },
        });
    }
}

fn exit(status: ExitStatus, fate: Option<Fate>, tail: Vec<String>) -> Exit {
    let (code, signal) = (status.code(), status.signal());
    let reason = match (fate, code, signal) {
        (Some(Fate::OutOfMemory { limit, used }), ..) => Reason::OutOfMemory { limit, used },
        (Some(_), ..) => Reason::Cancelled,
        (None, Some(0), _) => Reason::Succeeded,
        (None, Some(code), _) => Reason::UserError { code },
        (None, None, signal) => Reason::UserError { code: 128 + signal.unwrap_or(0) },
    };
    Exit { code, signal, reason, tail }
}
