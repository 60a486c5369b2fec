//! A tensor's bytes on the host, kept alive and readable from several threads.

use std::slice;

use regatta_checkpoint::TensorSource;
use tch::{Device, Tensor};

use crate::error::{Error, Result};
use crate::result::context;

/// The bytes of a tensor as they lie in row-major order: its own memory where that is contiguous on the CPU, else that of a copy.
pub(crate) struct HostBytes {
    /// Keeps the memory.
    _tensor: Tensor,
    start: *const u8,
    length: usize,
}

// SAFETY: the memory is only read through this, and the handle that keeps it is only dropped, which libtorch allows on any thread.
unsafe impl Send for HostBytes {}
// SAFETY: as above; no method touches the handle.
unsafe impl Sync for HostBytes {}

impl HostBytes {
    /// The bytes of a tensor. Nobody may change it through another handle while they are read.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self> {
        let own = match context::bytes(tensor)? {
            Some(_) => tensor.detach(),
            None => tch::no_grad(|| tensor.f_to_device(Device::Cpu)?.f_contiguous())?
                .detach()
                .resolve_conj()
                .resolve_neg(),
        };
        let bytes = context::bytes(&own)?
            .ok_or(Error::Torch { op: "copying to the CPU", message: "the copy is not contiguous".into() })?;
        let (start, length) = (bytes.as_ptr(), bytes.len());
        Ok(HostBytes { _tensor: own, start, length })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: of `length` bytes that live as long as the handle beside them.
        unsafe { slice::from_raw_parts(self.start, self.length) }
    }
}

impl TensorSource for HostBytes {
    fn copy_to(&self, offset: usize, to: &mut [u8]) -> std::io::Result<()> {
        self.bytes().copy_to(offset, to)
    }

    fn len(&self) -> usize {
        self.length
    }
}
