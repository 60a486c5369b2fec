//! What the machine allows: the same traffic as an all-reduce in place of two ranks, with no word between them.
//!
//! Unsafe, because it maps shared memory by hand: it must not use what it is the measure of.

use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of one rank's part.
const PART: usize = 101 << 20;

/// Memory for two ranks, inherited by processes started from here.
pub(crate) fn share() -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("regatta-bench", rustix::fs::MemfdFlags::empty())?;
    rustix::fs::ftruncate(&fd, 2 * PART as u64)?;
    Ok(fd)
}

/// How an heir calls it.
pub(crate) fn number(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}

/// Keeps this process on one core, as the peers' launchers do.
pub(crate) fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// The memory, seen from one rank.
pub(crate) struct Arena {
    parts: [*mut f32; 2],
    rank: usize,
}

impl Arena {
    pub(crate) fn map(number: &str, rank: usize) -> Result<Arena, Box<dyn std::error::Error>> {
        // SAFETY: the parent left this descriptor open for us, and nobody closes it.
        let fd = unsafe { BorrowedFd::borrow_raw(number.parse()?) };
        let flags = MapFlags::SHARED;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let all = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), 2 * PART, ProtFlags::READ | ProtFlags::WRITE, flags, fd, 0)
        }?
        .cast::<f32>();
        // SAFETY: inside the mapping.
        Ok(Arena { parts: [all, unsafe { all.add(PART / 4) }], rank })
    }

    /// Streams this rank's half of `bytes`: reads both parts, writes both parts, past the caches if `bypass`.
    pub(crate) fn stream(&self, bytes: usize, bypass: bool) {
        if self.rank > 1 {
            return;
        }
        let half = (bytes / 8).next_multiple_of(64);
        // SAFETY: both halves with their rounding lie inside the parts, and no other rank touches this half.
        let [a, b] =
            self.parts.map(|p| unsafe { std::slice::from_raw_parts_mut(p.add(half * self.rank), half) });
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature is there; the slices are aligned to a cache line.
            return unsafe { if bypass { wide_past_caches(a, b) } else { wide(a, b) } };
        }
        let _ = bypass;
        for (x, y) in a.iter_mut().zip(b) {
            *x += *y;
            *y = *x;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn wide(a: &mut [f32], b: &mut [f32]) {
    use std::arch::x86_64::{_mm512_add_ps, _mm512_loadu_ps, _mm512_storeu_ps};
    for (x, y) in a.chunks_exact_mut(16).zip(b.chunks_exact_mut(16)) {
        // SAFETY: both chunks hold 16 floats.
        unsafe {
            let sum = _mm512_add_ps(_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(y.as_ptr()));
            _mm512_storeu_ps(x.as_mut_ptr(), sum);
            _mm512_storeu_ps(y.as_mut_ptr(), sum);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn wide_past_caches(a: &mut [f32], b: &mut [f32]) {
    use std::arch::x86_64::{_mm_sfence, _mm512_add_ps, _mm512_loadu_ps, _mm512_stream_ps};
    for (x, y) in a.chunks_exact_mut(16).zip(b.chunks_exact_mut(16)) {
        // SAFETY: both chunks hold 16 floats and begin on a cache line.
        unsafe {
            let sum = _mm512_add_ps(_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(y.as_ptr()));
            _mm512_stream_ps(x.as_mut_ptr(), sum);
            _mm512_stream_ps(y.as_mut_ptr(), sum);
        }
    }
    _mm_sfence();
}
