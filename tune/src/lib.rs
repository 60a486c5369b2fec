//! Hyperparameter search: spaces, samplers, schedulers, studies.
//!
//! ```
//! use regatta_tune::sampler::{Search, Tpe};
//! use regatta_tune::space::{float, group};
//!
//! let space = group().with("x", float(-5.0..=5.0)).build()?;
//! let mut search = Search::new(space, Tpe::default(), 42);
//! for _ in 0..60 {
//!     let trial = search.ask()?;
//!     let x = trial.config["x"].as_f64().unwrap();
//!     search.tell(trial.number, &[(x - 2.0).powi(2)])?;
//! }
//! let (best, loss) = search.best().unwrap();
//! assert!(loss < 0.1, "{loss} at {best}");
//! # Ok::<(), regatta_tune::Error>(())
//! ```

pub mod config;
mod error;
pub mod importance;
mod normal;
pub mod pareto;
pub mod plot;
pub mod results;
pub mod runner;
pub mod sampler;
pub mod scheduler;
pub mod sim;
pub mod space;
pub mod stopper;
mod stream;
pub mod study;
mod tuner;

pub use config::{Mode, SamplerConfig, TuneConfig};
pub use error::{Error, Result};
/// Makes a configuration's type searchable; see [`space::SearchSpace`].
pub use regatta_macros::SearchSpace;
pub use results::ResultGrid;
pub use runner::{Ending, Halt, RunningTrial, StudyCallback, StudyEvent};
pub use study::Study;
pub use tuner::{StudyHandle, Tuner, fetch};

/// For the code that the macros write.
#[doc(hidden)]
pub mod __private {
    pub use inventory;
}
