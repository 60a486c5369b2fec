//! Learning rates that adapt (LRA-CMA-ES, Nomura, Akimoto and Ono 2023): where the steps of mean and shape are mostly
//! noise, on rugged or noisy functions, smaller ones are taken, in place of a larger population.

use faer::Mat;

/// By how much more signal than noise a step should have.
const ALPHA: f64 = 1.4;
/// How fast the averages of the mean's and of the shape's steps forget.
const BETA: [f64; 2] = [0.1, 0.03];
/// How fast the rates change.
const GAMMA: f64 = 0.1;

/// What is remembered of one parameter's steps: their moving average, and that of their squared lengths.
#[derive(Clone, Debug)]
struct Steps {
    rate: f64,
    average: Vec<f64>,
    square: f64,
}

impl Steps {
    fn new(len: usize) -> Self {
        Self { rate: 1.0, average: vec![0.0; len], square: 0.0 }
    }

    /// Takes in a step and says what the rate is now.
    fn learn(&mut self, step: &[f64], beta: f64) -> f64 {
        for (average, step) in self.average.iter_mut().zip(step) {
            *average = (1.0 - beta) * *average + beta * step;
        }
        self.square = (1.0 - beta) * self.square + beta * square(step);
        let signal = square(&self.average);
        let ratio = (signal - beta / (2.0 - beta) * self.square) / (self.square - signal);
        // Without any noise, as in the very first step, the ratio is infinite, and without any step it is not a number.
        let wish = (ratio / ALPHA / self.rate - 1.0).clamp(-1.0, 1.0);
        if !wish.is_nan() {
            self.rate = (self.rate * ((GAMMA * self.rate).min(beta) * wish).exp()).min(1.0);
        }
        self.rate
    }
}

/// The rates of a run.
#[derive(Clone, Debug)]
pub(super) struct Rates {
    mean: Steps,
    shape: Steps,
}

/// A normal distribution: its mean (in units of the margin), and its covariance with the step's size in it.
pub(super) struct Normal {
    pub(super) mean: Vec<f64>,
    pub(super) sigma: f64,
    pub(super) covariance: Mat<f64>,
}

/// What becomes of it.
pub(super) struct Adapted {
    pub(super) mean: Vec<f64>,
    pub(super) covariance: Mat<f64>,
    /// By how much the step's size is to grow for the mean's rate having shrunk.
    pub(super) growth: f64,
}

impl Rates {
    pub(super) fn new(n: usize) -> Self {
        Self { mean: Steps::new(n), shape: Steps::new(n * n) }
    }

    /// Shortens the step from one distribution to the next. `whiten` is the inverse root of the former's covariance.
    pub(super) fn adapt(&mut self, before: &Normal, after: &Normal, whiten: &Mat<f64>) -> Adapted {
        let n = before.mean.len();
        let shift: Vec<f64> = before.mean.iter().zip(&after.mean).map(|(a, b)| b - a).collect();
        let bend = &after.covariance - &before.covariance;
        let local: Vec<f64> = (0..n).map(|i| (0..n).map(|k| whiten[(i, k)] * shift[k]).sum()).collect();
        let turned = whiten * &bend * whiten;
        let bent: Vec<f64> =
            (0..n * n).map(|i| turned[(i / n, i % n)] * std::f64::consts::FRAC_1_SQRT_2).collect();
        let former = self.mean.rate;
        let rate = self.mean.learn(&local, BETA[0]);
        let shape = self.shape.learn(&bent, BETA[1]);
        Adapted {
            mean: before.mean.iter().zip(&shift).map(|(at, step)| at + rate * step).collect(),
            covariance: Mat::from_fn(n, n, |i, j| before.covariance[(i, j)] + shape * bend[(i, j)]),
            growth: former / rate,
        }
    }
}

fn square(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum()
}
