//! The state of CMA-ES, generation by generation, in the unit cube: a pure function of what it was told.

use faer::{Mat, Side};

use super::Restart;
use super::rates::{Normal, Rates};
use crate::normal;
use crate::space::Domain;
use crate::stream::Stream;

/// A generation is drawn again so often where it leaves the cube, and then moved to its edge.
const REDRAWS: usize = 100;
/// A run has converged when losses, or steps, change by less than this.
const TOLERANCE: f64 = 1e-12;
/// And when the distribution is so much longer than wide.
const CONDITION: f64 = 1e14;
/// No step gets wider than this.
const WIDEST: f64 = 1e6;
/// The first step.
const SIGMA: f64 = 1.0 / 6.0;

/// One number.
#[derive(Clone, Debug)]
pub(super) enum Axis {
    Real,
    /// Edges between the cells of a countable number, in rising order.
    Steps(Vec<f64>),
}

impl Axis {
    pub(super) fn new(domain: &Domain) -> Self {
        // Finer steps than a thousand are as good as none.
        match domain.count() {
            Some(count) if count <= 1000 => {
                let (first, last) = (domain.raw(0.0), domain.raw(1.0));
                let step = (last - first) / (count - 1).max(1) as f64;
                let edge = |i: u64| domain.cell(first + i as f64 * step).map_or(0.0, |(from, _)| from);
                Self::Steps((1..count).map(edge).collect())
            }
            _ => Self::Real,
        }
    }
}

/// One run, between restarts.
#[derive(Clone, Debug)]
pub(super) struct Run {
    population: usize,
    mean: Vec<f64>,
    sigma: f64,
    covariance: Mat<f64>,
    path_sigma: Vec<f64>,
    path_c: Vec<f64>,
    generation: u64,
    /// By how much each axis is widened, so that no integer is out of reach.
    margin: Vec<f64>,
    /// Eigenvectors, and the roots of eigenvalues.
    basis: Mat<f64>,
    lengths: Vec<f64>,
    /// The best losses of late.
    bests: Vec<f64>,
    first_sigma: f64,
    rates: Option<Rates>,
}

impl Run {
    pub(super) fn new(n: usize, population: Option<usize>, adaptive: bool) -> Self {
        Self {
            population: population.unwrap_or(4 + (3.0 * (n as f64).ln()).floor() as usize),
            mean: vec![0.5; n],
            sigma: SIGMA,
            covariance: Mat::identity(n, n),
            path_sigma: vec![0.0; n],
            path_c: vec![0.0; n],
            generation: 0,
            margin: vec![1.0; n],
            basis: Mat::identity(n, n),
            lengths: vec![1.0; n],
            bests: vec![],
            first_sigma: SIGMA,
            rates: adaptive.then(|| Rates::new(n)),
        }
    }

    /// Starts from good points: their mean and their spread, a tenth of the cube wider.
    pub(super) fn warm(&mut self, rows: &[Vec<f64>]) {
        if rows.is_empty() {
            return;
        }
        let n = self.mean.len();
        let count = rows.len() as f64;
        self.mean = (0..n).map(|k| rows.iter().map(|r| r[k]).sum::<f64>() / count).collect();
        let mean = &self.mean;
        let spread = Mat::from_fn(n, n, |i, j| {
            let own = if i == j { 0.01 } else { 0.0 };
            own + rows.iter().map(|r| (r[i] - mean[i]) * (r[j] - mean[j])).sum::<f64>() / count
        });
        let scale = spread.determinant().max(1e-300).powf(1.0 / n as f64);
        self.sigma = scale.sqrt();
        self.first_sigma = self.sigma;
        self.covariance = Mat::from_fn(n, n, |i, j| spread[(i, j)] / scale);
        self.decompose();
    }

    fn decompose(&mut self) {
        let n = self.mean.len();
        let c = &self.covariance;
        let even = Mat::from_fn(n, n, |i, j| 0.5 * (c[(i, j)] + c[(j, i)]));
        if let Ok(eigen) = even.self_adjoint_eigen(Side::Lower) {
            self.basis = eigen.U().to_owned();
            let values = eigen.S().column_vector();
            self.lengths = (0..n).map(|i| values[i].max(1e-20).sqrt()).collect();
        }
        self.covariance = even;
    }

    /// Basis times `f(lengths)` times the transposed basis, times a vector.
    fn whiten(&self, y: &[f64]) -> Vec<f64> {
        let n = y.len();
        let turned: Vec<f64> = (0..n)
            .map(|i| (0..n).map(|k| self.basis[(k, i)] * y[k]).sum::<f64>() / self.lengths[i])
            .collect();
        (0..n).map(|k| (0..n).map(|i| self.basis[(k, i)] * turned[i]).sum()).collect()
    }

    fn distribution(&self) -> Normal {
        let n = self.mean.len();
        let mean = self.mean.iter().zip(&self.margin).map(|(at, margin)| at / margin).collect();
        let square = self.sigma * self.sigma;
        Normal {
            mean,
            sigma: self.sigma,
            covariance: Mat::from_fn(n, n, |i, j| square * self.covariance[(i, j)]),
        }
    }

    /// Takes back a part of the step that was just made, before the new covariance is decomposed.
    fn adapt(&mut self, before: &Normal) {
        let after = self.distribution();
        let Some(rates) = &mut self.rates else { return };
        let n = self.mean.len();
        let whiten = Mat::from_fn(n, n, |i, j| {
            (0..n).map(|k| self.basis[(i, k)] * self.basis[(j, k)] / self.lengths[k]).sum::<f64>()
                / before.sigma
        });
        let adapted = rates.adapt(before, &after, &whiten);
        let Ok(eigenvalues) = adapted.covariance.self_adjoint_eigenvalues(Side::Lower) else { return };
        let volume: f64 = eigenvalues.iter().map(|v| v.max(1e-300).ln()).sum();
        let sigma = (volume / (2.0 * n as f64)).exp().min(WIDEST);
        self.covariance = Mat::from_fn(n, n, |i, j| adapted.covariance[(i, j)] / (sigma * sigma));
        self.sigma = (sigma * adapted.growth).min(WIDEST);
        for ((at, new), margin) in self.mean.iter_mut().zip(adapted.mean).zip(&self.margin) {
            *at = (new * margin).clamp(0.0, 1.0);
        }
    }

    fn draw(&self, stream: &mut Stream) -> Vec<f64> {
        let n = self.mean.len();
        let z: Vec<f64> = (0..n).map(|i| stream.normal() * self.lengths[i]).collect();
        let y = (0..n).map(|k| (0..n).map(|i| self.basis[(k, i)] * z[i]).sum::<f64>());
        y.enumerate().map(|(k, y)| self.mean[k] + self.sigma * self.margin[k] * y).collect()
    }
}

/// The strategy: the current run, and what the restarts need to know.
#[derive(Clone, Debug)]
pub(super) struct State {
    axes: Vec<Axis>,
    run: Run,
    /// Counted over all runs.
    pub(super) generation: u64,
    first_population: usize,
    largest: usize,
    restarts: u64,
    /// Trials spent by growing and by small runs.
    spent: [usize; 2],
    small: bool,
}

impl State {
    pub(super) fn new(axes: Vec<Axis>, run: Run) -> Self {
        let population = run.population;
        let mut state = Self {
            axes,
            run,
            generation: 0,
            first_population: population,
            largest: population,
            restarts: 0,
            spent: [0, 0],
            small: false,
        };
        state.correct();
        state
    }

    pub(super) fn population(&self) -> usize {
        self.run.population
    }

    /// Where a trial of this generation is.
    pub(super) fn sample(&self, seed: u64, number: u64) -> Vec<f64> {
        let mut stream = Stream::new(seed, number, "cma-es");
        let mut at = self.run.draw(&mut stream);
        for _ in 0..REDRAWS {
            if at.iter().all(|x| (0.0..=1.0).contains(x)) {
                return at;
            }
            at = self.run.draw(&mut stream);
        }
        at.into_iter().map(|x| x.clamp(0.0, 1.0)).collect()
    }

    /// Takes in a whole generation.
    pub(super) fn learn(&mut self, mut ended: Vec<(Vec<f64>, [f64; 2])>, restart: Restart, seed: u64) {
        ended.sort_by(|a, b| a.1[0].total_cmp(&b.1[0]).then(a.1[1].total_cmp(&b.1[1])));
        self.spent[usize::from(self.small)] += ended.len();
        self.run.bests.push(ended[0].1[1]);
        update(&mut self.run, &ended);
        self.generation += 1;
        self.correct();
        if restart != Restart::Never && self.converged(&ended) {
            self.start_over(restart, seed);
        }
    }

    fn converged(&self, ended: &[(Vec<f64>, [f64; 2])]) -> bool {
        let run = &self.run;
        let n = run.mean.len();
        let late = 10 + (30 * n).div_ceil(run.population);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        let recent = run.bests.iter().rev().take(late).copied().chain(ended.iter().map(|e| e.1[1]));
        recent.for_each(|l| (low, high) = (low.min(l), high.max(l)));
        let flat = run.bests.len() >= late && high - low < TOLERANCE;
        let small = |k: usize| {
            let deviation = run.sigma * run.covariance[(k, k)].sqrt();
            deviation < TOLERANCE * run.first_sigma
                && (run.sigma * run.path_c[k]).abs() < TOLERANCE * run.first_sigma
        };
        let (short, long) =
            run.lengths.iter().fold((f64::INFINITY, 0.0f64), |(a, b), l| (a.min(*l), b.max(*l)));
        flat || (0..n).all(small)
            || (long / short).powi(2) > CONDITION
            || !run.sigma.is_finite()
            || run.sigma > 1e4
    }

    fn start_over(&mut self, restart: Restart, seed: u64) {
        self.restarts += 1;
        let mut stream = Stream::new(seed, self.restarts, "cma-es restart");
        let n = self.axes.len();
        self.small = restart == Restart::Bipop && self.restarts > 1 && self.spent[1] < self.spent[0];
        let (population, sigma) = if self.small {
            let ratio = 0.5 * self.largest as f64 / self.first_population as f64;
            let population = self.first_population as f64 * ratio.max(1.0).powf(stream.unit().powi(2));
            (population as usize, SIGMA * 10f64.powf(-2.0 * stream.unit()))
        } else {
            self.largest *= 2;
            (self.largest, SIGMA)
        };
        self.run = Run::new(n, Some(population.max(4)), self.run.rates.is_some());
        (self.run.sigma, self.run.first_sigma) = (sigma, sigma);
        self.run.mean = (0..n).map(|_| stream.unit()).collect();
        self.correct();
    }

    /// The margin: keeps the probability of every neighbouring integer from vanishing.
    fn correct(&mut self) {
        let run = &mut self.run;
        let alpha = 1.0 / (run.mean.len() * run.population) as f64;
        for (k, axis) in self.axes.iter().enumerate() {
            let Axis::Steps(edges) = axis else { continue };
            if edges.is_empty() {
                continue;
            }
            let own = run.sigma * run.covariance[(k, k)].sqrt();
            let deviation = own * run.margin[k];
            let mean = run.mean[k];
            let above = edges.partition_point(|e| *e <= mean);
            if above == 0 || above == edges.len() {
                // In an outermost cell there is one way out.
                let edge = if above == 0 { edges[0] } else { edges[above - 1] };
                let reach = -normal::quantile(alpha) * deviation;
                run.mean[k] = edge + (mean - edge).clamp(-reach, reach);
                continue;
            }
            let (low, high) = (edges[above - 1], edges[above]);
            let (down, up) = (normal::cdf((low - mean) / deviation), normal::cdf((mean - high) / deviation));
            let stay = 1.0 - down - up;
            let (wide_down, wide_up) = (down.max(alpha / 2.0), up.max(alpha / 2.0));
            let excess = 1.0 - wide_down - wide_up - stay;
            let share = excess / (wide_down + wide_up + stay - 1.5 * alpha);
            let z = |p: f64| -normal::quantile((p + share * (p - alpha / 2.0)).clamp(1e-12, 0.5 - 1e-9));
            let (z_down, z_up) = (z(wide_down), z(wide_up));
            run.mean[k] = (low * z_up + high * z_down) / (z_down + z_up);
            run.margin[k] = (high - low) / (own * (z_down + z_up));
        }
    }
}

/// Hansen's constants and update, with active weights.
fn update(run: &mut Run, ended: &[(Vec<f64>, [f64; 2])]) {
    let (size, n) = (run.mean.len(), run.mean.len() as f64);
    let count = ended.len();
    let parents = count / 2;
    let raw: Vec<f64> =
        (0..count).map(|i| ((count as f64 + 1.0) / 2.0).ln() - ((i + 1) as f64).ln()).collect();
    let effective = |w: &[f64]| w.iter().sum::<f64>().powi(2) / w.iter().map(|w| w * w).sum::<f64>();
    let (mass, mass_below) = (effective(&raw[..parents]), effective(&raw[parents..]));
    let c_one = 2.0 / ((n + 1.3).powi(2) + mass);
    let c_mu = (1.0 - c_one - 1e-8).min(2.0 * (mass - 2.0 + 1.0 / mass) / ((n + 2.0).powi(2) + mass));
    let least = (1.0 + c_one / c_mu)
        .min(1.0 + 2.0 * mass_below / (mass + 2.0))
        .min((1.0 - c_one - c_mu) / (n * c_mu));
    let positive: f64 = raw.iter().filter(|w| **w > 0.0).sum();
    let negative: f64 = raw.iter().filter(|w| **w < 0.0).map(|w| -w).sum();
    let weights: Vec<f64> =
        raw.iter().map(|w| if *w >= 0.0 { w / positive } else { least * w / negative }).collect();
    let c_sigma = (mass + 2.0) / (n + mass + 5.0);
    let damping = 1.0 + 2.0 * (((mass - 1.0) / (n + 1.0)).sqrt() - 1.0).max(0.0) + c_sigma;
    let c_path = (4.0 + mass / n) / (n + 4.0 + 2.0 * mass / n);
    let expected = n.sqrt() * (1.0 - 1.0 / (4.0 * n) + 1.0 / (21.0 * n * n));

    let before = run.distribution();
    let steps: Vec<Vec<f64>> = (ended.iter())
        .map(|(at, _)| (0..size).map(|k| (at[k] - run.mean[k]) / (run.sigma * run.margin[k])).collect())
        .collect();
    let mean: Vec<f64> = (0..size).map(|k| (0..parents).map(|i| weights[i] * steps[i][k]).sum()).collect();
    for ((at, margin), shift) in run.mean.iter_mut().zip(&run.margin).zip(&mean) {
        *at = (*at + run.sigma * margin * shift).clamp(0.0, 1.0);
    }
    let white = run.whiten(&mean);
    let norms: Vec<f64> = steps.iter().map(|y| run.whiten(y).iter().map(|w| w * w).sum::<f64>()).collect();
    for (path, white) in run.path_sigma.iter_mut().zip(&white) {
        *path = (1.0 - c_sigma) * *path + (c_sigma * (2.0 - c_sigma) * mass).sqrt() * white;
    }
    let length = run.path_sigma.iter().map(|p| p * p).sum::<f64>().sqrt();
    run.sigma = (run.sigma * (c_sigma / damping * (length / expected - 1.0)).exp()).min(WIDEST);
    let grown = (1.0 - (1.0 - c_sigma).powf(2.0 * (run.generation + 1) as f64)).sqrt();
    let calm = length / grown < (1.4 + 2.0 / (n + 1.0)) * expected;
    let calm = f64::from(u8::from(calm));
    for (path, mean) in run.path_c.iter_mut().zip(&mean) {
        *path = (1.0 - c_path) * *path + calm * (c_path * (2.0 - c_path) * mass).sqrt() * mean;
    }
    let kept =
        1.0 + c_one * (1.0 - calm) * c_path * (2.0 - c_path) - c_one - c_mu * weights.iter().sum::<f64>();
    let scaled: Vec<f64> = (weights.iter().zip(&norms))
        .map(|(w, norm)| if *w >= 0.0 { *w } else { w * n / (norm + 1e-8) })
        .collect();
    run.covariance = Mat::from_fn(size, size, |i, j| {
        let rank_mu: f64 = steps.iter().zip(&scaled).map(|(y, w)| w * y[i] * y[j]).sum();
        kept * run.covariance[(i, j)] + c_one * run.path_c[i] * run.path_c[j] + c_mu * rank_mu
    });
    run.adapt(&before);
    run.generation += 1;
    run.decompose();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fifteen generations of seven points, drawn without the distribution's own randomness, and what is learnt.
    fn learnt(adaptive: bool) -> Run {
        let mut state = State::new(vec![Axis::Real, Axis::Real, Axis::Real], Run::new(3, None, adaptive));
        let mut bits = 1u64;
        for _ in 0..15 {
            let mut generation = vec![];
            for _ in 0..state.population() {
                let mut draw = |k: usize| {
                    bits = bits.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let unit = (bits >> 11) as f64 / (1u64 << 53) as f64;
                    state.run.mean[k] + state.run.sigma * (4.0 * unit - 2.0)
                };
                let at: Vec<f64> = (0..3).map(&mut draw).collect();
                let part = |(k, x): (usize, &f64)| (k as f64 + 1.0) * (x - 0.45 - 0.05 * k as f64).powi(2);
                let loss = at.iter().enumerate().map(part).sum();
                generation.push((at, [0.0, loss]));
            }
            state.learn(generation, Restart::Never, 0);
        }
        state.run
    }

    fn agree(run: &Run, mean: [f64; 3], sigma: f64, covariance: [[f64; 3]; 3]) {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()), "{a} {b}");
        near(run.sigma, sigma);
        for i in 0..3 {
            near(run.mean[i], mean[i]);
            (0..3).for_each(|j| near(run.covariance[(i, j)], covariance[i][j]));
        }
    }

    /// Figures of the Python package cmaes 0.13.1: `CMA(mean=[.5] * 3, sigma=1/6, lr_adapt=..)` was told the same points.
    #[test]
    fn learns_what_cmaes_learns() {
        agree(
            &learnt(false),
            [0.39647608670116763, 0.4854874546014046, 0.5732703062909786],
            0.05222941144660786,
            [
                [1.389338637377648, -0.16532111007965117, -0.06559168366728765],
                [-0.1653211100796511, 0.7460394094483805, -0.11006347756463769],
                [-0.06559168366728765, -0.11006347756463769, 0.2629284534455451],
            ],
        );
        agree(
            &learnt(true),
            [0.36892534433000934, 0.47661127970286954, 0.5665003180409667],
            0.07324520603813249,
            [
                [1.9271291497037588, 0.26763980436415935, 0.1527062811238735],
                [0.26763980436415935, 1.4870986407813014, 0.3123004718349847],
                [0.1527062811238735, 0.3123004718349847, 0.42842540837997095],
            ],
        );
    }
}
