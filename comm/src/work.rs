//! A call in flight that owns its memory.

use crate::backend::{Backend, Ticket};
use crate::{Bucket, Element, Region, Result};
use std::sync::Arc;
use std::time::Duration;

mod sealed {
    pub trait Sealed {}
}

/// Memory that does not move when its owner does, so that a call in flight can hold it: vectors, buckets, nothing, or a pair. Sealed.
pub trait Owned: Send + 'static + sealed::Sealed {}

impl<T: Element> sealed::Sealed for Vec<T> {}
impl<T: Element> Owned for Vec<T> {}
impl sealed::Sealed for Bucket {}
impl Owned for Bucket {}
impl sealed::Sealed for () {}
impl Owned for () {}
impl<A: Owned, B: Owned> sealed::Sealed for (A, B) {}
impl<A: Owned, B: Owned> Owned for (A, B) {}

/// A call that was started. [`wait`](Work::wait) gives its memory back.
///
/// There is no communication thread on CPU back ends: a call moves when *any* call of the group is tested or waited for, and a
/// bucket whose owner has started it is reduced by whichever rank comes by. Dropping a `Work` waits for it, up to the group's deadline.
#[derive(Debug)]
#[must_use = "a call in flight is finished by wait()"]
pub struct Work<B: Owned> {
    flight: Option<Flight<B>>,
}

#[derive(Debug)]
struct Flight<B> {
    backend: Arc<dyn Backend>,
    ticket: Ticket,
    memory: B,
    bools: Region,
    within: Duration,
}

impl<B: Owned> Work<B> {
    /// `bools` is the part of `memory` that must hold valid bools in the end, if any.
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        ticket: Ticket,
        memory: B,
        bools: Region,
        within: Duration,
    ) -> Self {
        Work { flight: Some(Flight { backend, ticket, memory, bools, within }) }
    }

    /// Makes progress without waiting; true if [`wait`](Work::wait) would not wait.
    pub fn test(&self) -> Result<bool> {
        match &self.flight {
            Some(f) => f.backend.poll(f.ticket),
            None => Ok(true),
        }
    }

    /// Waits for the group's usual time and gives the memory back. After an error its values are unspecified, and it is gone.
    pub fn wait(mut self) -> Result<B> {
        let within = self.flight.as_ref().map_or(Duration::ZERO, |f| f.within);
        self.finish(within).expect("waited for once")
    }

    /// Waits for at most `within`. If the time is up the group is over, as with every deadline.
    pub fn wait_within(mut self, within: Duration) -> Result<B> {
        self.finish(within).expect("waited for once")
    }

    fn finish(&mut self, within: Duration) -> Option<Result<B>> {
        let flight = self.flight.take()?;
        let done = flight.backend.wait(flight.ticket, within);
        flight.bools.normalise_bools();
        Some(done.map(|()| flight.memory))
    }
}

impl<B: Owned> Drop for Work<B> {
    fn drop(&mut self) {
        let within = self.flight.as_ref().map_or(Duration::ZERO, |f| f.within);
        if let Some(Err(e)) = self.finish(within) {
            tracing::debug!("a call in flight was dropped and failed: {e}");
        }
    }
}
