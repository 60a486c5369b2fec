//! The median rule: a trial whose best so far is worse than the median of the others at the same point stops.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::config::InvalidConfig;
use super::event::Report;
use super::fifo::next_in_line;
use super::score::Score;
use super::turn::Turn;
use super::{End, Scheduler};

/// The median stopping rule. It keeps one number for each trial and point of comparison: with many reports a trial, raise
/// `interval`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Median {
    /// No trial is stopped before it has used more than this: 1.
    pub grace: u64,
    /// How many others must have come to a point before it is compared at: 5.
    pub startup: u32,
    /// Trials are compared once in so many resources: 1.
    pub interval: u64,
}

impl Default for Median {
    fn default() -> Self {
        Median { grace: 1, startup: 5, interval: 1 }
    }
}

impl Median {
    /// No trial is stopped before it has used more than this.
    #[must_use]
    pub fn grace(self, grace: u64) -> Self {
        Median { grace, ..self }
    }

    /// How many others must have come to a point.
    #[must_use]
    pub fn startup(self, startup: u32) -> Self {
        Median { startup, ..self }
    }

    /// Trials are compared once in so many resources.
    #[must_use]
    pub fn interval(self, interval: u64) -> Self {
        Median { interval, ..self }
    }

    pub(super) fn build(self) -> Result<Box<dyn Scheduler>, InvalidConfig> {
        InvalidConfig::unless(self.interval >= 1, "median.interval", "must be at least 1")?;
        InvalidConfig::unless(self.startup >= 1, "median.startup", "must be at least 1")?;
        Ok(Box::new(Running { config: self, points: BTreeMap::new(), reached: BTreeMap::new() }))
    }
}

#[derive(Debug)]
struct Running {
    config: Median,
    /// The losses at each point, in order.
    points: BTreeMap<u64, Vec<Score>>,
    /// The furthest point of each live trial.
    reached: BTreeMap<u32, u64>,
}

/// The middle of losses that are in order and not none.
fn median(sorted: &[Score]) -> f64 {
    let (low, high) = (sorted[(sorted.len() - 1) / 2].value, sorted[sorted.len() / 2].value);
    if low == high { low } else { low / 2.0 + high / 2.0 }
}

impl Scheduler for Running {
    fn name(&self) -> &'static str {
        "median"
    }

    fn reported(&mut self, report: &Report, turn: &mut Turn<'_>) {
        let (trial, point) = (report.trial, report.resource / self.config.interval);
        if self.reached.get(&trial).is_some_and(|reached| *reached >= point) {
            return;
        }
        self.reached.insert(trial, point);
        let others = self.points.entry(point).or_default();
        let best = turn.roster().get(trial).map_or(f64::NAN, |entry| entry.best);
        if others.len() >= self.config.startup as usize && report.resource > self.config.grace {
            let (middle, n) = (median(others), others.len());
            if Score::new(best, 0) > Score::new(middle, 0) {
                let at = report.resource;
                turn.stop(
                    trial,
                    format!("its best, {best:.6}, is worse than {middle:.6}, the median of {n} at {at}"),
                );
            }
        }
        let score = Score::new(report.value, trial);
        let place = others.partition_point(|other| *other < score);
        others.insert(place, score);
    }

    fn ended(&mut self, trial: u32, _: End, _: &mut Turn<'_>) {
        self.reached.remove(&trial);
    }

    fn slot(&mut self, turn: &mut Turn<'_>) {
        next_in_line(turn);
    }

    fn looks_back(&self) -> bool {
        false
    }
}
