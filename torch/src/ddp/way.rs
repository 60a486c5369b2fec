//! How a bucket's gradients become their mean: as they are, narrower, or from a GPU.

use regatta_comm::nccl::DeviceGroup;
use regatta_comm::{Bucket as Memory, DType, ProcessGroup, ReduceOp, Ticket};
use tch::{Device, Kind, Tensor, no_grad};

use super::arena::Arena;
use super::config::Compression;
use super::gpu::Gpu;
use crate::error::{Error, Result};
use crate::result::ddp::bucket_tensor;

/// Moves buckets; what is launched is landed once its ticket is finished.
#[derive(Debug)]
pub(super) enum Way {
    /// In place.
    Exact,
    /// 32-bit buckets by way of 16-bit ones.
    Narrow(Narrow),
    /// On a CUDA device.
    Gpu(Gpu),
}

impl Way {
    /// All ranks together.
    pub(super) fn new(
        group: &ProcessGroup,
        how: Compression,
        arena: &Arena,
        device: Device,
        nccl: Option<DeviceGroup>,
    ) -> Result<Way> {
        if device != Device::Cpu {
            return match how {
                Compression::Exact | Compression::PowerSgd(_) => Ok(Way::Gpu(Gpu::new(device, nccl, arena)?)),
                other => Err(Error::NotAvailable {
                    what: "sixteen-bit compression of gradients on a GPU",
                    why: format!("{other:?} works on the CPU only; keep the parameters in 16 bits instead"),
                }),
            };
        }
        let (kind, dtype) = match how {
            Compression::Bf16 => (Kind::BFloat16, DType::BF16),
            Compression::F16 => (Kind::Half, DType::F16),
            Compression::Exact | Compression::PowerSgd(_) => return Ok(Way::Exact),
        };
        let memory = group.alloc_bucket((arena.memory.len() / 2).max(1))?;
        let mut narrow = Narrow { kind, dtype, memory, flats: Vec::new() };
        narrow.arrange(arena)?;
        Ok(Way::Narrow(narrow))
    }

    /// Follows the arena's new arrangement.
    pub(super) fn arrange(&mut self, arena: &Arena) -> Result<()> {
        match self {
            Way::Exact => Ok(()),
            Way::Narrow(narrow) => narrow.arrange(arena),
            Way::Gpu(gpu) => gpu.arrange(arena),
        }
    }

    /// Starts a bucket. Without a ticket it lands with [`Way::finish`].
    pub(super) fn launch(
        &mut self,
        group: &ProcessGroup,
        arena: &Arena,
        bucket: usize,
    ) -> Result<Option<Ticket>> {
        match self {
            Way::Narrow(narrow) if narrow.flats[bucket].is_some() => {
                narrow.launch(group, arena, bucket).map(Some)
            }
            Way::Gpu(gpu) => gpu.launch(arena, bucket).map(|()| None),
            _ => Ok(Some(group.submit(arena.call(group, bucket, ReduceOp::Mean)?)?)),
        }
    }

    /// Brings what has no ticket to its end; answers which buckets those were.
    pub(super) fn finish(&mut self, group: &ProcessGroup, arena: &Arena) -> Result<Vec<usize>> {
        match self {
            Way::Gpu(gpu) => gpu.finish(group, arena),
            _ => Ok(Vec::new()),
        }
    }

    /// Forgets what is under way.
    pub(super) fn clear(&mut self) {
        if let Way::Gpu(gpu) = self {
            gpu.clear();
        }
    }

    /// Takes the mean over.
    pub(super) fn land(&mut self, arena: &Arena, bucket: usize) -> Result<()> {
        if let Way::Narrow(Narrow { flats, .. }) = self
            && let Some(narrow) = &flats[bucket]
        {
            no_grad(|| arena.flat(bucket).shallow_clone().f_copy_(narrow))?;
        }
        Ok(())
    }
}

/// Memory for the gradients in 16 bits.
#[derive(Debug)]
pub(super) struct Narrow {
    kind: Kind,
    dtype: DType,
    memory: Memory,
    /// By bucket; none for those that are not of 32 bits.
    flats: Vec<Option<Tensor>>,
}

impl Narrow {
    fn arrange(&mut self, arena: &Arena) -> Result<()> {
        self.flats = (arena.plan.buckets.iter())
            .map(|b| match b.dtype {
                DType::F32 => {
                    let flat = bucket_tensor(&self.memory, b.bytes.start / 2, b.bytes.len() / 2, self.kind)?;
                    Ok(Some(flat))
                }
                _ => Ok(None),
            })
            .collect::<Result<_>>()?;
        Ok(())
    }

    fn launch(&mut self, group: &ProcessGroup, arena: &Arena, bucket: usize) -> Result<Ticket> {
        if let Some(narrow) = &self.flats[bucket] {
            no_grad(|| narrow.shallow_clone().f_copy_(arena.flat(bucket)))?;
        }
        let elements = arena.plan.buckets[bucket].elements();
        Ok(group.submit(group.bucket_call(&self.memory, elements, self.dtype, ReduceOp::Mean)?)?)
    }
}
