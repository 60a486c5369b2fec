//! L-BFGS inside a box: quasi-Newton steps on the coordinates that are free, projected back onto the box.

use std::collections::VecDeque;

/// How many past steps the curvature is estimated from.
const MEMORY: usize = 10;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    /// The largest slope that counts as flat.
    pub(super) slope: f64,
    /// The most iterations.
    pub(super) iterations: usize,
}

/// Minimises a function with its gradient from `x`, inside `[low, high]`. Answers with the best value; `x` is where.
pub(super) fn minimise(
    mut function: impl FnMut(&[f64], &mut [f64]) -> f64,
    x: &mut [f64],
    (low, high): (&[f64], &[f64]),
    stop: Stop,
) -> f64 {
    let n = x.len();
    let mut gradient = vec![0.0; n];
    let mut value = function(x, &mut gradient);
    let mut memory: VecDeque<(Vec<f64>, Vec<f64>, f64)> = VecDeque::new();
    for _ in 0..stop.iterations {
        let stuck =
            |i: usize| (x[i] <= low[i] && gradient[i] > 0.0) || (x[i] >= high[i] && gradient[i] < 0.0);
        let free: Vec<bool> = (0..n).map(|i| !stuck(i)).collect();
        let slope = (0..n).filter(|i| free[*i]).map(|i| gradient[i].abs()).fold(0.0, f64::max);
        // A value that is not a number never compares: such a start is left where it is.
        if !value.is_finite() || slope <= stop.slope {
            break;
        }
        let mut direction = direction(&gradient, &free, &memory);
        if dot(&direction, &gradient) >= 0.0 {
            memory.clear();
            direction = (0..n).map(|i| if free[i] { -gradient[i] } else { 0.0 }).collect();
        }
        let largest = direction.iter().fold(0.0f64, |m, d| m.max(d.abs()));
        let first = if memory.is_empty() { (1.0 / largest).min(1.0) } else { 1.0 };
        let Some((next, next_value, next_gradient)) =
            search(&mut function, (x, value, &gradient), &direction, first, (low, high))
        else {
            if memory.is_empty() {
                break;
            }
            memory.clear();
            continue;
        };
        let step: Vec<f64> = (0..n).map(|i| next[i] - x[i]).collect();
        let change: Vec<f64> = (0..n).map(|i| next_gradient[i] - gradient[i]).collect();
        let curvature = dot(&step, &change);
        if curvature > 1e-10 * dot(&change, &change).max(1e-300) {
            memory.push_back((step, change, 1.0 / curvature));
            if memory.len() > MEMORY {
                memory.pop_front();
            }
        }
        let gain = value - next_value;
        x.copy_from_slice(&next);
        (value, gradient) = (next_value, next_gradient);
        if gain <= 2.2e-9 * value.abs().max(1.0) {
            break;
        }
    }
    value
}

/// The two loops of L-BFGS, on the free coordinates.
fn direction(gradient: &[f64], free: &[bool], memory: &VecDeque<(Vec<f64>, Vec<f64>, f64)>) -> Vec<f64> {
    let mask = |v: &mut [f64]| v.iter_mut().zip(free).filter(|(_, f)| !**f).for_each(|(v, _)| *v = 0.0);
    let mut q: Vec<f64> = gradient.to_vec();
    mask(&mut q);
    let mut alphas = vec![];
    for (step, change, rho) in memory.iter().rev() {
        let alpha = rho * dot(step, &q);
        q.iter_mut().zip(change).for_each(|(q, y)| *q -= alpha * y);
        alphas.push(alpha);
    }
    if let Some((_, change, rho)) = memory.back() {
        let scale = 1.0 / (rho * dot(change, change));
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for ((step, change, rho), alpha) in memory.iter().zip(alphas.iter().rev()) {
        let beta = rho * dot(change, &q);
        q.iter_mut().zip(step).for_each(|(q, s)| *q += (alpha - beta) * s);
    }
    mask(&mut q);
    q.iter_mut().for_each(|q| *q = -*q);
    q
}

/// Halves a step (by a parabola's advice) until the value falls enough for the slope.
fn search(
    function: &mut impl FnMut(&[f64], &mut [f64]) -> f64,
    (x, value, gradient): (&[f64], f64, &[f64]),
    direction: &[f64],
    first: f64,
    (low, high): (&[f64], &[f64]),
) -> Option<(Vec<f64>, f64, Vec<f64>)> {
    let n = x.len();
    let mut t = first;
    for _ in 0..20 {
        let next: Vec<f64> = (0..n).map(|i| (x[i] + t * direction[i]).clamp(low[i], high[i])).collect();
        let expected: f64 = (0..n).map(|i| gradient[i] * (next[i] - x[i])).sum();
        if expected >= 0.0 {
            return None;
        }
        let mut next_gradient = vec![0.0; n];
        let next_value = function(&next, &mut next_gradient);
        if next_value <= value + 1e-4 * expected {
            return Some((next, next_value, next_gradient));
        }
        let parabola = -0.5 * expected / (next_value - value - expected);
        t *= if parabola.is_finite() { parabola.clamp(0.1, 0.5) } else { 0.25 };
    }
    None
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
