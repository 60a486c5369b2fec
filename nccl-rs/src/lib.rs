//! Safe NCCL bindings, loaded at run time, with no CUDA toolkit to build.
//!
//! A program that uses this crate builds anywhere. [`Nccl::load`] looks for the library when it runs, and where there is
//! none it answers [`Error::NotAvailable`], which says where it looked; nothing panics. NCCL 2.19 and everything newer
//! works: functions that came later are looked up one by one, and one that is missing is
//! [`Error::NotSupported`] with the version that has it.
//!
//! ```no_run
//! use nccl_rs::{Communicator, Config, DataType, DeviceSliceMut, Nccl, ReduceOp, Stream, UniqueId};
//!
//! # fn share(id: Option<[u8; UniqueId::BYTES]>) -> [u8; UniqueId::BYTES] { id.unwrap() }
//! # fn tensor() -> (*mut std::ffi::c_void, usize) { unimplemented!() }
//! # fn train(rank: u32, world: u32) -> nccl_rs::Result<()> {
//! let nccl = Nccl::load()?;
//! // One rank makes the id, and its bytes go to the others by any means: a store, a file, MPI.
//! let mine = if rank == 0 { Some(nccl.unique_id()?.to_bytes()) } else { None };
//! let id = UniqueId::from_bytes(share(mine));
//! // Each rank has chosen its CUDA device before this.
//! let comm = Communicator::init(&nccl, world, rank, &id, &Config::default())?;
//!
//! let (pointer, count) = tensor();
//! // SAFETY: the tensor outlives the work on the stream, and nothing else touches it meanwhile.
//! let gradients = unsafe { DeviceSliceMut::from_raw(pointer, count, DataType::F32) };
//! comm.all_reduce(gradients.as_slice(), gradients, ReduceOp::Mean, Stream::DEFAULT)?;
//! comm.destroy()
//! # }
//! ```
//!
//! Without NCCL, the same program says so:
//!
//! ```
//! use nccl_rs::{Error, Nccl};
//! match Nccl::open("libnccl-of-nowhere.so.2") {
//!     Err(Error::NotAvailable { tried }) => assert_eq!(tried.len(), 1),
//!     other => panic!("{other:?}"),
//! }
//! ```
//!
//! # Layers
//! - [`sys`]: the C types and the table of functions, `Option` where a supported version may lack them;
//! - [`result`]: each function with `Result` in place of a code, NCCL's code and words kept, and owned handles;
//! - the crate root: [`Communicator`], [`Group`], [`DeviceMemory`] and their friends. The only unsafe promises left are those
//!   that no library can check, about device memory and streams: [`DeviceSlice::from_raw`], [`DeviceSliceMut::from_raw`],
//!   [`Stream::from_raw`].
//!
//! # Failure
//! Communicators are nonblocking unless [`Config::blocking`] says otherwise, because NCCL can give up only those in the
//! middle of an operation. Every wait ends at [`Config::timeout`] with [`Error::Timeout`]. A call that has returned is on the
//! stream but not done, so a peer that dies later shows in [`Communicator::check`], which is cheap enough to poll. Then every
//! surviving rank either aborts ([`Communicator::abort`], or [`AbortHandle::abort`] from a watching thread) and builds anew,
//! or calls [`Communicator::shrink`] with [`ShrinkMode::Abort`] (2.27) or [`Communicator::revoke`] (2.28.7) and goes on.
//!
//! # Which library
//! The file that `REGATTA_NCCL_LIB` or `NCCL_LIB` names, else `libnccl.so.2`, else `libnccl.so`. The PyPI wheels contain only
//! `libnccl.so.2`. A process that also uses a tensor library should name the same file that this uses.

pub mod result;
pub mod sys;

mod error;
mod safe;

pub use error::{Attempt, Code, Error, Result, Version};
pub use result::{DeviceSlice, DeviceSliceMut, ShrinkMode, Stream};
pub use safe::{
    AbortHandle, Communicator, Config, CtaPolicy, DataType, DeviceMemory, Group, MemoryStatistic, Nccl,
    ReduceOp, Registration, UniqueId, Window,
};
