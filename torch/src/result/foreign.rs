//! Memory of other owners, and the promise that makes it usable.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Device, Kind, Tensor, kind::Element};

use super::{device_code, kind_code, some_tensor, tensor_from};
use crate::error::{Error, Result};
use crate::sys;

/// Memory that a tensor can lie in.
///
/// # Safety
/// [`ForeignMemory::pointer`] points to [`ForeignMemory::size`] initialised bytes on [`ForeignMemory::device`], for any
/// values of which the memory's other users are prepared. They stay valid and in place until the value is dropped, also
/// when the value itself is moved, and dropping it on any thread is fine. Whoever else reads or writes them does so only
/// while no operation of libtorch's touches them.
pub unsafe trait ForeignMemory: Send + 'static {
    /// Where the memory begins.
    fn pointer(&mut self) -> *mut u8;

    /// How many bytes there are.
    fn size(&self) -> usize;

    /// Where the memory lies.
    fn device(&self) -> Device {
        Device::Cpu
    }
}

// SAFETY: a vector's elements stay in place when the vector moves, are initialised, and are its own. `Element` are plain
// numbers; `bool` is excluded by what libtorch writes: its Bool tensors hold zero or one only.
unsafe impl<T: Element + Send + 'static> ForeignMemory for Vec<T> {
    fn pointer(&mut self) -> *mut u8 {
        self.as_mut_ptr().cast()
    }

    fn size(&self) -> usize {
        size_of_val(self.as_slice())
    }
}

unsafe extern "C" fn drop_owner<M>(data: *mut c_void) {
    // SAFETY: `data` is the box of `tensor_over`, dropped once.
    let owner = unsafe { Box::from_raw(data.cast::<M>()) };
    // A panic in the owner's Drop has nobody to go to.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(owner)));
}

/// The caller has checked that `shape` and `kind` fit into the memory.
pub(crate) fn tensor_over<M: ForeignMemory>(mut memory: M, kind: Kind, shape: &[i64]) -> Result<Tensor> {
    let (code, device) = (kind_code(kind)?, device_code(memory.device())?);
    let pointer = memory.pointer();
    if !pointer.addr().is_multiple_of(kind.elt_size_in_bytes()) {
        let why = format!("the memory begins at {pointer:?}, which is not aligned for {kind:?}");
        return Err(Error::Argument { what: "tensor_over", why });
    }
    let data = Box::into_raw(Box::new(memory)).cast();
    let op = "making a tensor over foreign memory";
    // SAFETY: `ForeignMemory` vouches for the memory; the owner goes over whatever the outcome.
    let tensor = tensor_from(op, |out| unsafe {
        sys::rg_foreign(pointer.cast(), shape.as_ptr(), shape.len(), code, device, data, drop_owner::<M>, out)
    })?;
    some_tensor(op, tensor)
}
