//! Learning rates over time: a [`Schedule`] is a plain function of the step, a [`Scheduler`] drives an optimiser with it.
//!
//! ```
//! use regatta_torch::schedule::Schedule;
//!
//! let schedule = Schedule::cosine(100, 0.0).after_warmup(10);
//! assert_eq!(schedule.factor(0), 0.0);
//! assert_eq!(schedule.factor(10), 1.0);
//! assert!((schedule.factor(60) - 0.5).abs() < 1e-12);
//! ```

use std::f64::consts::PI;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::optim::Optimizer;

/// What the learning rate is multiplied by at each step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub enum Schedule {
    /// Always one.
    Constant,
    /// Multiplied by `gamma` after every `every` steps.
    Step {
        /// The length of a stair.
        every: u64,
        /// The height of a stair.
        gamma: f64,
    },
    /// Half a cosine from one down to `floor` over `steps`, then `floor`.
    Cosine {
        /// How long it falls.
        steps: u64,
        /// Where it ends.
        floor: f64,
    },
    /// A straight line from `start` to one over `steps`, then another schedule from its beginning.
    Warmup {
        /// How long it rises.
        steps: u64,
        /// Where it begins.
        start: f64,
        /// What follows.
        then: Box<Schedule>,
    },
    /// Half a cosine from `start` up to one, then half a cosine down to `end` at the last of `steps`.
    OneCycle {
        /// The length of the whole.
        steps: u64,
        /// The part of it that rises, between zero and one.
        rise: f64,
        /// Where it begins.
        start: f64,
        /// Where it ends.
        end: f64,
    },
}

impl Schedule {
    /// Multiplied by `gamma` after every `every` steps.
    pub fn step(every: u64, gamma: f64) -> Self {
        Schedule::Step { every, gamma }
    }

    /// Half a cosine from one down to `floor`.
    pub fn cosine(steps: u64, floor: f64) -> Self {
        Schedule::Cosine { steps, floor }
    }

    /// The one-cycle policy as PyTorch has it by default: rises for 30 % from 1/25, falls to 1/250,000.
    pub fn one_cycle(steps: u64) -> Self {
        Schedule::OneCycle { steps, rise: 0.3, start: 1.0 / 25.0, end: 1.0 / 250_000.0 }
    }

    /// This schedule after a straight line up from zero.
    pub fn after_warmup(self, steps: u64) -> Self {
        Schedule::Warmup { steps, start: 0.0, then: Box::new(self) }
    }

    /// The factor at a step, counted from zero.
    pub fn factor(&self, step: u64) -> f64 {
        match self {
            Schedule::Constant => 1.0,
            Schedule::Step { every, gamma } => {
                // Beyond an i32 of stairs any gamma below one is zero anyway.
                gamma.powi(i32::try_from(step / (*every).max(1)).unwrap_or(i32::MAX))
            }
            Schedule::Cosine { steps, floor } if step >= *steps => *floor,
            Schedule::Cosine { steps, floor } => half_cosine(1.0, *floor, step as f64 / *steps as f64),
            Schedule::Warmup { steps, then, .. } if step >= *steps => then.factor(step - steps),
            Schedule::Warmup { steps, start, .. } => start + (1.0 - start) * (step as f64 / *steps as f64),
            Schedule::OneCycle { steps, rise, start, end } => {
                let (step, last) = (step as f64, steps.saturating_sub(1) as f64);
                let peak = (rise * *steps as f64 - 1.0).max(0.0);
                if step >= last {
                    *end
                } else if step < peak {
                    half_cosine(*start, 1.0, step / peak)
                } else {
                    half_cosine(1.0, *end, (step - peak) / (last - peak))
                }
            }
        }
    }

    fn check(&self) -> Result<()> {
        let good = match self {
            Schedule::Constant => true,
            Schedule::Step { every, gamma } => *every > 0 && gamma.is_finite(),
            Schedule::Cosine { steps, floor } => *steps > 0 && floor.is_finite(),
            Schedule::Warmup { start, then, .. } => start.is_finite() && then.check().is_ok(),
            Schedule::OneCycle { steps, rise, start, end } => {
                *steps > 1 && *rise > 0.0 && *rise < 1.0 && start.is_finite() && end.is_finite()
            }
        };
        if good {
            return Ok(());
        }
        let why =
            format!("{self:?} needs lengths above zero, finite factors, and a rise between zero and one");
        Err(Error::Argument { what: "Schedule", why })
    }
}

/// From `from` at 0 to `to` at 1.
fn half_cosine(from: f64, to: f64, place: f64) -> f64 {
    to + (from - to) * (1.0 + (PI * place).cos()) / 2.0
}

/// Sets an optimiser's learning rate by a schedule.
#[derive(Debug)]
pub struct Scheduler {
    schedule: Schedule,
    place: Arc<Mutex<SchedulerState>>,
}

/// A [`Scheduler`]'s state; the schedule itself is the program's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerState {
    /// The learning rate at factor one.
    pub base_lr: f64,
    /// Steps taken.
    pub step: u64,
}

impl Scheduler {
    /// Takes the optimiser's learning rate as the one at factor one, and sets that of step zero.
    pub fn new(schedule: Schedule, optimizer: &mut dyn Optimizer) -> Result<Self> {
        schedule.check()?;
        let place = SchedulerState { base_lr: optimizer.lr(), step: 0 };
        let scheduler = Scheduler { schedule, place: Arc::new(Mutex::new(place)) };
        scheduler.apply(optimizer)?;
        Ok(scheduler)
    }

    /// Another handle on the same scheduler: for a checkpoint.
    pub fn share(&self) -> Self {
        Scheduler { schedule: self.schedule.clone(), place: self.place.clone() }
    }

    fn place(&self) -> MutexGuard<'_, SchedulerState> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the next step's learning rate; after each step of the optimiser.
    pub fn step(&mut self, optimizer: &mut dyn Optimizer) -> Result<()> {
        self.place().step += 1;
        self.apply(optimizer)
    }

    /// The state, for a checkpoint.
    pub fn state(&self) -> SchedulerState {
        *self.place()
    }

    /// Goes on from a state whose learning rate the optimiser has already.
    pub(crate) fn resume(&self, state: &SchedulerState) {
        *self.place() = *state;
    }

    /// Goes on from a state, and sets its learning rate.
    pub fn load_state(&mut self, state: &SchedulerState, optimizer: &mut dyn Optimizer) -> Result<()> {
        self.resume(state);
        self.apply(optimizer)
    }

    fn apply(&self, optimizer: &mut dyn Optimizer) -> Result<()> {
        let SchedulerState { base_lr, step } = *self.place();
        optimizer.set_lr(base_lr * self.schedule.factor(step))
    }
}
