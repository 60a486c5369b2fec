//! What can happen in a run. State is a fold over these, so whatever must outlive a restart is an event.
//!
//! Kinds have a name and a version in the file. A field that is added gets a serde default and keeps the version; a change
//! that an older reader would misread takes the next version. A kind or version that this build does not know is kept as
//! [`Event::Unknown`], skipped by folds and passed on unchanged.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
pub use crate::study::{Domain, Objective, Parameter, StudyConfigured};

/// Microseconds since 1970 in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The time of the system's clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_micros().min(i64::MAX as u128) as i64)
    }

    /// As seconds since 1970.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

/// An event as the store holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// Its place in the run's log: 1, 2, 3, ... without gaps.
    pub seq: u64,
    /// When it happened.
    pub at: Timestamp,
    /// Which try at the run (or, with `trial`, at that trial) it belongs to. The first is 1; 0 is before any.
    pub attempt: u32,
    /// The worker it came from; `None` is the controller.
    pub rank: Option<u32>,
    /// The trial it belongs to; `None` is the run itself.
    pub trial: Option<u32>,
    /// The sender's own number for it, by which a repeated delivery is recognised.
    pub sequence: Option<u64>,
    /// What happened.
    pub event: Event,
}

impl Envelope {
    /// The event as one JSON object, `kind` and `version` beside the `body`, for people and tools.
    pub fn to_json(&self) -> Result<Value> {
        Ok(serde_json::json!({
            "seq": self.seq, "at": self.at, "attempt": self.attempt, "rank": self.rank, "trial": self.trial,
            "sequence": self.sequence, "kind": self.event.kind(), "version": self.event.version(),
            "body": self.event.body()?,
        }))
    }
}

/// An event on its way into the store, which gives it its place in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// When it happened; `None` is the time of the append.
    pub at: Option<Timestamp>,
    /// As in [`Envelope`].
    pub attempt: u32,
    /// As in [`Envelope`].
    pub rank: Option<u32>,
    /// As in [`Envelope`].
    pub trial: Option<u32>,
    /// As in [`Envelope`].
    pub sequence: Option<u64>,
    /// What happened.
    pub event: Event,
}

impl Draft {
    /// An event of the controller's own, before any attempt, at the time of its append.
    pub fn new(event: impl Into<Event>) -> Self {
        Draft { at: None, attempt: 0, rank: None, trial: None, sequence: None, event: event.into() }
    }

    /// Which attempt it belongs to.
    pub fn attempt(self, attempt: u32) -> Self {
        Draft { attempt, ..self }
    }

    /// Which worker it came from.
    pub fn rank(self, rank: u32) -> Self {
        Draft { rank: Some(rank), ..self }
    }

    /// Which trial it belongs to.
    pub fn trial(self, trial: u32) -> Self {
        Draft { trial: Some(trial), ..self }
    }

    /// The sender's number for it. A sender (trial, attempt, rank) numbers its events upwards and delivers them in that
    /// order, as often as it likes: a number that is not above the highest one taken is a repetition and stored no more.
    pub fn sequence(self, sequence: u64) -> Self {
        Draft { sequence: Some(sequence), ..self }
    }

    /// When it happened, if that is not now.
    pub fn at(self, at: Timestamp) -> Self {
        Draft { at: Some(at), ..self }
    }
}

impl<E: Into<Event>> From<E> for Draft {
    fn from(event: E) -> Self {
        Draft::new(event)
    }
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $kind:literal v $version:literal,)*) => {
        /// Everything that can happen. Each variant holds the struct of its name.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Event {
            $($(#[$doc])* $name($name),)*
            /// Written by a newer version of this crate. Kept as it is and skipped by folds.
            Unknown(Unknown),
        }

        $(impl From<$name> for Event {
            fn from(body: $name) -> Self { Event::$name(body) }
        })*

        impl Event {
            /// The kinds this build knows, with their versions.
            pub const KINDS: &'static [(&'static str, u16)] = &[$(($kind, $version),)*];

            /// The kind's name in the file.
            pub fn kind(&self) -> &str {
                match self { $(Event::$name(_) => $kind,)* Event::Unknown(unknown) => &unknown.kind }
            }

            /// The version of the kind's body.
            pub fn version(&self) -> u16 {
                match self { $(Event::$name(_) => $version,)* Event::Unknown(unknown) => unknown.version }
            }

            /// The body as JSON; that of an unknown kind that is not JSON is its bytes as a list.
            pub fn body(&self) -> Result<Value> {
                match self {
                    $(Event::$name(body) => serde_json::to_value(body)
                        .map_err(|source| Error::Encode { kind: $kind.into(), source: Arc::new(source) }),)*
                    Event::Unknown(unknown) => Ok(serde_json::from_slice(&unknown.body)
                        .unwrap_or_else(|_| Value::from(unknown.body.clone()))),
                }
            }

            /// The body's bytes of every kind but `report`, which has a layout of its own.
            pub(crate) fn json_bytes(&self) -> Result<Vec<u8>> {
                match self {
                    $(Event::$name(body) => serde_json::to_vec(body)
                        .map_err(|source| Error::Encode { kind: $kind.into(), source: Arc::new(source) }),)*
                    Event::Unknown(unknown) => Ok(unknown.body.clone()),
                }
            }

            /// The reverse of `json_bytes`. A kind that is not known, or known in an older version only, is `Unknown`.
            pub(crate) fn from_json_bytes(kind: &str, version: u16, body: &[u8]) -> Result<Event, serde_json::Error> {
                match kind {
                    $($kind if version <= $version => Ok(Event::$name(serde_json::from_slice(body)?)),)*
                    _ => Ok(Event::Unknown(Unknown { kind: kind.into(), version, body: body.into() })),
                }
            }
        }
    };
}

events! {
    /// The run was created.
    RunCreated = "run_created" v 1,
    /// The resolved configuration of the run, with where each value came from if the caller says so.
    RunConfigured = "run_configured" v 1,
    /// The environment the run started in.
    RunEnvironment = "run_environment" v 1,
    /// The run ended.
    RunFinished = "run_finished" v 1,
    /// A gang of workers begins.
    AttemptStarted = "attempt_started" v 1,
    /// A gang of workers is gone.
    AttemptEnded = "attempt_ended" v 1,
    /// A worker called home and has its rank (the envelope's).
    WorkerJoined = "worker_joined" v 1,
    /// A worker fell silent or was given up.
    WorkerLost = "worker_lost" v 1,
    /// A worker's process ended.
    WorkerExited = "worker_exited" v 1,
    /// Metrics at a step.
    Report = "report" v 1,
    /// A checkpoint was committed.
    CheckpointCommitted = "checkpoint_committed" v 1,
    /// A checkpoint was removed by retention.
    CheckpointDeleted = "checkpoint_deleted" v 1,
    /// A scheduler, sampler, stopper or controller decided something.
    Decision = "decision" v 1,
    /// A trial was created.
    TrialCreated = "trial_created" v 1,
    /// A trial got another configuration.
    TrialConfigured = "trial_configured" v 1,
    /// A trial was paused.
    TrialPaused = "trial_paused" v 1,
    /// A paused trial goes on.
    TrialResumed = "trial_resumed" v 1,
    /// A trial took over another's checkpoint and a configuration derived from its.
    TrialCloned = "trial_cloned" v 1,
    /// A trial ended.
    TrialFinished = "trial_finished" v 1,
    /// The last lines a worker wrote.
    LogTail = "log_tail" v 1,
    /// What a study optimises and varies.
    StudyConfigured = "study_configured" v 1,
}

/// How a run, an attempt or a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It came to its own end.
    Completed,
    /// It was ended early on purpose, by a scheduler, a stopper or the user, and is not to be resumed by itself.
    Stopped,
    /// It was interrupted (signal, preemption) and can be resumed.
    Interrupted,
    /// It failed.
    Failed,
}

/// Why something failed: the root cause, with what a person needs to act on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// The error as its origin worded it.
    pub message: String,
    /// The worker it began on.
    pub rank: Option<u32>,
    /// The host of that worker.
    pub host: Option<String>,
    /// The step it was at.
    pub step: Option<u64>,
    /// The end of that worker's log.
    pub log: Vec<String>,
}

impl Cause {
    /// A cause with nothing but a message.
    pub fn new(message: impl Into<String>) -> Self {
        Cause { message: message.into(), ..Cause::default() }
    }
}

/// See [`Event::RunCreated`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunCreated {
    /// The experiment the run belongs to.
    pub experiment: String,
    /// The run's name.
    pub name: String,
}

/// See [`Event::RunConfigured`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunConfigured {
    /// The resolved configuration.
    pub config: Value,
}

/// See [`Event::RunEnvironment`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunEnvironment {
    /// Seed, arguments, git state, host, devices, versions: whatever the caller gathered.
    pub env: Value,
}

/// See [`Event::RunFinished`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFinished {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, if it failed.
    #[serde(default)]
    pub cause: Option<Cause>,
}

/// See [`Event::AttemptStarted`]; the attempt is the envelope's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptStarted {
    /// How many workers.
    pub world_size: u32,
    /// The generation that fences these workers from older ones.
    pub generation: u64,
    /// The checkpoint it starts from.
    pub restored: Option<String>,
    /// The step it starts at.
    pub step: u64,
}

/// See [`Event::AttemptEnded`]; the attempt is the envelope's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptEnded {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, if it failed.
    #[serde(default)]
    pub cause: Option<Cause>,
}

/// See [`Event::WorkerJoined`]; the rank is the envelope's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerJoined {
    /// Its host.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// The generation it was given.
    pub generation: u64,
    /// The resources it holds.
    pub resources: Value,
}

/// See [`Event::WorkerLost`]; the rank is the envelope's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerLost {
    /// How it was noticed.
    pub reason: String,
}

/// See [`Event::WorkerExited`]; the rank is the envelope's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerExited {
    /// Its exit status, if it exited.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
}

/// See [`Event::Report`]. The reports of rank 0 and of the controller make up a run's metrics; those of other ranks are
/// kept in the log and not projected, as two ranks would overwrite one another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The training step.
    pub step: u64,
    /// The figures.
    pub metrics: Metrics,
}

/// See [`Event::CheckpointCommitted`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointCommitted {
    /// Its name below the run's or trial's `checkpoints/`.
    pub id: String,
    /// The step it was taken at.
    pub step: u64,
    /// The generation that wrote it.
    pub generation: u64,
    /// Its size.
    pub bytes: u64,
    /// The figures it is ranked by.
    pub metrics: Metrics,
}

/// See [`Event::CheckpointDeleted`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointDeleted {
    /// Its name.
    pub id: String,
    /// Why retention let it go.
    pub reason: String,
}

/// See [`Event::Decision`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decision {
    /// Who decided, such as `asha` or `tpe`.
    pub by: String,
    /// What, such as `stop` or `suggest`.
    pub action: String,
    /// Why, for people.
    pub reason: String,
    /// What the decider needs to take up its state at a replay.
    pub data: Value,
}

/// See [`Event::TrialCreated`]; the trial is the envelope's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrialCreated {
    /// Its configuration.
    pub config: Value,
    /// What whoever suggested it needs to take up its state at a replay.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// See [`Event::TrialConfigured`]; the trial is the envelope's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrialConfigured {
    /// Its new configuration.
    pub config: Value,
}

/// See [`Event::TrialPaused`]; the trial is the envelope's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrialPaused {
    /// The checkpoint it can go on from.
    pub checkpoint: Option<String>,
}

/// See [`Event::TrialResumed`]; the trial is the envelope's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrialResumed {}

/// See [`Event::TrialCloned`]; the trial is the envelope's, which is the one that changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrialCloned {
    /// The trial that was copied.
    pub from: u32,
    /// The checkpoint that was taken over.
    pub checkpoint: Option<String>,
    /// The configuration it goes on with.
    pub config: Value,
}

/// See [`Event::TrialFinished`]; the trial is the envelope's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialFinished {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, if it failed.
    #[serde(default)]
    pub cause: Option<Cause>,
}

/// See [`Event::LogTail`]; the rank is the envelope's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogTail {
    /// The lines, oldest first.
    pub lines: Vec<String>,
}

/// See [`Event::Unknown`].
#[derive(Clone, Debug, PartialEq)]
pub struct Unknown {
    /// The kind's name.
    pub kind: String,
    /// The version of its body.
    pub version: u16,
    /// The body as stored.
    pub body: Vec<u8>,
}
