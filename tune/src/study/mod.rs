//! Studies: what was tried, what came of it, and what is to be tried next, in a log that survives whoever drives it.
//!
//! A study's state is a pure [`Machine`]: sampler, scheduler, stoppers and roster. Its log, `run.db` in the study's folder,
//! is the list of what it was told, so that a resumed study is the same machine fed the same log: the same trials follow as
//! if it had never stopped. [`Study`] is a study under somebody else's control, by asking and telling;
//! [`Tuner`](crate::Tuner) runs one.

mod ask;
mod configs;
mod feed;
mod input;
pub mod machine;
mod session;

use regatta_track::Metrics;
use regatta_track::event::{Cause, CheckpointCommitted, Outcome};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use ask::{Study, StudyBuilder, Trial, Verdict};
pub use machine::{Facts, Machine};
pub(crate) use session::{Session, Setup};

use crate::sampler::Suggestion;
use crate::scheduler::{Checkpoint, Config};
use crate::space::Node;

/// Something happened to a study.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Input {
    /// Somebody drives it from now on.
    Opened(Opened),
    /// This configuration is to be tried next.
    Enqueued(Value),
    /// There is room for one more trial; with what was suggested for it, if that was before a restart.
    Offer(Option<Suggestion>),
    /// A trial's workers run its code.
    Started {
        /// Which trial.
        trial: u32,
        /// The attempt, as its own run counts them.
        attempt: u32,
    },
    /// A trial of an open space told what it asked for.
    Discovered {
        /// Which trial.
        trial: u32,
        /// What the space did not know yet.
        nodes: Vec<(String, Node)>,
        /// What the trial was given.
        config: Config,
    },
    /// A trial reported.
    Reported {
        /// Which trial.
        trial: u32,
        /// Its step.
        step: u64,
        /// Its figures.
        metrics: Metrics,
    },
    /// A checkpoint of a trial was committed.
    Checkpointed {
        /// Which trial.
        trial: u32,
        /// The checkpoint; among its figures is the resource.
        committed: CheckpointCommitted,
    },
    /// A trial gave its slot back and can go on from its last checkpoint.
    Paused {
        /// Which trial.
        trial: u32,
    },
    /// A trial came to its end.
    Finished {
        /// Which trial.
        trial: u32,
    },
    /// A trial failed for good.
    Failed {
        /// Which trial.
        trial: u32,
        /// Why.
        cause: Cause,
    },
    /// Time passed.
    Tick,
    /// The study is to end with all of its trials.
    Stop(String),
    /// Nobody drives it any more.
    Ended(Outcome),
}

/// How a session drives a study.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Opened {
    /// How many trials there are to be in all.
    pub samples: u64,
    /// How many at once.
    pub concurrent: usize,
    /// Whether a trial runs as soon as it is created.
    pub instant: bool,
}

/// What is to be done for a trial.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Order {
    /// Start it, or have it go on.
    Launch {
        /// Which trial.
        trial: u32,
        /// Its whole configuration.
        config: Value,
        /// What it goes on from; nothing is its own beginning.
        restore: Option<Checkpoint>,
        /// With how many workers, if a scheduler said.
        workers: Option<u32>,
    },
    /// Let it go on after its last report.
    GoOn {
        /// Which trial.
        trial: u32,
    },
    /// Have it save and give its slot back.
    Pause {
        /// Which trial.
        trial: u32,
    },
    /// Have it end.
    Stop {
        /// Which trial.
        trial: u32,
    },
    /// End whatever runs for it at once; nothing more is to be heard of that.
    Kill {
        /// Which trial.
        trial: u32,
    },
    /// Have it save, and go on from there with so many workers.
    Resize {
        /// Which trial.
        trial: u32,
        /// How many workers.
        workers: u32,
    },
}

impl Order {
    /// Which trial it is about.
    #[must_use]
    pub fn trial(&self) -> u32 {
        match self {
            Order::Launch { trial, .. }
            | Order::GoOn { trial }
            | Order::Pause { trial }
            | Order::Stop { trial }
            | Order::Kill { trial }
            | Order::Resize { trial, .. } => *trial,
        }
    }
}

/// A configuration such as trials get, to see whether it fits what it is for.
pub(crate) fn probe(space: &crate::space::Space, base: &Value, seed: u64) -> crate::error::Result<Value> {
    use crate::sampler::{Ask, History, Random, Sampler};
    let history = History::new();
    let point = Random.suggest(&Ask { space, history: &history, number: 0, seed })?.point;
    let chosen = space.config(&point, Some(base))?;
    Ok(configs::full(space, base, chosen))
}
