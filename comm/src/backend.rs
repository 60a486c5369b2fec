//! The one trait that back ends implement: untyped, dyn-safe, small. Everything typed and convenient is built on top of
//! it once, in [`ProcessGroup`](crate::ProcessGroup).

use crate::{Call, Region, Result};
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Names a submitted call until it is finished.
///
/// Calls of one lane finish in order. Back ends choose the lanes; collectives share one, and a send or receive never
/// waits behind a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Which queue it stands in.
    pub lane: u32,
    /// Its number there.
    pub number: u64,
}

/// How a group is doing, as far as this rank knows. Never waits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// Ranks known to be dead or gone.
    pub lost: Vec<usize>,
    /// Why the group is over, if it is.
    pub over: Option<String>,
}

/// Memory of a group, in which it reduces without a copy.
#[derive(Clone)]
pub struct SharedMemory {
    /// This rank's part.
    pub local: Region,
    /// Its number: the same on every rank.
    pub id: u32,
    /// Whatever must live as long as the memory is used.
    pub keeper: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("id", &self.id).field("bytes", &self.local.len()).finish()
    }
}

/// How a group's ranks reach each other.
///
/// # Contract
/// - All ranks submit the same collectives in the same order; where they do not, every rank gets
///   [`Error::Mismatch`](crate::Error::Mismatch) from the call, at once.
/// - Results are combined in rank order, so they are bit-identical on all ranks and from run to run.
/// - No call waits longer than its `within`. The first failure ends the group: it is told to all ranks that can be told, and
///   every later call returns it. Only wrong arguments leave a group usable.
/// - Once a call has returned an error, the memory of no call in flight is touched any more.
/// - Dropping the back end takes its rank out of the group; the others learn of it where they need that rank.
///
/// The module [`conformance`](crate::conformance) holds tests of all this that every back end runs.
pub trait Backend: Send + Sync + fmt::Debug {
    /// What it is called in configuration and errors, like `shm`.
    fn name(&self) -> &'static str;
    /// This process's place in the group.
    fn rank(&self) -> usize;
    /// How many ranks there are.
    fn world_size(&self) -> usize;
    /// Which incarnation of the group this is; grows by reforming.
    fn generation(&self) -> u64;

    /// Begins a call, after [`Call::validate`]. May do a part of it, and waits (at most `within`) only if too many calls
    /// are in flight already.
    fn submit(&self, call: Call, within: Duration) -> Result<Ticket>;
    /// Makes what progress is possible without waiting; true once the call is finished.
    fn poll(&self, ticket: Ticket) -> Result<bool>;
    /// Waits for a call.
    fn wait(&self, ticket: Ticket, within: Duration) -> Result<()>;
    /// A call from begin to end; back ends with a shorter way take it.
    fn run(&self, call: Call, within: Duration) -> Result<()> {
        let ticket = self.submit(call, within)?;
        self.wait(ticket, within)
    }

    /// Memory in which [`Kind::BucketAllReduce`](crate::Kind::BucketAllReduce) works without a copy, zeroed. A collective call.
    fn alloc(&self, bytes: usize, within: Duration) -> Result<SharedMemory>;
    /// Ends the group for all ranks. May be called while another thread waits in a call, which then returns.
    fn abort(&self, reason: &str);
    /// How the group is doing.
    fn health(&self) -> Health;
}

impl<B: Backend + ?Sized> Backend for Arc<B> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    fn rank(&self) -> usize {
        (**self).rank()
    }
    fn world_size(&self) -> usize {
        (**self).world_size()
    }
    fn generation(&self) -> u64 {
        (**self).generation()
    }
    fn submit(&self, call: Call, within: Duration) -> Result<Ticket> {
        (**self).submit(call, within)
    }
    fn poll(&self, ticket: Ticket) -> Result<bool> {
        (**self).poll(ticket)
    }
    fn wait(&self, ticket: Ticket, within: Duration) -> Result<()> {
        (**self).wait(ticket, within)
    }
    fn run(&self, call: Call, within: Duration) -> Result<()> {
        (**self).run(call, within)
    }
    fn alloc(&self, bytes: usize, within: Duration) -> Result<SharedMemory> {
        (**self).alloc(bytes, within)
    }
    fn abort(&self, reason: &str) {
        (**self).abort(reason);
    }
    fn health(&self) -> Health {
        (**self).health()
    }
}
