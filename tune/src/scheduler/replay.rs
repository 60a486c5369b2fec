//! Trains one trial again with the schedule of configurations that a population found.

use serde::{Deserialize, Serialize};

use super::config::InvalidConfig;
use super::event::{Config, Report};
use super::fifo::next_in_line;
use super::roster::{Leg, Roster, State};
use super::turn::Turn;
use super::{End, Scheduler};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One member's schedule, replayed: begin the trial with [`first`](PbtReplay::first), and it changes configuration where
/// its ancestors did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PbtReplay {
    /// The stretches with one configuration each, in order.
    pub legs: Vec<Leg>,
}

impl PbtReplay {
    /// The schedule of a trial, over all donors; `None` if there is no such trial.
    #[must_use]
    pub fn of(roster: &Roster, trial: u32) -> Option<Self> {
        Some(PbtReplay { legs: roster.get(trial)?.legs.clone() })
    }

    /// The configuration to begin with.
    #[must_use]
    pub fn first(&self) -> Option<&Arc<Config>> {
        self.legs.first().map(|leg| &leg.config)
    }

    pub(super) fn build(self) -> Result<Box<dyn Scheduler>, InvalidConfig> {
        InvalidConfig::unless(!self.legs.is_empty(), "pbt_replay.legs", "must not be empty")?;
        let rising = self.legs.windows(2).all(|pair| pair[0].from <= pair[1].from);
        InvalidConfig::unless(rising, "pbt_replay.legs", "must be in the order of their resource")?;
        Ok(Box::new(Running { legs: self.legs, at: BTreeMap::new() }))
    }
}

#[derive(Debug)]
struct Running {
    legs: Vec<Leg>,
    /// The leg each live trial is on.
    at: BTreeMap<u32, usize>,
}

impl Scheduler for Running {
    fn name(&self) -> &'static str {
        "pbt_replay"
    }

    fn reported(&mut self, report: &Report, turn: &mut Turn<'_>) {
        let trial = report.trial;
        let at = self.at.entry(trial).or_default();
        let Some(next) = self.legs.get(*at + 1) else { return };
        // A checkpoint further on than the change would have been trained with the old configuration: the nearest is taken.
        let reached = turn.roster().get(trial).and_then(|entry| entry.checkpoint.as_ref());
        if reached.is_some_and(|checkpoint| checkpoint.resource >= next.from)
            && turn.roster().state(trial) == State::Running
        {
            *at += 1;
            turn.clone(
                trial,
                trial,
                Arc::clone(&next.config),
                format!("the schedule changes at resource {}", next.from),
            );
        }
    }

    fn ended(&mut self, trial: u32, _: End, _: &mut Turn<'_>) {
        self.at.remove(&trial);
    }

    fn slot(&mut self, turn: &mut Turn<'_>) {
        next_in_line(turn);
    }
}
