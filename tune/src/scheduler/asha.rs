//! Asynchronous successive halving. By default losers pause rather than stop, so that nothing is thrown away by a decision
//! that came too early: as more results arrive, the best of a rung are promoted, whenever they were made.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::config::InvalidConfig;
use super::event::Report;
use super::rung::{Rung, levels};
use super::score::Score;
use super::turn::Turn;
use super::{End, Scheduler};

/// Asynchronous successive halving (ASHA).
///
/// A trial is judged when it first reports at or above a rung's resource: `min`, `min eta`, `min eta^2` and so on up to
/// `max`, where it is done. It needs trials that can checkpoint; one that cannot begins again when it is promoted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asha {
    /// The resource of the lowest rung: 1.
    pub min: u64,
    /// The resource at which a trial is done: 100.
    pub max: u64,
    /// Of so many, one goes on: 3.
    pub eta: u32,
    /// How many ladders, each beginning one rung higher than the last and getting fewer trials: 1. More of them hedge
    /// against results that only mean something late.
    pub brackets: u32,
    /// Whether losers are stopped at once rather than paused: false. For trials that cannot checkpoint.
    pub stopping: bool,
}

impl Default for Asha {
    fn default() -> Self {
        Asha { min: 1, max: 100, eta: 3, brackets: 1, stopping: false }
    }
}

impl Asha {
    /// With the lowest and the full resource.
    #[must_use]
    pub fn new(resources: RangeInclusive<u64>) -> Self {
        Asha { min: *resources.start(), max: *resources.end(), ..Asha::default() }
    }

    /// Of so many, one goes on.
    #[must_use]
    pub fn eta(self, eta: u32) -> Self {
        Asha { eta, ..self }
    }

    /// So many ladders.
    #[must_use]
    pub fn brackets(self, brackets: u32) -> Self {
        Asha { brackets, ..self }
    }

    /// Losers are stopped at once.
    #[must_use]
    pub fn stopping(self) -> Self {
        Asha { stopping: true, ..self }
    }

    pub(super) fn build(self) -> Result<Box<dyn Scheduler>, InvalidConfig> {
        InvalidConfig::unless(self.min >= 1, "asha.min", "must be at least 1")?;
        InvalidConfig::unless(self.max >= self.min, "asha.max", "must not be less than asha.min")?;
        InvalidConfig::unless(self.eta >= 2, "asha.eta", "must be at least 2")?;
        let levels = levels(self.min, self.max, self.eta);
        let fits = self.brackets >= 1 && self.brackets as usize <= levels.len();
        InvalidConfig::unless(fits, "asha.brackets", "must be at least 1 and at most the number of rungs")?;
        let ladder = |bracket: u32| {
            levels[bracket as usize..].iter().map(|level| Rung::new(*level, self.eta)).collect()
        };
        let ladders = (0..self.brackets).map(ladder).collect();
        Ok(Box::new(Running { config: self, ladders, places: BTreeMap::new(), interrupted: BTreeSet::new() }))
    }
}

#[derive(Debug)]
struct Running {
    config: Asha,
    ladders: Vec<Vec<Rung>>,
    places: BTreeMap<u32, Place>,
    /// Those that paused without having been told to.
    interrupted: BTreeSet<u32>,
}

/// Where a live trial stands.
#[derive(Debug)]
struct Place {
    bracket: usize,
    /// The rung it is heading for.
    next: usize,
    /// Its result at the rung where it was told to wait.
    held: Option<Score>,
}

impl Running {
    /// Whom a free slot should promote: the best from the highest rung that has anyone.
    fn pick(&self) -> Option<(usize, usize, Score)> {
        let mut found: Option<(u64, (usize, usize, Score))> = None;
        for (bracket, ladder) in self.ladders.iter().enumerate() {
            for (k, rung) in ladder[..ladder.len() - 1].iter().enumerate() {
                if let Some(score) = rung.promotable()
                    && found.is_none_or(|(level, _)| rung.level > level)
                {
                    found = Some((rung.level, (bracket, k, score)));
                }
            }
        }
        found.map(|(_, pick)| pick)
    }

    /// Takes a trial out of its waiting, if it waits.
    fn release(&mut self, trial: u32) {
        if let Some(place) = self.places.get_mut(&trial)
            && let Some(score) = place.held.take()
        {
            self.ladders[place.bracket][place.next - 1].leave(score);
        }
    }

    /// The best of the highest rung, if no trial has ever reached the full resource.
    fn last_hope(&self) -> Option<Score> {
        if self.ladders.iter().any(|ladder| ladder.last().is_some_and(|rung| rung.len() > 0)) {
            return None;
        }
        let rungs = self.ladders.iter().flatten();
        rungs
            .filter_map(|rung| Some((rung.level, rung.best_waiting()?)))
            .max_by_key(|(level, _)| *level)
            .map(|(_, s)| s)
    }

    fn judge(&mut self, bracket: usize, k: usize, score: Score, turn: &mut Turn<'_>) {
        let trial = score.trial;
        let rung = &mut self.ladders[bracket][k];
        let (level, n, best) = (rung.level, rung.len(), rung.quota());
        if self.config.stopping {
            let best = best.max(1);
            if rung.leads(score) {
                turn.go_on(trial, format!("among the best {best} of {n} at resource {level}"));
            } else {
                turn.stop(trial, format!("not among the best {best} of {n} at resource {level}"));
            }
            return;
        }
        // If it paused, its slot would be free: if that slot would take up this very trial, it may as well go on.
        rung.wait(score);
        let picked = self.pick() == Some((bracket, k, score));
        self.ladders[bracket][k].leave(score);
        if picked {
            turn.go_on(trial, format!("promoted at once: among the best {best} of {n} at resource {level}"));
        } else {
            if let Some(place) = self.places.get_mut(&trial) {
                place.held = Some(score);
            }
            turn.pause(
                trial,
                format!("rung at resource {level}: {n} have come so far, the best {best} go on"),
            );
        }
    }
}

impl Scheduler for Running {
    fn name(&self) -> &'static str {
        "asha"
    }

    fn created(&mut self, trial: u32, turn: &mut Turn<'_>) {
        // As in HyperBand, a ladder that begins one rung higher gets about 1/eta of the trials of the one below.
        let weight = |bracket: usize| f64::from(self.config.eta).powi(-(bracket as i32));
        let all: f64 = (0..self.ladders.len()).map(weight).sum();
        let mut left = turn.draw().unit() * all;
        let bracket = (0..self.ladders.len() - 1).find(|bracket| {
            left -= weight(*bracket);
            left < 0.0
        });
        let bracket = bracket.unwrap_or(self.ladders.len() - 1);
        self.places.insert(trial, Place { bracket, next: 0, held: None });
    }

    fn reported(&mut self, report: &Report, turn: &mut Turn<'_>) {
        let trial = report.trial;
        let score = Score::new(report.value, trial);
        let Some(place) = self.places.get_mut(&trial) else { return };
        let ladder = &mut self.ladders[place.bracket];
        let first = place.next;
        // A report may step over rungs. Its result counts in each, so that their quotas are right.
        while place.next < ladder.len() && report.resource >= ladder[place.next].level {
            ladder[place.next].insert(score);
            place.next += 1;
        }
        let (bracket, next, last) = (place.bracket, place.next, ladder.len());
        if next == first {
            return;
        }
        if next == last {
            turn.finish(trial, format!("it has had the full resource of {}", self.config.max));
        } else if report.value.is_nan() {
            turn.stop(trial, "its result at a rung is not a number");
        } else {
            self.judge(bracket, next - 1, score, turn);
        }
    }

    fn paused(&mut self, trial: u32, _: &mut Turn<'_>) {
        let Some(place) = self.places.get(&trial) else { return };
        match place.held {
            Some(score) => self.ladders[place.bracket][place.next - 1].wait(score),
            None => {
                self.interrupted.insert(trial);
            }
        }
    }

    fn ended(&mut self, trial: u32, _: End, _: &mut Turn<'_>) {
        self.release(trial);
        self.interrupted.remove(&trial);
        self.places.remove(&trial);
    }

    fn slot(&mut self, turn: &mut Turn<'_>) {
        if let Some(trial) = self.interrupted.pop_first() {
            turn.resume(trial, "it was interrupted");
        } else if let Some((bracket, k, score)) = self.pick() {
            let rung = &self.ladders[bracket][k];
            let (level, n, best) = (rung.level, rung.len(), rung.quota());
            self.release(score.trial);
            turn.resume(score.trial, format!("promoted: among the best {best} of {n} at resource {level}"));
        } else if !turn.roster().exhausted() {
            turn.start_new("nobody is to be promoted");
        } else if turn.roster().in_flight() == 0 {
            if let Some(score) = self.last_hope() {
                self.release(score.trial);
                turn.resume(
                    score.trial,
                    "the best of the highest rung, as no trial has reached the full resource",
                );
                return;
            }
            let losers: Vec<u32> = turn.roster().paused().map(|(trial, _)| trial).collect();
            for trial in losers {
                self.release(trial);
                turn.stop(trial, "the study is at its end, and it was never among the best of its rung");
            }
        }
    }

    fn rungs(&self) -> Vec<Vec<u32>> {
        let mut levels: BTreeMap<u64, BTreeSet<Score>> = BTreeMap::new();
        for rung in self.ladders.iter().flatten() {
            levels.entry(rung.level).or_default().extend(rung.scores());
        }
        levels.into_values().map(|scores| scores.into_iter().map(|score| score.trial).collect()).collect()
    }

    fn looks_back(&self) -> bool {
        false
    }
}
