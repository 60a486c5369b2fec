//! A back end that fails on demand, for testing what is built on groups.

use crate::backend::{Backend, Health, SharedMemory, Ticket};
use crate::{Call, Error, Region, Result};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It begins this much later.
    Delay(Duration),
    /// It never reaches the other ranks.
    Drop,
    /// It is done, and then a bit of its output is flipped: silent corruption on this rank alone.
    Corrupt,
    /// This process is killed before the call reaches anybody.
    Die,
}

/// Which call fails, given its number (from 0) and the call.
type Plan = dyn Fn(u64, &Call) -> Option<Fault> + Send + Sync;

/// Another back end, whose calls meet faults by a plan.
///
/// ```
/// use regatta_comm::{Error, Fault, Faulty, ReduceOp, thread};
/// use std::time::Duration;
///
/// let ends = thread::run(2, |group| {
///     let first = group.rank();
///     let group = group.wrap(|inner| Faulty::new(inner, move |n, _| (first == 0 && n == 1).then_some(Fault::Drop)));
///     group.all_reduce(&mut [1.0f32], ReduceOp::Sum)?;
///     group.within(Duration::from_millis(50)).all_reduce(&mut [1.0f32], ReduceOp::Sum)
/// });
/// assert!(ends.iter().all(|e| matches!(e, Err(Error::Deadline { .. } | Error::Aborted { .. }))), "{ends:?}");
/// ```
pub struct Faulty<B> {
    inner: B,
    plan: Box<Plan>,
    calls: AtomicU64,
    /// Outputs to be corrupted when their call is done.
    marked: Mutex<Vec<(Ticket, Region)>>,
}

impl<B: fmt::Debug> fmt::Debug for Faulty<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<B: Backend> Faulty<B> {
    /// `inner` with faults by `plan`.
    pub fn new(inner: B, plan: impl Fn(u64, &Call) -> Option<Fault> + Send + Sync + 'static) -> Faulty<B> {
        Faulty { inner, plan: Box::new(plan), calls: AtomicU64::new(0), marked: Mutex::default() }
    }

    /// Meets the fault of the next call; true if its output is to be corrupted.
    fn meet(&self, call: &Call, within: Duration) -> Result<bool> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        match (self.plan)(number, call) {
            None => Ok(false),
            Some(Fault::Corrupt) => Ok(true),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(time);
                Ok(false)
            }
            Some(Fault::Drop) => Err(self.lose(call, within)),
            Some(Fault::Die) => {
                let own = rustix::process::getpid();
                let killed = rustix::process::kill_process(own, rustix::process::Signal::KILL);
                Err(Error::io("kill this process", killed.err().unwrap_or(rustix::io::Errno::INVAL)))
            }
        }
    }

    /// What a rank sees whose call is lost: nothing, until its time is up or another's is.
    fn lose(&self, call: &Call, within: Duration) -> Error {
        let started = Instant::now();
        while self.inner.health().over.is_none() && started.elapsed() < within {
            std::thread::sleep(Duration::from_millis(1));
        }
        let op = call.signature().to_string();
        let missing = (0..self.inner.world_size()).filter(|r| *r != self.inner.rank()).collect();
        let error = Error::Deadline { rank: self.inner.rank(), op, waited: started.elapsed(), missing };
        self.inner.abort(&error.to_string());
        error
    }

    fn corrupt(&self, output: Region) {
        if let Some(last) = output.len().checked_sub(1) {
            let byte = output.part(last, 1);
            byte.write(&[byte.to_vec()[0] ^ 0x10]);
        }
    }

    fn done(&self, ticket: Ticket) {
        let mut marked = self.marked.lock().unwrap_or_else(|p| p.into_inner());
        marked.retain(|(t, output)| {
            let due = *t == ticket;
            if due {
                self.corrupt(*output);
            }
            !due
        });
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn world_size(&self) -> usize {
        self.inner.world_size()
    }
    fn generation(&self) -> u64 {
        self.inner.generation()
    }

    fn submit(&self, call: Call, within: Duration) -> Result<Ticket> {
        let corrupt = self.meet(&call, within)?;
        let ticket = self.inner.submit(call, within)?;
        if corrupt {
            self.marked.lock().unwrap_or_else(|p| p.into_inner()).push((ticket, call.output));
        }
        Ok(ticket)
    }

    fn poll(&self, ticket: Ticket) -> Result<bool> {
        let done = self.inner.poll(ticket)?;
        if done {
            self.done(ticket);
        }
        Ok(done)
    }

    fn wait(&self, ticket: Ticket, within: Duration) -> Result<()> {
        self.inner.wait(ticket, within)?;
        self.done(ticket);
        Ok(())
    }

    fn alloc(&self, bytes: usize, within: Duration) -> Result<SharedMemory> {
        self.inner.alloc(bytes, within)
    }
    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }
    fn health(&self) -> Health {
        self.inner.health()
    }
}
