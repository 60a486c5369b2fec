//! The safe layer: what is re-exported at the crate root.

mod collectives;
mod communicator;
mod config;
mod group;
mod library;
mod memory;
mod shared;
mod types;

pub use communicator::{AbortHandle, Communicator, MemoryStatistic};
pub use config::{Config, CtaPolicy};
pub use group::Group;
pub use library::Nccl;
pub use memory::{DeviceMemory, Registration, Window};
pub use types::{DataType, ReduceOp, UniqueId};
