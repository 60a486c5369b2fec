//! Process groups and collectives at the speed of memory, that never hang.
//!
//! A [`ProcessGroup`] moves typed values between ranks: threads of a process, or processes of a host that share memory.
//! Results are the same bits on all ranks. Every wait has a deadline; a rank that dies is told to all others at once, by name, and the
//! survivors can [`reform`](ProcessGroup::reform) and go on.
//!
//! ```
//! use regatta_comm::{ReduceOp, thread};
//!
//! // Four ranks as threads; processes call `ProcessGroup::from_env()` instead.
//! let sums = thread::run(4, |group| {
//!     // Values in the group's own memory are reduced without a copy ...
//!     let mut bucket = group.alloc_bucket(1000 * size_of::<f32>())?;
//!     bucket.as_mut_slice::<f32>().fill(group.rank() as f32);
//!     group.all_reduce_bucket::<f32>(&mut bucket, ReduceOp::Sum)?;
//!     // ... and any other memory by staging.
//!     let mut mine = vec![1.0f64; 10];
//!     group.all_reduce(&mut mine, ReduceOp::Mean)?;
//!     Ok::<f32, regatta_comm::Error>(bucket.as_slice::<f32>()[0])
//! });
//! for sum in sums {
//!     assert_eq!(sum?, 6.0);
//! }
//! # Ok::<(), regatta_comm::Error>(())
//! ```
//!
//! [`how_it_works`] says how, and names the invariants. Under torchrun, srun or Regatta's own launcher a process finds its group by the
//! [`environment`].

mod backend;
mod bucket;
mod call;
pub mod conformance;
mod dtype;
mod engine;
pub mod environment;
mod error;
mod faulty;
mod group;
pub mod hier;
mod membership;
pub mod nccl;
mod raw;
mod reduce;
mod rendezvous;
mod shm;
pub mod store;
pub mod tcp;
pub mod thread;
mod work;

#[doc = include_str!("how_it_works.md")]
pub mod how_it_works {}

pub use backend::{Backend, Health, SharedMemory, Ticket};
pub use bucket::Bucket;
pub use call::{Call, Kind, Place, Signature};
pub use dtype::{DType, Element, ReduceOp};
pub use engine::{Phase, Probe};
pub use error::{Error, Result};
pub use faulty::{Fault, Faulty};
pub use group::{DEFAULT_DEADLINE, ProcessGroup};
pub use membership::Reform;
pub use raw::Region;
pub use rendezvous::{Rendezvous, Transport};
pub use work::{Owned, Work};
