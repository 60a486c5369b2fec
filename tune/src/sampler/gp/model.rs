//! The Gaussian process: Matern 5/2 with a length scale for each parameter, its hyperparameters fitted by maximum a
//! posteriori.

use faer::linalg::solvers::{DenseSolveCore, Llt, Solve};
use faer::{Mat, Side};

use super::lbfgs::{self, Stop};

/// The least noise that is assumed: below it the matrices are hard to factor.
const NOISE: f64 = 1e-6;
/// Inside these bounds (in the logarithm) hyperparameters are looked for: beyond them nothing changes any more.
const BOUND: f64 = 15.0;

/// What is fitted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hyper {
    /// 1 / length scale squared, for each parameter.
    pub(super) weights: Vec<f64>,
    /// The variance of the function.
    pub(super) scale: f64,
    /// The variance of an observation.
    pub(super) noise: f64,
}

impl Hyper {
    /// Where a fit starts without knowing better.
    pub(super) fn start(dimensions: usize) -> Self {
        Self { weights: vec![1.0; dimensions], scale: 1.0, noise: 0.01 + NOISE }
    }

    fn raw(&self) -> Vec<f64> {
        let noise = (self.noise - 0.99 * NOISE).max(1e-9).ln();
        let logs = self.weights.iter().map(|w| w.ln()).chain([self.scale.ln(), noise]);
        logs.map(|l| l.clamp(-BOUND, BOUND)).collect()
    }

    fn of(raw: &[f64]) -> Self {
        let d = raw.len() - 2;
        let weights = raw[..d].iter().map(|r| r.exp()).collect();
        Self { weights, scale: raw[d].exp(), noise: raw[d + 1].exp() + NOISE }
    }
}

/// The correlation at a squared distance, and its slope there.
pub(super) fn matern(squared: f64) -> (f64, f64) {
    let r = (5.0 * squared).sqrt();
    let e = (-r).exp();
    (e * (5.0 / 3.0 * squared + r + 1.0), -5.0 / 6.0 * (r + 1.0) * e)
}

/// How far apart two points are along each parameter, squared; different categories are 1 apart.
pub(super) fn apart(a: f64, b: f64, category: bool) -> f64 {
    if category { f64::from(u8::from(a != b)) } else { (a - b) * (a - b) }
}

/// A process that has seen points and values.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) hyper: Hyper,
    pub(super) points: Vec<Vec<f64>>,
    pub(super) category: Vec<bool>,
    /// K^-1 y.
    pub(super) alpha: Vec<f64>,
    /// L^-1, row by row: a variance is one pass over half of it, and so is its gradient.
    inverse: Mat<f64>,
}

impl Model {
    /// Fits hyperparameters to points of the unit cube and standardised values, starting from `start`.
    pub(super) fn fit(points: &[Vec<f64>], values: &[f64], category: &[bool], start: &Hyper, stop: Stop) -> Hyper {
        let fit = Fit::new(points, values, category);
        let best = |from: &Hyper| {
            let mut raw = from.raw();
            let bounds = (vec![-BOUND; raw.len()], vec![BOUND; raw.len()]);
            let loss = lbfgs::minimise(|r, g| fit.loss(r, g), &mut raw, (&bounds.0, &bounds.1), stop);
            loss.is_finite().then(|| Hyper::of(&raw))
        };
        best(start).or_else(|| best(&Hyper::start(category.len()))).unwrap_or_else(|| Hyper::start(category.len()))
    }

    /// A process with these hyperparameters.
    pub(super) fn new(points: Vec<Vec<f64>>, values: &[f64], category: &[bool], mut hyper: Hyper) -> Self {
        let n = points.len();
        loop {
            let correlation = |i: usize, j: usize| {
                let same = if i == j { hyper.noise } else { 0.0 };
                hyper.scale * matern(distance(&points[i], &points[j], category, &hyper.weights)).0 + same
            };
            let covariance = Mat::from_fn(n, n, correlation);
            let Ok(factor) = Llt::new(covariance.as_ref(), Side::Lower) else {
                // Nearly equal points with hardly any noise: a little more noise separates them.
                hyper.noise *= 10.0;
                continue;
            };
            let mut inverse: Mat<f64> = Mat::identity(n, n);
            faer::linalg::triangular_solve::solve_lower_triangular_in_place(
                factor.L(),
                inverse.as_mut(),
                faer::Par::Seq,
            );
            let y = Mat::from_fn(n, 1, |i, _| values[i]);
            let alpha = factor.solve(&y);
            let alpha = (0..n).map(|i| alpha[(i, 0)]).collect();
            return Self { hyper, points, category: category.to_vec(), alpha, inverse };
        }
    }

    /// Covariances of some points with those seen: one column a point.
    pub(super) fn covariances(&self, at: &[Vec<f64>]) -> Mat<f64> {
        let Self { hyper, points, category, .. } = self;
        Mat::from_fn(points.len(), at.len(), |i, j| {
            hyper.scale * matern(distance(&points[i], &at[j], category, &hyper.weights)).0
        })
    }

    /// L^-1 times columns.
    pub(super) fn whiten(&self, columns: &Mat<f64>) -> Mat<f64> {
        &self.inverse * columns
    }

    /// Mean and variance at some points.
    pub(super) fn predict(&self, at: &[Vec<f64>]) -> Vec<(f64, f64)> {
        let covariances = self.covariances(at);
        let white = self.whiten(&covariances);
        (0..at.len())
            .map(|j| {
                let mean = (0..self.alpha.len()).map(|i| covariances[(i, j)] * self.alpha[i]).sum();
                let known: f64 = (0..self.alpha.len()).map(|i| white[(i, j)] * white[(i, j)]).sum();
                (mean, (self.hyper.scale - known).max(0.0))
            })
            .collect()
    }

    /// Mean and variance at a point, and their gradients.
    pub(super) fn slopes(&self, at: &[f64]) -> Slopes {
        let (n, d) = (self.alpha.len(), at.len());
        let Hyper { weights, scale, .. } = &self.hyper;
        let mut covariance = Mat::zeros(n, 1);
        let mut slope = vec![0.0; n];
        for i in 0..n {
            let (k, dk) = matern(distance(&self.points[i], at, &self.category, weights));
            covariance[(i, 0)] = scale * k;
            slope[i] = scale * dk;
        }
        let white = self.whiten(&covariance);
        let solved = self.inverse.transpose() * &white;
        let mut out = Slopes { mean: 0.0, variance: *scale, d_mean: vec![0.0; d], d_variance: vec![0.0; d] };
        for i in 0..n {
            out.mean += covariance[(i, 0)] * self.alpha[i];
            out.variance -= white[(i, 0)] * white[(i, 0)];
            let (to_mean, to_variance) = (slope[i] * self.alpha[i], -2.0 * slope[i] * solved[(i, 0)]);
            for k in 0..d {
                if !self.category[k] {
                    let t = 2.0 * weights[k] * (at[k] - self.points[i][k]);
                    out.d_mean[k] += to_mean * t;
                    out.d_variance[k] += to_variance * t;
                }
            }
        }
        if out.variance <= 0.0 {
            out.variance = 0.0;
        }
        out
    }
}

/// Mean and variance at a point, and their gradients.
#[derive(Clone, Debug)]
pub(super) struct Slopes {
    pub(super) mean: f64,
    pub(super) variance: f64,
    pub(super) d_mean: Vec<f64>,
    pub(super) d_variance: Vec<f64>,
}

/// The squared distance of two points by the process's length scales.
pub(super) fn distance(a: &[f64], b: &[f64], category: &[bool], weights: &[f64]) -> f64 {
    let mut sum = 0.0;
    for k in 0..a.len() {
        sum += weights[k] * apart(a[k], b[k], category[k]);
    }
    sum
}

/// The likelihood's data: squared distances along each parameter, for pairs i > j.
struct Fit<'a> {
    values: &'a [f64],
    /// One table a parameter, packed row by row.
    apart: Vec<Vec<f64>>,
}

impl<'a> Fit<'a> {
    fn new(points: &[Vec<f64>], values: &'a [f64], category: &[bool]) -> Self {
        let table = |k: usize| {
            let pair = |(i, j): (usize, usize)| apart(points[i][k], points[j][k], category[k]);
            (0..points.len()).flat_map(|i| (0..i).map(move |j| (i, j))).map(pair).collect()
        };
        Self { values, apart: (0..category.len()).map(table).collect() }
    }

    /// The negative log posterior of the hyperparameters' logarithms, and its gradient.
    fn loss(&self, raw: &[f64], gradient: &mut [f64]) -> f64 {
        let (n, d) = (self.values.len(), self.apart.len());
        let hyper = Hyper::of(raw);
        let pairs = n * (n - 1) / 2;
        let mut squared = vec![0.0; pairs];
        for (table, w) in self.apart.iter().zip(&hyper.weights) {
            squared.iter_mut().zip(table).for_each(|(s, t)| *s += w * t);
        }
        let mut covariance = Mat::zeros(n, n);
        let mut slopes = vec![0.0; pairs];
        let mut pair = 0;
        for i in 0..n {
            for j in 0..i {
                let (k, dk) = matern(squared[pair]);
                covariance[(i, j)] = hyper.scale * k;
                slopes[pair] = hyper.scale * dk;
                pair += 1;
            }
            covariance[(i, i)] = hyper.scale + hyper.noise;
        }
        let Ok(factor) = Llt::new(covariance.as_ref(), Side::Lower) else { return f64::INFINITY };
        let y = Mat::from_fn(n, 1, |i, _| self.values[i]);
        let alpha = factor.solve(&y);
        let inverse = factor.inverse();
        let lower = factor.L();
        let log_det: f64 = (0..n).map(|i| lower[(i, i)].ln()).sum();
        let fit: f64 = (0..n).map(|i| y[(i, 0)] * alpha[(i, 0)]).sum();

        // d loss / d K = (K^-1 - alpha alpha') / 2; off the diagonal every pair counts twice.
        let mut to_weights = vec![0.0; d];
        let (mut trace, mut off) = (0.0, 0.0);
        pair = 0;
        let mut row = vec![0.0; n];
        for i in 0..n {
            let a = alpha[(i, 0)];
            for (j, r) in row[..i].iter_mut().enumerate() {
                *r = inverse[(i, j)] - a * alpha[(j, 0)];
            }
            for j in 0..i {
                off += row[j] * covariance[(i, j)];
                row[j] *= slopes[pair + j];
            }
            for (sum, table) in to_weights.iter_mut().zip(&self.apart) {
                *sum += lbfgs::dot(&row[..i], &table[pair..pair + i]);
            }
            pair += i;
            trace += inverse[(i, i)] - a * a;
        }
        for k in 0..d {
            let w = hyper.weights[k];
            gradient[k] = w * (to_weights[k] + 0.1 - 0.1 / (w * w));
        }
        gradient[d] = off + 0.5 * trace * hyper.scale - 1.0 + hyper.scale;
        gradient[d + 1] = (hyper.noise - NOISE) * (0.5 * trace - 0.1 / hyper.noise + 30.0);
        let prior: f64 = hyper.weights.iter().map(|w| 0.1 / w + 0.1 * w).sum::<f64>()
            - (hyper.scale.ln() - hyper.scale)
            - (0.1 * hyper.noise.ln() - 30.0 * hyper.noise);
        log_det + 0.5 * fit + prior
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(n: usize) -> (Vec<Vec<f64>>, Vec<f64>) {
        let mut stream = crate::stream::Stream::new(1, n as u64, "data");
        let points: Vec<Vec<f64>> =
            (0..n).map(|_| vec![stream.unit(), stream.unit(), stream.below(3) as f64]).collect();
        let values = points.iter().map(|p| (6.0 * p[0]).sin() + p[1] * p[1] + 0.3 * p[2] - 1.0).collect();
        (points, values)
    }

    const CATEGORY: [bool; 3] = [false, false, true];

    #[test]
    fn the_likelihood_and_its_gradient_agree() {
        let (points, values) = data(12);
        let fit = Fit::new(&points, &values, &CATEGORY);
        let raw = [0.3, -0.7, 0.2, 0.4, -3.0];
        let mut gradient = [0.0; 5];
        fit.loss(&raw, &mut gradient);
        for k in 0..5 {
            let at = |h: f64| {
                let mut moved = raw;
                moved[k] += h;
                fit.loss(&moved, &mut [0.0; 5])
            };
            let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((numeric - gradient[k]).abs() < 1e-6 * (1.0 + numeric.abs()), "{k}: {numeric} {}", gradient[k]);
        }
    }

    #[test]
    fn predictions_and_their_gradients_agree() {
        let (points, values) = data(15);
        let start = Hyper::start(3);
        let hyper = Model::fit(&points, &values, &CATEGORY, &start, Stop { slope: 1e-4, iterations: 100 });
        let model = Model::new(points.clone(), &values, &CATEGORY, hyper);
        for (point, value) in points.iter().zip(&values) {
            let (mean, variance) = model.predict(std::slice::from_ref(point))[0];
            assert!((mean - value).abs() < 0.1 && variance < 0.05, "{mean} {value} {variance}");
        }
        let at = vec![0.31, 0.62, 1.0];
        let slopes = model.slopes(&at);
        let (mean, variance) = model.predict(std::slice::from_ref(&at))[0];
        assert!((slopes.mean - mean).abs() < 1e-9 && (slopes.variance - variance).abs() < 1e-9);
        for k in 0..2 {
            let moved = |h: f64| {
                let mut moved = at.clone();
                moved[k] += h;
                model.predict(&[moved])[0]
            };
            let (a, b) = (moved(1e-5), moved(-1e-5));
            let mean = (a.0 - b.0) / 2e-5;
            let variance = (a.1 - b.1) / 2e-5;
            assert!((mean - slopes.d_mean[k]).abs() < 1e-5, "{mean} {}", slopes.d_mean[k]);
            assert!((variance - slopes.d_variance[k]).abs() < 1e-5, "{variance} {}", slopes.d_variance[k]);
        }
    }
}
