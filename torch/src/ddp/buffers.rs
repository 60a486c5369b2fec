//! Buffers (running means and the like) made the same on all ranks, in one call for each dtype.

use regatta_comm::{DType, ProcessGroup, ReduceOp};
use tch::{Tensor, no_grad};

use super::arena::{Arena, Spec};
use super::config::Buffers;
use super::plan::Caps;
use super::present::Present;
use crate::error::Result;

/// One bucket a dtype.
const CAPS: Caps = Caps { first: usize::MAX, rest: usize::MAX };

/// Gives all tensors the root's values. Needs as much of the group's memory as they have, for as long as it takes.
pub(super) fn copy_from(group: &ProcessGroup, tensors: &[Tensor], root: usize) -> Result<()> {
    Synced::new(group, tensors)?.broadcast(group, root)
}

/// Buffers and their staging memory.
#[derive(Debug)]
pub(super) struct Synced {
    tensors: Vec<Tensor>,
    arena: Arena,
}

impl Synced {
    /// All ranks together.
    pub(super) fn new(group: &ProcessGroup, tensors: &[Tensor]) -> Result<Synced> {
        let specs: Vec<_> = tensors.iter().map(Spec::contiguous).collect();
        let order: Vec<_> = (0..specs.len()).collect();
        let arena = Arena::new(group, specs, &order, CAPS)?;
        Ok(Synced { tensors: tensors.iter().map(Tensor::detach).collect(), arena })
    }

    /// As asked for; only those present count.
    pub(super) fn sync(&mut self, group: &ProcessGroup, how: Buffers, present: &Present) -> Result<()> {
        match how {
            Buffers::Leave => Ok(()),
            _ if self.tensors.is_empty() => Ok(()),
            Buffers::Broadcast => self.broadcast(group, present.first),
            Buffers::Mean => self.mean(group, present),
        }
    }

    fn broadcast(&mut self, group: &ProcessGroup, root: usize) -> Result<()> {
        if group.rank() == root {
            self.fill()?;
        }
        self.arena.broadcast(group, root)?;
        if group.rank() == root { Ok(()) } else { self.take() }
    }

    fn mean(&mut self, group: &ProcessGroup, present: &Present) -> Result<()> {
        if present.here {
            self.fill()?;
        } else {
            self.arena.memory.as_mut_slice::<u8>().fill(0);
        }
        for bucket in 0..self.arena.plan.buckets.len() {
            let planned = self.arena.plan.buckets[bucket].clone();
            if planned.dtype == DType::U8 {
                group.broadcast(&mut self.arena.memory.as_mut_slice::<u8>()[planned.bytes], present.first)?;
                continue;
            }
            let ticket = group.submit(self.arena.call(group, bucket, ReduceOp::Mean)?)?;
            group.wait(ticket)?;
            present.rescale(self.arena.flat(bucket), group.world_size())?;
        }
        self.take()
    }

    fn fill(&mut self) -> Result<()> {
        no_grad(|| {
            for (i, tensor) in self.tensors.iter().enumerate() {
                self.arena.view(i)?.shallow_clone().f_copy_(tensor)?;
            }
            Ok(())
        })
    }

    fn take(&mut self) -> Result<()> {
        no_grad(|| {
            for (i, tensor) in self.tensors.iter_mut().enumerate() {
                tensor.f_copy_(self.arena.view(i)?)?;
            }
            Ok(())
        })
    }
}
