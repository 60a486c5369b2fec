//! What a sampler may look at: the trials of a study so far, in the order in which they ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::space::Point;
use crate::stream::mix;

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum End {
    /// It ran to its end.
    Complete,
    /// It was stopped early; its losses are those it had when it reached this step.
    Pruned {
        /// The last step it reported.
        step: u64,
    },
    /// It has no result.
    Failed,
}

/// A trial that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Told {
    /// Its number in the study.
    pub number: u64,
    /// What was tried.
    pub point: Point,
    /// What the sampler noted when it suggested the point.
    pub note: u64,
    /// How it ended.
    pub end: End,
    /// Its losses, one an objective: lower is better, always. A NaN is worse than anything.
    pub losses: Vec<f64>,
    /// Its constraints, each satisfied at or below zero.
    pub constraints: Vec<f64>,
}

impl Told {
    /// A complete trial.
    pub fn complete(number: u64, point: Point, losses: Vec<f64>) -> Self {
        Self { number, point, note: 0, end: End::Complete, losses, constraints: vec![] }
    }

    /// The first loss; the worst there is for a trial without one.
    pub fn loss(&self) -> f64 {
        self.losses.first().copied().filter(|l| !l.is_nan()).unwrap_or(f64::INFINITY)
    }

    /// By how much its constraints are violated together; 0 where all are satisfied.
    pub fn violation(&self) -> f64 {
        self.constraints.iter().map(|c| if c.is_nan() { f64::INFINITY } else { c.max(0.0) }).sum()
    }
}

/// A trial that was started and has not ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Running {
    /// What is being tried.
    pub point: Point,
    /// What the sampler noted when it suggested the point.
    pub note: u64,
}

/// The trials of a study. It only grows; a trial runs until it is told, once.
#[derive(Clone, Debug, Default)]
pub struct History {
    told: Vec<Told>,
    running: BTreeMap<u64, Running>,
    /// Stand for what each ended trial tried.
    tried: Vec<u64>,
    /// `prints[n]` stands for the ended trials up to the n-th, so that a cache can tell whose history it was made from.
    prints: Vec<u64>,
}

impl History {
    /// A history without trials.
    pub fn new() -> Self {
        Self::default()
    }

    /// A trial starts.
    pub fn start(&mut self, number: u64, point: Point, note: u64) {
        self.running.insert(number, Running { point, note });
    }

    /// A trial ends. One that was never started (of another study, say) is taken just the same.
    pub fn tell(&mut self, told: Told) {
        self.running.remove(&told.number);
        self.push(tried(&told), told);
    }

    /// A trial ended, and this stands for what it tried.
    pub(super) fn push(&mut self, tried: u64, told: Told) {
        let print = fingerprint(mix(self.fingerprint(self.told.len()) ^ tried), &told);
        self.tried.push(tried);
        self.prints.push(print);
        self.told.push(told);
    }

    /// The trials that ended, in the order in which they did.
    pub fn told(&self) -> &[Told] {
        &self.told
    }

    /// The trials that run, by number.
    pub fn running(&self) -> &BTreeMap<u64, Running> {
        &self.running
    }

    /// Stands for what an ended trial tried, whatever came of it.
    pub(crate) fn tried(&self, index: usize) -> u64 {
        self.tried[index]
    }

    /// Takes out the trials that ended, each with what stands for what it tried; and forgets those that run.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (u64, Told)> + use<> {
        self.prints.clear();
        self.running.clear();
        std::mem::take(&mut self.tried).into_iter().zip(std::mem::take(&mut self.told))
    }

    /// Stands for the first `len` ended trials.
    pub(crate) fn fingerprint(&self, len: usize) -> u64 {
        if len == 0 { 0 } else { self.prints[len - 1] }
    }
}

/// Stands for a trial's number, point and note.
pub(crate) fn tried(told: &Told) -> u64 {
    let print = mix(mix(told.number) ^ told.note);
    told.point.iter().fold(print, |print, (index, raw)| mixed(print, index, raw))
}

/// Stands for how a trial ended, after what came before.
fn fingerprint(before: u64, told: &Told) -> u64 {
    let end = match told.end {
        End::Complete => 1,
        End::Pruned { step } => mix(step) ^ 2,
        End::Failed => 3,
    };
    let numbers = told.losses.iter().chain(&told.constraints);
    numbers.fold(mix(before ^ end), |print, number| mixed(print, told.losses.len(), *number))
}

fn mixed(print: u64, index: usize, number: f64) -> u64 {
    mix(print ^ number.to_bits().rotate_left(17) ^ index as u64)
}

/// How much of a history a sampler's cache has taken in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    len: usize,
    print: u64,
}

impl Seen {
    /// The trials that are new since last time; `None` where the history is another one, and the cache is to be made
    /// again.
    pub(crate) fn news<'a>(&mut self, history: &'a History) -> Option<&'a [Told]> {
        let told = history.told();
        let known = self.len <= told.len() && history.fingerprint(self.len) == self.print;
        let news = known.then(|| &told[self.len..]);
        if known {
            self.len = told.len();
            self.print = history.fingerprint(self.len);
        } else {
            *self = Self::default();
        }
        news
    }
}
