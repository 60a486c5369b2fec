//! Population-based training: at intervals, the worst of the population take over the checkpoints of the best and go on
//! with changed configurations, so that the population finds a schedule rather than a point.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::InvalidConfig;
use super::event::{Config, Report};
use super::pb2::Model;
use super::perturb::{Perturb, perturb};
use super::roster::State;
use super::score::Score;
use super::turn::Turn;
use super::{End, Scheduler};

/// Population-based training.
///
/// With fewer slots than members, those that reach an interval's end make room for the others, so all advance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pbt {
    /// How many trials there are: 8.
    pub population: u32,
    /// The resource between two decisions on a trial: 1.
    pub interval: u64,
    /// The resource before the first: 0.
    pub burn_in: u64,
    /// The resource at which a trial is done; without it, trials end by themselves.
    pub max: Option<u64>,
    /// Which share of the population is the worst, and which the best: 0.25.
    pub quantile: f64,
    /// How likely a parameter is drawn afresh rather than changed: 0.25.
    pub resample: f64,
    /// By what a parameter is changed: 1.2 or 0.8.
    pub factors: (f64, f64),
    /// Whether all members wait for each other at every interval: false. Slower, but the same whatever the timing.
    pub synchronous: bool,
}

impl Default for Pbt {
    fn default() -> Self {
        Pbt {
            population: 8,
            interval: 1,
            burn_in: 0,
            max: None,
            quantile: 0.25,
            resample: 0.25,
            factors: (1.2, 0.8),
            synchronous: false,
        }
    }
}

impl Pbt {
    /// So many trials, judged at this interval.
    #[must_use]
    pub fn new(population: u32, interval: u64) -> Self {
        Pbt { population, interval, ..Pbt::default() }
    }

    /// The resource before the first decision.
    #[must_use]
    pub fn burn_in(self, burn_in: u64) -> Self {
        Pbt { burn_in, ..self }
    }

    /// The resource at which a trial is done.
    #[must_use]
    pub fn max(self, max: u64) -> Self {
        Pbt { max: Some(max), ..self }
    }

    /// Which share of the population is the worst, and which the best.
    #[must_use]
    pub fn quantile(self, quantile: f64) -> Self {
        Pbt { quantile, ..self }
    }

    /// How likely a parameter is drawn afresh.
    #[must_use]
    pub fn resample(self, resample: f64) -> Self {
        Pbt { resample, ..self }
    }

    /// All members wait for each other at every interval.
    #[must_use]
    pub fn synchronous(self) -> Self {
        Pbt { synchronous: true, ..self }
    }

    pub(super) fn build(self, space: Arc<dyn Perturb>) -> Result<Box<dyn Scheduler>, InvalidConfig> {
        population("pbt", self, space, None)
    }
}

/// A population whose members change at random or, with a model, as it says.
pub(super) fn population(
    name: &'static str,
    config: Pbt,
    space: Arc<dyn Perturb>,
    model: Option<Model>,
) -> Result<Box<dyn Scheduler>, InvalidConfig> {
    InvalidConfig::unless(config.population >= 1, "pbt.population", "must be at least 1")?;
    InvalidConfig::unless(config.interval >= 1, "pbt.interval", "must be at least 1")?;
    let quantile = config.quantile > 0.0 && config.quantile <= 0.5;
    InvalidConfig::unless(quantile, "pbt.quantile", "must be above 0 and at most 0.5")?;
    InvalidConfig::unless((0.0..=1.0).contains(&config.resample), "pbt.resample", "must be between 0 and 1")?;
    let factors = config.factors.0 > 0.0 && config.factors.1 > 0.0;
    InvalidConfig::unless(factors, "pbt.factors", "must be above 0")?;
    Ok(Box::new(Running { name, config, space, model, members: BTreeMap::new() }))
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    config: Pbt,
    space: Arc<dyn Perturb>,
    model: Option<Model>,
    members: BTreeMap<u32, Member>,
}

#[derive(Debug)]
struct Member {
    /// The resource at which it is judged next.
    next: u64,
    /// Its loss when it was judged last.
    score: Option<f64>,
    /// The furthest resource at which it was replaced. It is replaced but once at each boundary: a loss that rises with the
    /// resource would otherwise send every member back for ever.
    replaced: u64,
    /// It paused at the end of an interval, rather than because it was interrupted.
    held: bool,
}

impl Running {
    fn boundary_after(&self, resource: u64) -> u64 {
        let interval = self.config.interval;
        ((resource / interval + 1) * interval).max(self.config.burn_in)
    }

    /// Whether someone needs the slot of a trial that has come to the end of its interval.
    fn others_wait(&self, turn: &Turn<'_>) -> bool {
        let roster = turn.roster();
        let unborn = roster.len() < self.config.population as usize && !roster.exhausted();
        self.config.synchronous || unborn || roster.paused().next().is_some()
    }

    /// The worst and the best share of the live members that were judged. The two are disjoint.
    fn quantiles(&self, turn: &Turn<'_>) -> (Vec<Score>, Vec<Score>) {
        let judged =
            self.members.iter().filter_map(|(trial, member)| Some(Score::new(member.score?, *trial)));
        let live =
            |score: &Score| !matches!(turn.roster().state(score.trial), State::Stopping | State::Ended);
        let mut order: Vec<Score> = judged.filter(live).collect();
        order.sort();
        let n = order.len();
        let share = ((n as f64 * self.config.quantile).ceil() as usize).min(n / 2);
        (order[n - share..].to_vec(), order[..share].to_vec())
    }

    /// Replaces a trial if it is among the worst.
    fn judge(&mut self, trial: u32, turn: &mut Turn<'_>) {
        let (worst, best) = self.quantiles(turn);
        if worst.iter().any(|score| score.trial == trial) {
            self.replace(trial, worst.len(), &best, turn);
        }
    }

    fn replace(&mut self, trial: u32, worst: usize, best: &[Score], turn: &mut Turn<'_>) {
        let judged_at = turn.roster().get(trial).map_or(0, |entry| entry.resource);
        if self.members.get(&trial).is_none_or(|member| member.replaced >= judged_at) {
            return;
        }
        let checkpoint = |trial: u32| turn.roster().get(trial).and_then(|entry| entry.checkpoint.as_ref());
        let can = |score: &&Score| checkpoint(score.trial).is_some() && !score.value.is_nan();
        let donors: Vec<Score> = best.iter().filter(can).copied().collect();
        if donors.is_empty() {
            if turn.roster().state(trial) == State::Running {
                turn.go_on(trial, "among the worst, but none of the best has a checkpoint yet");
            }
            return;
        }
        let donor = donors[turn.draw().below(donors.len())];
        let Some(entry) = turn.roster().get(donor.trial) else { return };
        let (config, at) =
            (Arc::clone(entry.config()), entry.checkpoint.as_ref().map_or(0, |taken| taken.resource));
        let config = Arc::new(self.explore(&config, at, donor.value, turn));
        let why =
            format!("among the worst {worst} of the population, and trial {} is among the best", donor.trial);
        turn.clone(trial, donor.trial, config, why);
        let next = self.boundary_after(at);
        if let Some(member) = self.members.get_mut(&trial) {
            // It is what its donor was, until it has been judged for itself.
            (member.next, member.score, member.replaced) = (next, Some(donor.value), judged_at);
        }
        if let Some(model) = &mut self.model {
            model.cloned(trial, at, donor.value);
        }
    }

    fn explore(&self, config: &Config, at: u64, value: f64, turn: &mut Turn<'_>) -> Config {
        let Pbt { resample, factors, .. } = self.config;
        let changed = perturb(&*self.space, config, resample, factors, turn.draw());
        let Some(model) = &self.model else { return changed };
        let others: Vec<Arc<Config>> =
            turn.roster().live().map(|(_, entry)| Arc::clone(entry.config())).collect();
        model.suggest(&*self.space, changed, (at, value), &others, turn.draw())
    }

    /// Synchronous: judges all when all that live have come to the end of the interval.
    fn round(&mut self, turn: &mut Turn<'_>) {
        let roster = turn.roster();
        let born = roster.len() >= self.config.population as usize || roster.exhausted();
        let held = |trial| self.members.get(&trial).is_some_and(|member| member.held);
        let complete = roster.live().all(|(trial, entry)| entry.state == State::Paused && held(trial));
        if !self.config.synchronous || !born || !complete {
            return;
        }
        // All are compared as they came, not as the first replacements leave them.
        let (worst, best) = self.quantiles(turn);
        for score in &worst {
            self.replace(score.trial, worst.len(), &best, turn);
        }
        for member in self.members.values_mut() {
            member.held = false;
        }
    }
}

impl Scheduler for Running {
    fn name(&self) -> &'static str {
        self.name
    }

    fn created(&mut self, trial: u32, _: &mut Turn<'_>) {
        let next = self.config.interval.max(self.config.burn_in);
        self.members.insert(trial, Member { next, score: None, replaced: 0, held: false });
    }

    fn reported(&mut self, report: &Report, turn: &mut Turn<'_>) {
        let Report { trial, resource, value } = *report;
        let next = self.boundary_after(resource);
        let Some(member) = self.members.get_mut(&trial) else { return };
        let done = self.config.max.is_some_and(|max| resource >= max);
        if resource < member.next && !done {
            return;
        }
        (member.next, member.score) = (next, Some(value));
        if let (Some(model), Some(entry)) = (&mut self.model, turn.roster().get(trial)) {
            model.observe(report, entry.config(), &*self.space);
        }
        if done {
            turn.finish(trial, format!("it has had the full resource of {resource}"));
        } else if self.others_wait(turn) {
            if let Some(member) = self.members.get_mut(&trial) {
                member.held = true;
            }
            turn.pause(trial, "the end of its interval: it makes room for others and is judged");
        } else {
            self.judge(trial, turn);
        }
    }

    fn paused(&mut self, trial: u32, turn: &mut Turn<'_>) {
        let Some(member) = self.members.get_mut(&trial) else { return };
        if member.held && !self.config.synchronous {
            member.held = false;
            self.judge(trial, turn);
        }
        self.round(turn);
    }

    fn ended(&mut self, trial: u32, _: End, turn: &mut Turn<'_>) {
        self.members.remove(&trial);
        self.round(turn);
    }

    fn exhausted(&mut self, turn: &mut Turn<'_>) {
        self.round(turn);
    }

    fn slot(&mut self, turn: &mut Turn<'_>) {
        let roster = turn.roster();
        if roster.len() < self.config.population as usize && !roster.exhausted() {
            turn.start_new("the population is not complete");
            return;
        }
        let free = |trial: &u32| self.members.get(trial).is_some_and(|member| !member.held);
        let waiting = roster.paused().filter(|(trial, _)| free(trial));
        if let Some((trial, _)) = waiting.min_by_key(|(trial, entry)| (entry.resource, *trial)) {
            turn.resume(trial, "the one that is furthest behind of those that wait");
        }
    }
}
