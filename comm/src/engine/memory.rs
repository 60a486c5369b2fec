//! Memory that several ranks map: made by one of them without a name anywhere, sealed against shrinking; for ranks that are
//! threads, plain memory.

use crate::{Error, Region, Result};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::ffi::c_void;

/// A mapping that ranks share, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: *mut c_void,
    bytes: usize,
}

// SAFETY: a mapping may be used and unmapped from any thread; who touches the bytes when is the protocol's business.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Makes nameless shared memory of `bytes`, zeroed, all pages reserved now: a machine without room says so here, and not by a SIGBUS in the
/// middle of a call.
pub(crate) fn create(bytes: usize) -> Result<OwnedFd> {
    let failed = |e: rustix::io::Errno| Error::io(format!("make {bytes} bytes of shared memory"), e);
    let fd = rustix::fs::memfd_create("regatta", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(failed)?;
    rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, bytes as u64).map_err(failed)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(failed)?;
    Ok(fd)
}

impl Mapping {
    /// Maps memory that [`create`] made here or in a peer; checks that it is as large as agreed and can never shrink.
    pub(crate) fn new(fd: impl AsFd, bytes: usize) -> Result<Mapping> {
        let failed = |e: rustix::io::Errno| Error::io(format!("map {bytes} bytes of shared memory"), e);
        let size = rustix::fs::fstat(&fd).map_err(failed)?.st_size;
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(failed)?;
        if size as u64 != bytes as u64 || !seals.contains(SealFlags::SHRINK | SealFlags::SEAL) {
            let why = format!("{size} bytes with {seals:?}, not {bytes} bytes sealed");
            return Err(Error::Corrupt { peer: "rank 0".into(), what: "shared memory", why });
        }
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs no memory of ours.
        let address = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) };
        Ok(Mapping { address: address.map_err(failed)?, bytes })
    }

    /// Memory for threads of this process, zeroed; pages come as they are touched.
    pub(crate) fn private(bytes: usize) -> Result<Mapping> {
        let failed = |e: rustix::io::Errno| Error::io(format!("map {bytes} bytes of memory"), e);
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs no memory of ours.
        let address = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) };
        Ok(Mapping { address: address.map_err(failed)?, bytes })
    }

    /// All of it. The promise of [`Region::new`]: whoever uses a part keeps to the protocol, and keeps the mapping.
    pub(crate) fn region(&self) -> Region {
        // SAFETY: the mapping is valid for its length while `self` lives, and users of regions hold the mapping.
        unsafe { Region::new(self.address.cast(), self.bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its last user is gone.
        if let Err(e) = unsafe { rustix::mm::munmap(self.address, self.bytes) } {
            tracing::warn!("unmapping shared memory: {e}");
        }
    }
}
