//! Groups: several operations launched as one.
//!
//! NCCL keeps the group per thread, so it is kept per thread here too: a call on a communicator looks whether a group is
//! open and, if so, leaves the waiting to its end.

use std::{cell::RefCell, marker::PhantomData, sync::Arc};

use super::shared::Shared;
use crate::{
    error::{Error, Result},
    result::{Api, Progress},
};

thread_local! {
    /// Communicators that recorded a call in the group that is open on this thread, if one is.
    static OPEN: RefCell<Option<Vec<Arc<Shared>>>> = const { RefCell::new(None) };
}

/// Notes the communicator in the open group; false if there is none.
pub(super) fn record(shared: &Arc<Shared>) -> bool {
    OPEN.with_borrow_mut(|open| {
        let Some(members) = open else { return false };
        if !members.iter().any(|member| Arc::ptr_eq(member, shared)) {
            shared.enter_group();
            members.push(shared.clone());
        }
        true
    })
}

/// Refuses what has to wait for its outcome while a group is open, since nothing happens before the group's end.
pub(super) fn refuse_if_open(operation: &'static str) -> Result<()> {
    if OPEN.with_borrow(Option::is_none) {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        operation,
        what: "it waits for its outcome, so it cannot be part of the group that is open on this thread"
            .to_owned(),
    })
}

/// An open group on this thread: sends and receives that wait for each other, or many small collectives, are launched
/// together at its end.
///
/// Dropping it instead ends it too, because NCCL's depth must stay balanced, but without waiting; abort the communicators
/// if it was left half filled.
#[must_use = "a group does nothing until it ends"]
pub struct Group {
    api: Arc<Api>,
    /// NCCL's group belongs to the thread.
    not_send: PhantomData<*const ()>,
}

impl Group {
    pub(super) fn start(api: &Arc<Api>) -> Result<Self> {
        OPEN.with_borrow_mut(|open| {
            if open.is_some() {
                return Err(Error::InvalidArgument {
                    operation: "group",
                    what: "a group is already open on this thread; use that one".to_owned(),
                });
            }
            let _ = api.begin_group()?;
            *open = Some(Vec::new());
            Ok(Self { api: api.clone(), not_send: PhantomData })
        })
    }

    /// Launches what was recorded and waits until every communicator has it enqueued, each within its own timeout.
    pub fn end(self) -> Result<()> {
        let members = OPEN.take().unwrap_or_default();
        let launched = self.api.finish_group();
        std::mem::forget(self);
        let waited = match launched {
            // A communicator may still be at it although the group says it is done, so all are asked.
            Ok(_) => members.iter().try_for_each(|member| member.wait("group")),
            Err(error) => Err(error),
        };
        let left = leave(&members);
        waited.and(left)
    }

    /// Gives NCCL's estimate, in microseconds, of what the group would take, and drops what was recorded. Since 2.22.3;
    /// before, the group is launched as if dropped, so ask [`Nccl::has`](crate::Nccl::has) first.
    pub fn estimate(self) -> Result<f32> {
        let members = OPEN.take().unwrap_or_default();
        let estimated = self.api.estimate_group();
        if matches!(estimated, Err(Error::NotSupported { .. })) {
            // Nobody closed the group, and NCCL can only do so by launching it.
            OPEN.set(Some(members));
            return estimated;
        }
        std::mem::forget(self);
        let left = leave(&members);
        estimated.and_then(|micros| left.map(|()| micros))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let members = OPEN.take().unwrap_or_default();
        if let Err(error) = self.api.finish_group().map(|_: Progress| ()).and(leave(&members)) {
            tracing::warn!(%error, "a group that was dropped did not end well");
        }
    }
}

fn leave(members: &[Arc<Shared>]) -> Result<()> {
    members.iter().map(|member| member.leave_group()).fold(Ok(()), Result::and)
}
