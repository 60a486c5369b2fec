//! What the worker's own threads and its control thread share: queues under one lock that is never held across a wait.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{Assignment, Command, WorkerConfig};
use crate::control::FRAME_LIMIT;
use crate::link::{Arrival, Inbox, Limits, Outbox};
use crate::proto::control::{self as pb, from_worker, to_worker};
use crate::{Begin, Error, Result};

/// Log lines that wait for the stream, and their bytes; more are left out and counted.
const LOG_LINES: usize = 1024;
const LOG_BYTES: usize = 256 << 10;

/// Why the session is over.
#[derive(Debug, Clone)]
pub(super) enum Over {
    /// The worker closed it.
    Closed,
    /// The controller does not want this worker.
    Refused(String),
    /// The lease ended.
    Lost { silence: Duration, reason: String },
}

pub(super) struct State {
    pub(super) outbox: Outbox<from_worker::Body>,
    pub(super) inbox: Inbox,
    /// Arrived and not taken yet, with their numbers.
    commands: VecDeque<(u64, Command)>,
    lines: Vec<String>,
    line_bytes: usize,
    lines_dropped: u64,
    /// The generation the worker's own threads are in.
    generation: u64,
    pub(super) closing: bool,
    over: Option<Over>,
}

pub(super) struct Shared {
    pub(super) config: WorkerConfig,
    state: Mutex<State>,
    /// Something changed for the worker's own threads.
    changed: Condvar,
    /// The same for those that wait as futures.
    pub(super) arrived: Notify,
    /// Something changed for the control thread.
    pub(super) wake: Notify,
    /// Generations up to this one are over.
    aborted: AtomicU64,
}

impl Shared {
    pub(super) fn new(config: WorkerConfig) -> Self {
        let outbox = Outbox::new(config.limits);
        Self {
            config,
            state: Mutex::new(State {
                outbox,
                inbox: Inbox::default(),
                commands: VecDeque::new(),
                lines: Vec::new(),
                line_bytes: 0,
                lines_dropped: 0,
                generation: 0,
                closing: false,
                over: None,
            }),
            changed: Condvar::new(),
            arrived: Notify::new(),
            wake: Notify::new(),
            aborted: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_worker(&self) {
        self.changed.notify_all();
        self.arrived.notify_waiters();
        self.arrived.notify_one();
    }

    // The worker's own threads.

    /// Takes the next command if one is there.
    pub(super) fn take(&self) -> Result<Option<Command>> {
        let mut state = self.lock();
        self.check(&state)?;
        Ok(self.pop(&mut state))
    }

    /// Waits for the next command.
    pub(super) fn take_within(&self, timeout: Duration) -> Result<Command> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            self.check(&state)?;
            if let Some(command) = self.pop(&mut state) {
                return Ok(command);
            }
            state = self.wait(state, deadline).ok_or(Error::Timeout {
                operation: "a command of the controller",
                waited: timeout,
                detail: String::new(),
            })?;
        }
    }

    /// Waits until the controller took over everything.
    pub(super) fn flush(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        while !state.outbox.is_empty() {
            self.check(&state)?;
            let detail = format!("; it has {} of {}", state.outbox.acknowledged(), state.outbox.last());
            state = self.wait(state, deadline).ok_or(Error::Timeout {
                operation: "the controller's taking over of what was reported",
                waited: timeout,
                detail,
            })?;
        }
        Ok(())
    }

    /// Waits for a change; nothing if the deadline is over.
    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, deadline: Instant) -> Option<MutexGuard<'a, State>> {
        let left = deadline.checked_duration_since(Instant::now())?;
        Some(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    fn check(&self, state: &State) -> Result<()> {
        let config = &self.config;
        match &state.over {
            None => Ok(()),
            Some(Over::Closed) => Err(Error::Over { what: "the worker's session" }),
            Some(Over::Refused(reason)) => Err(Error::Refused {
                address: config.address.clone(),
                slot: config.slot,
                attempt: config.attempt,
                reason: reason.clone(),
            }),
            Some(Over::Lost { silence, reason }) => Err(Error::ControllerLost {
                address: config.address.clone(),
                slot: config.slot,
                silence: *silence,
                reason: reason.clone(),
            }),
        }
    }

    fn pop(&self, state: &mut State) -> Option<Command> {
        let (sequence, command) = state.commands.pop_front()?;
        state.inbox.acknowledge(sequence);
        if let Command::Assign(Assignment { generation, .. }) = &command {
            state.generation = *generation;
        }
        self.wake.notify_one();
        Some(command)
    }

    /// Queues a numbered message; `make` is given the generation.
    pub(super) fn push(
        &self,
        what: &'static str,
        bytes: usize,
        make: impl FnOnce(u64) -> from_worker::Body,
    ) -> Result<u64> {
        if bytes > FRAME_LIMIT {
            return Err(Error::TooLarge { what, bytes, limit: FRAME_LIMIT });
        }
        let mut state = self.lock();
        self.check(&state)?;
        let body = make(state.generation);
        let pushed = state.outbox.push(body, bytes + 64);
        drop(state);
        self.wake.notify_one();
        pushed.map_err(|full| Error::OutboxFull { frames: full.frames, bytes: full.bytes })
    }

    pub(super) fn log(&self, line: &str) {
        let mut state = self.lock();
        if state.lines.len() >= LOG_LINES || state.line_bytes + line.len() > LOG_BYTES {
            state.lines_dropped += 1;
        } else {
            state.line_bytes += line.len();
            state.lines.push(line.to_owned());
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.lock().generation
    }

    pub(super) fn is_over(&self, generation: u64) -> bool {
        self.aborted.load(Ordering::Acquire) >= generation
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    // The control thread.

    /// The log lines that wait.
    pub(super) fn lines(&self) -> Option<from_worker::Body> {
        let mut state = self.lock();
        if state.lines.is_empty() && state.lines_dropped == 0 {
            return None;
        }
        state.line_bytes = 0;
        let lines = std::mem::take(&mut state.lines);
        let dropped = std::mem::take(&mut state.lines_dropped);
        Some(from_worker::Body::LogLines(pb::LogLines { lines, dropped }))
    }

    /// The controller has everything up to `received`.
    pub(super) fn acknowledged(&self, received: u64) {
        let mut state = self.lock();
        let before = state.outbox.acknowledged();
        state.outbox.acknowledge(received);
        if state.outbox.acknowledged() != before {
            self.changed.notify_all();
        }
    }

    /// A numbered frame came.
    pub(super) fn arrived(&self, sequence: u64, body: to_worker::Body) -> Arrival {
        let mut state = self.lock();
        let arrival = state.inbox.arrived(sequence, Limits::default().window_frames);
        if arrival != Arrival::New {
            return arrival;
        }
        let Some(command) = command(body) else { return Arrival::Broken };
        if let Command::Abort { generation, .. } = &command {
            self.aborted.fetch_max(*generation, Ordering::AcqRel);
        }
        if let Command::Assign(Assignment { generation, .. }) = &command {
            self.aborted.fetch_max(generation.saturating_sub(1), Ordering::AcqRel);
        }
        state.commands.push_back((sequence, command));
        drop(state);
        self.tell_worker();
        arrival
    }

    /// The session is over: nothing the worker does counts any more.
    pub(super) fn end(&self, over: Over) {
        self.lock().over = Some(over);
        self.aborted.store(u64::MAX, Ordering::Release);
        self.tell_worker();
    }
}

fn command(body: to_worker::Body) -> Option<Command> {
    use to_worker::Body;
    Some(match body {
        Body::Welcome(_) | Body::Heartbeat(_) => return None,
        Body::Assign(pb::Assign { generation, run, rank, world, local_rank, local_world }) => {
            Command::Assign(Assignment { generation, run, rank, world, local_rank, local_world })
        }
        Body::Start(pb::Start { generation, trainable, config, restore }) => {
            Command::Start { generation, begin: Begin { trainable, config, restore } }
        }
        Body::Decide(pb::Decide { generation, payload }) => Command::Decide { generation, payload },
        Body::Abort(pb::Abort { generation, reason }) => Command::Abort { generation, reason },
        Body::Stop(pb::Stop { grace_ms, reason }) => {
            Command::Stop { grace: Duration::from_millis(u64::from(grace_ms)), reason }
        }
    })
}
