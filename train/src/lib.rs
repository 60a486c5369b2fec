//! The trainer: crews of workers that pull in step, and runs that survive.

pub mod config;
pub mod command;
mod context;
pub mod crew;
mod error;
pub mod link;
pub mod metrics;
pub mod registry;
mod state;
pub mod wire;

pub use config::{
    CheckpointConfig, Every, Experiment, FailureConfig, RunConfig, ScalingConfig, StopConfig, Threshold,
    Trainable, Workers,
};
pub use context::TrainContext;
pub use error::{BoxError, Error, Result};
pub use metrics::Metrics;
pub use regatta_cluster::{Failure, Placement, Resources};
pub use state::{SavedPart, StateTensor, Stateful};
pub use wire::StopReason;

/// For the code that `#[trainable]` writes.
#[doc(hidden)]
pub mod __private {
    pub use crate as train;
    pub use inventory;
}
