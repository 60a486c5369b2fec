//! Device memory NCCL made, and memory it was told about.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use super::shared::Shared;
use crate::{
    error::Result,
    result::{Allocation, Api, Progress},
};

/// Device memory from NCCL's own allocator, freed when dropped. Symmetric windows need it.
///
/// It lends no slices, since no borrow can last until a stream has passed: make them with
/// [`DeviceSlice::from_raw`](crate::DeviceSlice::from_raw) and keep this alive as that asks.
pub struct DeviceMemory(Allocation);

impl DeviceMemory {
    pub(crate) fn new(api: &Arc<Api>, bytes: usize) -> Result<Self> {
        Allocation::new(api, bytes).map(Self)
    }

    /// Its device address.
    pub fn as_ptr(&self) -> *mut std::ffi::c_void {
        self.0.as_ptr()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory({} bytes at {:p})", self.len(), self.as_ptr())
    }
}

/// Memory registered with a communicator, so that collectives use it without a copy; undone when dropped.
#[must_use = "the registration ends when this is dropped"]
pub struct Registration {
    pub(super) comm: Weak<Shared>,
    pub(super) handle: usize,
}

/// Memory registered with all ranks of a communicator at once, at the same place on each; undone when dropped.
#[must_use = "the registration ends when this is dropped"]
pub struct Window {
    pub(super) comm: Weak<Shared>,
    pub(super) handle: usize,
}

impl Window {
    /// NCCL's own handle, for device code.
    pub fn as_raw(&self) -> *mut std::ffi::c_void {
        self.handle as *mut _
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let handle = self.handle;
        undo("deregister", &self.comm, |comm| comm.deregister(handle));
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let handle = self.handle;
        undo("deregister_window", &self.comm, |comm| comm.deregister_window(handle));
    }
}

/// A communicator that is gone has taken its registrations with it.
fn undo(
    operation: &'static str,
    comm: &Weak<Shared>,
    call: impl FnOnce(&crate::result::RawComm) -> Result<Progress>,
) {
    let Some(comm) = comm.upgrade().filter(|comm| !comm.is_closed()) else { return };
    if let Err(error) = comm.with(operation, call) {
        tracing::warn!(%error, operation, "a registration could not be undone");
    }
}
