//! Losses with a long tail: a process that is as smooth everywhere fits them badly, and what tells good from better is
//! lost beside what tells bad from worse. The power transform of Yeo and Johnson bends them, and never changes their order.
//! The power is fitted together with the process (a warped Gaussian process), so that what is bent is smooth in the
//! parameters. A normal distribution of the losses is no aim: where a search closes in on a valley, most of them are alike.

/// The least and the largest power; 1 changes nothing, and 0 is the logarithm of what lies above the mean.
pub(super) const POWERS: (f64, f64) = (-2.0, 1.0);

/// Bent losses.
pub(super) struct Bent {
    /// Standardised.
    pub(super) values: Vec<f64>,
    /// How they change with the power.
    pub(super) slopes: Vec<f64>,
    /// The logarithm of how much wider the values lie than what was bent: the sum over all of them.
    pub(super) log: f64,
    /// How that changes with the power.
    pub(super) log_slope: f64,
}

/// Standardised losses, bent and standardised again.
pub(super) fn bent(standard: &[f64], power: f64) -> Bent {
    let n = standard.len() as f64;
    let (mut values, mut slopes): (Vec<f64>, Vec<f64>) = standard.iter().map(|y| bend(*y, power)).unzip();
    let mean = values.iter().sum::<f64>() / n;
    let drift = slopes.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let deviation = if variance > 1e-24 { variance.sqrt() } else { 1.0 };
    let together = values.iter().zip(&slopes).map(|(v, s)| (v - mean) * (s - drift)).sum::<f64>() / n;
    let growth = together / (deviation * deviation);
    for (value, slope) in values.iter_mut().zip(&mut slopes) {
        *value = (*value - mean) / deviation;
        *slope = (*slope - drift) / deviation - *value * growth;
    }
    let tail: f64 = standard.iter().map(|y| y.abs().ln_1p().copysign(*y)).sum();
    let log = (power - 1.0) * tail - n * deviation.ln();
    Bent { values, slopes, log, log_slope: tail - n * growth }
}

/// One loss bent, and how that changes with the power.
fn bend(y: f64, power: f64) -> (f64, f64) {
    if y >= 0.0 {
        return raised(y, power);
    }
    let (value, slope) = raised(-y, 2.0 - power);
    (-value, slope)
}

/// `((1 + y)^power - 1) / power`, and its slope by the power.
fn raised(y: f64, power: f64) -> (f64, f64) {
    let log = y.ln_1p();
    let x = power * log;
    if x.abs() < 1e-4 {
        return (log * (1.0 + x / 2.0 + x * x / 6.0), log * log * (0.5 + x / 3.0 + x * x / 8.0));
    }
    let value = x.exp_m1() / power;
    (value, (x.exp() * log - value) / power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_tail_is_bent_and_order_is_kept() {
        let tail: Vec<f64> = (0..40).map(|i| (f64::from(i) * 0.4).exp() / 1e6 - 0.3).collect();
        let share = |v: &[f64]| (v[39] - v[35]) / (v[39] - v[0]);
        let bent = bent(&tail, -1.0).values;
        assert!(bent.windows(2).all(|pair| pair[0] < pair[1]), "{bent:?}");
        assert!(share(&tail) > 0.7 && share(&bent) < 0.6, "{} {}", share(&tail), share(&bent));
    }

    #[test]
    fn losses_that_are_alike_stay_finite() {
        let bent = bent(&[0.0; 4], -2.0);
        assert_eq!((bent.values, bent.slopes, bent.log), (vec![0.0; 4], vec![0.0; 4], 0.0));
    }

    #[test]
    fn the_slopes_are_those_of_the_values() {
        let standard = [-1.4, -0.6, -1e-3, 0.0, 0.2, 1.9];
        for power in [-1.3, 0.0, 0.5, 1.0] {
            let (here, more, less) =
                (bent(&standard, power), bent(&standard, power + 1e-5), bent(&standard, power - 1e-5));
            let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{power}: {a} {b}");
            near(here.log_slope, (more.log - less.log) / 2e-5);
            for i in 0..standard.len() {
                near(here.slopes[i], (more.values[i] - less.values[i]) / 2e-5);
            }
        }
        let same = bent(&standard, 1.0).values;
        let ratio = (same[5] - same[0]) / (same[4] - same[1]);
        assert!((ratio - (1.9 + 1.4) / (0.2 + 0.6)).abs() < 1e-12, "1 changes nothing");
    }
}
