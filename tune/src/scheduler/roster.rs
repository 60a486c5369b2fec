//! What is known of every trial. The [`Referee`](super::Referee) keeps it, schedulers read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::event::{Checkpoint, Config, Report};
use super::score::better;

/// Where a trial stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its workers are being started.
    Starting,
    /// It runs.
    Running,
    /// It was told to pause and has not yet given its slot back.
    Pausing,
    /// It waits for a slot.
    Paused,
    /// It was told to stop and has not yet ended.
    Stopping,
    /// It is over.
    Ended,
}

/// A stretch of training with one configuration. A trial's legs tell how what it is now came to be, over all donors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leg {
    /// The trial that ran it.
    pub trial: u32,
    /// The resource at which it began.
    pub from: u64,
    /// With what.
    #[serde(with = "super::event::shared")]
    pub config: Arc<Config>,
}

/// One trial.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it stands.
    pub state: State,
    /// The furthest resource it reported (since it was last cloned).
    pub resource: u64,
    /// Its latest loss.
    pub value: f64,
    /// The best loss it ever reported.
    pub best: f64,
    /// Its newest checkpoint, or the one it is being cloned from.
    pub checkpoint: Option<Checkpoint>,
    /// How it came to be; the last leg is the present one.
    pub legs: Vec<Leg>,
    /// How many workers it was last given, if a scheduler ever said.
    pub workers: Option<u32>,
}

impl Entry {
    /// Its present configuration.
    #[must_use]
    pub fn config(&self) -> &Arc<Config> {
        &self.legs[self.legs.len() - 1].config
    }
}

/// The trials of a study, and whether more will come. Of those that are over, it keeps what they were only for a scheduler
/// that [looks back](super::Scheduler::looks_back).
#[derive(Clone, Debug, Default)]
pub struct Roster {
    trials: BTreeMap<u32, Entry>,
    live: BTreeSet<u32>,
    paused: BTreeSet<u32>,
    /// How many were ever made: they are numbered from 0, in that order.
    made: u32,
    exhausted: bool,
}

impl Roster {
    /// One trial, if it is not over or is looked back at.
    #[must_use]
    pub fn get(&self, trial: u32) -> Option<&Entry> {
        self.trials.get(&trial)
    }

    /// Where a trial stands; an unknown one is over.
    #[must_use]
    pub fn state(&self, trial: u32) -> State {
        self.get(trial).map_or(State::Ended, |entry| entry.state)
    }

    /// How many trials were ever made.
    #[must_use]
    pub fn len(&self) -> usize {
        self.made as usize
    }

    /// Whether there was never a trial.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.made == 0
    }

    /// Where a trial stands, if it was ever made.
    pub(super) fn known(&self, trial: u32) -> Option<State> {
        (trial < self.made).then(|| self.state(trial))
    }

    /// The trials that are not over, by number.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.live.iter().map(|trial| (*trial, &self.trials[trial]))
    }

    /// The paused trials, by number.
    pub fn paused(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.paused.iter().map(|trial| (*trial, &self.trials[trial]))
    }

    /// How many trials hold a slot, so that more will be heard of them.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.live.len() - self.paused.len()
    }

    /// Whether there will be no new trials.
    #[must_use]
    pub fn exhausted(&self) -> bool {
        self.exhausted
    }

    /// The checkpoints that must not be deleted: the newest of every live trial, which may be resumed from it or cloned by
    /// another, and what clones are about to restore.
    #[must_use]
    pub fn pinned(&self) -> BTreeSet<&Checkpoint> {
        self.live().filter_map(|(_, entry)| entry.checkpoint.as_ref()).collect()
    }

    pub(super) fn create(&mut self, trial: u32, config: Arc<Config>) {
        let legs = vec![Leg { trial, from: 0, config }];
        let (value, best) = (f64::NAN, f64::NAN);
        let entry =
            Entry { state: State::Starting, resource: 0, value, best, checkpoint: None, legs, workers: None };
        self.trials.insert(trial, entry);
        self.live.insert(trial);
        self.made = trial.saturating_add(1);
    }

    pub(super) fn enter(&mut self, trial: u32, state: State) {
        let Some(entry) = self.trials.get_mut(&trial) else { return };
        entry.state = state;
        match state {
            State::Paused => self.paused.insert(trial),
            _ => self.paused.remove(&trial),
        };
        if state == State::Ended {
            self.live.remove(&trial);
            entry.checkpoint = None;
        }
    }

    pub(super) fn report(&mut self, report: &Report) {
        let Some(entry) = self.trials.get_mut(&report.trial) else { return };
        entry.resource = entry.resource.max(report.resource);
        entry.value = report.value;
        entry.best = better(entry.best, report.value);
    }

    pub(super) fn checkpoint(&mut self, trial: u32, checkpoint: Checkpoint) {
        if let Some(entry) = self.trials.get_mut(&trial) {
            entry.checkpoint = Some(checkpoint);
        }
    }

    /// Makes `trial` what `donor` was at its checkpoint, with another configuration from there on.
    pub(super) fn graft(&mut self, trial: u32, donor: u32, checkpoint: &Checkpoint, config: Arc<Config>) {
        let mut legs = self.trials.get(&donor).map(|entry| entry.legs.clone()).unwrap_or_default();
        // A leg that begins where the checkpoint was taken never ran up to it.
        while legs.last().is_some_and(|leg| leg.from >= checkpoint.resource && leg.from > 0) {
            legs.pop();
        }
        legs.push(Leg { trial, from: checkpoint.resource, config });
        if let Some(entry) = self.trials.get_mut(&trial) {
            entry.legs = legs;
            entry.resource = checkpoint.resource;
            entry.checkpoint = Some(checkpoint.clone());
        }
    }

    /// Lets go of a trial that is over.
    pub(super) fn forget(&mut self, trial: u32) {
        self.trials.remove(&trial);
    }

    pub(super) fn resize(&mut self, trial: u32, workers: u32) {
        if let Some(entry) = self.trials.get_mut(&trial) {
            entry.workers = Some(workers);
        }
    }

    pub(super) fn exhaust(&mut self, exhausted: bool) {
        self.exhausted = exhausted;
    }
}
