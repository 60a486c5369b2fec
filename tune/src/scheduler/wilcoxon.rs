//! For objectives that are the mean of many measurements (folds, problem instances): stops a trial as soon as a signed-rank
//! test says that it is worse than the best one on what both have measured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::config::InvalidConfig;
use super::event::Report;
use super::fifo::next_in_line;
use super::turn::Turn;
use super::{End, Scheduler};

/// Up to so many pairs the test is exact; beyond, the normal approximation is.
const EXACT: usize = 50;

/// Stopping by Wilcoxon's signed-rank test. A report's resource is the number of the measurement and its value that
/// measurement, so trials may take them in any order; a trial's result is their mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wilcoxon {
    /// A trial stops if so unlikely to be no worse: 0.1.
    pub p: f64,
    /// How many measurements both must have: 2.
    pub startup: u32,
}

impl Default for Wilcoxon {
    fn default() -> Self {
        Wilcoxon { p: 0.1, startup: 2 }
    }
}

impl Wilcoxon {
    /// A trial stops if so unlikely to be no worse.
    #[must_use]
    pub fn p(self, p: f64) -> Self {
        Wilcoxon { p, ..self }
    }

    /// How many measurements both must have.
    #[must_use]
    pub fn startup(self, startup: u32) -> Self {
        Wilcoxon { startup, ..self }
    }

    pub(super) fn build(self) -> Result<Box<dyn Scheduler>, InvalidConfig> {
        InvalidConfig::unless(self.p > 0.0 && self.p < 1.0, "wilcoxon.p", "must be between 0 and 1")?;
        InvalidConfig::unless(self.startup >= 1, "wilcoxon.startup", "must be at least 1")?;
        Ok(Box::new(Running { config: self, series: BTreeMap::new(), best: None }))
    }
}

type Series = BTreeMap<u64, f64>;

#[derive(Debug)]
struct Running {
    config: Wilcoxon,
    /// What live trials have measured.
    series: BTreeMap<u32, Series>,
    /// The finished trial of the least mean.
    best: Option<(u32, f64, Series)>,
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

impl Scheduler for Running {
    fn name(&self) -> &'static str {
        "wilcoxon"
    }

    fn reported(&mut self, report: &Report, turn: &mut Turn<'_>) {
        let trial = report.trial;
        let series = self.series.entry(trial).or_default();
        series.insert(report.resource, report.value);
        if report.value.is_nan() {
            turn.stop(trial, "a measurement is not a number, so its mean is none");
            return;
        }
        let Some((best, _, theirs)) = &self.best else { return };
        let pairs: Vec<f64> = series.iter().filter_map(|(at, ours)| Some(ours - theirs.get(at)?)).collect();
        // Infinities on both sides say nothing of each other.
        let pairs: Vec<f64> = pairs.into_iter().filter(|difference| !difference.is_nan()).collect();
        let n = pairs.len();
        if n < self.config.startup as usize || mean(pairs.iter().copied()) <= 0.0 {
            return;
        }
        let p = signed_rank(&pairs);
        if p < self.config.p {
            turn.stop(trial, format!("worse than trial {best} on {n} measurements, p = {p:.4}"));
        }
    }

    fn ended(&mut self, trial: u32, how: End, _: &mut Turn<'_>) {
        let Some(series) = self.series.remove(&trial).filter(|_| how == End::Finished) else { return };
        let mean = mean(series.values().copied());
        if !mean.is_nan() && self.best.as_ref().is_none_or(|(_, best, _)| mean < *best) {
            self.best = Some((trial, mean, series));
        }
    }

    fn slot(&mut self, turn: &mut Turn<'_>) {
        next_in_line(turn);
    }

    fn looks_back(&self) -> bool {
        false
    }
}

/// The probability that differences without a tendency come out as large as these. Half of the ranks of zeros counts on
/// either side; equal sizes share their ranks, and the exact distribution is that of the shared ranks.
fn signed_rank(differences: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = differences.to_vec();
    sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let n = sorted.len();
    // Twice the rank, which is whole even where it is shared.
    let mut ranks = vec![0usize; n];
    let (mut ties, mut start) = (0.0, 0);
    while start < n {
        let same = sorted[start..].iter().take_while(|d| d.abs() == sorted[start].abs()).count();
        ranks[start..start + same].fill(2 * start + same + 1);
        ties += (same * same * same - same) as f64;
        start += same;
    }
    let zeros = sorted.iter().filter(|d| **d == 0.0).count();
    let positive: usize = (zeros..n).filter(|i| sorted[*i] > 0.0).map(|i| ranks[i]).sum();
    if n <= EXACT {
        return at_least(&ranks[zeros..], positive);
    }
    let half_of_zeros: usize = ranks[..zeros].iter().sum();
    let statistic = positive as f64 / 2.0 + half_of_zeros as f64 / 4.0;
    let n = n as f64;
    let deviation = ((n * (n + 1.0) * (2.0 * n + 1.0) - ties / 2.0) / 24.0).sqrt();
    upper_tail((statistic - n * (n + 1.0) / 4.0) / deviation)
}

/// The share of all ways to give these weights a sign in which the positive ones add up to at least so much.
fn at_least(weights: &[usize], sum: usize) -> f64 {
    let total: usize = weights.iter().sum();
    let mut share = vec![0.0; total + 1];
    share[0] = 1.0;
    for weight in weights {
        for at in (0..=total).rev() {
            let with = if at >= *weight { share[at - weight] } else { 0.0 };
            share[at] = (share[at] + with) / 2.0;
        }
    }
    share[sum.min(total)..].iter().sum()
}

/// The probability that a standard normal is above `z`, to about 1e-7 (Abramowitz and Stegun 26.2.17).
fn upper_tail(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - upper_tail(-z);
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let series = t
        * (0.319_381_53
            + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * series
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against `scipy.stats.wilcoxon(d, alternative="greater", zero_method="zsplit")`.
    #[test]
    fn the_test_agrees_with_the_oracle() {
        let few = [0.3, -0.1, 0.7, 1.1, 0.5, -0.2, 0.9];
        assert!((signed_rank(&few) - 0.039_062_5).abs() < 1e-12, "{}", signed_rank(&few));
        let many: Vec<f64> = (1..=60).map(|i| (f64::from(i) * 1.7).sin() + 0.15).collect();
        assert!((signed_rank(&many) - 0.029_250_022_667).abs() < 1e-6, "{}", signed_rank(&many));
        let tied: Vec<f64> = (1..=60).map(|i| ((f64::from(i) * 1.7).sin() * 3.0 + 0.4).round()).collect();
        assert!((signed_rank(&tied) - 0.044_847_454_274).abs() < 1e-6, "{}", signed_rank(&tied));
    }
}
