//! Process groups and collectives at the speed of memory, that never hang.

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

pub mod how_it_works {
    //! How it works, and what it promises.
}

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
