//! The large Parzen estimator: all the trials that are not among the best, kept up to date one trial at a time.
//!
//! A kernel's width depends on its neighbours alone once there are a hundred, so a trial that comes or goes changes about
//! three widths an axis, and what is left is one pass over the columns. Trials stand in the order of their numbers, and
//! everything here is a function of the trials in the crowd, whenever they came in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use super::lanes::{self, BLOCK, LogSum, Numbers};
use super::parzen::{Axis, hit_or_miss, log_cell, log_norm, prior, sigma, weights};

/// From so many kernels on, the narrowest width no longer depends on their number.
const SETTLED: usize = 98;

/// One axis of the ended trials.
#[derive(Clone, Debug, Default)]
struct Column {
    at: Vec<f64>,
    /// 1 / (sigma sqrt 2) of a smooth axis.
    scale: Vec<f64>,
    /// The kernel's log constant of a smooth axis.
    norm: Vec<f64>,
    /// Which of `kernels`, on an axis of cells.
    kernel: Vec<u32>,
    /// Present members in order: where they are, and their numbers.
    order: BTreeSet<(u64, u64)>,
    /// The distinct (centre, sigma) of an axis of cells.
    kernels: Vec<(f64, f64)>,
    ids: HashMap<(u64, u64), u32>,
}

/// The crowd of one group of parameters.
#[derive(Clone, Debug)]
pub(super) struct Crowd {
    axes: Vec<Axis>,
    columns: Vec<Column>,
    /// The rows' trials.
    numbers: Vec<u64>,
    /// Whether a row counts: the best trials have rows too, and do not.
    present: Vec<bool>,
    /// The sum of a row's log constants, minus infinity for an absent one.
    base: Vec<f64>,
    running: BTreeMap<u64, Vec<f64>>,
    count: usize,
    /// Axes and trials whose widths are to be worked out.
    dirty: BTreeSet<(usize, u64)>,
    settled: usize,
}

impl Crowd {
    pub(super) fn new(axes: Vec<Axis>) -> Self {
        let columns = vec![Column::default(); axes.len()];
        Self {
            axes,
            columns,
            numbers: vec![],
            present: vec![],
            base: vec![],
            running: BTreeMap::new(),
            count: 0,
            dirty: BTreeSet::new(),
            settled: 0,
        }
    }

    pub(super) fn axes(&self) -> &[Axis] {
        &self.axes
    }

    /// A trial's row.
    fn row(&self, number: u64) -> Option<usize> {
        self.numbers.binary_search(&number).ok()
    }

    /// The coordinates of an ended trial.
    pub(super) fn coordinates(&self, number: u64) -> Option<Vec<f64>> {
        self.row(number).map(|row| self.columns.iter().map(|c| c.at[row]).collect())
    }

    /// Takes in a trial that ended. It does not count at first.
    pub(super) fn push(&mut self, number: u64, coordinates: &[f64]) {
        let row = self.numbers.partition_point(|n| *n < number);
        for (column, at) in self.columns.iter_mut().zip(coordinates) {
            column.at.insert(row, *at);
            column.scale.insert(row, 0.0);
            column.norm.insert(row, 0.0);
            column.kernel.insert(row, 0);
        }
        self.numbers.insert(row, number);
        self.present.insert(row, false);
        self.base.insert(row, f64::NEG_INFINITY);
    }

    /// Makes an ended trial count, or not.
    pub(super) fn set(&mut self, number: u64, present: bool) {
        let Some(row) = self.row(number) else { return };
        if std::mem::replace(&mut self.present[row], present) != present {
            let coordinates: Vec<f64> = self.columns.iter().map(|c| c.at[row]).collect();
            self.seat(number, &coordinates, present);
            self.base[row] = f64::NEG_INFINITY;
        }
    }

    /// Takes in a running trial.
    pub(super) fn start(&mut self, number: u64, coordinates: Vec<f64>) {
        self.seat(number, &coordinates, true);
        self.running.insert(number, coordinates);
    }

    /// Lets go of a running trial that ended.
    pub(super) fn stop(&mut self, number: u64) {
        if let Some(coordinates) = self.running.remove(&number) {
            self.seat(number, &coordinates, false);
        }
    }

    /// The running trials.
    pub(super) fn running(&self) -> impl Iterator<Item = u64> {
        self.running.keys().copied()
    }

    fn seat(&mut self, number: u64, coordinates: &[f64], present: bool) {
        if present {
            self.count += 1;
        } else {
            self.count -= 1;
        }
        for (axis, at) in coordinates.iter().enumerate() {
            if matches!(self.axes[axis], Axis::Category(_)) {
                continue;
            }
            let order = &mut self.columns[axis].order;
            let key = (sortable(*at), number);
            if present {
                order.insert(key);
                self.dirty.insert((axis, number));
            } else {
                order.remove(&key);
                self.dirty.remove(&(axis, number));
            }
            let next = order.range((Excluded(key), Unbounded)).next();
            let neighbours = [order.range(..key).next_back(), next];
            self.dirty.extend(neighbours.into_iter().flatten().map(|(_, number)| (axis, *number)));
        }
    }

    /// Brings widths up to date.
    fn settle(&mut self) {
        if self.count != self.settled && self.count.min(self.settled) < SETTLED {
            for (axis, column) in self.columns.iter_mut().enumerate() {
                // All of them are named anew; those of before would be worked out for nothing.
                column.kernels.clear();
                column.ids.clear();
                self.dirty.extend(column.order.iter().map(|(_, number)| (axis, *number)));
            }
        }
        self.settled = self.count;
        let mut rows: Vec<usize> = vec![];
        for (axis, number) in std::mem::take(&mut self.dirty) {
            // The widths of running trials are worked out when they are needed.
            let Some(row) = self.row(number) else { continue };
            let at = self.columns[axis].at[row];
            let width = self.width(axis, at, number);
            let column = &mut self.columns[axis];
            match self.axes[axis] {
                Axis::Smooth(_) => {
                    column.scale[row] = 1.0 / (width * std::f64::consts::SQRT_2);
                    column.norm[row] = log_norm(at, width);
                }
                _ => column.kernel[row] = column.intern(at, width),
            }
            rows.push(row);
        }
        rows.extend(
            (0..self.present.len()).filter(|r| self.present[*r] && self.base[*r] == f64::NEG_INFINITY),
        );
        rows.sort_unstable();
        rows.dedup();
        for row in rows {
            self.base[row] = self.columns.iter().map(|c| c.norm[row]).sum();
        }
    }

    /// A kernel's width among its neighbours.
    fn width(&self, axis: usize, at: f64, number: u64) -> f64 {
        let order = &self.columns[axis].order;
        let key = (sortable(at), number);
        let left = order.range(..key).next_back();
        let right = order.range((Excluded(key), Unbounded)).next();
        let value = |entry: Option<&(u64, u64)>| entry.map(|(bits, _)| unsortable(*bits));
        sigma(value(left), at, value(right), self.count)
    }

    /// The log density at some points, up to a constant.
    pub(super) fn log_density(&mut self, points: &[Vec<f64>]) -> Vec<f64> {
        self.settle();
        let (rows, running) = (self.weights(), self.running_terms(points));
        let smooth: Vec<usize> =
            (0..self.axes.len()).filter(|a| matches!(self.axes[*a], Axis::Smooth(_))).collect();
        let at: Vec<Vec<f64>> = points.iter().map(|p| smooth.iter().map(|a| p[*a]).collect()).collect();
        let mut sums: Vec<LogSum> = prior(&self.axes, points).into_iter().map(LogSum::new).collect();
        let tables = self.tables(points);
        let mut exponents = [0.0; BLOCK];
        for start in (0..self.present.len()).step_by(BLOCK) {
            let end = (start + BLOCK).min(self.present.len());
            let numbers: Vec<Numbers<'_>> = smooth
                .iter()
                .map(|a| &self.columns[*a])
                .map(|c| Numbers { centre: &c.at[start..end], scale: &c.scale[start..end] })
                .collect();
            for (point, sum) in sums.iter_mut().enumerate() {
                let exponents = &mut exponents[..end - start];
                exponents.copy_from_slice(&self.base[start..end]);
                for (axis, table) in &tables {
                    self.columns[*axis].add(&self.axes[*axis], &table[point], start, exponents);
                }
                lanes::add(sum, exponents, &rows[start..end], &numbers, &at[point]);
            }
        }
        for (sum, terms) in sums.iter_mut().zip(running) {
            for mut term in terms {
                lanes::add(sum, std::slice::from_mut(&mut term), &[1.0], &[], &[]);
            }
        }
        sums.into_iter().map(LogSum::ln).collect()
    }

    /// The rows' weights by their rank among those present; running trials come after them all.
    fn weights(&self) -> Vec<f64> {
        let (mut rank, weight) = (0, weights(self.count));
        let mut weigh = |present: &bool| {
            rank += usize::from(*present);
            if *present { weight(rank - 1) } else { 0.0 }
        };
        self.present.iter().map(&mut weigh).collect()
    }

    /// The log terms of the running trials' kernels, for each point.
    fn running_terms(&self, points: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut terms = vec![vec![]; points.len()];
        let (ended, weight) = (self.count - self.running.len(), weights(self.count));
        for (place, (number, centre)) in self.running.iter().enumerate() {
            let log_weight = weight(ended + place).ln();
            let widths: Vec<f64> = (0..centre.len()).map(|a| self.width(a, centre[a], *number)).collect();
            for (point, terms) in points.iter().zip(&mut terms) {
                let mut term = log_weight;
                for (axis, kind) in self.axes.iter().enumerate() {
                    let (c, s, x) = (centre[axis], widths[axis], point[axis]);
                    term += match kind {
                        Axis::Smooth(_) => log_norm(c, s) - 0.5 * ((x - c) / s).powi(2),
                        Axis::Cells(_) => log_cell(c, s, kind.cell(x)),
                        Axis::Category(count) => {
                            let (hit, miss) = hit_or_miss(self.count, *count);
                            if c == x { hit } else { miss }
                        }
                    };
                }
                terms.push(term);
            }
        }
        terms
    }

    /// For each axis that is not smooth and each point, what a kernel (or a category) adds.
    fn tables(&self, points: &[Vec<f64>]) -> Vec<(usize, Vec<Vec<f64>>)> {
        let mut tables = vec![];
        for (axis, kind) in self.axes.iter().enumerate() {
            let kernels = &self.columns[axis].kernels;
            let table = |point: &Vec<f64>| match kind {
                Axis::Category(count) => {
                    let (hit, miss) = hit_or_miss(self.count, *count);
                    (0..*count).map(|c| if c as f64 == point[axis] { hit } else { miss }).collect()
                }
                _ => {
                    let cell = kind.cell(point[axis]);
                    kernels.iter().map(|(centre, sigma)| log_cell(*centre, *sigma, cell)).collect()
                }
            };
            if !matches!(kind, Axis::Smooth(_)) {
                tables.push((axis, points.iter().map(table).collect()));
            }
        }
        tables
    }
}

impl Column {
    fn intern(&mut self, centre: f64, sigma: f64) -> u32 {
        let kernels = &mut self.kernels;
        *self.ids.entry((centre.to_bits(), sigma.to_bits())).or_insert_with(|| {
            kernels.push((centre, sigma));
            kernels.len() as u32 - 1
        })
    }

    fn add(&self, kind: &Axis, table: &[f64], start: usize, exponents: &mut [f64]) {
        if matches!(kind, Axis::Category(_)) {
            for (exponent, category) in exponents.iter_mut().zip(&self.at[start..]) {
                *exponent += table[*category as usize];
            }
        } else {
            for (exponent, kernel) in exponents.iter_mut().zip(&self.kernel[start..]) {
                *exponent += table.get(*kernel as usize).copied().unwrap_or(0.0);
            }
        }
    }
}

/// Coordinates are not negative, and such doubles sort as their bits do.
fn sortable(at: f64) -> u64 {
    at.max(0.0).to_bits()
}

fn unsortable(bits: u64) -> f64 {
    f64::from_bits(bits)
}

#[cfg(test)]
mod tests {
    use super::super::parzen::Parzen;
    use super::*;
    use crate::space::Domain;
    use crate::stream::Stream;

    /// After hundreds of trials that come, go and run, in any order, the density is what the plain estimator says of those
    /// present, in the order of their numbers.
    #[test]
    fn it_is_the_plain_estimator() {
        let real = Domain::Float { low: 0.0, high: 1.0, log: false, step: None };
        let cells = Domain::Int { low: 1, high: 9, log: false, step: 1 };
        let axes =
            vec![Axis::new(&real), Axis::new(&real), Axis::new(&real), Axis::new(&cells), Axis::Category(3)];
        let mut stream = Stream::new(3, 0, "crowd");
        let mut crowd = Crowd::new(axes.clone());
        let mut rows: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for step in 0..400u64 {
            let centre = 0.3 + 0.4 * f64::from(u8::from(step > 200));
            let near = |stream: &mut Stream| (centre + 0.1 * stream.normal()).clamp(0.0, 1.0);
            let cell = cells.unit(1.0 + stream.below(9) as f64);
            let row = vec![near(&mut stream), stream.unit(), near(&mut stream), cell, stream.below(3) as f64];
            let number = step * 7 % 400;
            crowd.push(number, &row);
            rows.insert(number, row);
            crowd.set(number, true);
            if step % 3 == 0 {
                let other = stream.below(rows.len());
                let (number, present) = (crowd.numbers[other], crowd.present[other]);
                crowd.set(number, !present);
            }
            if step % 37 != 5 && step != 399 {
                continue;
            }
            let members: Vec<Vec<f64>> =
                rows.values().zip(&crowd.present).filter(|(_, p)| **p).map(|(row, _)| row.clone()).collect();
            let plain = Parzen::new(&axes, &members, false);
            let points: Vec<Vec<f64>> = (0..12)
                .map(|_| {
                    let cell = cells.unit(1.0 + stream.below(9) as f64);
                    let mut unit = || stream.unit();
                    vec![unit(), unit(), unit(), cell, stream.below(3) as f64]
                })
                .collect();
            for (point, density) in points.iter().zip(crowd.log_density(&points)) {
                let expected = plain.log_density(point);
                assert!((density - expected).abs() < 1e-9, "step {step}: {density} {expected}");
            }
        }
    }
}
