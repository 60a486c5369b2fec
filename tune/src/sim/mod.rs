//! A study in virtual time: trials that are formulas or tables of learning curves instead of processes, so that a scheduler
//! and a sampler can be tried on thousands of studies in seconds, with failures at will. Not for measuring the runner.
//!
//! ```
//! use regatta_tune::scheduler::{Asha, Config, SchedulerConfig};
//! use regatta_tune::sim::{Curves, Simulation};
//!
//! // Thirty trials fall towards different losses, the best of them trial 0, and each epoch takes a second.
//! let last = |trial: u64| (trial * 7 % 30) as f64 / 30.0;
//! let curves = (0..30).map(|trial| (1..=27).map(|epoch| last(trial) + 1.0 / epoch as f64).collect()).collect();
//! let study = Simulation::new(Curves::new(curves)).slots(4);
//! let scheduler = SchedulerConfig::from(Asha::new(1..=27)).build(None)?;
//! let outcome = study.run(scheduler, |ask| (ask.trial < 30).then(|| Curves::row(ask.trial as usize)))?;
//!
//! assert_eq!(outcome.best().map(|best| best.trial), Some(0));
//! assert!(outcome.steps < 30 * 27 / 3, "most trials were not run to their end: {}", outcome.steps);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod curves;
mod run;
mod search;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use curves::Curves;

use crate::error::Error;
use crate::scheduler::{Config, Decision, Event, Misuse, Referee, Roster, Scheduler};

/// What trials compute, in place of a trainable.
pub trait Workload {
    /// All of a trial that a checkpoint keeps.
    type State: Clone;

    /// A trial before its first step.
    fn begin(&self, trial: u32, config: &Config) -> Self::State;

    /// One unit of the resource; `resource` is what has been used with it.
    fn step(&self, state: &mut Self::State, config: &Config, resource: u64) -> Step;

    /// The resource at which a trial comes to its own end.
    fn horizon(&self) -> u64;
}

impl<W: Workload> Workload for &W {
    type State = W::State;

    fn begin(&self, trial: u32, config: &Config) -> W::State {
        (**self).begin(trial, config)
    }

    fn step(&self, state: &mut W::State, config: &Config, resource: u64) -> Step {
        (**self).step(state, config, resource)
    }

    fn horizon(&self) -> u64 {
        (**self).horizon()
    }
}

/// What one unit of the resource brought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The loss after it.
    pub value: f64,
    /// How long it took, in virtual time.
    pub seconds: f64,
}

/// What may go wrong, each with its probability in every step of every trial. None does by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// The trial fails for good.
    pub failure: f64,
    /// Its worker dies and is started again from the last checkpoint, so that reports repeat.
    pub retry: f64,
    /// The report is not a number.
    pub nan: f64,
    /// The report is lost.
    pub lost: f64,
    /// The report arrives twice.
    pub repeated: f64,
    /// No checkpoint is committed.
    pub unsaved: f64,
    /// A trial that is to leave runs one more step first, and reports it.
    pub late: f64,
    /// The trial is paused from outside, as when its machine is taken away.
    pub interrupted: f64,
    /// By how much step times vary, as a share of them.
    pub jitter: f64,
}

/// A study to be simulated. The same seed gives the same study.
#[derive(Clone, Debug)]
pub struct Simulation<W> {
    workload: W,
    seed: u64,
    slots: usize,
    budget: u64,
    faults: Faults,
    start: f64,
    leave: f64,
    checkpoint_every: u64,
}

/// Why a simulation could not go on: mostly a bug of the scheduler.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The scheduler broke a rule.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// A decision names a checkpoint that was let go, as nothing pinned it.
    #[error("trial {trial} is to restore checkpoint {id} of trial {owner}, which was not pinned and is gone")]
    LostCheckpoint {
        /// Who should restore it.
        trial: u32,
        /// Its name.
        id: String,
        /// Whose it was.
        owner: u32,
    },
    /// The sampler cannot work on the space.
    #[error(transparent)]
    Sampler(#[from] Error),
    /// Nothing is in flight, and trials are left over.
    #[error("nothing is in flight any more, but the trials {left:?} are not over")]
    Stuck {
        /// Those that are left over.
        left: Vec<u32>,
    },
    /// It goes on and on.
    #[error("{events} events, and no end: the scheduler goes round in circles")]
    Endless {
        /// How many there were.
        events: usize,
    },
}

/// What is known when a new trial is to be made.
#[derive(Debug)]
pub struct Ask<'a> {
    /// The number of the new trial.
    pub trial: u32,
    /// What all others have reported.
    pub trials: &'a BTreeMap<u32, Trial>,
    /// Where they stand.
    pub roster: &'a Roster,
    /// The scheduler.
    pub scheduler: &'a dyn Scheduler,
}

/// What became of one trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// What it was made with.
    pub config: Arc<Config>,
    /// The resource and the loss of each of its reports.
    pub reports: Vec<(u64, f64)>,
}

/// The least loss of a study.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// Who reported it.
    pub trial: u32,
    /// With which resource.
    pub resource: u64,
    /// The loss.
    pub value: f64,
}

/// An event, when it happened, and what was decided on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Seconds of virtual time.
    pub at: f64,
    /// What happened.
    pub event: Event,
    /// What the scheduler made of it.
    pub decisions: Vec<Decision>,
}

/// A study that is over.
#[derive(Debug)]
pub struct Outcome {
    /// Everything that happened, in order.
    pub records: Vec<Record>,
    /// What became of the trials.
    pub trials: BTreeMap<u32, Trial>,
    /// Seconds of virtual time it took.
    pub seconds: f64,
    /// Units of the resource that were used, those that were used twice included.
    pub steps: u64,
    /// The referee at its end.
    pub referee: Referee,
}

impl Outcome {
    /// The least loss that was ever reported, the earliest of equals.
    #[must_use]
    pub fn best(&self) -> Option<Best> {
        let reports = self.trials.iter().flat_map(|(trial, known)| {
            known.reports.iter().map(|(resource, value)| Best {
                trial: *trial,
                resource: *resource,
                value: *value,
            })
        });
        reports.filter(|best| !best.value.is_nan()).min_by(|a, b| a.value.total_cmp(&b.value))
    }
}

impl<W: Workload> Simulation<W> {
    /// One slot, no faults, no end but that of the trials; starting and leaving take no time, and every step is saved.
    pub fn new(workload: W) -> Self {
        let faults = Faults::default();
        Simulation {
            workload,
            seed: 0,
            slots: 1,
            budget: u64::MAX,
            faults,
            start: 0.0,
            leave: 0.0,
            checkpoint_every: 1,
        }
    }

    /// The seed of all that is random: of the scheduler, of faults, of jitter.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Simulation { seed, ..self }
    }

    /// How many trials can run at once.
    #[must_use]
    pub fn slots(self, slots: usize) -> Self {
        Simulation { slots, ..self }
    }

    /// Ends the study once so many units of the resource were used.
    #[must_use]
    pub fn budget(self, budget: u64) -> Self {
        Simulation { budget, ..self }
    }

    /// What may go wrong.
    #[must_use]
    pub fn faults(self, faults: Faults) -> Self {
        Simulation { faults, ..self }
    }

    /// The seconds it takes to start a trial's workers, and to save and end them.
    #[must_use]
    pub fn overheads(self, start: f64, leave: f64) -> Self {
        Simulation { start, leave, ..self }
    }

    /// Trials save every so many steps, and when they pause; 0 is only when they pause.
    #[must_use]
    pub fn checkpoint_every(self, steps: u64) -> Self {
        Simulation { checkpoint_every: steps, ..self }
    }

    /// Runs the study to its end. `source` makes the new trials, until it has none.
    pub fn run(
        &self,
        scheduler: Box<dyn Scheduler>,
        source: impl FnMut(&Ask<'_>) -> Option<Config>,
    ) -> Result<Outcome, Failure> {
        run::run(self, scheduler, source)
    }
}
