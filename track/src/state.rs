//! What a run's events add up to. [`State`] is the fold in memory; the store keeps the same rows in tables, changed in the
//! same transaction as the log. Both go through `apply`, which is pure: no clock, no file, the event in and rows out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::{Cause, Envelope, Event, Outcome, Timestamp};
use crate::metrics::Metrics;
use crate::tables::Row;

/// Where a run or trial stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Created, and waiting for an attempt.
    #[default]
    Pending,
    /// An attempt is on.
    Running,
    /// Paused by a scheduler.
    Paused,
    /// Over, in this way.
    Ended(Outcome),
}

/// The run itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// The experiment it belongs to.
    pub experiment: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub status: Status,
    /// Its configuration.
    pub config: Value,
    /// The environment it started in.
    pub env: Value,
    /// When it was created.
    pub created: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Why it failed.
    pub cause: Option<Cause>,
    /// How often its training was started.
    pub attempts: u32,
    /// The step of its last report.
    pub step: Option<u64>,
    /// How many reports it made.
    pub reports: u64,
}

/// One try at a run or trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempt {
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why it failed.
    pub cause: Option<Cause>,
    /// How many workers it had.
    pub world_size: u32,
    /// The generation of its workers.
    pub generation: u64,
    /// The checkpoint it started from.
    pub restored: Option<String>,
    /// The step it started at.
    pub step: u64,
}

/// One worker of an attempt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Worker {
    /// When it called home.
    pub joined: Timestamp,
    /// Its host.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Its generation.
    pub generation: u64,
    /// When it was given up, and how that was noticed.
    pub lost: Option<(Timestamp, String)>,
    /// When its process ended.
    pub exited: Option<Timestamp>,
    /// Its exit status.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// One trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trial {
    /// Where it stands.
    pub status: Status,
    /// Its configuration now.
    pub config: Value,
    /// When it was created.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// Why it failed.
    pub cause: Option<Cause>,
    /// How often it was started.
    pub attempts: u32,
    /// The step of its last report.
    pub step: Option<u64>,
    /// How many reports it made.
    pub reports: u64,
    /// The checkpoint it was paused at or cloned from.
    pub checkpoint: Option<String>,
    /// The trial it was last cloned from.
    pub cloned_from: Option<u32>,
}

/// A metric of a run or trial: its last value and its extremes, one of which is the best.
#[derive(Clone, Debug, Default)]
pub struct Metric {
    /// The last value.
    pub last: f64,
    /// The step of the last value.
    pub last_step: u64,
    /// The smallest value and its step, the first of equals; `None` while there was nothing but NaN.
    pub min: Option<(f64, u64)>,
    /// The largest value and its step, the first of equals.
    pub max: Option<(f64, u64)>,
    /// How many values there were.
    pub count: u64,
}

/// NaN equals NaN: rows are compared to see whether the same was stored.
impl PartialEq for Metric {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan());
        same(self.last, other.last)
            && (self.last_step, self.min, self.max, self.count)
                == (other.last_step, other.min, other.max, other.count)
    }
}

/// A checkpoint that was committed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checkpoint {
    /// The step it was taken at.
    pub step: u64,
    /// The generation that wrote it.
    pub generation: u64,
    /// Its size.
    pub bytes: u64,
    /// The figures it is ranked by.
    pub metrics: Metrics,
    /// When it was committed.
    pub committed: Timestamp,
    /// When retention removed it.
    pub deleted: Option<Timestamp>,
}

/// The highest number a sender's events were taken up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// That number.
    pub sequence: u64,
}

/// A trial, or `None` for the run itself.
pub type Scope = Option<u32>;

/// A run's whole state, each row under its key.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct State {
    pub(crate) runs: BTreeMap<(), Run>,
    /// By trial and attempt.
    pub attempts: BTreeMap<(Scope, u32), Attempt>,
    /// By trial, attempt and rank.
    pub workers: BTreeMap<(Scope, u32, u32), Worker>,
    /// By number.
    pub trials: BTreeMap<u32, Trial>,
    /// By trial and name.
    pub metrics: BTreeMap<(Scope, Arc<str>), Metric>,
    /// By trial and name.
    pub checkpoints: BTreeMap<(Scope, Arc<str>), Checkpoint>,
    /// By trial, attempt and rank (`None` is the controller).
    pub sources: BTreeMap<(Scope, u32, Option<u32>), Source>,
}

impl State {
    /// The run, once an event told of it.
    pub fn run(&self) -> Option<&Run> {
        self.runs.get(&())
    }

    /// Folds one more event in. Events must come in order.
    pub fn apply(&mut self, envelope: &Envelope) {
        let Ok(()) = apply(self, envelope);
    }

    /// The state that a log of events adds up to.
    pub fn fold<'a>(events: impl IntoIterator<Item = &'a Envelope>) -> State {
        let mut state = State::default();
        events.into_iter().for_each(|e| state.apply(e));
        state
    }
}

/// Rows that can be changed by key; one that is not there yet is a default one.
pub(crate) trait Rows {
    type Error;
    fn row<R: Row>(&mut self, key: R::Key) -> Result<&mut R, Self::Error>;
}

impl Rows for State {
    type Error = std::convert::Infallible;

    fn row<R: Row>(&mut self, key: R::Key) -> Result<&mut R, Self::Error> {
        Ok(R::rows_mut(self).entry(key).or_default())
    }
}

/// What an event does to the rows.
pub(crate) fn apply<S: Rows>(rows: &mut S, e: &Envelope) -> Result<(), S::Error> {
    if let Some(sequence) = e.sequence {
        let source: &mut Source = rows.row((e.trial, e.attempt, e.rank))?;
        source.sequence = source.sequence.max(sequence);
    }
    match &e.event {
        Event::Report(_) => report(rows, e),
        Event::RunCreated(_) | Event::RunConfigured(_) | Event::RunEnvironment(_) | Event::RunFinished(_) => {
            run(rows, e)
        }
        Event::AttemptStarted(_) | Event::AttemptEnded(_) => attempt(rows, e),
        Event::WorkerJoined(_) | Event::WorkerLost(_) | Event::WorkerExited(_) => worker(rows, e),
        Event::CheckpointCommitted(_) | Event::CheckpointDeleted(_) => checkpoint(rows, e),
        Event::TrialCreated(_)
        | Event::TrialConfigured(_)
        | Event::TrialPaused(_)
        | Event::TrialResumed(_)
        | Event::TrialCloned(_)
        | Event::TrialFinished(_) => trial(rows, e),
        Event::Decision(_) | Event::LogTail(_) | Event::StudyConfigured(_) | Event::Unknown(_) => Ok(()),
    }
}

fn report<S: Rows>(rows: &mut S, e: &Envelope) -> Result<(), S::Error> {
    let Event::Report(report) = &e.event else { return Ok(()) };
    if e.rank.unwrap_or(0) != 0 {
        return Ok(());
    }
    match e.trial {
        Some(number) => {
            let trial: &mut Trial = rows.row(number)?;
            (trial.step, trial.updated) = (Some(report.step), e.at);
            trial.reports += 1;
        }
        None => {
            let run: &mut Run = rows.row(())?;
            run.step = Some(report.step);
            run.reports += 1;
        }
    }
    for (name, value) in report.metrics.iter() {
        let metric: &mut Metric = rows.row((e.trial, name.clone()))?;
        (metric.last, metric.last_step) = (value, report.step);
        metric.count += 1;
        if !value.is_nan() {
            if metric.min.is_none_or(|(min, _)| value < min) {
                metric.min = Some((value, report.step));
            }
            if metric.max.is_none_or(|(max, _)| value > max) {
                metric.max = Some((value, report.step));
            }
        }
    }
    Ok(())
}

fn run<S: Rows>(rows: &mut S, e: &Envelope) -> Result<(), S::Error> {
    let run: &mut Run = rows.row(())?;
    match &e.event {
        Event::RunCreated(body) => {
            (run.experiment, run.name) = (body.experiment.clone(), body.name.clone());
            run.created = e.at;
        }
        Event::RunConfigured(body) => run.config = body.config.clone(),
        Event::RunEnvironment(body) => run.env = body.env.clone(),
        Event::RunFinished(body) => {
            (run.status, run.ended) = (Status::Ended(body.outcome), Some(e.at));
            run.cause = body.cause.clone();
        }
        _ => {}
    }
    Ok(())
}

fn attempt<S: Rows>(rows: &mut S, e: &Envelope) -> Result<(), S::Error> {
    let row: &mut Attempt = rows.row((e.trial, e.attempt))?;
    match &e.event {
        Event::AttemptStarted(body) => {
            *row = Attempt {
                started: e.at,
                world_size: body.world_size,
                generation: body.generation,
                restored: body.restored.clone(),
                step: body.step,
                ..Attempt::default()
            };
        }
        Event::AttemptEnded(body) => {
            (row.ended, row.outcome) = (Some(e.at), Some(body.outcome));
            row.cause = body.cause.clone();
            return Ok(());
        }
        _ => {}
    }
    match e.trial {
        Some(number) => {
            let trial: &mut Trial = rows.row(number)?;
            (trial.status, trial.updated, trial.cause) = (Status::Running, e.at, None);
            trial.attempts = trial.attempts.max(e.attempt);
        }
        None => {
            let run: &mut Run = rows.row(())?;
            (run.status, run.ended, run.cause) = (Status::Running, None, None);
            run.attempts = run.attempts.max(e.attempt);
        }
    }
    Ok(())
}

fn worker<S: Rows>(rows: &mut S, e: &Envelope) -> Result<(), S::Error> {
    let row: &mut Worker = rows.row((e.trial, e.attempt, e.rank.unwrap_or(0)))?;
    match &e.event {
        Event::WorkerJoined(body) => {
            *row = Worker {
                joined: e.at,
                host: body.host.clone(),
                pid: body.pid,
                generation: body.generation,
                ..Worker::default()
            };
        }
        Event::WorkerLost(body) => row.lost = Some((e.at, body.reason.clone())),
        Event::WorkerExited(body) => {
            (row.exited, row.code, row.signal) = (Some(e.at), body.code, body.signal)
        }
        _ => {}
    }
    Ok(())
}

fn checkpoint<S: Rows>(rows: &mut S, e: &Envelope) -> Result<(), S::Error> {
    match &e.event {
        Event::CheckpointCommitted(body) => {
            *rows.row((e.trial, body.id.as_str().into()))? = Checkpoint {
                step: body.step,
                generation: body.generation,
                bytes: body.bytes,
                metrics: body.metrics.clone(),
                committed: e.at,
                deleted: None,
            };
        }
        Event::CheckpointDeleted(body) => {
            let row: &mut Checkpoint = rows.row((e.trial, body.id.as_str().into()))?;
            row.deleted = Some(e.at);
        }
        _ => {}
    }
    Ok(())
}

fn trial<S: Rows>(rows: &mut S, e: &Envelope) -> Result<(), S::Error> {
    let Some(number) = e.trial else { return Ok(()) };
    let row: &mut Trial = rows.row(number)?;
    row.updated = e.at;
    match &e.event {
        Event::TrialCreated(body) => {
            *row = Trial { config: body.config.clone(), created: e.at, updated: e.at, ..Trial::default() };
        }
        Event::TrialConfigured(body) => row.config = body.config.clone(),
        Event::TrialPaused(body) => {
            (row.status, row.checkpoint) = (Status::Paused, body.checkpoint.clone());
        }
        Event::TrialResumed(_) => row.status = Status::Pending,
        Event::TrialCloned(body) => {
            (row.config, row.checkpoint) = (body.config.clone(), body.checkpoint.clone());
            row.cloned_from = Some(body.from);
        }
        Event::TrialFinished(body) => {
            (row.status, row.cause) = (Status::Ended(body.outcome), body.cause.clone());
        }
        _ => {}
    }
    Ok(())
}
