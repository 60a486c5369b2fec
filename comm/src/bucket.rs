//! Memory that belongs to a group, so that it can be reduced where it lies.

use crate::backend::SharedMemory;
use crate::{DType, Element, Region};

/// Memory from [`ProcessGroup::alloc_bucket`](crate::ProcessGroup::alloc_bucket). Zeroed at first, aligned to a page.
///
/// It outlives its group: after a failure the values can still be read (they may be half reduced), but a reformed group needs buckets of
/// its own, because a member of the old one that wakes up late may still write here.
#[derive(Debug)]
pub struct Bucket {
    memory: SharedMemory,
    group: u64,
}

impl Bucket {
    pub(crate) fn new(memory: SharedMemory, group: u64) -> Bucket {
        Bucket { memory, group }
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.memory.local.len()
    }

    /// True if it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same number on every rank: buckets are numbered in the order of allocation.
    pub fn id(&self) -> u32 {
        self.memory.id
    }

    /// Its memory, for calls through [`ProcessGroup::submit`](crate::ProcessGroup::submit) and for tensors that live in it. Keep
    /// [`Bucket::keeper`] for as long as the region is used.
    pub fn region(&self) -> Region {
        self.memory.local
    }

    /// Keeps the memory mapped, apart from the bucket's own life.
    pub fn keeper(&self) -> std::sync::Arc<dyn std::any::Any + Send + Sync> {
        self.memory.keeper.clone()
    }

    /// The identity of the group it belongs to.
    pub(crate) fn group(&self) -> u64 {
        self.group
    }

    /// Its values. A trailing part of an element is left out.
    ///
    /// # Panics
    /// For `bool`, whose bytes a peer could make invalid: use `u8`.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        assert!(T::DTYPE != DType::Bool, "view a bucket of bools as u8");
        let n = self.len() / size_of::<T>();
        // SAFETY: the keeper holds the memory; it is page-aligned; every bit pattern is a valid T. Peers write here only
        // while a call is in flight, and calls hold the bucket by value or by unique reference.
        unsafe { std::slice::from_raw_parts(self.memory.local.ptr().cast(), n) }
    }

    /// Its values, to be changed. A trailing part of an element is left out.
    ///
    /// # Panics
    /// For `bool`, whose bytes a peer could make invalid: use `u8`.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        assert!(T::DTYPE != DType::Bool, "view a bucket of bools as u8");
        let n = self.len() / size_of::<T>();
        // SAFETY: as in `as_slice`, and the unique reference keeps all others out.
        unsafe { std::slice::from_raw_parts_mut(self.memory.local.ptr().cast(), n) }
    }
}
