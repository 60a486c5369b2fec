//! Between points of a space and rows of numbers: the unit cube for what has an order, an index for what has none.

use super::acquisition::Acquisition;
use crate::sampler::fill;
use crate::space::{Point, Space};

/// A parameter below a branch that is not taken: in the middle of the cube, or a category of its own.
const ABSENT: (f64, f64) = (0.5, -1.0);
/// An integer with more values than this is climbed like a real number, and rounded.
const MANY: u64 = 10_000;

/// The columns of a space: its parameters, less those of a single value.
pub(super) struct Table<'a> {
    space: &'a Space,
    columns: Vec<usize>,
    pub(super) category: Vec<bool>,
}

impl<'a> Table<'a> {
    pub(super) fn new(space: &'a Space) -> Self {
        let parameters = space.parameters();
        let columns: Vec<usize> =
            (0..parameters.len()).filter(|i| parameters[*i].domain.count() != Some(1)).collect();
        let category = columns.iter().map(|i| parameters[*i].domain.is_category()).collect();
        Self { space, columns, category }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// A point's row.
    pub(super) fn row(&self, point: &Point) -> Vec<f64> {
        let number = |(k, index): (usize, &usize)| match (point.get(*index), self.category[k]) {
            (Some(raw), true) => raw,
            (Some(raw), false) => self.space.parameters()[*index].domain.unit(raw),
            (None, true) => ABSENT.1,
            (None, false) => ABSENT.0,
        };
        self.columns.iter().enumerate().map(number).collect()
    }

    /// A row of whatever point these places of the unit cube stand for.
    pub(super) fn spread(&self, unit: impl Fn(usize) -> f64) -> Vec<f64> {
        self.row(&fill(self.space, |index| self.space.parameters()[index].domain.raw(unit(index))))
    }

    /// A row's point.
    pub(super) fn point(&self, row: &[f64]) -> Point {
        fill(self.space, |index| {
            let domain = &self.space.parameters()[index].domain;
            match self.columns.iter().position(|c| *c == index) {
                Some(k) if self.category[k] => row[k].max(0.0),
                Some(k) => domain.raw(row[k]),
                None => domain.raw(0.5),
            }
        })
    }

    /// Whether a column's parameter is there in the row's point.
    pub(super) fn is_active(&self, row: &[f64], k: usize) -> bool {
        let Some(parent) = self.space.parameters()[self.columns[k]].parent else { return true };
        // A parent of a single value has no column, and its branch is always taken where the parent itself is.
        match self.columns.iter().position(|c| *c == parent.parameter) {
            Some(column) => row[column] == parent.branch as f64,
            None => self.space.parameters()[parent.parameter].parent.is_none() || row[k] != self.absent(k),
        }
    }

    fn absent(&self, k: usize) -> f64 {
        if self.category[k] { ABSENT.1 } else { ABSENT.0 }
    }

    /// Whether a column is climbed along its gradient.
    pub(super) fn is_smooth(&self, k: usize) -> bool {
        !self.category[k] && self.space.parameters()[self.columns[k]].domain.count().is_none_or(|c| c > MANY)
    }

    pub(super) fn is_category(&self, k: usize) -> bool {
        self.category[k]
    }

    /// Whether other parameters depend on a column: it is left as it is in a climb.
    pub(super) fn decides(&self, k: usize) -> bool {
        let index = self.columns[k];
        self.space.parameters().iter().any(|p| p.parent.is_some_and(|c| c.parameter == index))
    }

    /// All the places of a discrete column.
    pub(super) fn places(&self, k: usize) -> Vec<f64> {
        let domain = &self.space.parameters()[self.columns[k]].domain;
        let count = domain.count().unwrap_or(0).min(MANY) as usize;
        if self.category[k] {
            return (0..count).map(|c| c as f64).collect();
        }
        let (first, last) = (domain.raw(0.0), domain.raw(1.0));
        let step = if count > 1 { (last - first) / (count - 1) as f64 } else { 0.0 };
        (0..count).map(|i| domain.unit(first + i as f64 * step)).collect()
    }

    /// The length scale of a column, by which climbs are measured.
    pub(super) fn scale(&self, acquisition: &Acquisition, k: usize) -> f64 {
        let models =
            acquisition.loss.iter().map(|(m, _)| m).chain(acquisition.constraints.iter().map(|(m, _)| m));
        models.map(|m| m.hyper.weights[k].sqrt().recip()).next().unwrap_or(1.0).clamp(1e-3, 1e3)
    }
}
