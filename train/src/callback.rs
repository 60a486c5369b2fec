//! What a run tells those who watch it: a progress bar, a tuner, a test. Told in order, from the controller's loop.

use std::path::Path;
use std::time::Duration;

use regatta_track::Metrics;

use crate::controller::Status;
use crate::environment::Environment;
use crate::wire::{Committed, Progress, StopReason};

/// Something that happened in a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunEvent<'a> {
    /// The run begins, or goes on.
    Begun {
        /// Its experiment.
        experiment: &'a str,
        /// Its name.
        run: &'a str,
        /// Its folder.
        folder: &'a Path,
        /// Its seed.
        seed: u64,
        /// Whether it was begun before.
        resumed: bool,
    },
    /// What the run runs in was looked up. Comes a little later than all else, since it is not waited for.
    Environment(&'a Environment),
    /// All ranks of an attempt were started.
    Started {
        /// The attempt.
        attempt: u32,
        /// How many ranks.
        world_size: u32,
        /// What connects them: `2 x cpu, shm`.
        about: &'a str,
    },
    /// Rank 0 took up a checkpoint, or began at the beginning.
    Restored {
        /// The checkpoint.
        checkpoint: Option<&'a str>,
        /// Its step.
        step: u64,
        /// What was passed over, each with why.
        damaged: &'a [String],
    },
    /// All ranks reported. It is being stored.
    Report {
        /// How many reports the run has made on the way to its present state.
        iteration: u64,
        /// The step.
        step: u64,
        /// The epoch, from 0.
        epoch: u64,
        /// All its figures, those that were filled in too.
        metrics: &'a Metrics,
    },
    /// How it is going, a few times a second.
    Progress(&'a Progress),
    /// A checkpoint was committed, or (with its error) could not be.
    Checkpoint(&'a Committed),
    /// A rank wrote a line.
    Line {
        /// Who.
        rank: u32,
        /// The line.
        text: &'a str,
    },
    /// The ranks were asked to stop.
    Stopping {
        /// Why.
        reason: &'a StopReason,
        /// How long they get.
        grace: Duration,
    },
    /// The attempt failed.
    Failed {
        /// The attempt.
        attempt: u32,
        /// Why, the root cause last.
        error: &'a str,
    },
    /// Another attempt follows.
    Recovering {
        /// When.
        wait: Duration,
    },
    /// The run is over.
    Ended {
        /// How.
        status: &'a Status,
    },
}

/// Hears what happens in a run. Must be quick: the controller waits for it.
pub trait Callback: Send {
    /// Something happened.
    fn on(&mut self, event: &RunEvent<'_>);
}

impl<F: FnMut(&RunEvent<'_>) + Send> Callback for F {
    fn on(&mut self, event: &RunEvent<'_>) {
        self(event);
    }
}
