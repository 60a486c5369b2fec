//! The one error of the crate: each variant says what failed, where, and what to do next.

use crate::Failure;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of any other crate, as user code and callbacks return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run was asked to stop, and did at this step, on all ranks alike. Not a failure: pass it on with `?`, and the
    /// run ends as resumable.
    #[error("stopped at step {step}: {reason}")]
    Stopped {
        /// The step at which all ranks stopped.
        step: u64,
        /// Why.
        reason: crate::StopReason,
        /// The checkpoint that was taken then, if there was a state to take.
        checkpoint: Option<String>,
    },
    /// A value of the configuration cannot be used.
    #[error("{path}: {why}")]
    Config {
        /// Where it stands, as in `scaling.workers`.
        path: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// There is no trainable of this name in the program.
    #[error("there is no trainable {name:?} in this program{}", crate::registry::known(.known))]
    UnknownTrainable {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The run's folder is taken.
    #[error("run {name:?} exists already in {folder}: resume it, or give this one another name")]
    RunExists {
        /// The run.
        name: String,
        /// Its folder.
        folder: String,
    },
    /// There is no such run.
    #[error("there is no run {name:?}: {why}")]
    NoSuchRun {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        why: String,
    },
    /// The workers failed, more often than the budget allows. The root cause comes last.
    #[error("{0}")]
    Failed(Box<Failure>),
    /// The training function returned an error.
    #[error("rank {rank}: {message}")]
    Trainable {
        /// The rank it began on.
        rank: u32,
        /// The error with its causes, the root last.
        message: String,
    },
    /// A loss, a gradient or a metric is not a finite number.
    #[error("{what} is {value} at step {step} on rank {rank}")]
    NotFinite {
        /// What it is.
        what: String,
        /// What it was.
        value: f64,
        /// The step.
        step: u64,
        /// The rank that saw it.
        rank: u32,
    },
    /// Ranks did not report alike.
    #[error("report {index} (step {step}): {why}")]
    Report {
        /// Which report of the attempt, from 1.
        index: u64,
        /// Its step.
        step: u64,
        /// Which rank is missing or differs.
        why: String,
    },
    /// A checkpoint does not fit the state that wants to take it up.
    #[error("checkpoint {checkpoint} does not fit: {why}")]
    Restore {
        /// The checkpoint.
        checkpoint: String,
        /// All that does not fit.
        why: String,
    },
    /// What was asked for is not to be had here.
    #[error("{what} is not available: {why}")]
    NotAvailable {
        /// What.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// Something outside of the run failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Something of the user's or another crate's failed inside of the run.
    #[error("{what}: {source}")]
    Other {
        /// What was tried.
        what: String,
        /// What came of it.
        source: BoxError,
    },
    /// The process group failed.
    #[error(transparent)]
    Comm(#[from] regatta_comm::Error),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] regatta_checkpoint::Error),
    /// The cluster runtime failed.
    #[error(transparent)]
    Cluster(#[from] regatta_cluster::Error),
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// The run's store failed.
    #[error(transparent)]
    Track(#[from] regatta_track::Error),
}

impl Error {
    /// A value of the configuration that cannot be used.
    pub fn config(path: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Config { path: path.into(), why: why.into() }
    }

    /// An error of the operating system, with what was tried.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Error::Io { what: what.into(), source }
    }

    /// Any other error, with what was tried.
    pub fn other(what: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Error::Other { what: what.into(), source: source.into() }
    }
}
