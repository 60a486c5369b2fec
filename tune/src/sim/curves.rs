//! Trials that are rows of a table.

use serde_json::Value;

use super::{Step, Workload};
use crate::scheduler::Config;

/// A table of learning curves: the configuration's `row` says which a trial follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Curves {
    curves: Vec<Vec<f64>>,
}

impl Curves {
    /// With the losses of each row, one for each unit of the resource.
    #[must_use]
    pub fn new(curves: Vec<Vec<f64>>) -> Self {
        Curves { curves }
    }

    /// The configuration of the trial that follows this row.
    #[must_use]
    pub fn row(row: usize) -> Config {
        Config::from([("row".to_owned(), Value::from(row))])
    }

    /// The row that a configuration follows.
    #[must_use]
    pub fn row_of(config: &Config) -> Option<usize> {
        config.get("row").and_then(Value::as_u64).map(|row| row as usize)
    }

    /// The losses.
    #[must_use]
    pub fn losses(&self) -> &[Vec<f64>] {
        &self.curves
    }
}

impl Workload for Curves {
    type State = ();

    fn begin(&self, _: u32, _: &Config) {}

    fn step(&self, (): &mut (), config: &Config, resource: u64) -> Step {
        let curve = Curves::row_of(config).and_then(|row| self.curves.get(row));
        let value = curve.and_then(|curve| curve.get(resource as usize - 1)).copied().unwrap_or(f64::NAN);
        Step { value, seconds: 1.0 }
    }

    fn horizon(&self) -> u64 {
        self.curves.iter().map(Vec::len).max().unwrap_or(0) as u64
    }
}
