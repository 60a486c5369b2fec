//! The trainer: crews of workers that pull in step, and runs that survive.

mod agree;
pub mod config;
mod context;
mod coordinator;
pub mod crew;
pub mod data;
mod error;
pub mod link;
pub mod metrics;
mod pace;
mod policy;
mod rank;
pub mod registry;
mod report;
mod restore;
mod saving;
mod state;
pub mod store;
pub mod threads;
pub mod wire;
pub mod worker;

pub use config::{
    CheckpointConfig, Every, Experiment, FailureConfig, RunConfig, ScalingConfig, StopConfig, Threshold,
    Trainable, Workers,
};
pub use context::TrainContext;
pub use error::{BoxError, Error, Result};
pub use metrics::Metrics;
pub use rank::Preparation;
pub use regatta_cluster::{Failure, Placement, Resources};
pub use report::Report;
pub use restore::Restored;
pub use state::{Epochs, MODEL, SavedPart, State, StateTensor, Stateful, Tracked};
pub use wire::StopReason;

/// For the code that `#[trainable]` writes.
#[doc(hidden)]
pub mod __private {
    pub use inventory;
}
