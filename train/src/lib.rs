//! The trainer: crews of workers that pull in step, and runs that survive.

pub mod callback;
pub mod config;
pub mod command;
mod context;
pub mod controller;
pub mod crew;
pub mod environment;
pub mod data;
mod error;
pub mod folder;
mod gang;
mod handle;
pub mod link;
pub mod metrics;
pub mod registry;
mod result;
mod signals;
mod state;
mod trainer;
pub mod wire;

pub use config::{
    CheckpointConfig, Every, Experiment, FailureConfig, RunConfig, ScalingConfig, StopConfig, Threshold,
    Trainable, Workers,
};
pub use callback::{Callback, RunEvent};
pub use context::TrainContext;
pub use controller::Status;
pub use error::{BoxError, Error, Result};
pub use gang::Site;
pub use handle::RunHandle;
pub use metrics::Metrics;
pub use regatta_cluster::{Failure, Placement, Resources};
pub use result::{RunCheckpoint, RunResult};
pub use state::{SavedPart, StateTensor, Stateful};
pub use trainer::{IntoRun, Trainer};
pub use wire::StopReason;

/// For the code that `#[trainable]` writes.
#[doc(hidden)]
pub mod __private {
    pub use crate as train;
    pub use inventory;
}
