//! What every [`Scheduler`] must do, as code: run [`all`] against one of your own. It panics at the first broken promise and
//! names the history by its seed.

use std::fmt;

use serde_json::Value;

use super::perturb::Perturb;
use super::{Action, Config, Draw, Event, Referee, Scheduler};
use crate::sim::{Failure, Faults, Outcome, Simulation, Step, Workload};

/// Runs one history for each seed: studies of all sizes whose trials fail, fall silent, repeat themselves, report what is
/// not a number, come late, do not save, and are taken away.
pub fn all(make: impl Fn() -> Box<dyn Scheduler>, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let outcome = match history(make(), seed) {
            Ok(outcome) => outcome,
            Err(failure) => panic!("history {seed}: {failure}"),
        };
        every_trial_ends(seed, &outcome);
        replay_is_the_same(seed, &outcome, make());
        decisions_can_be_written_down(seed, &outcome);
    }
}

/// The history of a seed.
pub fn history(scheduler: Box<dyn Scheduler>, seed: u64) -> Result<Outcome, Failure> {
    let mut draw = Draw::new(seed, 0);
    // Every other history is without faults, as some promises only bite there.
    let worst = if seed.is_multiple_of(2) { 0.0 } else { 0.25 };
    let mut fault = || worst * draw.unit() * draw.unit();
    let faults = Faults {
        failure: fault(),
        retry: fault(),
        nan: fault(),
        lost: fault(),
        repeated: fault(),
        unsaved: fault(),
        late: fault(),
        interrupted: fault(),
        jitter: 0.9,
    };
    let study =
        Simulation::new(Noise { horizon: 1 + draw.below(40) as u64 }).seed(seed).slots(1 + draw.below(6));
    let study =
        study.faults(faults).overheads(draw.unit(), draw.unit()).checkpoint_every(draw.below(4) as u64);
    let samples = draw.below(40) as u32;
    let place = Line::default();
    study.run(scheduler, |ask| {
        let unit = Draw::new(seed, u64::from(ask.trial) + 1).unit();
        (ask.trial < samples).then(|| Config::from([("x".to_owned(), place.sample("x", unit))]))
    })
}

fn every_trial_ends(seed: u64, outcome: &Outcome) {
    let left: Vec<u32> = outcome.referee.roster().live().map(|(trial, _)| trial).collect();
    assert!(left.is_empty(), "history {seed}: the trials {left:?} never ended");
    assert_eq!(outcome.referee.rescues(), 0, "history {seed}: a slot was left idle while nothing ran");
}

/// SCH-4, without the offers that came to nothing.
fn replay_is_the_same(seed: u64, outcome: &Outcome, scheduler: Box<dyn Scheduler>) {
    let mut again = Referee::new(scheduler, seed);
    for (number, record) in outcome.records.iter().enumerate() {
        let idle = |action: &Action| matches!(action, Action::Wait | Action::Done);
        if record.event == Event::Slot && record.decisions.iter().all(|decision| idle(&decision.action)) {
            continue;
        }
        match again.handle(record.event.clone()) {
            Ok(decisions) => {
                assert_eq!(decisions, record.decisions, "history {seed}: the replay differs at {number}")
            }
            Err(misuse) => panic!("history {seed}: the replay fails at {number}: {misuse}"),
        }
    }
    assert_eq!(
        format!("{again:?}"),
        format!("{:?}", outcome.referee),
        "history {seed}: the replay's state differs"
    );
}

fn decisions_can_be_written_down(seed: u64, outcome: &Outcome) {
    for decision in outcome.records.iter().flat_map(|record| &record.decisions) {
        let text = serde_json::to_string(decision).expect("a decision is plain data");
        let back: super::Decision = serde_json::from_str(&text).expect("what was written can be read");
        assert_eq!(back.reason, decision.reason, "history {seed}: {text}");
        assert_eq!(
            (back.action.name(), back.action.trial()),
            (decision.action.name(), decision.action.trial())
        );
    }
}

/// Curves that fall towards the distance of `x` from 0.7, with noise that does not depend on the order of things.
#[derive(Clone, Debug)]
struct Noise {
    horizon: u64,
}

impl Workload for Noise {
    type State = u64;

    fn begin(&self, trial: u32, _: &Config) -> u64 {
        u64::from(trial)
    }

    fn step(&self, state: &mut u64, config: &Config, resource: u64) -> Step {
        let x = config.get("x").and_then(Value::as_f64).unwrap_or(f64::NAN);
        let mut draw = Draw::new(*state, resource);
        let value = (x - 0.7).abs() + 1.0 / resource as f64 + 0.1 * draw.unit();
        Step { value, seconds: 0.5 + draw.unit() }
    }

    fn horizon(&self) -> u64 {
        self.horizon
    }
}

/// The smallest space: a number `x` between two bounds.
#[derive(Clone)]
pub struct Line {
    /// The least it can be.
    pub low: f64,
    /// The most.
    pub high: f64,
}

impl Default for Line {
    fn default() -> Self {
        Line { low: 0.0, high: 1.0 }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "x in {}..={}", self.low, self.high)
    }
}

impl Line {
    fn clamp(&self, value: f64) -> Value {
        Value::from(value.clamp(self.low, self.high))
    }
}

impl Perturb for Line {
    fn parameters(&self, _: &Config) -> Vec<String> {
        vec!["x".to_owned()]
    }

    fn sample(&self, _: &str, quantile: f64) -> Value {
        self.clamp(self.low + quantile * (self.high - self.low))
    }

    fn place(&self, _: &str, value: &Value) -> Option<f64> {
        value.as_f64().map(|value| (value - self.low) / (self.high - self.low))
    }

    fn neighbour(&self, _: &str, value: &Value, factor: f64) -> Value {
        self.clamp(value.as_f64().unwrap_or(self.low) * factor)
    }

    fn settle(&self, config: Config, _: &mut Draw) -> Config {
        config
            .into_iter()
            .map(|(name, value)| (name, self.clamp(value.as_f64().unwrap_or(self.low))))
            .collect()
    }
}
