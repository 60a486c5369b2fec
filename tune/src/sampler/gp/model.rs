//! The Gaussian process: Matern 5/2 with a length scale for each parameter, its hyperparameters fitted by maximum a
//! posteriori.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::cholesky::llt;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::{Llt, Solve};
use faer::linalg::triangular_solve;
use faer::{Accum, Mat, Par, Side};

use super::lanes::{self, Column};
use super::lbfgs::{self, Stop};
use super::warp;

/// The least noise that is assumed: below it the matrices are hard to factor.
const NOISE: f64 = 1e-6;
/// Inside these bounds (in the logarithm) hyperparameters are looked for: beyond them nothing changes any more.
const BOUND: f64 = 15.0;
/// So many points are predicted at a time: their covariances stay in the cache.
const BLOCK: usize = 64;

/// What is fitted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hyper {
    /// 1 / length scale squared, for each parameter.
    pub(super) weights: Vec<f64>,
    /// The variance of the function.
    pub(super) scale: f64,
    /// The variance of an observation.
    pub(super) noise: f64,
    /// How the values are bent; 1 leaves them as they are.
    pub(super) power: f64,
}

impl Hyper {
    /// Where a fit starts without knowing better.
    pub(super) fn start(dimensions: usize) -> Self {
        Self { weights: vec![1.0; dimensions], scale: 1.0, noise: 0.01 + NOISE, power: 1.0 }
    }

    fn raw(&self) -> Vec<f64> {
        let noise = (self.noise - 0.99 * NOISE).max(1e-9).ln();
        let logs = self.weights.iter().map(|w| w.ln()).chain([self.scale.ln(), noise]);
        logs.map(|l| l.clamp(-BOUND, BOUND)).chain([self.power]).collect()
    }

    fn of(raw: &[f64]) -> Self {
        let d = raw.len() - 3;
        let weights = raw[..d].iter().map(|r| r.exp()).collect();
        Self { weights, scale: raw[d].exp(), noise: raw[d + 1].exp() + NOISE, power: raw[d + 2] }
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
    /// Fits hyperparameters to points of the unit cube and standardised values, starting from `start`. Values that may not
    /// be bent keep the power of the start.
    pub(super) fn fit(
        points: &[Vec<f64>],
        values: &[f64],
        category: &[bool],
        start: &Hyper,
        bends: bool,
    ) -> Hyper {
        let mut fit = Fit::new(points, values, category, bends);
        let stop = Stop { slope: 1e-2, iterations: 100 };
        let mut best = |from: &Hyper| {
            let mut raw = from.raw();
            let bound = |of_power: f64, other: f64| {
                let mut bound = vec![other; raw.len()];
                bound[category.len() + 2] = of_power;
                bound
            };
            let bounds = (bound(warp::POWERS.0, -BOUND), bound(warp::POWERS.1, BOUND));
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

    /// How much better it predicts the lower half of its values, each from all the others, than one normal distribution does
    /// that has their own mean and variance: the gain in log likelihood for each.
    pub(super) fn knowledge(&self, values: &[f64]) -> f64 {
        let n = values.len();
        let mut low: Vec<usize> = (0..n).collect();
        low.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
        low.truncate(n.div_ceil(2));
        let count = low.len() as f64;
        let mean = low.iter().map(|i| values[*i]).sum::<f64>() / count;
        let variance = low.iter().map(|i| (values[*i] - mean).powi(2)).sum::<f64>() / count;
        // Left out, a value is missed by alpha / precision with the variance 1 / precision, where that is K^-1's diagonal.
        let surprise = |i: &usize| {
            let column = &self.inverse.col_as_slice(*i)[*i..];
            let precision = lanes::dot(column, column);
            self.alpha[(*i, 0)].powi(2) / precision - precision.ln()
        };
        let surprise = low.iter().map(surprise).sum::<f64>() / count;
        0.5 * (1.0 + variance.max(f64::MIN_POSITIVE).ln() - surprise)
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
        let column = |k: usize| Column {
            places: &self.columns[k],
            weight: self.hyper.weights[k],
            category: self.category[k],
        };
        let columns: Vec<Column<'_>> = (0..at.len()).map(column).collect();
        lanes::correlations(&columns, at, covariance, slopes);
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
        let mut means = Mat::zeros(self.sets(), at.len());
        let mut variances = Vec::with_capacity(at.len());
        let n = self.inverse.nrows();
        let mut white = Mat::zeros(n, BLOCK.min(at.len()));
        for (block, at) in at.chunks(BLOCK).enumerate() {
            let covariances = self.covariances(at);
            let mut white = white.subcols_mut(0, at.len());
            triangular::matmul(
                white.as_mut(),
                BlockStructure::Rectangular,
                Accum::Replace,
                &self.inverse,
                BlockStructure::TriangularLower,
                &covariances,
                BlockStructure::Rectangular,
                1.0,
                Par::Seq,
            );
            means.subcols_mut(block * BLOCK, at.len()).copy_from(self.alpha.transpose() * &covariances);
            let white = white.as_ref();
            let known = (0..at.len()).map(|j| white.col(j).squared_norm_l2());
            variances.extend(known.map(|known| (self.hyper.scale - known).max(0.0)));
        }
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
        let (mut covariance, mut slopes) = (vec![0.0; n], vec![0.0; n]);
        self.covariance(at, &mut covariance, &mut slopes);
        let below = |j: usize| &self.inverse.col_as_slice(j)[j..];
        let mut white = vec![0.0; n];
        (0..n).for_each(|j| lanes::add(&mut white[j..], covariance[j], below(j)));
        let means: Vec<f64> =
            (0..self.sets()).map(|s| lanes::dot(self.alpha.col_as_slice(s), &covariance)).collect();
        let variance = (self.hyper.scale - lanes::dot(&white, &white)).max(0.0);
        let shares = judge(&means, variance);
        let mut to_mean = vec![0.0; n];
        for (s, share) in shares.iter().enumerate() {
            lanes::add(&mut to_mean, *share, self.alpha.col_as_slice(s));
        }
        to_mean.iter_mut().zip(&slopes).for_each(|(t, s)| *t *= s);
        let to_variance: Vec<f64> = (0..n).map(|j| lanes::dot(below(j), &white[j..]) * slopes[j]).collect();
        let mut out = Slopes { mean: vec![0.0; d], variance: vec![0.0; d] };
        for k in (0..d).filter(|k| !self.category[*k]) {
            let w = self.hyper.weights[k];
            let apart: Vec<f64> = self.columns[k].iter().map(|p| at[k] - p).collect();
            out.mean[k] = 2.0 * w * lanes::dot(&apart, &to_mean);
            out.variance[k] = -4.0 * w * lanes::dot(&apart, &to_variance);
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

/// The likelihood's data: squared distances along each parameter, for pairs i > j, and room to work in.
struct Fit<'a> {
    values: &'a [f64],
    bends: bool,
    /// One table a parameter, packed column by column.
    apart: Vec<Vec<f64>>,
    pairs: [Vec<f64>; 2],
    covariance: Mat<f64>,
    inverse: Mat<f64>,
    memory: MemBuffer,
}

impl<'a> Fit<'a> {
    fn new(points: &[Vec<f64>], values: &'a [f64], category: &[bool], bends: bool) -> Self {
        let n = points.len();
        let table = |k: usize| -> Vec<f64> {
            let pair = |(i, j): (usize, usize)| apart(points[i][k], points[j][k], category[k]);
            (0..n).flat_map(|j| (j + 1..n).map(move |i| (i, j))).map(pair).collect()
        };
        let count = n * n.saturating_sub(1) / 2;
        let room = StackReq::any_of(&[
            llt::factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()),
            llt::solve::solve_in_place_scratch::<f64>(n, 1, Par::Seq),
            llt::inverse::inverse_scratch::<f64>(n, Par::Seq),
        ]);
        Self {
            values,
            bends,
            apart: (0..category.len()).map(table).collect(),
            pairs: [vec![0.0; count], vec![0.0; count]],
            covariance: Mat::zeros(n, n),
            inverse: Mat::zeros(n, n),
            memory: MemBuffer::new(room),
        }
    }

    /// The negative log posterior of the hyperparameters' logarithms, and its gradient.
    fn loss(&mut self, raw: &[f64], gradient: &mut [f64]) -> f64 {
        let (n, d) = (self.values.len(), self.apart.len());
        let hyper = Hyper::of(raw);
        let bent = self.bends.then(|| warp::bent(self.values, hyper.power));
        let values = bent.as_ref().map_or(self.values, |bent| &bent.values);
        let Self { apart, pairs: [correlations, slopes], covariance, inverse, memory, .. } = self;
        lanes::weighed(apart, &hyper.weights, correlations, slopes);
        let mut first = 0;
        for j in 0..n {
            let below = first..first + n - 1 - j;
            first = below.end;
            let column = &mut covariance.col_as_slice_mut(j)[j..];
            column[0] = hyper.scale + hyper.noise;
            column[1..].iter_mut().zip(&correlations[below]).for_each(|(c, b)| *c = hyper.scale * b);
        }
        let stack = MemStack::new(memory);
        let (even, auto) = (Default::default(), Default::default());
        if llt::factor::cholesky_in_place(covariance.as_mut(), even, Par::Seq, stack, auto).is_err() {
            return f64::INFINITY;
        }
        let lower = (*covariance).as_ref();
        let mut alpha = Mat::from_fn(n, 1, |i, _| values[i]);
        llt::solve::solve_in_place(lower, alpha.as_mut(), Par::Seq, stack);
        llt::inverse::inverse(inverse.as_mut(), lower, Par::Seq, stack);
        let log_det: f64 = (0..n).map(|i| lower[(i, i)].ln()).sum();
        let alpha = alpha.col_as_slice(0);
        let fit = lanes::dot(alpha, values);

        // d loss / d K = (K^-1 - alpha alpha') / 2; off the diagonal every pair counts twice.
        let (mut trace, mut off) = (0.0, 0.0);
        first = 0;
        for j in 0..n {
            let below = first..first + n - 1 - j;
            first = below.end;
            let column = &mut inverse.col_as_slice_mut(j)[j..];
            lanes::add(column, -alpha[j], &alpha[j..]);
            trace += column[0];
            off += lanes::dot(&column[1..], &correlations[below.clone()]);
            slopes[below].iter_mut().zip(&column[1..]).for_each(|(s, c)| *s *= c);
        }
        for k in 0..d {
            let w = hyper.weights[k];
            let to_weight = hyper.scale * lanes::dot(slopes, &apart[k]);
            gradient[k] = w * (to_weight + 0.1 - 0.1 / (w * w));
        }
        gradient[d] = hyper.scale * (off + 0.5 * trace) - 1.0 + hyper.scale;
        gradient[d + 1] = (hyper.noise - NOISE) * (0.5 * trace - 0.1 / hyper.noise + 30.0);
        gradient[d + 2] = 0.0;
        let mut bending = 0.0;
        if let Some(bent) = bent {
            // A standard normal prior about no bending.
            let off = hyper.power - 1.0;
            gradient[d + 2] = lanes::dot(alpha, &bent.slopes) - bent.log_slope + off;
            bending = 0.5 * off * off - bent.log;
        }
        let prior: f64 = hyper.weights.iter().map(|w| 0.1 / w + 0.1 * w).sum::<f64>()
            - (hyper.scale.ln() - hyper.scale)
            - (0.1 * hyper.noise.ln() - 30.0 * hyper.noise);
        log_det + 0.5 * fit + prior + bending
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
        let hyper = Hyper { weights: vec![4.0, 0.7], scale: 1.3, noise: 1e-3, power: 1.0 };
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
        let raw = [4f64.ln(), 0.7f64.ln(), 1.3f64.ln(), (1e-3 - NOISE).ln(), 1.0];
        let loss = Fit::new(&points, &values, &[false; 2], false).loss(&raw, &mut [0.0; 5]);
        let weights = [4.0, 0.7].map(|w| 0.1 / w + 0.1 * w).iter().sum::<f64>();
        let prior = weights - (1.3f64.ln() - 1.3) - (0.1 * 1e-3f64.ln() - 30.0 * 1e-3);
        near(loss - prior + 4.0 * (2.0 * std::f64::consts::PI).ln(), 32.87471095727933);
    }

    /// Twelve points and standardised values, for figures of Optuna 5.0.0.
    fn twelve() -> (Vec<Vec<f64>>, Vec<f64>) {
        let points: Vec<Vec<f64>> =
            (0..12).map(|i| (0..2).map(|k| f64::from((i * 37 + k * 61) % 23) / 22.0).collect()).collect();
        let values: Vec<f64> = points.iter().map(|p| (6.0 * p[0]).sin() + p[1] * p[1]).collect();
        let mean = values.iter().sum::<f64>() / 12.0;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 12.0).sqrt();
        (points, values.iter().map(|v| (v - mean) / deviation).collect())
    }

    /// Figures of Optuna 5.0.0: `fit_kernel_params` with its default prior, gtol=1e-6.
    #[test]
    fn fits_what_optuna_fits() {
        let (points, values) = twelve();
        let theirs = Hyper {
            weights: vec![0.10878469970071287, 3.021544460534098],
            scale: 1.6330373095627189,
            noise: 3.851230547659521e-06,
            power: 1.0,
        };
        let ours = Model::fit(&points, &values, &[false; 2], &Hyper::start(2), false);
        let mut fit = Fit::new(&points, &values, &[false; 2], false);
        let mut loss = |hyper: &Hyper| fit.loss(&hyper.raw(), &mut [0.0; 5]);
        assert!(loss(&ours) < loss(&theirs) + 1e-3, "{ours:?}");
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 0.02, "{ours:?}");
        near(ours.scale, theirs.scale);
        (0..2).for_each(|k| near(ours.weights[k], theirs.weights[k]));
    }

    /// Against processes that have really not seen the value.
    #[test]
    fn knows_what_it_predicts_of_values_left_out() {
        let (points, smooth) = data(16);
        let mut stream = crate::stream::Stream::new(2, 0, "chance");
        let chance: Vec<f64> = (0..16).map(|_| stream.normal()).collect();
        for (values, knows) in [(smooth, true), (chance, false)] {
            let hyper = Model::fit(&points, &values, &CATEGORY, &Hyper::start(3), false);
            let model = |at: &[usize]| {
                let points: Vec<Vec<f64>> = at.iter().map(|i| points[*i].clone()).collect();
                let values = Mat::from_fn(at.len(), 1, |i, _| values[at[i]]);
                Model::new(&points, &values, &CATEGORY, hyper.clone())
            };
            let mut order: Vec<usize> = (0..16).collect();
            let knowledge = model(&order).knowledge(&values);
            order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
            let low = &order[..8];
            let density = |value: f64, mean: f64, variance: f64| {
                -0.5 * ((value - mean).powi(2) / variance + variance.ln())
            };
            let mean = low.iter().map(|i| values[*i]).sum::<f64>() / 8.0;
            let variance = low.iter().map(|i| (values[*i] - mean).powi(2)).sum::<f64>() / 8.0;
            let gain = |i: &usize| {
                let others: Vec<usize> = (0..16).filter(|j| j != i).collect();
                let (means, variances) = model(&others).predict(&[points[*i].clone()]);
                density(values[*i], means[(0, 0)], variances[0] + hyper.noise)
                    - density(values[*i], mean, variance)
            };
            let expected = low.iter().map(gain).sum::<f64>() / 8.0;
            assert!((knowledge - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{knowledge} {expected}");
            assert_eq!(knowledge > 0.0, knows, "{knowledge}");
        }
    }

    #[test]
    fn the_likelihood_and_its_gradient_agree() {
        let (points, values) = data(12);
        let mut fit = Fit::new(&points, &values, &CATEGORY, true);
        let raw = [0.3, -0.7, 0.2, 0.4, -3.0, 0.4];
        let mut gradient = [0.0; 6];
        fit.loss(&raw, &mut gradient);
        for k in 0..6 {
            let mut at = |h: f64| {
                let mut moved = raw;
                moved[k] += h;
                fit.loss(&moved, &mut [0.0; 6])
            };
            let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!(
                (numeric - gradient[k]).abs() < 1e-6 * (1.0 + numeric.abs()),
                "{k}: {numeric} {}",
                gradient[k]
            );
        }
    }

    /// What is smooth until something stretched it is bent back; what is smooth as it is stays nearly so.
    #[test]
    fn the_power_is_that_of_the_function() {
        let (points, values) = data(30);
        let stretched: Vec<f64> = values.iter().map(|v| (3.0 * v).exp()).collect();
        let standard = |values: &[f64]| super::super::standardised(values).0;
        let power =
            |values: &[f64]| Model::fit(&points, &standard(values), &CATEGORY, &Hyper::start(3), true).power;
        assert!(power(&stretched) < -0.5 && power(&values) > 0.5, "{} {}", power(&stretched), power(&values));
    }

    #[test]
    fn predictions_and_their_gradients_agree() {
        let (points, values) = data(15);
        let hyper = Model::fit(&points, &values, &CATEGORY, &Hyper::start(3), false);
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
