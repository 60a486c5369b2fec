//! What of a run must outlive its controller: numbers that may not be used twice, budgets, time spent, checkpoints. It is
//! the fold of the run's events, and nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use regatta_checkpoint::CheckpointName;
use regatta_track::event::{Cause, Outcome};
use regatta_track::{Envelope, Event, Metrics, Timestamp};

/// The metric of a checkpoint that says after how many reports of the run it was taken.
pub const ITERATION: &str = "iteration";

/// What a run remembers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger {
    /// The last attempt; 0 before the first.
    pub attempt: u32,
    /// The last generation.
    pub generation: u64,
    /// Failures since the run was last begun by a user.
    pub failures: u32,
    /// Preemptions since then.
    pub preemptions: u32,
    /// Failures and preemptions since the last checkpoint.
    pub fruitless: u32,
    /// The first cause since the last checkpoint.
    pub first: Option<Cause>,
    /// The last cause since then.
    pub latest: Option<Cause>,
    /// The checkpoints there are, by name.
    pub checkpoints: BTreeMap<String, Kept>,
    /// When the present attempt began, while it is not known to have ended.
    pub open: Option<Timestamp>,
    /// What all ended attempts took.
    pub spent: Duration,
    /// When the last event happened.
    pub last: Timestamp,
}

/// A checkpoint there is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// Its step.
    pub step: u64,
    /// How many reports the run had made by then, if that is known.
    pub iteration: Option<u64>,
    /// The figures it was saved with.
    pub metrics: Metrics,
}

impl Ledger {
    /// What these events add up to.
    pub fn fold<'a>(events: impl IntoIterator<Item = &'a Envelope>) -> Self {
        let mut ledger = Ledger::default();
        for envelope in events {
            ledger.apply(envelope.attempt, envelope.at, &envelope.event);
        }
        ledger
    }

    /// Takes in one more event.
    pub fn apply(&mut self, attempt: u32, at: Timestamp, event: &Event) {
        self.last = self.last.max(at);
        match event {
            Event::AttemptStarted(started) => {
                self.attempt = self.attempt.max(attempt);
                self.generation = self.generation.max(started.generation);
                self.open = Some(at);
            }
            Event::AttemptEnded(ended) => self.ended(at, ended.outcome, ended.cause.as_ref()),
            // Whoever begins an ended run again has seen how it ended: budgets start over.
            Event::RunFinished(_) => {
                (self.failures, self.preemptions, self.fruitless) = (0, 0, 0);
                (self.first, self.latest) = (None, None);
            }
            Event::CheckpointCommitted(committed) => {
                let kept = Kept {
                    step: committed.step,
                    iteration: committed.metrics.get(ITERATION).map(|value| value as u64),
                    metrics: committed.metrics.clone(),
                };
                self.checkpoints.insert(committed.id.clone(), kept);
                // One that is told after its attempt failed was made before that.
                let before = self.open.is_none();
                self.fruitless = if before { self.fruitless.min(1) } else { 0 };
                self.first = if before { self.latest.clone() } else { None };
                self.latest.clone_from(&self.first);
            }
            Event::CheckpointDeleted(deleted) => {
                self.checkpoints.remove(&deleted.id);
            }
            _ => {}
        }
    }

    fn ended(&mut self, at: Timestamp, outcome: Outcome, cause: Option<&Cause>) {
        if let Some(begun) = self.open.take() {
            self.spent += Duration::from_micros(at.0.saturating_sub(begun.0).max(0) as u64);
        }
        // An interruption without a cause is the user's wish, or the end of a controller: it counts for nothing.
        let counted = match (outcome, cause) {
            (Outcome::Failed, _) => &mut self.failures,
            (Outcome::Interrupted, Some(_)) => &mut self.preemptions,
            _ => return,
        };
        *counted += 1;
        self.fruitless += 1;
        self.latest = cause.cloned();
        if self.first.is_none() {
            self.first.clone_from(&self.latest);
        }
    }

    /// The checkpoint to go on from: the newest generation's latest step.
    pub fn newest(&self) -> Option<(&str, &Kept)> {
        let order = |name: &str| name.parse::<CheckpointName>().ok();
        let newest = self.checkpoints.iter().max_by_key(|(name, kept)| (order(name), kept.step));
        newest.map(|(name, kept)| (name.as_str(), kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regatta_track::event::{AttemptEnded, AttemptStarted, CheckpointCommitted, RunFinished};

    fn second(n: i64) -> Timestamp {
        Timestamp(n * 1_000_000)
    }

    fn started(generation: u64) -> Event {
        AttemptStarted { generation, ..Default::default() }.into()
    }

    fn ended(outcome: Outcome, cause: Option<&str>) -> Event {
        AttemptEnded { outcome, cause: cause.map(Cause::new) }.into()
    }

    #[test]
    fn time_is_the_sum_of_attempts_and_budgets_start_over_with_the_user() {
        let mut ledger = Ledger::default();
        ledger.apply(1, second(10), &started(1));
        ledger.apply(1, second(15), &ended(Outcome::Failed, Some("first")));
        ledger.apply(2, second(20), &started(2));
        ledger.apply(2, second(21), &ended(Outcome::Failed, Some("second")));
        assert_eq!((ledger.attempt, ledger.generation, ledger.failures, ledger.fruitless), (2, 2, 2, 2));
        assert_eq!(ledger.spent, Duration::from_secs(6));
        assert_eq!(ledger.first.as_ref().unwrap().message, "first");

        let finished = RunFinished { outcome: Outcome::Failed, cause: None };
        ledger.apply(0, second(21), &finished.into());
        assert_eq!((ledger.failures, ledger.fruitless, ledger.first.is_none()), (0, 0, true));
        assert_eq!((ledger.attempt, ledger.spent), (2, Duration::from_secs(6)));
    }

    #[test]
    fn progress_that_is_told_late_was_made_before_the_failure() {
        let commit = |id: &str| Event::from(CheckpointCommitted { id: id.into(), ..Default::default() });
        let mut ledger = Ledger::default();
        for attempt in 1..=2 {
            ledger.apply(attempt, second(1), &started(attempt.into()));
            ledger.apply(attempt, second(2), &ended(Outcome::Failed, Some(&format!("failure {attempt}"))));
        }
        ledger.apply(2, second(3), &commit("step-000001.g2.01"));
        assert_eq!((ledger.fruitless, ledger.first.clone().unwrap().message.as_str()), (1, "failure 2"));
        ledger.apply(3, second(4), &started(3));
        ledger.apply(3, second(5), &commit("step-000002.g3.01"));
        assert_eq!((ledger.fruitless, ledger.first), (0, None));
    }

    #[test]
    fn the_newest_checkpoint_is_that_of_the_newest_generation() {
        let mut ledger = Ledger::default();
        for (name, step) in
            [("step-000200.g1.01", 200), ("step-000110.g2.01", 110), ("step-000100.g2.02", 100)]
        {
            let committed = CheckpointCommitted { id: name.into(), step, ..Default::default() };
            ledger.apply(1, second(1), &committed.into());
        }
        assert_eq!(ledger.newest().unwrap().0, "step-000110.g2.01");
    }
}
