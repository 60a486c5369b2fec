//! The small Parzen estimator: the few good trials, built anew for every suggestion, from which candidates are drawn.

use crate::normal;
use crate::space::Domain;
use crate::stream::Stream;

/// How one parameter enters a kernel.
#[derive(Clone, Debug)]
pub(super) enum Axis {
    /// A truncated normal density on the unit interval.
    Smooth(Domain),
    /// The normal's probability of a value's cell.
    Cells(Domain),
    /// Hit or miss.
    Category(usize),
}

/// Cells narrower than this are as good as points: a kernel is at least ten times as wide.
const FINE: f64 = 1e-3;

impl Axis {
    pub(super) fn new(domain: &Domain) -> Self {
        match (domain, domain.count()) {
            (Domain::Category(values), _) => Self::Category(values.len()),
            (_, None) => Self::Smooth(domain.clone()),
            (_, Some(_)) => {
                let width = |unit: f64| domain.cell(domain.raw(unit)).map_or(0.0, |(a, b)| b - a);
                if width(0.0).max(width(1.0)) <= FINE {
                    Self::Smooth(domain.clone())
                } else {
                    Self::Cells(domain.clone())
                }
            }
        }
    }

    /// A raw value's coordinate: its place in the unit interval, or its category.
    pub(super) fn coordinate(&self, raw: f64) -> f64 {
        match self {
            Self::Smooth(domain) | Self::Cells(domain) => domain.unit(raw),
            Self::Category(_) => raw,
        }
    }

    /// The raw value of a coordinate.
    pub(super) fn raw(&self, coordinate: f64) -> f64 {
        match self {
            Self::Smooth(domain) | Self::Cells(domain) => domain.raw(coordinate),
            Self::Category(_) => coordinate,
        }
    }

    /// The cell around a coordinate of a countable axis.
    pub(super) fn cell(&self, coordinate: f64) -> (f64, f64) {
        match self {
            Self::Cells(domain) => domain.cell(domain.raw(coordinate)).unwrap_or((coordinate, coordinate)),
            _ => (coordinate, coordinate),
        }
    }
}

/// The logarithms of a categorical kernel's probability at its own category and at another, among `n` observations.
pub(super) fn hit_or_miss(n: usize, categories: usize) -> (f64, f64) {
    let prior = 1.0 / (n as f64 + 1.0);
    let sum = 1.0 + categories as f64 * prior;
    (((1.0 + prior) / sum).ln(), (prior / sum).ln())
}

/// The weights of `n` observations by rank, oldest first: the last 25 count fully, those before them less and less.
pub(super) fn weights(n: usize) -> impl Fn(usize) -> f64 {
    let ramp = n.saturating_sub(25);
    let first = 1.0 / n as f64;
    let slope = (1.0 - first) / ramp.saturating_sub(1).max(1) as f64;
    move |rank| if rank < ramp { first + rank as f64 * slope } else { 1.0 }
}

/// The narrowest kernel among `n` observations.
pub(super) fn floor(n: usize) -> f64 {
    1.0 / (n as f64 + 2.0).min(100.0)
}

/// A kernel's width: the larger gap to its neighbours; an outermost one looks inwards only.
pub(super) fn sigma(left: Option<f64>, at: f64, right: Option<f64>, n: usize) -> f64 {
    let gap = match (left, right) {
        (None, None) => at.max(1.0 - at),
        (None, Some(right)) => right - at,
        (Some(left), None) => at - left,
        (Some(left), Some(right)) => (at - left).max(right - at),
    };
    gap.clamp(floor(n), 1.0)
}

/// The logarithm of `1 / (sigma * mass inside the unit interval)`.
pub(super) fn log_norm(centre: f64, sigma: f64) -> f64 {
    -(sigma * inside(centre, sigma)).ln()
}

/// How much of a normal distribution lies inside the unit interval.
fn inside(centre: f64, sigma: f64) -> f64 {
    normal::between(-centre / sigma, (1.0 - centre) / sigma)
}

/// The logarithm of a truncated normal's probability of a cell.
pub(super) fn log_cell(centre: f64, sigma: f64, cell: (f64, f64)) -> f64 {
    log_mass(centre, sigma, cell) - inside(centre, sigma).ln()
}

/// The logarithm of a normal's probability of a cell.
fn log_mass(centre: f64, sigma: f64, (from, to): (f64, f64)) -> f64 {
    normal::between((from - centre) / sigma, (to - centre) / sigma).max(1e-300).ln()
}

/// The prior kernel of a numeric axis: as wide as the axis.
pub(super) const PRIOR: (f64, f64) = (0.5, 1.0);

/// The prior's log density at some points.
pub(super) fn prior(axes: &[Axis], points: &[Vec<f64>]) -> Vec<f64> {
    let kernels: Vec<Kernel> = axes.iter().map(|axis| axis.kernel(PRIOR.0, PRIOR.1)).collect();
    let density = |at: &Vec<f64>| {
        let parts = axes.iter().zip(&kernels).zip(at);
        parts.map(|((axis, kernel), x)| axis.log_density(*kernel, *x, 0)).sum::<f64>()
    };
    points.iter().map(density).collect()
}

/// One axis of a kernel.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    centre: f64,
    sigma: f64,
    /// The logarithm of its constant, which costs more than the rest of it.
    norm: f64,
}

impl Axis {
    fn kernel(&self, centre: f64, sigma: f64) -> Kernel {
        let norm = match self {
            Self::Smooth(_) => log_norm(centre, sigma),
            Self::Cells(_) => -inside(centre, sigma).ln(),
            Self::Category(_) => 0.0,
        };
        Kernel { centre, sigma, norm }
    }

    /// A kernel's log density at `x`; for a category, `n` is the number of observations, and 0 stands for the prior.
    fn log_density(&self, kernel: Kernel, x: f64, n: usize) -> f64 {
        let Kernel { centre, sigma, norm } = kernel;
        match self {
            Self::Smooth(_) => norm - 0.5 * ((x - centre) / sigma).powi(2),
            Self::Cells(_) => norm + log_mass(centre, sigma, self.cell(x)),
            Self::Category(count) if n == 0 => -(*count as f64).ln(),
            Self::Category(count) => {
                let (hit, miss) = hit_or_miss(n, *count);
                if centre == x { hit } else { miss }
            }
        }
    }
}

/// A mixture of product kernels over a few observations, and the prior.
pub(super) struct Parzen<'a> {
    axes: &'a [Axis],
    /// One row an observation, one column an axis.
    kernels: Vec<Vec<Kernel>>,
    weights: Vec<f64>,
}

impl<'a> Parzen<'a> {
    /// Of observations, oldest first. `uniform` weighs them all alike.
    pub(super) fn new(axes: &'a [Axis], rows: &[Vec<f64>], uniform: bool) -> Self {
        let n = rows.len();
        let mut kernels: Vec<Vec<Kernel>> = vec![Vec::with_capacity(axes.len()); n];
        for (k, axis) in axes.iter().enumerate() {
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|a, b| rows[*a][k].total_cmp(&rows[*b][k]));
            for (place, row) in order.iter().enumerate() {
                let left = place.checked_sub(1).map(|p| rows[order[p]][k]);
                let right = order.get(place + 1).map(|r| rows[*r][k]);
                let at = rows[*row][k];
                kernels[*row].push(axis.kernel(at, sigma(left, at, right, n)));
            }
        }
        kernels.push(axes.iter().map(|axis| axis.kernel(PRIOR.0, PRIOR.1)).collect());
        let weight = weights(n);
        let weights = (0..n).map(|i| if uniform { 1.0 } else { weight(i) }).chain([1.0]).collect();
        Self { axes, kernels, weights }
    }

    /// Draws a point.
    pub(super) fn sample(&self, stream: &mut Stream) -> Vec<f64> {
        let total: f64 = self.weights.iter().sum();
        let mut left = stream.unit() * total;
        let mut row = 0;
        while row + 1 < self.weights.len() && left >= self.weights[row] {
            left -= self.weights[row];
            row += 1;
        }
        let observations = if row + 1 == self.kernels.len() { 0 } else { self.kernels.len() - 1 };
        let kernel = &self.kernels[row];
        let draw = |(axis, Kernel { centre, sigma, .. }): (&Axis, &Kernel)| match axis {
            Axis::Category(count) => {
                let u = stream.unit();
                let other = stream.below(*count) as f64;
                // A row is one observation plus 1/(n+1) of every category; without observations, all are alike.
                let own = (observations as f64 + 1.0) / (observations as f64 + 1.0 + *count as f64);
                if observations > 0 && u < own { *centre } else { other }
            }
            axis => {
                let (from, to) = (normal::cdf(-centre / sigma), normal::cdf((1.0 - centre) / sigma));
                let z = normal::quantile(from + stream.unit() * (to - from));
                let x = (centre + sigma * z).clamp(0.0, 1.0);
                axis.coordinate(axis.raw(x))
            }
        };
        self.axes.iter().zip(kernel).map(draw).collect()
    }

    /// The log density at a point, up to a constant.
    pub(super) fn log_density(&self, at: &[f64]) -> f64 {
        let n = self.kernels.len() - 1;
        let terms: Vec<f64> = (self.kernels.iter().zip(&self.weights).enumerate())
            .map(|(row, (kernel, weight))| {
                let n = if row == n { 0 } else { n };
                let parts = self.axes.iter().zip(kernel).zip(at);
                weight.ln() + parts.map(|((axis, kernel), x)| axis.log_density(*kernel, *x, n)).sum::<f64>()
            })
            .collect();
        let top = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        top + terms.iter().map(|t| (t - top).exp()).sum::<f64>().ln()
    }
}
