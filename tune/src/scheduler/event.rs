//! What a scheduler is told and what it answers. Both are plain data, so that a study's log can hold them and a resumed
//! study is the fold of what it held.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A trial's configuration as schedulers see it: the value of each parameter by its path.
pub type Config = BTreeMap<String, Value>;

/// Something happened to the trials. Values are losses: the runner turns the sign of what is to be maximised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The sampler made a new trial; its workers are being started.
    Created {
        /// The new trial.
        trial: u32,
        /// What it was given.
        #[serde(with = "shared")]
        config: Arc<Config>,
    },
    /// The workers of a created, resumed, cloned or resized trial run its code. What an earlier incarnation of the trial
    /// sent and was not told before this is never told after it.
    Started {
        /// Which trial.
        trial: u32,
    },
    /// A trial reported its objective.
    Reported(Report),
    /// A checkpoint of a trial was committed.
    Checkpointed {
        /// Which trial.
        trial: u32,
        /// What can be restored from now on.
        checkpoint: Checkpoint,
    },
    /// A trial gave its slot back and can be resumed.
    Paused {
        /// Which trial.
        trial: u32,
        /// The checkpoint it took on leaving; `None` if it took none, and the one before it, if any, still holds.
        checkpoint: Option<Checkpoint>,
    },
    /// A trial is over: it came to its own end or was stopped.
    Finished {
        /// Which trial.
        trial: u32,
    },
    /// A trial failed and will not be tried again. (A retry is no event: its reports repeat earlier resources.)
    Failed {
        /// Which trial.
        trial: u32,
    },
    /// There is room for one more trial: what shall run there? An offer that is answered with nothing but
    /// [`Action::Wait`] or [`Action::Done`] leaves no trace and need not be stored.
    Slot,
    /// There will be no new trials.
    Exhausted,
    /// There will be new trials after all, as a finished study was extended.
    Extended,
}

/// One report of one trial.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Which trial.
    pub trial: u32,
    /// How much it had used when it reported, in the study's unit (epochs, steps): 1 is the first.
    pub resource: u64,
    /// The loss; not a number counts as worse than anything.
    #[serde(with = "number")]
    pub value: f64,
}

impl PartialEq for Report {
    /// Two reports without a number are equal.
    fn eq(&self, other: &Self) -> bool {
        let same = self.value.to_bits() == other.value.to_bits() || self.value == other.value;
        (self.trial, self.resource) == (other.trial, other.resource)
            && (same || self.value.is_nan() && other.value.is_nan())
    }
}

/// A committed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The trial in whose folder it lies.
    pub owner: u32,
    /// Its name there.
    pub id: String,
    /// The resource that had been used when it was taken.
    pub resource: u64,
}

/// A decision and why it was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// What is to be done.
    pub action: Action,
    /// Why, for people.
    pub reason: Cow<'static, str>,
}

/// What the runner is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Let the trial go on.
    Continue {
        /// Which trial.
        trial: u32,
    },
    /// Have the trial take a checkpoint and give its slot back; answer with [`Event::Paused`].
    Pause {
        /// Which trial.
        trial: u32,
    },
    /// End the trial, running or paused, before its time; answer with [`Event::Finished`].
    Stop {
        /// Which trial.
        trial: u32,
    },
    /// End the trial, which has had all it was to have and counts as completed; answer with [`Event::Finished`].
    Finish {
        /// Which trial.
        trial: u32,
    },
    /// On the offered slot, take a paused trial up again; answer with [`Event::Started`].
    Resume {
        /// Which trial.
        trial: u32,
        /// What to restore; `None` is from the beginning, as the trial never took a checkpoint.
        checkpoint: Option<Checkpoint>,
    },
    /// Replace what the trial is by a checkpoint and another configuration. A running trial keeps its slot and is restarted:
    /// answer with [`Event::Started`]. A paused one stays paused.
    Clone {
        /// Which trial.
        trial: u32,
        /// Whose state it takes over; itself, where only its configuration changes.
        donor: u32,
        /// What to restore.
        checkpoint: Checkpoint,
        /// With what it goes on.
        #[serde(with = "shared")]
        config: Arc<Config>,
    },
    /// Have the running trial take a checkpoint, and restart it from there with another number of workers; answer with
    /// [`Event::Started`].
    Resize {
        /// Which trial.
        trial: u32,
        /// How many workers from now on.
        workers: u32,
    },
    /// On the offered slot, start a new trial; answer with [`Event::Created`], or with [`Event::Exhausted`] if there is none.
    StartNew,
    /// Leave the offered slot free until the next event.
    Wait,
    /// There is nothing left to do unless the study is extended.
    Done,
}

impl Action {
    /// The name under which the log keeps it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Action::Continue { .. } => "continue",
            Action::Pause { .. } => "pause",
            Action::Stop { .. } => "stop",
            Action::Finish { .. } => "finish",
            Action::Resume { .. } => "resume",
            Action::Clone { .. } => "clone",
            Action::Resize { .. } => "resize",
            Action::StartNew => "start_new",
            Action::Wait => "wait",
            Action::Done => "done",
        }
    }

    /// The trial it is about.
    #[must_use]
    pub fn trial(&self) -> Option<u32> {
        match self {
            Action::Continue { trial }
            | Action::Pause { trial }
            | Action::Stop { trial }
            | Action::Finish { trial }
            | Action::Resume { trial, .. }
            | Action::Clone { trial, .. }
            | Action::Resize { trial, .. } => Some(*trial),
            Action::StartNew | Action::Wait | Action::Done => None,
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action.name())?;
        if let Some(trial) = self.action.trial() {
            write!(f, " trial {trial}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Numbers in JSON, which has none for NaN and the infinities: those are the strings `NaN`, `inf` and `-inf`.
pub(crate) mod number {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Plain(f64),
        Named(String),
    }

    pub(crate) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() { to.serialize_f64(*value) } else { to.serialize_str(&value.to_string()) }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        match Number::deserialize(from)? {
            Number::Plain(value) => Ok(value),
            Number::Named(name) => {
                name.parse().map_err(|_| D::Error::custom(format!("`{name}` is not a number")))
            }
        }
    }
}

/// A shared value, kept as if it were not shared.
pub(crate) mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, to: S) -> Result<S::Ok, S::Error> {
        T::serialize(value, to)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}
