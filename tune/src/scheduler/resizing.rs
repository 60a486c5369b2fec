//! Gives the workers that would be idle to the trials that are left, and takes them back when others need them. Which
//! trials go on is another scheduler's business.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::{InvalidConfig, SchedulerConfig};
use super::event::Report;
use super::perturb::Perturb;
use super::roster::{Roster, State};
use super::turn::Turn;
use super::{End, Scheduler};

/// Resource-changing: near the end of a study, when no trial waits, each running one gets its share of all workers. A trial
/// changes size when it reports, and only if it has shown that it can checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resizing {
    /// Who decides which trials go on.
    pub scheduler: Box<SchedulerConfig>,
    /// How many workers there are in all.
    pub workers: u32,
    /// How many a trial starts with.
    pub min: u32,
    /// How many a trial can make use of.
    pub max: u32,
}

impl Resizing {
    /// So many workers in all, of which each trial starts with one and may use any number.
    pub fn new(scheduler: impl Into<SchedulerConfig>, workers: u32) -> Self {
        Resizing { scheduler: Box::new(scheduler.into()), workers, min: 1, max: workers }
    }

    /// How many workers a trial starts with, and how many it can make use of.
    #[must_use]
    pub fn per_trial(self, min: u32, max: u32) -> Self {
        Resizing { min, max, ..self }
    }

    pub(super) fn build(self, space: Option<Arc<dyn Perturb>>) -> Result<Box<dyn Scheduler>, InvalidConfig> {
        InvalidConfig::unless(self.min >= 1, "resizing.min", "must be at least 1")?;
        InvalidConfig::unless(self.max >= self.min, "resizing.max", "must not be less than resizing.min")?;
        InvalidConfig::unless(
            self.workers >= self.min,
            "resizing.workers",
            "must not be less than resizing.min",
        )?;
        let (workers, min, max) = (self.workers, self.min, self.max);
        Ok(Box::new(Running { inner: self.scheduler.build(space)?, workers, min, max }))
    }
}

#[derive(Debug)]
struct Running {
    inner: Box<dyn Scheduler>,
    workers: u32,
    min: u32,
    max: u32,
}

impl Running {
    /// How many workers a running trial should have.
    fn share(&self, roster: &Roster) -> u32 {
        if !roster.exhausted() || roster.paused().next().is_some() {
            return self.min;
        }
        (self.workers / (roster.in_flight() as u32).max(1)).clamp(self.min, self.max)
    }
}

impl Scheduler for Running {
    fn name(&self) -> &'static str {
        "resizing"
    }

    fn created(&mut self, trial: u32, turn: &mut Turn<'_>) {
        self.inner.created(trial, turn);
    }

    fn reported(&mut self, report: &Report, turn: &mut Turn<'_>) {
        self.inner.reported(report, turn);
        let trial = report.trial;
        let Some(entry) = turn.roster().get(trial).filter(|entry| entry.state == State::Running) else {
            return;
        };
        let (now, then) = (entry.workers.unwrap_or(self.min), self.share(turn.roster()));
        if now != then && entry.checkpoint.is_some() {
            let running = turn.roster().in_flight();
            turn.resize(
                trial,
                then,
                format!("{} workers for {running} running trials: from {now} to {then}", self.workers),
            );
        }
    }

    fn paused(&mut self, trial: u32, turn: &mut Turn<'_>) {
        self.inner.paused(trial, turn);
    }

    fn ended(&mut self, trial: u32, how: End, turn: &mut Turn<'_>) {
        self.inner.ended(trial, how, turn);
    }

    fn exhausted(&mut self, turn: &mut Turn<'_>) {
        self.inner.exhausted(turn);
    }

    fn looks_back(&self) -> bool {
        self.inner.looks_back()
    }

    fn slot(&mut self, turn: &mut Turn<'_>) {
        self.inner.slot(turn);
    }

    fn rungs(&self) -> Vec<Vec<u32>> {
        self.inner.rungs()
    }
}
