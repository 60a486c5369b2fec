//! What is submitted, and what can be said about it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::request::GangRequest;
use crate::spawner::{Reason, WorkerCommand};

/// A job's name, given by the client: it makes submitting idempotent, and every engine can carry it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// A name of 1 to 63 lower-case letters, digits and hyphens, which begins and ends with a letter or digit.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let edges = name.bytes().next().is_some_and(plain) && name.bytes().last().is_some_and(plain);
        if name.len() <= 63 && edges && name.bytes().all(|byte| plain(byte) || byte == b'-') {
            return Ok(Self(name));
        }
        let problem =
            "a job is named with 1 to 63 lower-case letters, digits and hyphens, and no hyphen at the ends"
                .into();
        Err(Error::BadRequest { what: format!("the job name `{name}`"), problem })
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobId {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A driver to be run, and the room its workers will want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSpec {
    /// Its name.
    pub id: JobId,
    /// The driver's program. Its variables are secrets: they reach the driver and nobody else.
    pub command: WorkerCommand,
    /// What the workers of a gang will want.
    pub room: GangRequest,
    /// How many gangs like that it will have at once, as a study has that runs several trials side by side.
    pub gangs: usize,
    /// Nodes beyond that, to replace those that fail.
    pub spare_nodes: usize,
    /// How long it may run; the engine's own default if not given.
    pub time_limit: Option<Duration>,
    /// How long before its end the driver is told.
    pub notice: Duration,
    /// What to find it by.
    pub labels: BTreeMap<String, String>,
}

impl JobSpec {
    /// A driver for one gang like this, without spare nodes, told a minute before it has to leave.
    #[must_use]
    pub fn new(id: JobId, command: WorkerCommand, room: GangRequest) -> Self {
        let (gangs, spare_nodes, time_limit, labels) = (1, 0, None, BTreeMap::new());
        Self { id, command, room, gangs, spare_nodes, time_limit, notice: Duration::from_secs(60), labels }
    }

    /// The same with room for so many gangs at once.
    #[must_use]
    pub fn gangs(mut self, gangs: usize) -> Self {
        self.gangs = gangs.max(1);
        self
    }

    /// The same with a label.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }
}

/// What came of submitting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// What the engine calls the job.
    pub engine_id: String,
    /// Whether this call submitted it; `false` where it was there.
    pub new: bool,
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits for room; why, in words.
    Queued(String),
    /// Its driver runs, or is being started or ended.
    Running,
    /// It is over.
    Ended(Reason),
    /// The engine has forgotten it: it ended, and the run's own store says how.
    Forgotten,
}

impl JobState {
    /// Whether nothing of it runs or will run.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Forgotten)
    }
}

/// A job as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its name.
    pub id: JobId,
    /// What the engine calls it.
    pub engine_id: String,
    /// Where it stands.
    pub state: JobState,
    /// The engine's own word for that.
    pub word: String,
    /// Where it runs or ran, as the engine writes it; may be empty.
    pub nodes: String,
    /// What it was submitted with.
    pub labels: BTreeMap<String, String>,
}

/// A piece of a driver's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPart {
    /// What was written.
    pub bytes: Vec<u8>,
    /// Where the next piece begins.
    pub next: u64,
    /// Whether the job is over and all was read.
    pub end: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_every_engine_carries() {
        assert!(JobId::new("mnist-7").is_ok() && JobId::new("a").is_ok());
        for bad in ["", "-a", "a-", "A", "a b", "a_b", "a/../b", &"a".repeat(64)] {
            assert!(JobId::new(bad).is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<JobId>("\"../x\"").is_err());
    }
}
