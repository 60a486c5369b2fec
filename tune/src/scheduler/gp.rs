//! A small Gaussian process whose past fades, for [`Pb2`](super::Pb2): at most a few hundred points, written out by hand.

/// What is known at one point.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) time: f64,
    pub(super) at: Vec<f64>,
    pub(super) value: f64,
}

/// A fitted process over points and time, with zero mean and the kernel `v exp(-d^2 / l) (1 - e)^(|dt| / 2)`.
#[derive(Debug)]
pub(super) struct Gp {
    points: Vec<Point>,
    shape: Shape,
    /// The scale `v` of the kernel.
    scale: f64,
    /// The lower triangle of the Cholesky factor, row by row.
    factor: Vec<Vec<f64>>,
    /// The inverse of the kernel matrix times the values.
    weights: Vec<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    length: f64,
    fading: f64,
    /// As a share of the scale.
    noise: f64,
}

impl Shape {
    fn kernel(&self, a: &Point, b: &Point) -> f64 {
        self.similarity(distance(a, b))
    }

    /// Of two points that are so far from each other, squared, and so long.
    fn similarity(&self, (space, time): (f64, f64)) -> f64 {
        (time / 2.0 * (1.0 - self.fading).ln() - space / self.length).exp()
    }

    fn factor(&self, kernel: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut factor: Vec<Vec<f64>> = Vec::with_capacity(kernel.len());
        for known in kernel {
            let mut row = Vec::with_capacity(known.len() + 1);
            for (j, similarity) in known.iter().enumerate() {
                let sum = similarity - dot(&row, &factor[j][..j]);
                row.push(sum / factor[j][j]);
            }
            // The noise keeps this away from zero; rounding must not push it below.
            row.push((1.0 + self.noise - dot(&row, &row)).max(1e-12).sqrt());
            factor.push(row);
        }
        factor
    }
}

/// The squared distance in space, and the distance in time.
fn distance(a: &Point, b: &Point) -> (f64, f64) {
    let space = a.at.iter().zip(&b.at).map(|(a, b)| (a - b) * (a - b)).sum();
    (space, (a.time - b.time).abs())
}

/// Something of every two points: below the diagonal, row by row.
fn pairs<T>(points: &[Point], of: impl Fn(&Point, &Point) -> T) -> Vec<Vec<T>> {
    points.iter().enumerate().map(|(i, a)| points[..i].iter().map(|b| of(a, b)).collect()).collect()
}

/// The sum of products over the shorter length.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Solves `L x = b`.
fn forward(factor: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let mut x: Vec<f64> = Vec::with_capacity(b.len());
    for (row, b) in factor.iter().zip(b) {
        let next = (b - dot(row, &x)) / row[x.len()];
        x.push(next);
    }
    x
}

/// Solves `L^T x = b`.
fn backward(factor: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let mut x = b.to_vec();
    for i in (0..x.len()).rev() {
        x[i] /= factor[i][i];
        for j in 0..i {
            x[j] -= factor[i][j] * x[i];
        }
    }
    x
}

impl Gp {
    /// The process under which these values are likeliest, among a grid of shapes.
    pub(super) fn fit(points: Vec<Point>) -> Gp {
        let values: Vec<f64> = points.iter().map(|point| point.value).collect();
        let n = points.len() as f64;
        let dimensions = points.first().map_or(1.0, |point| point.at.len().max(1) as f64);
        let distances = pairs(&points, distance);
        let mut best: Option<(f64, Gp)> = None;
        for length in [0.05, 0.2, 0.8, 3.0] {
            for fading in [0.0, 0.05, 0.2] {
                let shape = Shape { length: length * dimensions, fading, noise: 0.0 };
                let similar = |row: &Vec<_>| row.iter().map(|distance| shape.similarity(*distance)).collect();
                let kernel: Vec<Vec<f64>> = distances.iter().map(similar).collect();
                for noise in [3e-3, 3e-2, 3e-1] {
                    let shape = Shape { noise, ..shape };
                    let factor = shape.factor(&kernel);
                    let half = forward(&factor, &values);
                    // The best scale for a shape is known in closed form.
                    let scale = (dot(&half, &half) / n).max(1e-12);
                    let volume: f64 = factor.iter().enumerate().map(|(i, row)| row[i].ln()).sum();
                    let likelihood = -0.5 * n * scale.ln() - volume;
                    if best.as_ref().is_none_or(|(best, _)| likelihood > *best) {
                        let weights = backward(&factor, &half);
                        best =
                            Some((likelihood, Gp { points: points.clone(), shape, scale, factor, weights }));
                    }
                }
            }
        }
        best.expect("the grid is not empty").1
    }

    /// The mean and the variance at a point; its own value does not matter.
    pub(super) fn predict(&self, point: &Point) -> (f64, f64) {
        let row: Vec<f64> = self.points.iter().map(|other| self.shape.kernel(point, other)).collect();
        let half = forward(&self.factor, &row);
        (dot(&row, &self.weights), self.scale * (1.0 - dot(&half, &half)).max(0.0))
    }

    /// As if these points had been measured as predicted: the mean stays, the variance near them shrinks.
    pub(super) fn believing(self, pending: Vec<Point>) -> Gp {
        let mut points = self.points.clone();
        points.extend(pending.into_iter().map(|point| Point { value: self.predict(&point).0, ..point }));
        let factor = self.shape.factor(&pairs(&points, |a, b| self.shape.kernel(a, b)));
        let values: Vec<f64> = points.iter().map(|point| point.value).collect();
        let weights = backward(&factor, &forward(&factor, &values));
        Gp { points, factor, weights, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(time: f64, at: f64, value: f64) -> Point {
        Point { time, at: vec![at], value }
    }

    #[test]
    fn it_interpolates_and_doubts_what_is_far() {
        let points =
            (0..12).map(|i| point(0.0, f64::from(i) / 11.0, (f64::from(i) / 11.0 * 6.0).sin())).collect();
        let gp = Gp::fit(points);
        let (near, sure) = gp.predict(&point(0.0, 0.5, 0.0));
        let (_, unsure) = gp.predict(&point(0.0, 3.0, 0.0));
        assert!((near - 3.0f64.sin()).abs() < 0.05, "{near}");
        assert!(sure < 0.01 && unsure > 10.0 * sure, "{sure} {unsure}");
    }

    /// Values that drift with time are told apart by the fading: late ones count for more.
    #[test]
    fn the_past_fades() {
        let drift = |i: u32| point(f64::from(i), 0.5, if i < 10 { -1.0 } else { 1.0 });
        let gp = Gp::fit((0..20).map(drift).collect());
        assert!(gp.predict(&point(20.0, 0.5, 0.0)).0 > 0.5);
        assert!(gp.predict(&point(0.0, 0.5, 0.0)).0 < -0.5);
    }

    #[test]
    fn belief_shrinks_doubt_and_keeps_the_mean() {
        let points: Vec<Point> = [0.1, 0.3, 0.6].iter().map(|x| point(0.0, *x, x * 2.0 - 0.7)).collect();
        let (before, doubt) = Gp::fit(points.clone()).predict(&point(0.0, 0.9, 0.0));
        let (after, less) =
            Gp::fit(points).believing(vec![point(0.0, 0.9, 0.0)]).predict(&point(0.0, 0.9, 0.0));
        assert!((before - after).abs() < 1e-6 && less < doubt, "{before} {after} {doubt} {less}");
    }
}
