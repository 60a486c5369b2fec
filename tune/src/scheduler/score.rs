//! The order of results: smaller is better, NaN is last, ties go to the older trial.

use std::cmp::Ordering;

/// A trial's loss, with the one order that all schedulers use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Score {
    pub(crate) value: f64,
    pub(crate) trial: u32,
}

impl Score {
    pub(crate) fn new(value: f64, trial: u32) -> Self {
        // One NaN and one zero, so that the total order of floats is the order of losses.
        Score { value: if value.is_nan() { f64::NAN } else { value + 0.0 }, trial }
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.value.total_cmp(&other.value).then(self.trial.cmp(&other.trial))
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Score {}

/// The better of two losses.
pub(crate) fn better(a: f64, b: f64) -> f64 {
    if Score::new(b, 0) < Score::new(a, 0) { b } else { a }
}
