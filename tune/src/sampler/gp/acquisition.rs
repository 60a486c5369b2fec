//! How promising a point is: the logarithm of the expected improvement, and of the probability that constraints hold.

use super::model::Model;
use crate::normal::{LN_SQRT_2PI, cdf, cdf_over_pdf, log_cdf, pdf};

/// Keeps a variance of nothing from dividing.
const FLOOR: f64 = 1e-12;

/// What is to be maximised over the unit cube.
pub(super) struct Acquisition {
    /// The process of the loss and the best loss, one for each set of its values. Nothing while nothing is feasible.
    pub(super) loss: Option<(Model, Vec<f64>)>,
    /// The processes of the constraints, and what each has to stay below.
    pub(super) constraints: Vec<(Model, f64)>,
}

impl Acquisition {
    /// At some points.
    pub(super) fn values(&self, at: &[Vec<f64>]) -> Vec<f64> {
        let mut values = vec![0.0; at.len()];
        if let Some((model, best)) = &self.loss {
            let (means, variances) = model.predict(at);
            let mut terms = vec![0.0; model.sets()];
            for (j, value) in values.iter_mut().enumerate() {
                let sigma = (variances[j] + FLOOR).sqrt();
                for (s, term) in terms.iter_mut().enumerate() {
                    *term = Improvement::new((best[s] - means[(s, j)]) / sigma).log + sigma.ln();
                }
                *value += log_mean(&terms);
            }
        }
        for (model, bound) in &self.constraints {
            let (means, variances) = model.predict(at);
            for (j, value) in values.iter_mut().enumerate() {
                *value += log_cdf((bound - means[(0, j)]) / (variances[j] + FLOOR).sqrt());
            }
        }
        values
    }

    /// At one point, with the gradient.
    pub(super) fn slope(&self, at: &[f64], gradient: &mut [f64]) -> f64 {
        gradient.fill(0.0);
        let mut value = 0.0;
        if let Some((model, best)) = &self.loss {
            let mut to_variance = 0.0;
            let slopes = model.slopes(at, |means, variance| {
                let sigma = (variance + FLOOR).sqrt();
                let parts: Vec<Improvement> = means
                    .iter()
                    .zip(best)
                    .map(|(mean, best)| Improvement::new((best - mean) / sigma))
                    .collect();
                let terms: Vec<f64> = parts.iter().map(|p| p.log + sigma.ln()).collect();
                let all = log_mean(&terms);
                value += all;
                let share = |term: &f64| (term - all).exp() / terms.len() as f64;
                let shares = terms.iter().map(share);
                to_variance = shares.clone().zip(&parts).map(|(s, p)| s * p.to_sigma / sigma).sum::<f64>()
                    / (2.0 * sigma);
                shares.zip(&parts).map(|(s, p)| -s * p.to_z / sigma).collect()
            });
            for (k, gradient) in gradient.iter_mut().enumerate() {
                *gradient += slopes.mean[k] + to_variance * slopes.variance[k];
            }
        }
        for (model, bound) in &self.constraints {
            let mut to_variance = 0.0;
            let slopes = model.slopes(at, |means, variance| {
                let sigma = (variance + FLOOR).sqrt();
                let z = (bound - means[0]) / sigma;
                value += log_cdf(z);
                let rate = 1.0 / cdf_over_pdf(z);
                to_variance = -rate * z / (2.0 * sigma * sigma);
                vec![-rate / sigma]
            });
            for (k, gradient) in gradient.iter_mut().enumerate() {
                *gradient += slopes.mean[k] + to_variance * slopes.variance[k];
            }
        }
        value
    }
}

/// The expected improvement of a standard normal over `-z`: its logarithm, and that logarithm's derivatives.
struct Improvement {
    log: f64,
    /// By `z`: P / EI.
    to_z: f64,
    /// By the logarithm of the deviation, at a fixed mean: density / EI.
    to_sigma: f64,
}

impl Improvement {
    fn new(z: f64) -> Self {
        if z > -10.0 {
            let improvement = pdf(z) + z * cdf(z);
            return Self {
                log: improvement.ln(),
                to_z: cdf(z) / improvement,
                to_sigma: pdf(z) / improvement,
            };
        }
        // Everything relative to the density, which itself is too small for a double from -38 on.
        let ratio = cdf_over_pdf(z);
        let square = 1.0 / (z * z);
        let relative = if z > -25.0 {
            1.0 + z * ratio
        } else {
            square * (1.0 - square * (3.0 - square * (15.0 - square * 105.0)))
        };
        Self {
            log: -0.5 * z * z - LN_SQRT_2PI + relative.ln(),
            to_z: ratio / relative,
            to_sigma: 1.0 / relative,
        }
    }
}

fn log_mean(terms: &[f64]) -> f64 {
    if let [one] = terms {
        return *one;
    }
    let top = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + (terms.iter().map(|t| (t - top).exp()).sum::<f64>() / terms.len() as f64).ln()
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::super::model::Hyper;
    use super::*;

    /// Figures of mpmath.
    #[test]
    fn log_improvement_in_all_its_ranges() {
        for (z, log) in [
            (3.0, 1.098_739_665_327_708),
            (-1.0, -2.485_121_025_712_641),
            (-15.0, -118.848_170_684_113_6),
            (-24.9, -317.358_485_742_667_4),
            (-60.0, -1_809.108_460_182_272),
        ] {
            let got = Improvement::new(z).log;
            assert!((got - log).abs() < 1e-9 * log.abs(), "{z}: {got} {log}");
        }
    }

    /// Figures of Optuna 5.0.0: `LogEI` of the same process.
    #[test]
    fn promises_what_optuna_promises() {
        let points: Vec<Vec<f64>> =
            (0..12).map(|i| (0..2).map(|k| f64::from((i * 37 + k * 61) % 23) / 22.0).collect()).collect();
        let values: Vec<f64> = points.iter().map(|p| (6.0 * p[0]).sin() + p[1] * p[1]).collect();
        let mean = values.iter().sum::<f64>() / 12.0;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 12.0).sqrt();
        let values = Mat::from_fn(12, 1, |i, _| (values[i] - mean) / deviation);
        let hyper = Hyper {
            weights: vec![0.10878469970071287, 3.021544460534098],
            scale: 1.6330373095627189,
            noise: 3.851230547659521e-06,
            power: 1.0,
        };
        let best = (0..12).map(|i| values[(i, 0)]).fold(f64::INFINITY, f64::min);
        let model = Model::new(&points, &values, &[false; 2], hyper);
        let acquisition = Acquisition { loss: Some((model, vec![best])), constraints: vec![] };
        for (at, expected) in [
            ([0.3, 0.6], -70.61971107282476),
            ([0.05, 0.95], -563.3820849910109),
            ([0.5, 0.5], -8.075305447564933),
            ([0.9, 0.1], -23.36699110519196),
        ] {
            let got = acquisition.values(&[at.to_vec()])[0];
            assert!((got / expected - 1.0).abs() < 1e-6, "{at:?}: {got} {expected}");
        }
    }

    #[test]
    fn the_slope_is_that_of_the_values() {
        let points = vec![vec![0.1, 0.9], vec![0.4, 0.2], vec![0.8, 0.7], vec![0.5, 0.5]];
        let hyper = Hyper { weights: vec![4.0, 2.0], scale: 1.3, noise: 1e-3, power: 1.0 };
        let model = |sets| {
            let values = Mat::from_fn(4, sets, |i, s| ((i * 7 + s * 3) % 5) as f64 / 2.0 - 1.0);
            Model::new(&points, &values, &[false, false], hyper.clone())
        };
        let acquisition = Acquisition {
            loss: Some((model(3), vec![-0.9, -0.5, -0.7])),
            constraints: vec![(model(1), 0.1)],
        };
        for at in [[0.3, 0.6], [0.9, 0.1], [0.41, 0.21]] {
            let mut gradient = [0.0; 2];
            let value = acquisition.slope(&at, &mut gradient);
            assert!((value - acquisition.values(&[at.to_vec()])[0]).abs() < 1e-9);
            for k in 0..2 {
                let moved = |h: f64| {
                    let mut moved = at.to_vec();
                    moved[k] += h;
                    acquisition.values(&[moved])[0]
                };
                let numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!(
                    (numeric - gradient[k]).abs() < 1e-4 * (1.0 + numeric.abs()),
                    "{numeric} {}",
                    gradient[k]
                );
            }
        }
    }
}
