//! Device memory and streams as values. The unsafe promises about them are made once, where they are constructed.

use std::{ffi::c_void, sync::Arc};

use super::Api;
use crate::{error::Result, safe::DataType};

/// A CUDA stream that belongs to someone else, such as a tensor library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub(crate) *mut c_void);

// SAFETY: a stream handle may be used from any thread; CUDA synchronises access to it.
unsafe impl Send for Stream {}
// SAFETY: as above; the handle itself is never dereferenced here.
unsafe impl Sync for Stream {}

impl Stream {
    /// The default stream of the current device.
    pub const DEFAULT: Self = Self(std::ptr::null_mut());

    /// Takes a `cudaStream_t` as a raw pointer.
    ///
    /// # Safety
    /// The stream must belong to the device of every communicator it is used with, and must outlive the work put on it.
    pub const unsafe fn from_raw(stream: *mut c_void) -> Self {
        Self(stream)
    }
}

macro_rules! device_slice {
    ($(#[$doc:meta])* $name:ident, $pointer:ty, $promise:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            pub(super) ptr: $pointer,
            count: usize,
            dtype: DataType,
        }

        // SAFETY: a device address may be named from any thread; it is never dereferenced on the host.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}

        impl $name {
            /// Takes a device address, a number of elements and their type.
            ///
            /// # Safety
            #[doc = $promise]
            pub const unsafe fn from_raw(ptr: $pointer, count: usize, dtype: DataType) -> Self {
                Self { ptr, count, dtype }
            }

            /// Its device address.
            pub const fn as_ptr(&self) -> $pointer {
                self.ptr
            }

            /// Number of elements.
            pub const fn count(&self) -> usize {
                self.count
            }

            /// Type of an element.
            pub const fn dtype(&self) -> DataType {
                self.dtype
            }

            /// Length in bytes.
            pub const fn bytes(&self) -> usize {
                self.count.saturating_mul(self.dtype.size())
            }

            /// Part `index` of `parts` equal ones; the caller made sure that they are.
            pub(super) fn part(&self, index: usize, parts: usize) -> Self {
                let count = self.count / parts;
                let ptr = self.ptr.wrapping_byte_add(index * count * self.dtype.size());
                Self { ptr, count, dtype: self.dtype }
            }
        }
    };
}

device_slice!(
    /// Device memory that a collective reads.
    DeviceSlice,
    *const c_void,
    "The memory must be readable by the communicator's device until the stream has passed the operations it is used in."
);
device_slice!(
    /// Device memory that a collective writes. It is `Copy`, because reading and writing the same memory is how NCCL works
    /// in place.
    DeviceSliceMut,
    *mut c_void,
    "The memory must be writable by the communicator's device, and touched by nothing else, until the stream has passed \
     the operations it is used in, or a registration of it has ended."
);

impl DeviceSliceMut {
    /// The same memory to be read, for operations in place.
    pub const fn as_slice(&self) -> DeviceSlice {
        DeviceSlice { ptr: self.ptr, count: self.count, dtype: self.dtype }
    }
}

/// Memory from `ncclMemAlloc`, freed when dropped.
pub(crate) struct Allocation {
    api: Arc<Api>,
    ptr: *mut c_void,
    bytes: usize,
}

// SAFETY: device memory may be freed from any thread.
unsafe impl Send for Allocation {}
// SAFETY: only the address is read through a shared reference.
unsafe impl Sync for Allocation {}

impl Allocation {
    pub(crate) fn new(api: &Arc<Api>, bytes: usize) -> Result<Self> {
        let mut ptr = std::ptr::null_mut();
        // SAFETY: `ptr` is a valid place for the answer.
        let _ = unsafe { api.mem_alloc(&mut ptr, bytes) }?;
        Ok(Self { api: api.clone(), ptr, bytes })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn as_ptr(&self) -> *mut c_void {
        self.ptr
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `ncclMemAlloc` and is freed once.
        if let Err(error) = unsafe { self.api.mem_free(self.ptr) } {
            tracing::warn!(%error, bytes = self.bytes, "device memory could not be freed");
        }
    }
}

/// The place where NCCL will write a window, perhaps from a thread of its own after the call has returned. It is leaked
/// if it is dropped before the registration was seen to end.
pub(crate) struct PendingWindow {
    slot: *mut *mut c_void,
}

// SAFETY: the slot is a heap allocation that this owns; NCCL writes it before the registration is reported done.
unsafe impl Send for PendingWindow {}

impl PendingWindow {
    pub(crate) fn new() -> Self {
        Self { slot: Box::into_raw(Box::new(std::ptr::null_mut())) }
    }

    pub(crate) fn as_mut_ptr(&self) -> *mut *mut c_void {
        self.slot
    }

    /// Reads the window.
    ///
    /// # Safety
    /// The communicator must have reported the registration done, so that NCCL will not write any more.
    unsafe fn take(self) -> *mut c_void {
        // SAFETY: NCCL is done with the slot, which came from `Box::into_raw` and is taken back once.
        *unsafe { Box::from_raw(self.slot) }
    }

    /// Waits with the given function for the registration to end, and reads the window. If it fails the place is left.
    pub(crate) fn resolve(self, wait: impl FnOnce() -> Result<()>) -> Result<usize> {
        wait()?;
        // SAFETY: `wait` is the communicator's own, which polls it to its end.
        Ok(unsafe { self.take() } as usize)
    }
}
