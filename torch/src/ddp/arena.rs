//! Memory of the group, laid out by a plan, with a tensor over every part.

use regatta_comm::{Bucket as Memory, Call, DType, ProcessGroup, ReduceOp};
use tch::{Device, Kind, Tensor};

use super::plan::{Caps, Plan, Size};
use crate::error::{Error, Result};
use crate::result::ddp::bucket_tensor;

/// The dtype of a kind that can be averaged.
pub(super) fn reducible(kind: Kind) -> Option<DType> {
    match kind {
        Kind::Float => Some(DType::F32),
        Kind::Double => Some(DType::F64),
        Kind::Half => Some(DType::F16),
        Kind::BFloat16 => Some(DType::BF16),
        _ => None,
    }
}

fn kind_of(dtype: DType) -> Kind {
    match dtype {
        DType::F32 => Kind::Float,
        DType::F64 => Kind::Double,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        DType::I32 => Kind::Int,
        DType::I64 => Kind::Int64,
        DType::U8 | DType::Bool => Kind::Uint8,
    }
}

/// A tensor that is to have a place.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    kind: Kind,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl Spec {
    /// Laid out as the tensor itself, whose memory must have no holes.
    pub(super) fn like(tensor: &Tensor) -> Spec {
        Spec { kind: tensor.kind(), shape: tensor.size(), strides: tensor.stride() }
    }

    /// Of the tensor's shape, in row-major order.
    pub(super) fn contiguous(tensor: &Tensor) -> Spec {
        let shape = tensor.size();
        let mut strides = vec![1; shape.len()];
        for dim in (1..shape.len()).rev() {
            strides[dim - 1] = strides[dim] * shape[dim].max(1);
        }
        Spec { kind: tensor.kind(), shape, strides }
    }

    fn elements(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    fn bytes(&self) -> usize {
        self.elements() * self.kind.elt_size_in_bytes()
    }

    /// What cannot be averaged is moved as bytes.
    fn size(&self) -> Size {
        match reducible(self.kind) {
            Some(dtype) => Size { dtype, elements: self.elements() },
            None => Size { dtype: DType::U8, elements: self.bytes() },
        }
    }

    /// Whether the elements fill their memory without holes or overlap.
    pub(super) fn is_dense(&self) -> bool {
        let mut dims: Vec<_> =
            self.shape.iter().zip(&self.strides).filter(|(n, _)| **n != 1).map(|(n, s)| (*s, *n)).collect();
        dims.sort_unstable();
        let mut next = 1;
        let follows = |(stride, n): (i64, i64)| {
            let fits = stride == next;
            next *= n;
            fits
        };
        self.elements() == 0 || dims.into_iter().all(follows)
    }
}

/// Tensors in the group's memory; or on a device, with as much of the group's memory beside them.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) memory: Memory,
    device: Device,
    pub(super) plan: Plan,
    specs: Vec<Spec>,
    /// One over each bucket of the group's memory.
    host: Vec<Tensor>,
    /// One over each bucket where the tensors are: the same on the CPU.
    flats: Vec<Tensor>,
    /// One for each tensor of the plan, with its shape and strides.
    views: Vec<Option<Tensor>>,
}

impl Arena {
    /// All ranks together, with the same specifications in the same order.
    pub(super) fn new(group: &ProcessGroup, specs: Vec<Spec>, order: &[usize], caps: Caps) -> Result<Arena> {
        Arena::on(Device::Cpu, group, specs, order, caps)
    }

    /// The same with the tensors on a device.
    pub(super) fn on(
        device: Device,
        group: &ProcessGroup,
        specs: Vec<Spec>,
        order: &[usize],
        caps: Caps,
    ) -> Result<Arena> {
        let sizes: Vec<_> = specs.iter().map(Spec::size).collect();
        let memory = group.alloc_bucket(Plan::arena(&sizes).max(1))?;
        let plan = Plan::new(&sizes, &[], caps);
        let mut arena =
            Arena { memory, device, plan, specs, host: Vec::new(), flats: Vec::new(), views: Vec::new() };
        arena.arrange(order, caps)?;
        Ok(arena)
    }

    /// Lays the tensors out anew, in zeroed memory. Tensors that were over it before are overwritten.
    pub(super) fn arrange(&mut self, order: &[usize], caps: Caps) -> Result<()> {
        let sizes: Vec<_> = self.specs.iter().map(Spec::size).collect();
        self.memory.as_mut_slice::<u8>().fill(0);
        self.plan = Plan::new(&sizes, order, caps);
        self.host = (self.plan.buckets.iter())
            .map(|b| bucket_tensor(&self.memory, b.bytes.start, b.bytes.len(), kind_of(b.dtype)))
            .collect::<Result<_>>()?;
        self.flats = match self.device {
            Device::Cpu => self.host.iter().map(Tensor::shallow_clone).collect(),
            device => self.host.iter().map(|h| h.f_zeros_like()?.f_to(device)).collect::<Result<_, _>>()?,
        };
        self.views = (0..self.specs.len()).map(|tensor| self.make_view(tensor)).collect::<Result<_>>()?;
        Ok(())
    }

    fn make_view(&self, tensor: usize) -> Result<Option<Tensor>> {
        let (Some(slot), spec) = (self.plan.slots[tensor], &self.specs[tensor]) else { return Ok(None) };
        if self.device != Device::Cpu {
            let offset = slot.offset / spec.kind.elt_size_in_bytes();
            let flat = &self.flats[slot.bucket];
            return Ok(Some(flat.f_as_strided(&spec.shape, &spec.strides, offset as i64)?));
        }
        let start = self.plan.buckets[slot.bucket].bytes.start + slot.offset;
        let flat = bucket_tensor(&self.memory, start, spec.bytes(), spec.kind)?;
        Ok(Some(flat.f_as_strided(&spec.shape, &spec.strides, 0)?))
    }

    /// The tensor over a whole bucket.
    pub(super) fn flat(&self, bucket: usize) -> &Tensor {
        &self.flats[bucket]
    }

    /// The tensor over a whole bucket of the group's memory.
    pub(super) fn host(&self, bucket: usize) -> &Tensor {
        &self.host[bucket]
    }

    /// The tensor in its place; an error if the plan leaves it out.
    pub(super) fn view(&self, tensor: usize) -> Result<&Tensor> {
        self.views[tensor].as_ref().ok_or_else(|| Error::Argument {
            what: "DataParallel",
            why: format!("parameter {tensor} has no place in a bucket"),
        })
    }

    /// The call that reduces a bucket in place.
    pub(super) fn call(&self, group: &ProcessGroup, bucket: usize, op: ReduceOp) -> Result<Call> {
        let bucket = &self.plan.buckets[bucket];
        Ok(group.bucket_call(&self.memory, bucket.elements(), bucket.dtype, op)?)
    }

    /// All of the root's bytes on every rank.
    pub(super) fn broadcast(&mut self, group: &ProcessGroup, root: usize) -> Result<()> {
        Ok(group.broadcast(self.memory.as_mut_slice::<u8>(), root)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(shape: &[i64], strides: &[i64]) -> Spec {
        Spec { kind: Kind::Float, shape: shape.into(), strides: strides.into() }
    }

    #[test]
    fn dense_memory_is_told_from_memory_with_holes() {
        assert!(spec(&[2, 3], &[3, 1]).is_dense());
        assert!(spec(&[2, 3], &[1, 2]).is_dense());
        assert!(spec(&[2, 3, 4, 5], &[60, 1, 15, 3]).is_dense(), "channels last");
        assert!(spec(&[4, 1], &[1, 77]).is_dense(), "the stride of one element means nothing");
        assert!(spec(&[], &[]).is_dense());
        assert!(!spec(&[2, 3], &[0, 1]).is_dense(), "expanded");
        assert!(!spec(&[2, 3], &[6, 2]).is_dense(), "every second column");
    }
}
