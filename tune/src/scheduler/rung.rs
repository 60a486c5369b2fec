//! One rung of successive halving: the results at one resource, and who of them waits to go on.

use std::collections::BTreeSet;

use super::score::Score;

/// The results at one resource. Everything is `O(log n)`, as a long study has hundreds of thousands.
#[derive(Debug)]
pub(super) struct Rung {
    pub(super) level: u64,
    eta: usize,
    /// The best `1/eta` of the results, and the others.
    top: BTreeSet<Score>,
    rest: BTreeSet<Score>,
    /// Those that are paused here.
    waiting: BTreeSet<Score>,
}

impl Rung {
    pub(super) fn new(level: u64, eta: u32) -> Self {
        let (top, rest, waiting) = Default::default();
        Rung { level, eta: eta as usize, top, rest, waiting }
    }

    /// How many results.
    pub(super) fn len(&self) -> usize {
        self.top.len() + self.rest.len()
    }

    /// All results, best first.
    pub(super) fn scores(&self) -> impl Iterator<Item = Score> {
        self.top.iter().chain(&self.rest).copied()
    }

    /// How many of them may go on.
    pub(super) fn quota(&self) -> usize {
        self.len() / self.eta
    }

    pub(super) fn insert(&mut self, score: Score) {
        self.rest.insert(score);
        if self.top.len() < self.quota() {
            self.top.extend(self.rest.pop_first());
        } else if let (Some(worst), Some(best)) = (self.top.last().copied(), self.rest.first().copied())
            && best < worst
        {
            self.top.remove(&worst);
            self.rest.remove(&best);
            self.top.insert(best);
            self.rest.insert(worst);
        }
    }

    /// Whether a result is among the best `max(1, 1/eta)`.
    pub(super) fn leads(&self, score: Score) -> bool {
        match self.top.last() {
            Some(worst) => score <= *worst,
            None => self.rest.first() == Some(&score),
        }
    }

    pub(super) fn wait(&mut self, score: Score) {
        self.waiting.insert(score);
    }

    /// Ends the waiting of a result, if it waited.
    pub(super) fn leave(&mut self, score: Score) {
        self.waiting.remove(&score);
    }

    /// The best that waits, if it is among the best `1/eta`.
    pub(super) fn promotable(&self) -> Option<Score> {
        let (best, worst) = (*self.waiting.first()?, *self.top.last()?);
        (best <= worst && !best.value.is_nan()).then_some(best)
    }

    /// The best that waits.
    pub(super) fn best_waiting(&self) -> Option<Score> {
        self.waiting.first().copied().filter(|score| !score.value.is_nan())
    }
}

/// The resources at which to decide: `min eta^k` below `max`, then `max`.
pub(super) fn levels(min: u64, max: u64, eta: u32) -> Vec<u64> {
    let mut levels = Vec::new();
    let mut level = min;
    while level < max {
        levels.push(level);
        level = level.saturating_mul(u64::from(eta));
    }
    levels.push(max);
    levels
}
