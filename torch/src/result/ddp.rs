//! Gradients in and out of buckets, and a process group's memory as tensors.

use std::any::Any;
use std::sync::Arc;

use regatta_comm::nccl::{self, DataType, DeviceSliceMut};
use regatta_comm::{Bucket, Region};
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use super::{check, foreign};
use crate::cuda::Stream;
use crate::error::{Error, Result};
use crate::sys;

/// A part of a bucket, kept mapped for as long as a tensor lies in it.
struct BucketMemory {
    region: Region,
    _keeper: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the region is the group's memory, which the keeper holds mapped and in place; all bit patterns are valid for the
// float kinds tensors are made of here. Peers write it only while a call is in flight, which `crate::ddp` keeps apart from its
// operations on the same part.
unsafe impl foreign::ForeignMemory for BucketMemory {
    fn pointer(&mut self) -> *mut u8 {
        self.region.ptr()
    }

    fn size(&self) -> usize {
        self.region.len()
    }
}

/// A flat tensor over `bytes` of a bucket, from `offset`.
pub(crate) fn bucket_tensor(bucket: &Bucket, offset: usize, bytes: usize, kind: Kind) -> Result<Tensor> {
    let memory = BucketMemory { region: bucket.region().part(offset, bytes), _keeper: bucket.keeper() };
    foreign::tensor_over(memory, kind, &[(bytes / kind.elt_size_in_bytes()) as i64])
}

/// Takes the gradients away.
pub(crate) fn release_grads<'a>(parameters: impl Iterator<Item = &'a Tensor>) -> Result<()> {
    let pointers: Vec<*const C_tensor> = parameters.map(Tensor::as_ptr).collect();
    // SAFETY: the tensors are borrowed for the call; the list is as long as is said.
    check("releasing gradients", unsafe { sys::rg_grads_release(pointers.as_ptr(), pointers.len()) })
}

/// What became of a parameter's gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// It has none.
    None,
    /// It lies in its bucket; whether all of it is finite, if that was looked at (true otherwise).
    Into { finite: bool },
}

/// Copies a parameter's gradient into `view`, which becomes its gradient, and looks at it on the way if told to.
pub(crate) fn grad_into(parameter: &Tensor, view: &Tensor, look: bool) -> Result<Moved> {
    let (mut had, mut finite) = (false, true);
    let looked = if look { &raw mut finite } else { std::ptr::null_mut() };
    // SAFETY: both tensors are alive; the flag is, or is null.
    let message = unsafe { sys::rg_grad_into(parameter.as_ptr(), view.as_ptr(), &mut had, looked) };
    check("moving a gradient into its bucket", message)?;
    Ok(if had { Moved::Into { finite } } else { Moved::None })
}

/// Queues a copy between a device and pinned memory in the current stream. The caller keeps both until it is done.
pub(crate) fn copy_async(to: &Tensor, from: &Tensor) -> Result<()> {
    // SAFETY: both tensors are alive; libtorch keeps pinned memory of its own from being reused before the copy is done.
    check("queueing a copy", unsafe { sys::rg_copy_async(to.as_ptr(), from.as_ptr()) })
}

/// A contiguous device tensor as NCCL takes it. The caller keeps it until the stream has passed.
pub(crate) fn device_slice(tensor: &Tensor) -> Result<DeviceSliceMut> {
    let dtype = match tensor.kind() {
        Kind::Float => DataType::F32,
        Kind::Double => DataType::F64,
        Kind::Half => DataType::F16,
        Kind::BFloat16 => DataType::Bf16,
        other => {
            return Err(Error::Argument { what: "NCCL", why: format!("{other:?} cannot be averaged") });
        }
    };
    if !tensor.device().is_cuda() || !tensor.is_contiguous() {
        let why = "a bucket must be contiguous on a CUDA device".into();
        return Err(Error::Argument { what: "NCCL", why });
    }
    // SAFETY: contiguous device memory of so many elements, which the caller keeps.
    Ok(unsafe { DeviceSliceMut::from_raw(tensor.data_ptr(), tensor.numel(), dtype) })
}

/// A stream of libtorch's, as NCCL takes it.
pub(crate) fn nccl_stream(stream: &Stream) -> Result<nccl::Stream> {
    let handle = stream.raw()?;
    // SAFETY: libtorch's streams live as long as the process.
    Ok(unsafe { nccl::Stream::from_raw(handle) })
}

/// Whether no element is infinite or not a number. Waits for a GPU.
pub(crate) fn all_finite(tensor: &Tensor) -> Result<bool> {
    let mut finite = false;
    // SAFETY: the tensor is alive.
    check("looking for values that are not finite", unsafe {
        sys::rg_all_finite(tensor.as_ptr(), &mut finite)
    })?;
    Ok(finite)
}
