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

    /// Drops what was recorded and gives NCCL's estimate, in microseconds, of what it would have taken. Since 2.22.
    pub fn estimate(self) -> Result<f32> {
        if !self.api.has("ncclGroupSimulateEnd") {
            // Dropping `self` closes the group, so it must not have recorded anything yet.
            return self.api.estimate_group().map(|(_, micros)| micros);
        }
        let members = OPEN.take().unwrap_or_default();
        let estimated = self.api.estimate_group();
        std::mem::forget(self);
        let left = leave(&members);
        let (_, micros) = estimated?;
        left.map(|()| micros)
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
