//! The Gaussian process: Matern 5/2 with a length scale for each parameter, its hyperparameters fitted by maximum a
//! posteriori.

use faer::linalg::solvers::{DenseSolveCore, Llt, Solve};
use faer::linalg::triangular_solve;
use faer::{Mat, Par, Side};

use super::lbfgs::{self, Stop};
use crate::normal::exp;

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

/// Correlations at squared distances, in place, and their slopes there.
pub(super) fn matern(squared: &mut [f64], slopes: &mut [f64]) {
    for (s, slope) in squared.iter_mut().zip(slopes) {
        let r = (5.0 * *s).sqrt();
        let e = exp(-r);
        *slope = -5.0 / 6.0 * (r + 1.0) * e;
        *s = e * (5.0 / 3.0 * *s + r + 1.0);
    }
}

/// How far apart two points are along each parameter, squared; different categories are 1 apart.
pub(super) fn apart(a: f64, b: f64, category: bool) -> f64 {
    if category { f64::from(u8::from(a != b)) } else { (a - b) * (a - b) }
}

/// A process that has seen points, and one or several sets of values at them.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) hyper: Hyper,
    /// One column a parameter.
    columns: Vec<Vec<f64>>,
    category: Vec<bool>,
    /// K^-1 y, one column a set of values.
    alpha: Mat<f64>,
    /// L^-1: a variance is one product with it, and so is its gradient.
    inverse: Mat<f64>,
}

impl Model {
    /// Fits hyperparameters to points of the unit cube and standardised values, starting from `start`.
    pub(super) fn fit(points: &[Vec<f64>], values: &[f64], category: &[bool], start: &Hyper) -> Hyper {
        let fit = Fit::new(points, values, category);
        let stop = Stop { slope: 1e-2, iterations: 100 };
        let best = |from: &Hyper| {
            let mut raw = from.raw();
            let bounds = (vec![-BOUND; raw.len()], vec![BOUND; raw.len()]);
            let loss = lbfgs::minimise(|r, g| fit.loss(r, g), &mut raw, (&bounds.0, &bounds.1), stop);
            loss.is_finite().then(|| Hyper::of(&raw))
        };
        best(start)
            .or_else(|| best(&Hyper::start(category.len())))
            .unwrap_or_else(|| Hyper::start(category.len()))
    }

    /// A process with these hyperparameters. `values` has a row for each point.
    pub(super) fn new(points: &[Vec<f64>], values: &Mat<f64>, category: &[bool], hyper: Hyper) -> Self {
        let n = points.len();
        let columns = (0..category.len()).map(|k| points.iter().map(|p| p[k]).collect()).collect();
        let empty = Mat::zeros(0, 0);
        let mut model =
            Self { hyper, columns, category: category.to_vec(), alpha: empty.clone(), inverse: empty };
        loop {
            let mut covariance = model.covariances(points);
            for i in 0..n {
                covariance[(i, i)] += model.hyper.noise;
            }
            let Ok(factor) = Llt::new(covariance.as_ref(), Side::Lower) else {
                // Nearly equal points with hardly any noise: a little more noise separates them.
                model.hyper.noise *= 10.0;
                continue;
            };
            model.inverse = Mat::identity(n, n);
            triangular_solve::solve_lower_triangular_in_place(factor.L(), model.inverse.as_mut(), Par::Seq);
            model.alpha = factor.solve(values);
            return model;
        }
    }

    /// Which parameters are categories.
    pub(super) fn category(&self) -> &[bool] {
        &self.category
    }

    /// How many sets of values there are.
    pub(super) fn sets(&self) -> usize {
        self.alpha.ncols()
    }

    /// Covariances of the seen points with one, and their slopes by squared distance.
    fn covariance(&self, at: &[f64], covariance: &mut [f64], slopes: &mut [f64]) {
        covariance.fill(0.0);
        for (k, column) in self.columns.iter().enumerate() {
            let (x, w) = (at[k], self.hyper.weights[k]);
            if self.category[k] {
                covariance.iter_mut().zip(column).for_each(|(c, p)| *c += if *p == x { 0.0 } else { w });
            } else {
                covariance.iter_mut().zip(column).for_each(|(c, p)| *c += w * ((p - x) * (p - x)));
            }
        }
        matern(covariance, slopes);
        let scale = self.hyper.scale;
        covariance.iter_mut().for_each(|c| *c *= scale);
        slopes.iter_mut().for_each(|s| *s *= scale);
    }

    /// Covariances of the seen points with some: one column a point.
    pub(super) fn covariances(&self, at: &[Vec<f64>]) -> Mat<f64> {
        let n = self.columns.first().map_or(0, Vec::len);
        let mut all = Mat::zeros(n, at.len());
        let mut slopes = vec![0.0; n];
        for (j, point) in at.iter().enumerate() {
            let column = all.col_mut(j).try_as_col_major_mut().expect("a whole matrix");
            self.covariance(point, column.as_slice_mut(), &mut slopes);
        }
        all
    }

    /// Variances at some points, and the means there: one row a set of values.
    pub(super) fn predict(&self, at: &[Vec<f64>]) -> (Mat<f64>, Vec<f64>) {
        let covariances = self.covariances(at);
        let white = &self.inverse * &covariances;
        let means = self.alpha.transpose() * &covariances;
        let known = |j: usize| white.col(j).squared_norm_l2();
        let variances = (0..at.len()).map(|j| (self.hyper.scale - known(j)).max(0.0)).collect();
        (means, variances)
    }

    /// Joint means (of the first set of values) and covariances at some points.
    pub(super) fn joint(&self, at: &[Vec<f64>]) -> (Vec<f64>, Mat<f64>) {
        let covariances = self.covariances(at);
        let white = &self.inverse * &covariances;
        let means = self.alpha.transpose() * &covariances;
        let columns = (0..self.category.len()).map(|k| at.iter().map(|p| p[k]).collect()).collect();
        let among = Self { columns, ..self.clone() }.covariances(at);
        ((0..at.len()).map(|j| means[(0, j)]).collect(), among - white.transpose() * &white)
    }

    /// Mean and variance at a point, with their gradients. `judge` looks at the variance and the means of all sets, and
    /// says how much each set counts for the gradient of the mean.
    pub(super) fn slopes(&self, at: &[f64], judge: impl FnOnce(&[f64], f64) -> Vec<f64>) -> Slopes {
        let (n, d) = (self.alpha.nrows(), at.len());
        let mut covariance = Mat::zeros(n, 1);
        let mut slopes = vec![0.0; n];
        let column = covariance.col_mut(0).try_as_col_major_mut().expect("a whole matrix");
        self.covariance(at, column.as_slice_mut(), &mut slopes);
        let white = &self.inverse * &covariance;
        let solved = self.inverse.transpose() * &white;
        let means = self.alpha.transpose() * &covariance;
        let means: Vec<f64> = (0..means.nrows()).map(|s| means[(s, 0)]).collect();
        let variance = (self.hyper.scale - white.squared_norm_l2()).max(0.0);
        let shares = judge(&means, variance);
        let shares = Mat::from_fn(shares.len(), 1, |s, _| shares[s]);
        let alpha = &self.alpha * &shares;
        let mut out = Slopes { mean: vec![0.0; d], variance: vec![0.0; d] };
        for k in (0..d).filter(|k| !self.category[*k]) {
            let (w, column) = (self.hyper.weights[k], &self.columns[k]);
            for i in 0..n {
                let t = 2.0 * w * (at[k] - column[i]) * slopes[i];
                out.mean[k] += t * alpha[(i, 0)];
                out.variance[k] -= 2.0 * t * solved[(i, 0)];
            }
        }
        out
    }
}

/// The gradients of a weighted mean and of the variance.
#[derive(Clone, Debug)]
pub(super) struct Slopes {
    pub(super) mean: Vec<f64>,
    pub(super) variance: Vec<f64>,
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
        matern(&mut squared, &mut slopes);
        let mut pair = 0;
        for i in 0..n {
            for j in 0..i {
                covariance[(i, j)] = hyper.scale * squared[pair];
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
                off += row[j] * hyper.scale * squared[pair + j];
                row[j] *= hyper.scale * slopes[pair + j];
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

    /// Figures of scikit-learn: `GaussianProcessRegressor(ConstantKernel(1.3) * Matern(1 / sqrt([4, 0.7]), nu=2.5),
    /// alpha=1e-3, optimizer=None)` after the same eight points.
    #[test]
    fn predicts_what_scikit_learn_predicts() {
        let points: Vec<Vec<f64>> =
            (0..8).map(|i| (0..2).map(|k| f64::from((i * 37 + k * 61) % 23) / 22.0).collect()).collect();
        let values: Vec<f64> = (0..8).map(|i| f64::from((i * 7) % 5) / 2.0 - 1.0).collect();
        let hyper = Hyper { weights: vec![4.0, 0.7], scale: 1.3, noise: 1e-3 };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()), "{a} {b}");

        let model = Model::new(&points, &Mat::from_fn(8, 1, |i, _| values[i]), &[false; 2], hyper);
        let at = [vec![0.3, 0.6], vec![0.05, 0.95], vec![0.5, 0.5]];
        let (means, variances) = model.predict(&at);
        let (joint, covariance) = model.joint(&at);
        let expected = [0.8690425143624338, -0.6178622133061538, 0.47671394663694855];
        for (i, mean) in expected.into_iter().enumerate() {
            near(means[(0, i)], mean);
            near(joint[i], mean);
        }
        for (i, variance) in
            [0.05886766009676747, 0.046415553428443834, 0.061543098296228615].into_iter().enumerate()
        {
            near(variances[i], variance);
        }
        near(covariance[(0, 1)], -0.03237964837947094);

        // The fit's loss is the likelihood without its constant, and the priors of weights, scale and noise.
        let raw = [4f64.ln(), 0.7f64.ln(), 1.3f64.ln(), (1e-3 - NOISE).ln()];
        let loss = Fit::new(&points, &values, &[false; 2]).loss(&raw, &mut [0.0; 4]);
        let weights = [4.0, 0.7].map(|w| 0.1 / w + 0.1 * w).iter().sum::<f64>();
        let prior = weights - (1.3f64.ln() - 1.3) - (0.1 * 1e-3f64.ln() - 30.0 * 1e-3);
        near(loss - prior + 4.0 * (2.0 * std::f64::consts::PI).ln(), 32.87471095727933);
    }

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
            assert!(
                (numeric - gradient[k]).abs() < 1e-6 * (1.0 + numeric.abs()),
                "{k}: {numeric} {}",
                gradient[k]
            );
        }
    }

    #[test]
    fn predictions_and_their_gradients_agree() {
        let (points, values) = data(15);
        let hyper = Model::fit(&points, &values, &CATEGORY, &Hyper::start(3));
        let model = Model::new(&points, &Mat::from_fn(15, 1, |i, _| values[i]), &CATEGORY, hyper);
        let (means, variances) = model.predict(&points);
        for (i, value) in values.iter().enumerate() {
            assert!((means[(0, i)] - value).abs() < 0.1 && variances[i] < 0.05, "{value} {means:?}");
        }
        let (joint, covariance) = model.joint(&points[..3]);
        assert!((joint[2] - means[(0, 2)]).abs() < 1e-9 && (covariance[(1, 1)] - variances[1]).abs() < 1e-9);
        let at = vec![0.31, 0.62, 1.0];
        let slopes = model.slopes(&at, |_, _| vec![1.0]);
        for k in 0..2 {
            let moved = |h: f64| {
                let mut moved = at.clone();
                moved[k] += h;
                let (mean, variance) = model.predict(&[moved]);
                (mean[(0, 0)], variance[0])
            };
            let (a, b) = (moved(1e-5), moved(-1e-5));
            let (mean, variance) = ((a.0 - b.0) / 2e-5, (a.1 - b.1) / 2e-5);
            assert!((mean - slopes.mean[k]).abs() < 1e-5, "{mean} {}", slopes.mean[k]);
            assert!((variance - slopes.variance[k]).abs() < 1e-5, "{variance} {}", slopes.variance[k]);
        }
    }
}
