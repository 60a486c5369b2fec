//! The trainer: crews of workers that pull in step, and runs that survive.
//!
//! A training function takes a [`TrainContext`], which says who it is among the ranks and lets it report, save, restore and
//! stop, and a configuration of its own type. [`Trainer`] runs it on a crew, starts the crew anew from the last checkpoint when a
//! rank fails, and keeps the run's log, checkpoints and figures in its folder:
//!
//! ```
//! use regatta_train::{Result, Tracked, TrainContext, Trainer, metrics};
//!
//! fn count(ctx: &mut TrainContext, steps: u64) -> Result<u64> {
//!     let sum = Tracked::new(0);
//!     let mut state = ctx.state().with("sum", sum.clone());      // all that a resume needs
//!     ctx.restore(&mut state)?;
//!     while state.step() < steps {
//!         if ctx.attempt() == 1 && ctx.rank() == 1 && state.step() == 4 {
//!             panic!("rank 1 has an accident");
//!         }
//!         sum.update(|sum| *sum += state.step() + 1);
//!         ctx.step(&state)?;                                     // may save, and may end the loop
//!         ctx.report(metrics! { sum: sum.get() as f64 }).checkpoint(&state)?;
//!     }
//!     Ok(sum.get())
//! }
//!
//! # let folder = std::env::temp_dir().join(format!("regatta-train-{}", std::process::id()));
//! # let storage = folder.to_str().unwrap();
//! let trainer = Trainer::new(count, 6).workers(2).run("first").storage(storage).in_process();
//! let result = trainer.fit()?;
//! assert_eq!((result.value::<u64>()?, result.attempts()), (1 + 2 + 3 + 4 + 5 + 6, 2));
//! assert_eq!(result.last_checkpoint().unwrap().step, 6);
//! # std::fs::remove_dir_all(folder).unwrap();
//! # Ok::<(), regatta_train::Error>(())
//! ```
//!
//! Here the ranks are threads. Without [`Trainer::in_process`] they are processes of the same program, whose `main` begins with
//! [`worker::enter`]; a [`Trainable::Command`] runs programs in any language ([`command`]).
//!
//! The pieces, from the outside in: a [`Trainer`] drives a pure [`controller`] machine, whose log is the run's store; it speaks
//! to a [`crew`] of processes, [`threads`] or programs in the words of [`wire`]; [`data`] brings samples to ranks, each once an
//! epoch, seekable, whatever their number. It knows nothing of libtorch.

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
pub mod signals;
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
