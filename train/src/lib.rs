//! The trainer: crews of workers that pull in step, and runs that survive.

mod agree;
pub mod callback;
pub mod command;
pub mod config;
mod context;
pub mod controller;
mod coordinator;
pub mod crew;
pub mod data;
pub mod environment;
mod error;
pub mod folder;
mod gang;
mod handle;
pub mod link;
pub mod metrics;
mod pace;
mod policy;
mod preflight;
mod rank;
pub mod registry;
mod report;
mod restore;
mod result;
mod saving;
mod signals;
mod state;
pub mod store;
pub mod threads;
mod trainer;
pub mod wire;
pub mod worker;

pub use callback::{Callback, RunEvent};
pub use config::{
    CheckpointConfig, Every, Experiment, FailureConfig, RunConfig, ScalingConfig, StopConfig, Threshold,
    Trainable, Workers,
};
pub use context::TrainContext;
pub use controller::Status;
pub use error::{BoxError, Error, Result};
pub use gang::Site;
pub use handle::RunHandle;
pub use metrics::Metrics;
pub use rank::Preparation;
pub use regatta_cluster::engine::EngineConfig;
pub use regatta_cluster::{Failure, Placement, Resources};
pub use report::Report;
pub use restore::Restored;
pub use result::{RunCheckpoint, RunResult};
pub use state::{Epochs, MODEL, SavedPart, State, StateTensor, Stateful, Tracked};
pub use trainer::{IntoRun, Trainer};
pub use wire::StopReason;

/// For the code that `#[trainable]` writes.
#[doc(hidden)]
pub mod __private {
    pub use crate as train;
    pub use inventory;
}
