//! The one copy that a save costs the training step. The buffer has the shard's own layout, head first, is faulted in
//! once and used again for every save; the copy is shared among threads by bytes, not by tensors.

use std::io;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::tensor::Tensor;

/// Below this many bytes a thread, starting another one costs more than it gains.
const MIN_BYTES_A_THREAD: usize = 4 << 20;

/// Memory to stage into.
pub trait StagingMemory: Send + Sync {
    /// The memory.
    fn bytes(&self) -> &[u8];

    /// The memory, to write to.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// Gives memory to stage into; whoever has devices gives memory that is pinned for them.
pub trait StagingAllocator: Send + Sync {
    /// At least this many bytes, faulted in.
    fn allocate(&self, bytes: usize) -> io::Result<Box<dyn StagingMemory>>;
}

/// The kinds of host memory that the crate can allocate itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HostMemory {
    /// Ordinary memory.
    #[default]
    Pageable,
    /// Locked in memory, so that it is never swapped out. Needs a sufficient `ulimit -l`.
    Locked,
}

struct Mapped(memmap2::MmapMut);

impl StagingMemory for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl StagingAllocator for HostMemory {
    fn allocate(&self, bytes: usize) -> io::Result<Box<dyn StagingMemory>> {
        let mut map = memmap2::MmapMut::map_anon(bytes.max(1))?;
        // Fewer, larger pages make the copy cheaper; without them it works as well.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        for page in map.chunks_mut(4096) {
            page[0] = 0;
        }
        if *self == HostMemory::Locked {
            map.lock()?;
        }
        Ok(Box::new(Mapped(map)))
    }
}

/// A buffer that grows to the largest shard seen and is kept.
#[derive(Default)]
pub(crate) struct Staging {
    memory: Option<Box<dyn StagingMemory>>,
    used: usize,
}

impl Staging {
    /// The shard's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory.bytes()[..self.used])
    }

    /// Makes room, so that [`Staging::fill`] only copies.
    pub(crate) fn reserve(&mut self, bytes: usize, allocator: &dyn StagingAllocator) -> Result<()> {
        if self.memory.as_ref().is_none_or(|memory| memory.bytes().len() < bytes) {
            self.memory = None;
            let memory = allocator
                .allocate(bytes)
                .map_err(Error::io("allocate", format!("{bytes} bytes to stage into")))?;
            self.memory = Some(memory);
        }
        Ok(())
    }

    /// Copies head and pieces in; the tensors' memory is free again when this returns.
    pub(crate) fn fill(&mut self, plan: &Plan, tensors: &[Tensor<'_>], threads: usize) -> Result<()> {
        let Some(memory) = &mut self.memory else {
            return Err(Error::Invalid("there is nothing to stage into".to_owned()));
        };
        self.used = plan.total;
        let (head, mut data) = memory.bytes_mut()[..plan.total].split_at_mut(plan.head.len());
        head.copy_from_slice(&plan.head);
        let threads = threads.min(data.len() / MIN_BYTES_A_THREAD).max(1);
        let span = data.len().div_ceil(threads).max(1);
        let mut start = plan.head.len();
        std::thread::scope(|scope| {
            let mut workers = Vec::new();
            while data.len() > span {
                let (part, rest) = data.split_at_mut(span);
                workers.push(scope.spawn(move || copy_span(plan, tensors, start, part)));
                (data, start) = (rest, start + span);
            }
            let mut copied = copy_span(plan, tensors, start, data);
            for worker in workers {
                let other = worker
                    .join()
                    .unwrap_or_else(|_| Err(Error::Invalid("a tensor's source panicked".to_owned())));
                copied = copied.and(other);
            }
            copied
        })?;
        for piece in &plan.pieces {
            let tensor = &tensors[piece.tensor];
            tensor.data.finish().map_err(Error::io("copy tensor", tensor.name))?;
        }
        Ok(())
    }
}

/// Fills the part of the shard that starts at `start`.
fn copy_span(plan: &Plan, tensors: &[Tensor<'_>], start: usize, mut to: &mut [u8]) -> Result<()> {
    let end = start + to.len();
    let first = plan.pieces.partition_point(|piece| piece.start + piece.bytes <= start);
    for piece in plan.pieces[first..].iter().take_while(|piece| piece.start < end) {
        let skip = start.saturating_sub(piece.start);
        let count = piece.bytes.min(end - piece.start) - skip;
        let (target, rest) = to.split_at_mut(count);
        to = rest;
        let tensor = &tensors[piece.tensor];
        tensor.data.copy_to(piece.from + skip, target).map_err(Error::io("copy tensor", tensor.name))?;
    }
    Ok(())
}
