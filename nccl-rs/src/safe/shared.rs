//! The part of a communicator that its owner, its abort handles and open groups share.
//!
//! The lock is held over NCCL calls, because NCCL wants them one at a time and because the handle must not be freed under
//! a call. A nonblocking communicator's calls only enqueue, so the lock is short; aborting and destroying take the handle
//! out first and happen outside the lock.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::group;
use crate::{
    error::{Error, Result},
    result::{Api, Progress, RawComm},
};

pub(crate) struct Shared {
    pub(crate) api: Arc<Api>,
    pub(crate) rank: u32,
    /// In microseconds, so that it can be changed while others wait.
    timeout: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// Taken by whoever closes the communicator.
    comm: Option<RawComm>,
    /// Who closed it, and why; set before the handle is taken, at the latest.
    closed: Option<String>,
    /// Open groups that recorded a call on it. Until they end, NCCL holds the handle and it must not be freed.
    groups: usize,
}

impl Shared {
    pub(crate) fn new(api: Arc<Api>, comm: RawComm, rank: u32, timeout: Duration) -> Arc<Self> {
        let state = Mutex::new(State { comm: Some(comm), closed: None, groups: 0 });
        let shared = Self { api, rank, timeout: AtomicU64::new(0), state };
        shared.set_timeout(timeout);
        Arc::new(shared)
    }

    /// How long a wait may last.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_micros(self.timeout.load(Ordering::Relaxed))
    }

    /// How long later waits may last.
    pub(crate) fn set_timeout(&self, timeout: Duration) {
        let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        self.timeout.store(micros, Ordering::Relaxed);
    }

    /// Calls NCCL with the handle.
    pub(crate) fn with<T>(
        &self,
        operation: &'static str,
        call: impl FnOnce(&RawComm) -> Result<T>,
    ) -> Result<T> {
        let state = self.lock();
        match (&state.comm, &state.closed) {
            (Some(comm), None) => call(comm).map_err(|error| self.at_rank(error)),
            (_, reason) => Err(self.closed(operation, reason.as_deref())),
        }
    }

    /// Enqueues an operation and sees it through, or, in an open group, leaves that to the group's end.
    pub(crate) fn launch(
        self: &Arc<Self>,
        operation: &'static str,
        call: impl FnOnce(&RawComm) -> Result<Progress>,
    ) -> Result<()> {
        if group::record(self) {
            return self.with(operation, call).map(|_| ());
        }
        match self.with(operation, call)? {
            Progress::Done => Ok(()),
            Progress::InProgress => self.wait(operation),
        }
    }

    /// Waits until NCCL is done with what it was asked, or has failed, or the deadline has passed.
    pub(crate) fn wait(&self, operation: &'static str) -> Result<()> {
        self.wait_for(operation, || match self.with(operation, |comm| comm.poll(operation))? {
            Progress::Done => Ok(Some(())),
            Progress::InProgress => Ok(None),
        })
    }

    /// Polls until there is an answer or the deadline has passed.
    pub(crate) fn wait_for<T>(
        &self,
        operation: &'static str,
        mut poll: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let (start, timeout) = (Instant::now(), self.timeout());
        let mut pause = Duration::from_micros(5);
        loop {
            if let Some(answer) = poll()? {
                return Ok(answer);
            }
            let waited = start.elapsed();
            if waited >= timeout {
                return Err(Error::Timeout { operation, rank: self.rank, waited });
            }
            thread::sleep(pause.min(timeout - waited));
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }

    /// Closes the communicator: nothing can be called on it any more, and what runs is made to stop. The first reason
    /// counts; closing twice is fine. If a group holds the handle, the end of the group frees it.
    pub(crate) fn abort(&self, reason: &str) -> Result<()> {
        let mut state = self.lock_within_timeout("abort")?;
        if state.closed.is_none() {
            state.closed = Some(reason.to_owned());
        }
        self.free_if_unused(state)
    }

    /// Takes the handle for an orderly end.
    pub(crate) fn take(&self, operation: &'static str, reason: &str) -> Result<RawComm> {
        let mut state = self.lock();
        if let Some(closed) = &state.closed {
            return Err(self.closed(operation, Some(closed)));
        }
        if state.groups > 0 {
            return Err(Error::InvalidArgument {
                operation,
                what: "a group that uses this communicator is still open; end it first".to_owned(),
            });
        }
        let comm = state.comm.take().ok_or_else(|| self.closed(operation, None))?;
        state.closed = Some(reason.to_owned());
        Ok(comm)
    }

    /// Whether it was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    pub(super) fn enter_group(&self) {
        self.lock().groups += 1;
    }

    pub(super) fn leave_group(&self) -> Result<()> {
        let mut state = self.lock();
        state.groups -= 1;
        if state.closed.is_some() { self.free_if_unused(state) } else { Ok(()) }
    }

    fn free_if_unused(&self, mut state: MutexGuard<'_, State>) -> Result<()> {
        let comm = if state.groups == 0 { state.comm.take() } else { None };
        drop(state);
        comm.map_or(Ok(()), RawComm::abort).map_err(|error| self.at_rank(error))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A blocking communicator may hold the lock for as long as its peers please, so an abort does not wait for ever.
    fn lock_within_timeout(&self, operation: &'static str) -> Result<MutexGuard<'_, State>> {
        self.wait_for(operation, || match self.state.try_lock() {
            Ok(guard) => Ok(Some(guard)),
            Err(TryLockError::Poisoned(poisoned)) => Ok(Some(poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => Ok(None),
        })
    }

    fn closed(&self, operation: &'static str, reason: Option<&str>) -> Error {
        let reason = reason.unwrap_or("it ended before").to_owned();
        Error::Closed { operation, rank: self.rank, reason }
    }

    fn at_rank(&self, error: Error) -> Error {
        match error {
            Error::Nccl { function, code, message, rank: None } => {
                Error::Nccl { function, code, message, rank: Some(self.rank) }
            }
            other => other,
        }
    }
}
