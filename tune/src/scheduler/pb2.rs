//! Population-based bandits: as population-based training, but a model of which change brought how much gain, and when,
//! says with what a replaced trial goes on. Better for small populations.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Scheduler;
use super::config::InvalidConfig;
use super::draw::Draw;
use super::event::{Config, Report};
use super::gp::{Gp, Point};
use super::pbt::{Pbt, population};
use super::perturb::Perturb;

/// The model sees the latest of what was observed.
const ROWS: usize = 100;

/// How many random configurations are tried on the model, and how many around the best of them.
const CANDIDATES: (usize, usize) = (200, 100);

/// Population-based bandits. Ordered parameters are chosen by the model, the others changed as [`Pbt`] does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pb2 {
    /// How the population is run.
    pub population: Pbt,
}

impl Pb2 {
    /// So many trials, judged at this interval.
    #[must_use]
    pub fn new(population: u32, interval: u64) -> Self {
        Pb2 { population: Pbt::new(population, interval) }
    }

    /// The resource at which a trial is done.
    #[must_use]
    pub fn max(self, max: u64) -> Self {
        Pb2 { population: self.population.max(max) }
    }

    pub(super) fn build(self, space: Arc<dyn Perturb>) -> Result<Box<dyn Scheduler>, InvalidConfig> {
        let model =
            Model { interval: self.population.interval as f64, rows: VecDeque::new(), last: BTreeMap::new() };
        population("pb2", self.population, space, Some(model))
    }
}

/// What the population has learnt of changes and gains.
#[derive(Debug)]
pub(super) struct Model {
    interval: f64,
    rows: VecDeque<Row>,
    /// Where each trial was when it was judged last.
    last: BTreeMap<u32, (u64, f64)>,
}

/// One interval of one trial.
#[derive(Debug)]
struct Row {
    time: f64,
    /// The loss at its beginning.
    before: f64,
    config: BTreeMap<String, f64>,
    /// By how much the loss fell, for each unit of the resource; NaN where it was lost.
    gain: f64,
}

fn places(space: &dyn Perturb, config: &Config) -> BTreeMap<String, f64> {
    let place = |name: String| Some((space.place(&name, config.get(&name)?)?, name));
    space.parameters(config).into_iter().filter_map(place).map(|(place, name)| (name, place)).collect()
}

impl Model {
    /// A trial came to the end of an interval.
    pub(super) fn observe(&mut self, report: &Report, config: &Arc<Config>, space: &dyn Perturb) {
        let Report { trial, resource, value } = *report;
        if let Some((at, before)) =
            self.last.get(&trial).copied().filter(|(at, before)| *at < resource && before.is_finite())
        {
            let gain = (before - value) / (resource - at) as f64;
            let gain = if gain.is_finite() { gain } else { f64::NAN };
            self.rows.push_back(Row {
                time: at as f64 / self.interval,
                before,
                config: places(space, config),
                gain,
            });
            if self.rows.len() > ROWS {
                self.rows.pop_front();
            }
        }
        self.last.insert(trial, (resource, value));
    }

    /// A trial is now what another was at its checkpoint.
    pub(super) fn cloned(&mut self, trial: u32, at: u64, value: f64) {
        self.last.insert(trial, (at, value));
    }

    /// With what a trial should go on that is at a resource and a loss, given what the others run with.
    pub(super) fn suggest(
        &self,
        space: &dyn Perturb,
        changed: Config,
        at: (u64, f64),
        others: &[Arc<Config>],
        draw: &mut Draw,
    ) -> Config {
        let start = places(space, &changed);
        let names: Vec<&String> = start.keys().collect();
        if names.is_empty() || self.rows.len() < names.len() + 3 {
            return changed;
        }
        let befores = Range::of(self.rows.iter().map(|row| row.before));
        let vector = |before: f64, config: &BTreeMap<String, f64>| {
            let places = names.iter().map(|name| config.get(*name).copied().unwrap_or(0.5));
            std::iter::once(befores.unit(before)).chain(places).collect::<Vec<f64>>()
        };
        let now = at.0 as f64 / self.interval;
        let pending = others.iter().map(|config| Point {
            time: now,
            at: vector(at.1, &places(space, config)),
            value: 0.0,
        });
        let gp = Gp::fit(self.points(vector)).believing(pending.collect());
        let kappa = (0.2 + (0.4 * self.rows.len() as f64).ln().max(0.0)).sqrt();
        let hope = |at: &[f64]| {
            let (mean, variance) = gp.predict(&Point { time: now, at: at.to_vec(), value: 0.0 });
            mean + kappa * variance.sqrt()
        };
        let mut best = vector(at.1, &start);
        let mut most = hope(&best);
        for i in 0..CANDIDATES.0 + CANDIDATES.1 {
            let mut candidate = best.clone();
            for place in &mut candidate[1..] {
                let unit = draw.unit();
                *place = if i < CANDIDATES.0 { unit } else { (*place + 0.2 * (unit - 0.5)).clamp(0.0, 1.0) };
            }
            let here = hope(&candidate);
            if here > most {
                (most, best) = (here, candidate);
            }
        }
        let mut chosen = changed.clone();
        for (name, place) in names.iter().zip(&best[1..]) {
            chosen.insert((*name).clone(), space.sample(name, place.min(1.0 - 1e-12)));
        }
        space.settle(chosen, draw)
    }

    /// What was observed, its gains made comparable.
    fn points(&self, vector: impl Fn(f64, &BTreeMap<String, f64>) -> Vec<f64>) -> Vec<Point> {
        let known = || self.rows.iter().map(|row| row.gain).filter(|gain| !gain.is_nan());
        let n = known().count().max(1) as f64;
        let mean = known().sum::<f64>() / n;
        let deviation = (known().map(|gain| (gain - mean).powi(2)).sum::<f64>() / n).sqrt().max(1e-12);
        // What was lost counts as the worst of what was not.
        let worst = known().fold(0.0, f64::min);
        let point = |row: &Row| {
            let gain = if row.gain.is_nan() { worst } else { row.gain };
            Point { time: row.time, at: vector(row.before, &row.config), value: (gain - mean) / deviation }
        };
        self.rows.iter().map(point).collect()
    }
}

/// From the least to the greatest of some numbers.
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    fn of(values: impl Iterator<Item = f64>) -> Range {
        let (low, high) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        Range { low, high }
    }

    fn unit(&self, value: f64) -> f64 {
        let width = self.high - self.low;
        if width > 0.0 && value.is_finite() { ((value - self.low) / width).clamp(0.0, 1.0) } else { 0.5 }
    }
}
