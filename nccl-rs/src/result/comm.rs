//! An owned communicator handle: made, polled, and given up exactly once.

use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicPtr, Ordering},
    },
};

use super::{Api, Progress, RawConfig, int, memory::PendingWindow};
use crate::{
    error::{Error, Result},
    result::DeviceSliceMut,
    sys::{self, ncclUniqueId},
};

/// What happens to the parent's work when a communicator is shrunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ShrinkMode {
    /// The parent is healthy and idle; its resources may be shared.
    #[default]
    Default,
    /// The parent is in trouble: its running operations are terminated first.
    Abort,
}

/// The place where NCCL writes a communicator.
///
/// For a child of a split or shrink it does so from a thread of its own, after the call has returned, so the place has to
/// be on the heap and to stay until then. It is therefore leaked unless it was seen filled.
struct Slot(*mut AtomicPtr<c_void>);

// SAFETY: the slot is a heap allocation reached only through atomic operations.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    fn new() -> Self {
        Self(Box::into_raw(Box::new(AtomicPtr::new(ptr::null_mut()))))
    }

    fn as_mut_ptr(&self) -> *mut sys::ncclComm_t {
        self.0.cast()
    }

    fn get(&self) -> *mut c_void {
        // SAFETY: the allocation lives until `free`, which takes the slot.
        unsafe { &*self.0 }.load(Ordering::Acquire)
    }

    /// # Safety
    /// NCCL must be done with the slot.
    unsafe fn free(self) {
        // SAFETY: it came from `Box::into_raw`, and the caller says nobody else will touch it.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// A communicator that NCCL has promised but perhaps not made yet.
pub(crate) struct PendingComm {
    api: Arc<Api>,
    slot: Slot,
    config: Option<RawConfig>,
}

impl PendingComm {
    fn new(api: &Arc<Api>, config: Option<RawConfig>) -> Self {
        Self { api: api.clone(), slot: Slot::new(), config }
    }

    fn config_ptr(&mut self) -> *mut sys::ncclConfig_t {
        self.config.as_mut().map_or(ptr::null_mut(), RawConfig::as_mut_ptr)
    }

    /// The communicator, once its handle is there; it may still be in progress itself.
    pub(crate) fn into_comm(self) -> std::result::Result<RawComm, Self> {
        match self.slot.get() {
            handle if handle.is_null() => Err(self),
            handle => Ok(RawComm { api: self.api, handle, slot: self.slot, config: self.config }),
        }
    }
}

/// A communicator of NCCL's, owned: it ends in [`RawComm::destroy`] or [`RawComm::abort`], or is leaked.
pub(crate) struct RawComm {
    pub(super) api: Arc<Api>,
    pub(super) handle: *mut c_void,
    slot: Slot,
    #[expect(dead_code, reason = "its strings are NCCL's to read as long as the communicator lives")]
    config: Option<RawConfig>,
}

// SAFETY: NCCL allows a communicator to be used from any thread, one at a time; the owner serialises.
unsafe impl Send for RawComm {}

impl RawComm {
    /// Begins to build a communicator over a new clique.
    pub(crate) fn init(
        api: &Arc<Api>,
        world: u32,
        rank: u32,
        ids: &[ncclUniqueId],
        config: RawConfig,
    ) -> Result<RawComm> {
        let operation = "ncclCommInitRankConfig";
        let (world, rank) =
            (int(operation, "world", world as usize)?, int(operation, "rank", rank as usize)?);
        let mut pending = PendingComm::new(api, Some(config));
        let (slot, config) = (pending.slot.as_mut_ptr(), pending.config_ptr());
        let _ = match ids {
            // SAFETY: the slot and the configuration live on the heap until the communicator is gone.
            [id] => unsafe { api.comm_init_rank_config(slot, world, *id, rank, config) }?,
            ids => {
                let mut ids = ids.to_vec();
                let count = int(operation, "number of ids", ids.len())?;
                // SAFETY: as above; NCCL copies the ids before it returns.
                unsafe { api.comm_init_rank_scalable(slot, world, rank, count, ids.as_mut_ptr(), config) }?
            }
        };
        pending.into_comm().map_err(|_| no_handle(operation))
    }

    /// Begins to add this process to an existing clique that grows.
    pub(crate) fn join(
        api: &Arc<Api>,
        world: u32,
        rank: u32,
        id: &ncclUniqueId,
        config: RawConfig,
    ) -> Result<RawComm> {
        let operation = "ncclCommGrow";
        let (world, rank) =
            (int(operation, "world", world as usize)?, int(operation, "rank", rank as usize)?);
        let mut pending = PendingComm::new(api, Some(config));
        let (slot, config) = (pending.slot.as_mut_ptr(), pending.config_ptr());
        // SAFETY: a null communicator marks a newcomer; the id is copied; slot and configuration are as in `init`.
        let _ = unsafe { api.comm_grow(ptr::null_mut(), world, id, rank, slot, config) }?;
        pending.into_comm().map_err(|_| no_handle(operation))
    }

    /// How the communicator is doing: done, still at it, or failed since the last call.
    pub(crate) fn poll(&self, function: &'static str) -> Result<Progress> {
        let mut code = sys::SUCCESS;
        // SAFETY: the handle is live, and `code` a valid place for the answer.
        let _ = unsafe { self.api.comm_get_async_error(self.handle, &mut code) }?;
        self.api.check(function, code)
    }

    /// Rank, size and CUDA device.
    pub(crate) fn shape(&self) -> Result<(u32, u32, u32)> {
        let (mut rank, mut world, mut device) = (0, 0, 0);
        // SAFETY: the handle is live, and the places are valid.
        unsafe {
            let _ = self.api.comm_user_rank(self.handle, &mut rank)?;
            let _ = self.api.comm_count(self.handle, &mut world)?;
            let _ = self.api.comm_cu_device(self.handle, &mut device)?;
        }
        Ok((rank.unsigned_abs(), world.unsigned_abs(), device.unsigned_abs()))
    }

    /// Begins a split. Without a color this rank takes part in the call but gets no child.
    pub(crate) fn split(
        &self,
        color: Option<u32>,
        key: i32,
        config: Option<RawConfig>,
    ) -> Result<PendingComm> {
        let color = match color {
            None => sys::SPLIT_NOCOLOR,
            Some(color) => int("ncclCommSplit", "color", color as usize)?,
        };
        let mut pending = PendingComm::new(&self.api, config);
        let (slot, config) = (pending.slot.as_mut_ptr(), pending.config_ptr());
        // SAFETY: the handle is live; the slot stays on the heap until NCCL has filled it.
        let _ = unsafe { self.api.comm_split(self.handle, color, key, slot, config) }?;
        Ok(pending)
    }

    /// Begins to leave ranks out.
    pub(crate) fn shrink(
        &self,
        exclude: &[u32],
        mode: ShrinkMode,
        config: Option<RawConfig>,
    ) -> Result<PendingComm> {
        let operation = "ncclCommShrink";
        let mut exclude =
            exclude.iter().map(|rank| int(operation, "rank", *rank as usize)).collect::<Result<Vec<_>>>()?;
        let count = int(operation, "number of ranks", exclude.len())?;
        let mut pending = PendingComm::new(&self.api, config);
        let (slot, config) = (pending.slot.as_mut_ptr(), pending.config_ptr());
        let flags = c_int::from(mode == ShrinkMode::Abort);
        // SAFETY: the handle is live; NCCL copies the list; the slot is as in `split`.
        let _ =
            unsafe { self.api.comm_shrink(self.handle, exclude.as_mut_ptr(), count, slot, config, flags) }?;
        Ok(pending)
    }

    /// Begins to take newcomers in. The rank that made the id passes it; the others do not.
    pub(crate) fn grow(
        &self,
        world: u32,
        id: Option<&ncclUniqueId>,
        config: Option<RawConfig>,
    ) -> Result<PendingComm> {
        let world = int("ncclCommGrow", "world", world as usize)?;
        let mut pending = PendingComm::new(&self.api, config);
        let (slot, config) = (pending.slot.as_mut_ptr(), pending.config_ptr());
        let id = id.map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the handle is live; -1 marks an existing rank; the id is copied; the slot is as in `split`.
        let _ = unsafe { self.api.comm_grow(self.handle, world, id, -1, slot, config) }?;
        Ok(pending)
    }

    /// An id under which newcomers join this communicator.
    pub(crate) fn grow_id(&self) -> Result<ncclUniqueId> {
        let mut id = ncclUniqueId { internal: [0; sys::UNIQUE_ID_BYTES] };
        // SAFETY: the handle is live, and `id` a valid place for the answer.
        let _ = unsafe { self.api.comm_get_unique_id(self.handle, &mut id) }?;
        Ok(id)
    }

    pub(crate) fn finalize(&self) -> Result<Progress> {
        // SAFETY: the handle is live.
        unsafe { self.api.comm_finalize(self.handle) }
    }

    pub(crate) fn revoke(&self) -> Result<Progress> {
        // SAFETY: the handle is live; no flags are defined.
        unsafe { self.api.comm_revoke(self.handle, 0) }
    }

    pub(crate) fn suspend(&self) -> Result<Progress> {
        const SUSPEND_MEMORY: c_int = 1;
        // SAFETY: the handle is live.
        unsafe { self.api.comm_suspend(self.handle, SUSPEND_MEMORY) }
    }

    pub(crate) fn resume(&self) -> Result<Progress> {
        // SAFETY: the handle is live.
        unsafe { self.api.comm_resume(self.handle) }
    }

    pub(crate) fn memory(&self, statistic: c_int) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the handle is live, and `value` a valid place for the answer.
        let _ = unsafe { self.api.comm_mem_stats(self.handle, statistic, &mut value) }?;
        Ok(value)
    }

    pub(crate) fn register(&self, memory: DeviceSliceMut) -> Result<usize> {
        let mut handle = ptr::null_mut();
        // SAFETY: the handle is live; the caller vouched for the memory when it made the slice.
        let _ = unsafe { self.api.comm_register(self.handle, memory.ptr, memory.bytes(), &mut handle) }?;
        Ok(handle as usize)
    }

    pub(crate) fn deregister(&self, registration: usize) -> Result<Progress> {
        // SAFETY: the registration came from `register` on this communicator, and is given up once by its owner.
        unsafe { self.api.comm_deregister(self.handle, registration as *mut c_void) }
    }

    pub(crate) fn register_window(&self, memory: DeviceSliceMut, symmetric: bool) -> Result<PendingWindow> {
        let pending = PendingWindow::new();
        let flags = c_int::from(symmetric);
        // SAFETY: as in `register`; the window is written to a place on the heap that outlives the registration.
        let _ = unsafe {
            self.api.comm_window_register(
                self.handle,
                memory.ptr,
                memory.bytes(),
                pending.as_mut_ptr(),
                flags,
            )
        }?;
        Ok(pending)
    }

    pub(crate) fn deregister_window(&self, window: usize) -> Result<Progress> {
        // SAFETY: the window came from `register_window` on this communicator, and is given up once by its owner.
        unsafe { self.api.comm_window_deregister(self.handle, window as *mut c_void) }
    }

    /// Frees the communicator after it was finalized.
    pub(crate) fn destroy(self) -> Result<()> {
        // SAFETY: the handle is live, and gone with `self`.
        let result = unsafe { self.api.comm_destroy(self.handle) };
        self.release(result)
    }

    /// Frees the communicator whatever its state, and makes its kernels leave.
    pub(crate) fn abort(self) -> Result<()> {
        // SAFETY: the handle is live, and gone with `self`.
        let result = unsafe { self.api.comm_abort(self.handle) };
        self.release(result)
    }

    fn release(self, result: Result<Progress>) -> Result<()> {
        if result? == Progress::Done {
            // SAFETY: the communicator is gone, and with it whoever wrote to the slot. (Otherwise it is leaked.)
            unsafe { self.slot.free() };
        }
        Ok(())
    }
}

fn no_handle(function: &'static str) -> Error {
    Error::Nccl {
        function,
        code: crate::error::Code::INTERNAL,
        message: "the call succeeded but gave no communicator".to_owned(),
        rank: None,
    }
}
