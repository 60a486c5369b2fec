//! Gradients on CUDA devices: through NCCL on a stream of its own, or through pinned memory and the group of the processors, for several
//! ranks on one GPU and machines without NCCL.
//!
//! What is queued here waits for the gradient by an event, so neither the backward pass nor the processor waits for it. With NCCL the
//! rest of the work waits by an event too; staging ends with the processor, which does the sums.
//!
//! Not yet run on a GPU: where this was written there was none.

use std::time::Duration;

use regatta_comm::nccl::{DeviceGroup, ReduceOp as NcclOp};
use regatta_comm::{ProcessGroup, ReduceOp};
use tch::{Device, Tensor};

use super::arena::Arena;
use crate::cuda::{Event, Stream};
use crate::error::Result;
use crate::memory;
use crate::result::ddp::{copy_async, device_slice, nccl_stream};

/// Buckets under way beside the backward pass.
#[derive(Debug)]
pub(super) struct Gpu {
    device: Device,
    stream: Stream,
    nccl: Option<DeviceGroup>,
    /// By bucket: pinned memory, without NCCL.
    pinned: Vec<Tensor>,
    /// Buckets launched and not landed, in order, with the end of their work.
    launched: Vec<(usize, Event)>,
}

impl Gpu {
    pub(super) fn new(device: Device, nccl: Option<DeviceGroup>, arena: &Arena) -> Result<Gpu> {
        let stream = Stream::from_pool(device, true)?;
        let mut gpu = Gpu { device, stream, nccl, pinned: Vec::new(), launched: Vec::new() };
        gpu.arrange(arena)?;
        Ok(gpu)
    }

    /// Follows the arena's new arrangement.
    pub(super) fn arrange(&mut self, arena: &Arena) -> Result<()> {
        self.launched.clear();
        if self.nccl.is_none() {
            let buckets = 0..arena.plan.buckets.len();
            self.pinned =
                buckets.map(|b| memory::pin(&arena.host(b).f_zeros_like()?)).collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// Queues a bucket, behind what this thread has queued so far.
    pub(super) fn launch(&mut self, arena: &Arena, bucket: usize) -> Result<()> {
        let mut ready = Event::new(false)?;
        ready.record(&Stream::current(self.device)?)?;
        ready.block(&self.stream)?;
        let flat = arena.flat(bucket);
        match &self.nccl {
            Some(nccl) => nccl.all_reduce(device_slice(flat)?, NcclOp::Mean, nccl_stream(&self.stream)?)?,
            None => {
                let _stream = self.stream.enter()?;
                copy_async(&self.pinned[bucket], flat)?;
            }
        }
        let mut done = Event::new(false)?;
        done.record(&self.stream)?;
        self.launched.push((bucket, done));
        Ok(())
    }

    /// Forgets what is under way.
    pub(super) fn clear(&mut self) {
        self.launched.clear();
    }

    /// Brings all buckets to their end, and answers which they were. What this thread queues afterwards finds the means.
    pub(super) fn finish(&mut self, group: &ProcessGroup, arena: &Arena) -> Result<Vec<usize>> {
        let within: Duration = group.deadline();
        let launched = std::mem::take(&mut self.launched);
        for (bucket, done) in &launched {
            // A kernel of NCCL's waits for its peers for ever: the deadline is ours.
            done.wait(within)?;
            if self.nccl.is_none() {
                let (host, pinned) = (arena.host(*bucket), &self.pinned[*bucket]);
                host.shallow_clone().f_copy_(pinned)?;
                let ticket = group.submit(arena.call(group, *bucket, ReduceOp::Mean)?)?;
                group.wait(ticket)?;
                pinned.shallow_clone().f_copy_(host)?;
                copy_async(arena.flat(*bucket), pinned)?;
            }
        }
        if let Some(nccl) = &self.nccl {
            nccl.communicator()?
                .check()
                .map_err(|e| regatta_comm::nccl::error(group.rank(), group.generation(), &e))?;
        }
        Ok(launched.into_iter().map(|(bucket, _)| bucket).collect())
    }
}
