//! What came of a run: of one that was just driven, and of any run's folder.

use std::path::{Path, PathBuf};

use regatta_checkpoint::retention::{Best, Mode};
use regatta_track::event::Outcome;
use regatta_track::state::Status as Stored;
use regatta_track::{Event, Metrics, Point, Query, Reader};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::Experiment;
use crate::controller::{Ledger, Status};
use crate::folder::RunFolder;
use crate::wire::StopReason;
use crate::{Error, Result};

/// A run's outcome. Histories are read from its store when they are asked for.
#[derive(Debug)]
pub struct RunResult {
    experiment: String,
    name: String,
    path: PathBuf,
    status: Status,
    metrics: Metrics,
    step: u64,
    attempts: u32,
    best: Option<RunCheckpoint>,
    last: Option<RunCheckpoint>,
    value: Option<Value>,
    error: Option<Error>,
}

/// A checkpoint of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunCheckpoint {
    /// Its name, as in `regatta ckpt show`.
    pub name: String,
    /// Its step.
    pub step: u64,
    /// The figures it was saved with.
    pub metrics: Metrics,
}

impl RunResult {
    /// Reads a run from its folder, whether or not it is over, and whoever is driving it.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let path = std::path::absolute(folder.as_ref())
            .map_err(|source| Error::io("find the run's folder", source))?;
        let mut reader = Reader::open(&path)?;
        let mut snapshot = reader.snapshot()?;
        let run = snapshot.run()?.unwrap_or_default();
        let config: Option<Experiment<Value>> = serde_json::from_value(run.config.clone()).ok();
        let best = config.and_then(|config| config.checkpoint.best);
        let checkpoints = snapshot.checkpoints(None)?.into_iter().filter(|(_, kept)| kept.deleted.is_none());
        let mut ledger = Ledger::default();
        for (name, kept) in checkpoints {
            let kept =
                super::controller::ledger::Kept { step: kept.step, iteration: None, metrics: kept.metrics };
            ledger.checkpoints.insert(name.to_string(), kept);
        }
        let metrics = snapshot.metrics(None)?.into_iter().map(|(name, metric)| (name, metric.last)).collect();
        let (value, reason) = last_words(&mut snapshot)?;
        let status = match run.status {
            Stored::Ended(Outcome::Completed) => Status::Completed,
            Stored::Ended(Outcome::Failed) => Status::Failed,
            Stored::Ended(_) => {
                let (reason, forced) = reason.unwrap_or((StopReason::User, false));
                Status::Stopped { reason, forced }
            }
            _ => Status::Running,
        };
        let error = run.cause.filter(|_| status == Status::Failed).map(|cause| {
            let tail: String = cause.log.iter().map(|line| format!("  | {line}\n")).collect();
            Error::other(
                format!("run {}/{} failed", run.experiment, run.name),
                format!("{tail}{}", cause.message),
            )
        });
        Ok(RunResult {
            experiment: run.experiment,
            name: run.name,
            path,
            status,
            metrics,
            step: run.step.unwrap_or(0),
            attempts: run.attempts,
            best: best.and_then(|best| best_of(&ledger, &best)),
            last: ledger.newest().map(|(name, kept)| checkpoint(name, kept)),
            value,
            error,
        })
    }

    /// What came of a run that was driven here.
    pub(crate) fn of_ending(
        folder: &RunFolder,
        status: Status,
        error: Option<Error>,
        value: Option<Value>,
    ) -> Result<Self> {
        match Self::open(&folder.path) {
            Ok(stored) => Ok(RunResult { status, error, value, ..stored }),
            // The store is what failed, perhaps: then that is the error to tell.
            Err(unreadable) => Err(error.unwrap_or(unreadable)),
        }
    }

    /// The result if the run did not fail, else why it failed.
    pub fn into_result(mut self) -> Result<Self> {
        match (&self.status, self.error.take()) {
            (Status::Failed, Some(error)) => Err(error),
            (Status::Failed, None) => Err(Error::other(format!("run {}", self.name), "it failed")),
            (_, error) => Ok(RunResult { error, ..self }),
        }
    }

    /// The experiment it belongs to.
    pub fn experiment(&self) -> &str {
        &self.experiment
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it ended.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// The last value of every metric.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The step of its last report.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// How often its workers were started.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The best checkpoint there is, by the metric that the configuration names for it.
    pub fn best_checkpoint(&self) -> Option<&RunCheckpoint> {
        self.best.as_ref()
    }

    /// The newest checkpoint there is: what a resume begins from.
    pub fn last_checkpoint(&self) -> Option<&RunCheckpoint> {
        self.last.as_ref()
    }

    /// Why it failed, or what kept it from stopping as cleanly as was asked.
    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    /// What rank 0's training function returned.
    pub fn value<T: DeserializeOwned>(&self) -> Result<T> {
        let value = self.value.clone().unwrap_or(Value::Null);
        serde_json::from_value(value)
            .map_err(|error| Error::other("read what the training function returned", error))
    }

    /// A metric in the course of the run, without what was undone by going back to a checkpoint.
    pub fn history(&self, metric: &str) -> Result<Vec<Point>> {
        let mut reader = Reader::open(&self.path)?;
        let mut snapshot = reader.snapshot()?;
        let begun: Vec<(u32, u64)> =
            snapshot.attempts(None)?.into_iter().map(|(number, attempt)| (number, attempt.step)).collect();
        let undone =
            |point: &Point| begun.iter().any(|&(later, step)| later > point.attempt && point.step > step);
        Ok(snapshot.history(None, metric)?.into_iter().filter(|point| !undone(point)).collect())
    }
}

fn checkpoint(name: &str, kept: &crate::controller::ledger::Kept) -> RunCheckpoint {
    RunCheckpoint { name: name.to_owned(), step: kept.step, metrics: kept.metrics.clone() }
}

fn best_of(ledger: &Ledger, best: &Best) -> Option<RunCheckpoint> {
    let valued = ledger.checkpoints.iter().filter_map(|(name, kept)| {
        let value = kept.metrics.get(&best.metric).filter(|value| !value.is_nan())?;
        Some((if best.mode == Mode::Max { value } else { -value }, name, kept))
    });
    let best = valued.max_by(|(a, _, one), (b, _, other)| a.total_cmp(b).then(one.step.cmp(&other.step)));
    best.map(|(_, name, kept)| checkpoint(name, kept))
}

type LastWords = (Option<Value>, Option<(StopReason, bool)>);

/// What the controller noted at the end of the run: what was returned, and why it stopped.
fn last_words(snapshot: &mut regatta_track::Snapshot<'_>) -> Result<LastWords> {
    let (mut words, mut after): (LastWords, u64) = ((None, None), 0);
    loop {
        let page =
            snapshot.events(&Query { after, limit: 1_000, scope: Some(None), kinds: &["decision"] })?;
        let Some(last) = page.last() else { return Ok(words) };
        after = last.seq;
        for event in page {
            let Event::Decision(decision) = event.event else { continue };
            if decision.by != "controller" {
                continue;
            }
            match decision.action.as_str() {
                "value" => words.0 = Some(decision.data),
                "stopped" => {
                    let reason = serde_json::from_value(decision.data["reason"].clone()).ok();
                    let forced = decision.data["forced"].as_bool().unwrap_or(false);
                    words.1 = reason.map(|reason| (reason, forced));
                }
                _ => {}
            }
        }
    }
}
