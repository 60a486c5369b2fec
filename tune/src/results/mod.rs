//! What came of the trials: figures over their histories, for tables, comparisons, plots and files. A [`ResultGrid`] reads
//! them from a study's folder; the rest is pure and takes histories from anywhere.
//!
//! ```
//! use regatta_tune::results::{Direction, History, Scope, best, sparkline};
//!
//! let trial = |number, losses: &[f64]| History::new(number).series("loss", losses.iter().copied().zip(1..));
//! let trials = [trial(0, &[0.9, 0.2, 0.4]), trial(1, &[0.8, 0.5, 0.3]), trial(2, &[f64::NAN])];
//! assert_eq!(best(&trials, "loss", Direction::Minimize, Scope::Last).map(|(trial, _)| trial.number), Some(1));
//! assert_eq!(best(&trials, "loss", Direction::Minimize, Scope::Best).map(|(trial, _)| trial.number), Some(0));
//! assert_eq!(sparkline([0.9, 0.2, 0.4], 8), "█▁▃");
//! ```

mod export;
mod grid;
mod parquet;
mod read;
mod seeds;
mod spark;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use regatta_track::event::Cause;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

pub use export::{Table, table};
pub use grid::{Best, Objective, ResultGrid};
pub use read::{flat, recorded};
pub use seeds::{Group, over_seeds};
pub use spark::sparkline;

/// Which way a metric gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Less is better.
    Minimize,
    /// More is better.
    Maximize,
}

impl Direction {
    /// The order of two values, the better first. What is not a number comes last, whichever way.
    #[must_use]
    pub fn order(self, a: f64, b: f64) -> Ordering {
        match (a.is_nan(), b.is_nan()) {
            (false, false) if self == Direction::Minimize => a.total_cmp(&b),
            (false, false) => b.total_cmp(&a),
            (a, b) => a.cmp(&b),
        }
    }

    /// The value as a loss, of which less is better.
    #[must_use]
    pub fn loss(self, value: f64) -> f64 {
        if self == Direction::Minimize { value } else { -value }
    }
}

/// Which of a trial's values stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The last.
    Last,
    /// The best.
    Best,
    /// The mean of all.
    Average,
    /// The mean of the last so many (of all, if there are fewer).
    LastAverage(usize),
}

impl Scope {
    /// The value that stands for a series, in the order of its steps; `None` for an empty one. The best is a number if
    /// there is any; a mean over something that is not a number is none either.
    #[must_use]
    pub fn of(self, direction: Direction, values: &[f64]) -> Option<f64> {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        match self {
            _ if values.is_empty() => None,
            Scope::Last => values.last().copied(),
            Scope::Best => values.iter().copied().min_by(|a, b| direction.order(*a, *b)),
            Scope::Average => Some(mean(values)),
            Scope::LastAverage(count) => Some(mean(&values[values.len() - count.clamp(1, values.len())..])),
        }
    }
}

/// One trial as far as results go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Its number.
    pub number: u32,
    /// How it ended or where it stands, in one word.
    pub state: String,
    /// Its configuration as it was given.
    pub full: Value,
    /// Its configuration, flat: values by path, and of branches the name of the one it takes.
    pub config: BTreeMap<String, Value>,
    /// Its metrics: the step and the value of each report, in the order of steps.
    pub metrics: BTreeMap<String, Vec<(u64, f64)>>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// The same with what a person needs to act on it.
    pub cause: Option<Cause>,
    /// When it was created, in seconds since 1970.
    pub created: Option<f64>,
    /// When it ended, if it did.
    pub ended: Option<f64>,
    /// When it ran: from and to, the last without an end while it does.
    pub spans: Vec<(f64, Option<f64>)>,
    /// How often it was started.
    pub attempts: u32,
    /// The checkpoints that the study's own log tells of, with their steps, in the order of their commits.
    pub checkpoints: Vec<(String, u64)>,
    /// The trial it last took over from.
    pub cloned_from: Option<u32>,
}

impl History {
    /// A trial without anything.
    #[must_use]
    pub fn new(number: u32) -> Self {
        History { number, ..History::default() }
    }

    /// Of a run in its folder, as if it were a trial, number 0: its configuration, and what it reported.
    pub fn of_run(folder: impl AsRef<std::path::Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let read = || read::run(&mut regatta_track::Reader::open(folder)?.snapshot()?);
        read().map_err(|error| Error::results(folder, error))
    }

    /// With a value of the configuration.
    #[must_use]
    pub fn config(mut self, path: impl Into<String>, value: impl Into<Value>) -> Self {
        self.config.insert(path.into(), value.into());
        self
    }

    /// With the values of a metric and their steps.
    #[must_use]
    pub fn series(mut self, metric: impl Into<String>, values: impl IntoIterator<Item = (f64, u64)>) -> Self {
        self.metrics.insert(metric.into(), values.into_iter().map(|(value, step)| (step, value)).collect());
        self
    }

    /// The values of a metric, in the order of steps.
    #[must_use]
    pub fn values(&self, metric: &str) -> Vec<f64> {
        self.metrics.get(metric).into_iter().flatten().map(|(_, value)| *value).collect()
    }

    /// The value that stands for the trial.
    #[must_use]
    pub fn score(&self, metric: &str, direction: Direction, scope: Scope) -> Option<f64> {
        scope.of(direction, &self.values(metric))
    }
}

/// The trials with a value for the metric, the best first: what is not a number comes last, equals in the order of their
/// numbers.
#[must_use]
pub fn ranked<'a>(
    trials: impl IntoIterator<Item = &'a History>,
    metric: &str,
    direction: Direction,
    scope: Scope,
) -> Vec<(&'a History, f64)> {
    let score = |trial: &'a History| trial.score(metric, direction, scope).map(|value| (trial, value));
    let mut ranked: Vec<_> = trials.into_iter().filter_map(score).collect();
    ranked.sort_by(|(a, x), (b, y)| direction.order(*x, *y).then(a.number.cmp(&b.number)));
    ranked
}

/// The best trial and its value; `None` if no trial's value is a number.
#[must_use]
pub fn best<'a>(
    trials: impl IntoIterator<Item = &'a History>,
    metric: &str,
    direction: Direction,
    scope: Scope,
) -> Option<(&'a History, f64)> {
    ranked(trials, metric, direction, scope).into_iter().next().filter(|(_, value)| !value.is_nan())
}
