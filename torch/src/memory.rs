//! Where tensors lie: channels-last, pinned, or in memory that is not libtorch's.

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::cuda;
use crate::error::{Error, Result};
use crate::params;
use crate::result::{context, foreign};

pub use crate::result::foreign::ForeignMemory;

/// The tensor (of 4 or 5 dimensions) with its channels innermost in memory; itself where it lies so already.
///
/// Convolutions in mixed precision are fastest so, on CPUs and GPUs. The shape does not change.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor> {
    context::channels_last(tensor)
}

/// Whether the tensor (of 4 or 5 dimensions) lies with its channels innermost.
pub fn is_channels_last(tensor: &Tensor) -> Result<bool> {
    context::is_channels_last(tensor)
}

/// Lays all of a model's tensors of 4 or 5 dimensions out channels-last; do this before making an optimiser.
pub fn model_to_channels_last(vs: &VarStore) -> Result<()> {
    for (_, mut tensor) in params::parameters(vs).into_iter().chain(params::buffers(vs)) {
        if matches!(tensor.dim(), 4 | 5) {
            let laid_out = channels_last(&tensor.detach())?;
            tensor.set_data(&laid_out);
        }
    }
    Ok(())
}

/// A copy in page-locked memory, from which a GPU can fetch while the CPU goes on.
pub fn pin(tensor: &Tensor) -> Result<Tensor> {
    cuda::load()?;
    Ok(tensor.f_pin_memory(Device::Cuda(0))?)
}

/// Whether the tensor lies in page-locked memory.
pub fn is_pinned(tensor: &Tensor) -> Result<bool> {
    if !cuda::is_available() {
        return Ok(false);
    }
    Ok(tensor.f_is_pinned(Device::Cuda(0))?)
}

/// A tensor over memory that is not libtorch's, without a copy. The memory's owner is dropped when the last tensor that
/// shares it is, on whatever thread that happens.
///
/// ```
/// use regatta_torch::memory;
/// use tch::Kind;
///
/// let tensor = memory::tensor_over(vec![1.0f32, 2.0, 3.0, 4.0], Kind::Float, &[2, 2])?;
/// assert_eq!(tensor.sum(Kind::Float).double_value(&[]), 10.0);
/// # Ok::<(), regatta_torch::Error>(())
/// ```
pub fn tensor_over<M: ForeignMemory>(memory: M, kind: Kind, shape: &[i64]) -> Result<Tensor> {
    let elements = shape.iter().try_fold(1usize, |all, &n| all.checked_mul(usize::try_from(n).ok()?));
    let needed = elements.and_then(|n| n.checked_mul(kind.elt_size_in_bytes()));
    let why = match needed {
        None => format!("{shape:?} is no shape"),
        Some(needed) if needed > memory.size() => {
            format!("a {kind:?} tensor of shape {shape:?} needs {needed} bytes, there are {}", memory.size())
        }
        Some(_) => return foreign::tensor_over(memory, kind, shape),
    };
    Err(Error::Argument { what: "tensor_over", why })
}
