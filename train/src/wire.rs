//! What the trainer's two halves say to each other, inside of the cluster's frames. Both are the same binary, so the form is
//! this build's own: JSON, with no promise to others.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{CheckpointConfig, FailureConfig, StopConfig};
use crate::metrics::Merge;

/// What a worker is started with (in [`regatta_cluster::Begin::config`], beside the trainable's name).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The experiment.
    pub experiment: String,
    /// The run.
    pub run: String,
    /// The run's own folder, absolute, on the controller's host.
    pub folder: PathBuf,
    /// Where checkpoints lie: what [`regatta_checkpoint::store::open`] takes.
    pub storage: String,
    /// The attempt.
    pub attempt: u32,
    /// The generation, which is also that of the checkpoints written in it.
    pub generation: u64,
    /// The trainable's configuration.
    pub config: Value,
    /// The run's seed.
    pub seed: u64,
    /// What to begin from.
    pub restore: Restore,
    /// What to save when.
    pub checkpoint: CheckpointConfig,
    /// Deadlines.
    pub failure: FailureConfig,
    /// When all ranks stop by themselves.
    pub stop: StopConfig,
    /// Seconds that earlier attempts took.
    pub spent_seconds: f64,
    /// Two batches through everything.
    pub fast_dev_run: bool,
    /// Whether ranks wait after each report until they are told to go on, or to stop there.
    pub lockstep: bool,
}

/// What to begin from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restore {
    /// The beginning.
    #[default]
    Nothing,
    /// The beginning, also where there are checkpoints already: those were ahead of what whoever decides has heard of.
    Beginning,
    /// The newest checkpoint of the run's storage that verifies; the beginning if there is none.
    Newest,
    /// This checkpoint, of the run's storage.
    Named(String),
    /// This checkpoint of another run's storage: a tuner's clone.
    From {
        /// That storage.
        storage: String,
        /// The checkpoint.
        checkpoint: String,
        /// How many reports led to it, so that those of this run count on from there.
        iteration: u64,
    },
}

/// What a rank reports (in [`regatta_cluster::MessageBody::Report`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromRank {
    /// Metrics, one for each call of the trainable's `report`; all ranks' n-th belong together.
    Report(RankReport),
    /// How it is going, a few times a second, from rank 0 alone. Shown, not stored.
    Progress(Progress),
    /// What is restored, from rank 0 alone, once per attempt.
    Restored {
        /// The checkpoint; none is the beginning.
        checkpoint: Option<String>,
        /// The step it was taken at.
        step: u64,
        /// How many reports led to it, if it says so.
        #[serde(default)]
        reports: Option<u64>,
        /// Newer ones that were passed over since they are damaged, each with why.
        damaged: Vec<String>,
    },
}

/// One rank's part of a report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RankReport {
    /// Which report of the attempt, from 1.
    pub index: u64,
    /// The step.
    pub step: u64,
    /// The epoch under way, from 0.
    pub epoch: u64,
    /// Name, value and how ranks' values become one. Ranks other than 0 leave out those that only rank 0 counts for.
    #[serde(with = "crate::metrics::wire")]
    pub metrics: Vec<(Arc<str>, f64, Merge)>,
    /// Seconds since the attempt's first step.
    pub seconds: f64,
}

/// How it is going.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The step.
    pub step: u64,
    /// All steps there will be, if that is known.
    pub steps: Option<u64>,
    /// The epoch, from 0.
    pub epoch: u64,
    /// All epochs there will be, if that is known.
    pub epochs: Option<u64>,
    /// Where in the epoch, from 0 to 1, if that is known.
    pub epoch_part: Option<f64>,
    /// Steps a second, lately.
    pub steps_per_second: f64,
    /// Samples a second over all ranks, lately, if a loader says.
    pub samples_per_second: Option<f64>,
    /// The share of time spent waiting for data, from 0 to 1.
    pub data_wait: Option<f64>,
    /// The last loss, if it was told.
    pub loss: Option<f64>,
    /// Resident bytes of this process.
    pub memory_bytes: u64,
}

/// A checkpoint is committed (in [`regatta_cluster::MessageBody::ShardWritten`], from rank 0 alone).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    /// Its name.
    pub name: String,
    /// Its step.
    pub step: u64,
    /// The bytes of all ranks.
    pub bytes: u64,
    /// The metrics it was saved with.
    pub metrics: regatta_track::Metrics,
    /// How many reports of the attempt led to it; 0 where that is not known.
    pub reports: u64,
    /// Seconds the step was stopped.
    pub blocked_seconds: f64,
    /// Seconds from the request to the commit.
    pub seconds: f64,
    /// Checkpoints that retention removed.
    pub removed: Vec<String>,
    /// Why the save failed, if it did; then the name is empty.
    pub error: Option<String>,
}

/// What the controller tells a running rank (in a `decide` frame).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Decision {
    /// Finish the step, save, and end: on all ranks at the same step.
    Stop(StopReason),
    /// Save at the next step on which all ranks agree.
    Save,
    /// Go on after this report of the attempt, where ranks wait for it.
    GoOn(u64),
}

/// Why a run stops before its trainable's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StopReason {
    /// The user asked, by a signal or a call.
    User,
    /// The machine is about to be taken away.
    Preempted,
    /// A scheduler has seen enough of this trial.
    Scheduler,
    /// A scheduler wants the trial to wait, and perhaps to go on.
    Paused,
    /// A stop condition of the configuration was reached: the run is complete.
    Reached(String),
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StopReason::User => f.write_str("asked to stop"),
            StopReason::Preempted => f.write_str("preempted"),
            StopReason::Scheduler => f.write_str("stopped by the scheduler"),
            StopReason::Paused => f.write_str("paused by the scheduler"),
            StopReason::Reached(what) => write!(f, "reached {what}"),
        }
    }
}

/// How a rank ended well (in [`regatta_cluster::MessageBody::Finished`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// What the trainable returned.
    pub value: Value,
    /// The last step.
    pub step: u64,
    /// Why it stopped before its own end, if it did.
    pub stopped: Option<StopReason>,
    /// The newest checkpoint at the end, if there is one.
    pub checkpoint: Option<String>,
}
