//! HyperBand: successive halving in brackets that trade the number of trials against how long each runs before the first
//! cut. Unlike ASHA it waits for a whole rung before it cuts; brackets fill side by side, so slots are rarely idle for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::config::InvalidConfig;
use super::event::Report;
use super::roster::State;
use super::score::Score;
use super::turn::Turn;
use super::{End, Scheduler};

/// HyperBand, and, with a sampler that learns from its [`rungs`](Scheduler::rungs), BOHB.
///
/// With `s` from the number of cuts down to none, a bracket has `ceil((s_max + 1) eta^s / (s + 1))` trials and begins at
/// the resource `max eta^-s`; after the last bracket comes the first again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HyperBand {
    /// The least resource at which to cut: 1.
    pub min: u64,
    /// The resource at which a trial is done: 81.
    pub max: u64,
    /// Of so many, one goes on: 3.
    pub eta: u32,
}

impl Default for HyperBand {
    fn default() -> Self {
        HyperBand { min: 1, max: 81, eta: 3 }
    }
}

impl HyperBand {
    /// With the lowest and the full resource.
    #[must_use]
    pub fn new(resources: RangeInclusive<u64>) -> Self {
        HyperBand { min: *resources.start(), max: *resources.end(), ..HyperBand::default() }
    }

    /// Of so many, one goes on.
    #[must_use]
    pub fn eta(self, eta: u32) -> Self {
        HyperBand { eta, ..self }
    }

    pub(super) fn build(self, name: &'static str) -> Result<Box<dyn Scheduler>, InvalidConfig> {
        InvalidConfig::unless(self.min >= 1, "hyper_band.min", "must be at least 1")?;
        InvalidConfig::unless(
            self.max >= self.min,
            "hyper_band.max",
            "must not be less than hyper_band.min",
        )?;
        InvalidConfig::unless(self.eta >= 2, "hyper_band.eta", "must be at least 2")?;
        let eta = u64::from(self.eta);
        let mut cuts = 0;
        while eta.checked_pow(cuts + 1).is_some_and(|power| self.max / power >= self.min) {
            cuts += 1;
        }
        let (brackets, places, results, interrupted) = Default::default();
        Ok(Box::new(Running { name, config: self, cuts, brackets, places, results, interrupted }))
    }
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    config: HyperBand,
    /// The most cuts a bracket has.
    cuts: u32,
    /// The brackets by number; those that are over are dropped.
    brackets: BTreeMap<u64, Bracket>,
    places: BTreeMap<u32, u64>,
    /// The results at each resource.
    results: BTreeMap<u64, BTreeSet<Score>>,
    interrupted: BTreeSet<u32>,
}

#[derive(Debug)]
struct Bracket {
    capacity: usize,
    levels: Vec<u64>,
    /// Takes no more trials.
    closed: bool,
    /// How many it was given.
    entered: usize,
    /// The rung its trials head for.
    rung: usize,
    /// Those that have not yet reached it.
    racing: BTreeSet<u32>,
    /// Those that have reached it and paused, or are about to.
    pausing: BTreeSet<u32>,
    reached: BTreeSet<Score>,
    /// Those that may go on to it and wait for a slot.
    waiting: VecDeque<u32>,
}

impl Bracket {
    /// How many pass a cut at the present rung.
    fn keep(&self, eta: u32) -> usize {
        let begun = if self.entered < self.capacity { self.entered } else { self.capacity };
        let cut = u64::from(eta).saturating_pow(self.rung as u32 + 1);
        ((begun as u64 / cut) as usize).max(1)
    }

    fn over(&self) -> bool {
        self.rung == self.levels.len()
    }

    fn forget(&mut self, trial: u32) {
        self.racing.remove(&trial);
        self.pausing.remove(&trial);
        self.reached.retain(|score| score.trial != trial);
        self.waiting.retain(|waiting| *waiting != trial);
    }
}

impl Running {
    fn open(&mut self) -> u64 {
        let number = self.brackets.last_key_value().map_or(0, |(number, _)| number + 1);
        let (cuts, eta) = (self.cuts, f64::from(self.config.eta));
        let s = cuts - (number % u64::from(cuts + 1)) as u32;
        let capacity = (f64::from(cuts + 1) * eta.powi(s as i32) / f64::from(s + 1)).ceil() as usize;
        let level = |i: u32| (self.config.max as f64 * eta.powi(i as i32 - s as i32)).round().max(1.0) as u64;
        let levels = (0..=s).map(level).collect();
        let (racing, pausing, reached, waiting) = Default::default();
        let bracket = Bracket {
            capacity,
            levels,
            closed: false,
            entered: 0,
            rung: 0,
            racing,
            pausing,
            reached,
            waiting,
        };
        self.brackets.insert(number, bracket);
        number
    }

    /// Cuts wherever a rung is complete.
    fn cut(&mut self, turn: &mut Turn<'_>) {
        let exhausted = turn.roster().exhausted();
        let eta = self.config.eta;
        for bracket in self.brackets.values_mut() {
            let full = bracket.closed || bracket.entered >= bracket.capacity || exhausted;
            let complete =
                full && bracket.entered > 0 && bracket.racing.is_empty() && bracket.pausing.is_empty();
            if !complete || bracket.over() {
                continue;
            }
            bracket.closed = true;
            let (keep, n) = (bracket.keep(eta), bracket.reached.len());
            let level = bracket.levels[bracket.rung];
            for (rank, score) in std::mem::take(&mut bracket.reached).into_iter().enumerate() {
                if rank < keep && !score.value.is_nan() {
                    bracket.racing.insert(score.trial);
                    bracket.waiting.push_back(score.trial);
                } else {
                    turn.stop(score.trial, format!("not among the best {keep} of {n} at resource {level}"));
                }
            }
            bracket.rung = if bracket.racing.is_empty() { bracket.levels.len() } else { bracket.rung + 1 };
        }
        // The numbers of brackets go on, so the newest is kept even when it is over.
        let newest = self.brackets.last_key_value().map(|(number, _)| *number);
        self.brackets.retain(|number, bracket| Some(*number) == newest || !bracket.over());
    }
}

impl Scheduler for Running {
    fn name(&self) -> &'static str {
        self.name
    }

    fn created(&mut self, trial: u32, _: &mut Turn<'_>) {
        let filling = self.brackets.last_key_value();
        let filling = filling.filter(|(_, bracket)| !bracket.closed && bracket.entered < bracket.capacity);
        let number = match filling.map(|(number, _)| *number) {
            Some(number) => number,
            None => self.open(),
        };
        if let Some(bracket) = self.brackets.get_mut(&number) {
            bracket.entered += 1;
            bracket.racing.insert(trial);
        }
        self.places.insert(trial, number);
    }

    fn reported(&mut self, report: &Report, turn: &mut Turn<'_>) {
        let trial = report.trial;
        let bracket = self.places.get(&trial).and_then(|number| self.brackets.get_mut(number));
        let Some(bracket) = bracket.filter(|bracket| bracket.racing.contains(&trial)) else { return };
        let Some(level) = bracket.levels.get(bracket.rung).copied().filter(|level| report.resource >= *level)
        else {
            return;
        };
        let score = Score::new(report.value, trial);
        self.results.entry(level).or_default().insert(score);
        bracket.racing.remove(&trial);
        if bracket.rung + 1 == bracket.levels.len() {
            turn.finish(trial, format!("it has had the full resource of {level}"));
        } else {
            bracket.reached.insert(score);
            bracket.pausing.insert(trial);
            turn.pause(trial, format!("it waits for the others of its bracket at resource {level}"));
        }
        self.cut(turn);
    }

    fn paused(&mut self, trial: u32, turn: &mut Turn<'_>) {
        let bracket = self.places.get(&trial).and_then(|number| self.brackets.get_mut(number));
        if !bracket.is_some_and(|bracket| bracket.pausing.remove(&trial)) {
            self.interrupted.insert(trial);
        }
        self.cut(turn);
    }

    fn ended(&mut self, trial: u32, _: End, turn: &mut Turn<'_>) {
        self.interrupted.remove(&trial);
        if let Some(bracket) = self.places.remove(&trial).and_then(|number| self.brackets.get_mut(&number)) {
            bracket.forget(trial);
        }
        self.cut(turn);
    }

    fn exhausted(&mut self, turn: &mut Turn<'_>) {
        // A bracket which is not full by now never will be.
        self.cut(turn);
    }

    fn slot(&mut self, turn: &mut Turn<'_>) {
        if let Some(trial) = self.interrupted.pop_first() {
            turn.resume(trial, "it was interrupted");
            return;
        }
        let waiting = |trial: &u32| turn.roster().state(*trial) == State::Paused;
        let next = self.brackets.iter().find_map(|(number, bracket)| {
            bracket.waiting.iter().copied().find(waiting).map(|trial| (*number, trial))
        });
        if let Some((number, trial)) = next {
            let bracket = self.brackets.get_mut(&number);
            let level = bracket.map_or(0, |bracket| {
                bracket.waiting.retain(|waiting| *waiting != trial);
                bracket.levels[bracket.rung]
            });
            turn.resume(trial, format!("it was among the best of its rung and goes on to resource {level}"));
        } else if !turn.roster().exhausted() {
            turn.start_new("the bracket has room");
        }
    }

    fn rungs(&self) -> Vec<Vec<u32>> {
        self.results.values().map(|scores| scores.iter().map(|score| score.trial).collect()).collect()
    }

    fn looks_back(&self) -> bool {
        false
    }
}
