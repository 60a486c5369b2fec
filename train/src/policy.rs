//! When to save by itself: pure, the time is an input.

use crate::config::Every;

/// What a save is taken to cost before one was measured, in seconds.
const ASSUMED_COST: f64 = 1.0;
/// A save takes at most this share of the time, whatever the mean time between failures.
const MOST: f64 = 0.1;

/// Decides when saves are due.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    every: Every,
    /// When the last save began, in seconds of any clock.
    last: f64,
    /// What saves cost lately: the seconds the step was stopped.
    cost: Option<f64>,
}

impl Policy {
    pub(crate) fn new(every: Every, now: f64) -> Self {
        Policy { every, last: now, cost: None }
    }

    /// Whether a save is due at this step: the same on all ranks, without a word between them.
    pub(crate) fn at_step(&self, step: u64) -> bool {
        matches!(self.every, Every::Steps(n) if n > 0 && step.is_multiple_of(n))
    }

    /// Whether a save is due at this time. Clocks differ, so rank 0 decides for all.
    pub(crate) fn at_time(&self, now: f64) -> bool {
        self.interval().is_some_and(|interval| now - self.last >= interval)
    }

    /// Seconds between two saves, if they go by time.
    fn interval(&self) -> Option<f64> {
        match self.every {
            Every::Report | Every::Steps(_) => None,
            Every::Seconds(seconds) => Some(seconds),
            // Young's first-order optimum.
            Every::Failures(mean) => {
                let cost = self.cost.unwrap_or(ASSUMED_COST);
                Some((2.0 * cost * mean).sqrt().max(cost / MOST))
            }
        }
    }

    /// A save began.
    pub(crate) fn saved(&mut self, now: f64) {
        self.last = now;
    }

    /// A save was measured.
    pub(crate) fn cost(&mut self, seconds: f64) {
        self.cost = Some(self.cost.map_or(seconds, |before| 0.5 * (before + seconds)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_multiples_and_never_by_time() {
        let policy = Policy::new(Every::Steps(3), 0.0);
        let due: Vec<u64> = (1..10).filter(|&step| policy.at_step(step)).collect();
        assert_eq!(due, [3, 6, 9]);
        assert!(!policy.at_time(1e9));
        let never = Policy::new(Every::Report, 0.0);
        assert!(!never.at_step(1) && !never.at_time(1e9));
    }

    #[test]
    fn seconds_count_from_the_last_save() {
        let mut policy = Policy::new(Every::Seconds(10.0), 100.0);
        assert!(!policy.at_time(109.9) && policy.at_time(110.0));
        policy.saved(110.5);
        assert!(!policy.at_time(120.0) && policy.at_time(120.5));
        assert!(!policy.at_step(10));
    }

    #[test]
    fn the_interval_for_failures_is_youngs_and_follows_the_measured_cost() {
        let mut policy = Policy::new(Every::Failures(3600.0), 0.0);
        assert_eq!(policy.interval(), Some((2.0f64 * 3600.0).sqrt()));
        policy.cost(0.02);
        assert_eq!(policy.interval(), Some((2.0f64 * 0.02 * 3600.0).sqrt()));
        policy.cost(0.04);
        assert!((policy.interval().unwrap() - (2.0f64 * 0.03 * 3600.0).sqrt()).abs() < 1e-12);
        // Where failures come faster than saves, training still gets nine tenths of the time.
        let mut hopeless = Policy::new(Every::Failures(0.1), 0.0);
        hopeless.cost(10.0);
        assert_eq!(hopeless.interval(), Some(100.0));
    }
}
