//! Which trials are the good ones.

use std::collections::BTreeSet;

use crate::pareto;
use crate::sampler::{End, Told};

/// How many trials are good at most.
const MOST: usize = 25;

/// How many of `n` trials are good: a tenth, and at most 25.
fn good(n: usize) -> usize {
    n.div_ceil(10).min(MOST)
}

/// Where a trial stands among others: feasible ones by loss, then pruned ones by how far they came, then infeasible ones
/// by violation, then failed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Standing {
    class: u8,
    step: std::cmp::Reverse<u64>,
    value: u64,
    number: u64,
}

/// How the trials of a study stand, in any order.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    /// The first of them, in order: of more than are ever good, nobody asks again.
    standings: Vec<Standing>,
    /// The losses of feasible complete trials of a study with several objectives.
    several: Vec<(u64, Vec<f64>)>,
    finished: usize,
}

impl Order {
    /// Takes in a trial that ended.
    pub(super) fn push(&mut self, told: &Told) {
        let (class, step, value) = match told.end {
            End::Failed => (3, 0, 0.0),
            _ if told.violation() > 0.0 => (2, 0, told.violation()),
            End::Pruned { step } => (1, step, told.loss()),
            End::Complete => (0, 0, told.loss()),
        };
        self.finished += usize::from(class < 3);
        if class == 0 && told.losses.len() > 1 {
            let losses = told.losses.iter().map(|l| if l.is_nan() { f64::INFINITY } else { *l }).collect();
            self.several.push((told.number, losses));
        } else if class < 3 {
            let (step, value) = (std::cmp::Reverse(step), total(value));
            let standing = Standing { class, step, value, number: told.number };
            let place = self.standings.partition_point(|known| *known < standing);
            if place < MOST {
                self.standings.truncate(MOST - 1);
                self.standings.insert(place, standing);
            }
        }
    }

    /// How many trials ended with a result.
    pub(super) fn finished(&self) -> usize {
        self.finished
    }

    /// The good trials' numbers.
    pub(super) fn best(&self) -> BTreeSet<u64> {
        let wanted = good(self.finished);
        let mut best: BTreeSet<u64> = BTreeSet::new();
        if !self.several.is_empty() {
            let losses: Vec<&[f64]> = self.several.iter().map(|(_, l)| l.as_slice()).collect();
            best.extend(pareto::best(&losses, wanted).into_iter().map(|i| self.several[i].0));
        }
        best.extend(self.standings.iter().take(wanted - best.len()).map(|standing| standing.number));
        best
    }
}

/// Bits that sort as the numbers do.
fn total(value: f64) -> u64 {
    let bits = value.to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}
