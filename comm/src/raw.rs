//! Raw memory that calls refer to. One of the few modules with `unsafe`: a [`Region`] is a promise made once, where it
//! is built, so that the code that moves bytes can be plain and bounds-checked.

/// A span of memory that some call reads or writes.
///
/// Holding one means nothing; *building* one is the promise. Whoever calls [`Region::new`] promises that the memory
/// outlives the call it is given to, and that nobody else touches it meanwhile in a way that the call would conflict with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: a Region is an address and a length. The promise made in `Region::new` is about memory, not about threads.
unsafe impl Send for Region {}
// SAFETY: as above; all access goes through methods whose exclusion the builder promised.
unsafe impl Sync for Region {}

impl Region {
    /// An empty region.
    pub const EMPTY: Region = Region { ptr: std::ptr::NonNull::<u64>::dangling().as_ptr().cast(), len: 0 };

    /// The region of `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The memory must be valid for reads (and for writes, where the call writes) for as long as any call uses the
    /// region, and may be touched by others only as the protocol of the call allows.
    pub const unsafe fn new(ptr: *mut u8, len: usize) -> Region {
        Region { ptr, len }
    }

    /// The bytes of a slice that a call will only read.
    ///
    /// # Safety
    /// As [`Region::new`]; nothing may write through the result.
    pub const unsafe fn reading<T>(data: &[T]) -> Region {
        Region { ptr: data.as_ptr().cast_mut().cast(), len: size_of_val(data) }
    }

    /// The bytes of a slice that a call may write.
    ///
    /// # Safety
    /// As [`Region::new`]; the call must keep every element a valid `T`.
    pub const unsafe fn writing<T>(data: &mut [T]) -> Region {
        Region { ptr: data.as_mut_ptr().cast(), len: size_of_val(data) }
    }

    /// Its length in bytes.
    pub const fn len(self) -> usize {
        self.len
    }

    /// True if it has no bytes.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Its address.
    pub const fn ptr(self) -> *mut u8 {
        self.ptr
    }

    /// The part of `len` bytes from `offset`.
    ///
    /// # Panics
    /// If that is not inside: a bug here, never a peer's doing.
    #[inline]
    #[must_use]
    pub fn part(self, offset: usize, len: usize) -> Region {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "part {offset}+{len} of a region of {}",
            self.len
        );
        // SAFETY: the assertion keeps the address inside (or one past the end of) the promised memory.
        Region { ptr: unsafe { self.ptr.add(offset) }, len }
    }

    /// Copies `from` over this region, which must have the same length. Overlap is allowed.
    #[inline]
    pub fn copy_from(self, from: Region) {
        assert_eq!(self.len, from.len, "copies keep the length");
        if self.ptr != from.ptr {
            // SAFETY: both are promised valid for their length; `copy` allows overlap.
            unsafe { std::ptr::copy(from.ptr, self.ptr, self.len) }
        }
    }

    /// Copies bytes in.
    #[inline]
    pub fn write(self, bytes: &[u8]) {
        assert_eq!(self.len, bytes.len(), "copies keep the length");
        // SAFETY: promised valid; `bytes` is a borrowed slice.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.ptr, self.len) }
    }

    /// The bytes, copied out.
    pub fn to_vec(self) -> Vec<u8> {
        let mut v = vec![0; self.len];
        // SAFETY: promised valid; `v` is fresh.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr, v.as_mut_ptr(), self.len) }
        v
    }

    /// The bytes as a slice.
    ///
    /// # Safety
    /// Nothing may write to the region while the slice lives.
    pub const unsafe fn as_slice<'a>(self) -> &'a [u8] {
        // SAFETY: the caller's promise, on top of the builder's.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// The bytes as a mutable slice.
    ///
    /// # Safety
    /// Nothing else may touch the region while the slice lives.
    pub const unsafe fn as_mut_slice<'a>(self) -> &'a mut [u8] {
        // SAFETY: the caller's promise, on top of the builder's.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }

    /// Makes every byte 0 or 1, so that memory a peer wrote is a valid `[bool]`.
    pub(crate) fn normalise_bools(self) {
        // SAFETY: called by the owner of the output after the call is over, so nothing else touches it.
        for b in unsafe { self.as_mut_slice() } {
            *b = u8::from(*b != 0);
        }
    }
}
