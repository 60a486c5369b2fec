//! How fast training goes, told a few times a second.

use std::time::{Duration, Instant};

use crate::data::Position;
use crate::wire::Progress;

/// How often progress is told at most.
const BEAT: Duration = Duration::from_millis(200);
/// How fast an old rate is forgotten: the weight of what is new, at each beat.
const FRESH: f64 = 0.3;

/// The pace of rank 0.
pub(crate) struct Pace {
    told: Instant,
    step: u64,
    rate: Option<f64>,
    pub(crate) loss: Option<f64>,
    /// When samples were last counted, and how many they were.
    samples: Option<(Instant, u64)>,
}

impl Pace {
    pub(crate) fn new(now: Instant, step: u64) -> Self {
        Pace { told: now, step, rate: None, loss: None, samples: None }
    }

    /// Training begins anew at this step.
    pub(crate) fn restart(&mut self, now: Instant, step: u64) {
        (self.told, self.step, self.rate) = (now, step, None);
    }

    /// What to tell, if it is time.
    pub(crate) fn beat(&mut self, now: Instant, step: u64) -> Option<Progress> {
        let past = now.saturating_duration_since(self.told);
        if past < BEAT {
            return None;
        }
        let fresh = step.saturating_sub(self.step) as f64 / past.as_secs_f64();
        let rate = self.rate.map_or(fresh, |old| old + FRESH * (fresh - old));
        (self.told, self.step, self.rate) = (now, step, Some(rate));
        Some(Progress {
            step,
            steps_per_second: rate,
            loss: self.loss,
            memory_bytes: resident(),
            ..Progress::default()
        })
    }

    /// Adds what a loader knows. The ranks' parts of the data are alike, so its own rate is a share of the whole.
    pub(crate) fn follow(&mut self, progress: &mut Progress, position: &Position, world: usize) {
        progress.epoch_part = position.part();
        progress.data_wait = Some(position.data_wait());
        let (now, samples) = (Instant::now(), position.samples());
        let before = self.samples.replace((now, samples));
        progress.samples_per_second = before.map(|(then, count)| {
            let past = now.saturating_duration_since(then).as_secs_f64().max(1e-9);
            samples.saturating_sub(count) as f64 * world as f64 / past
        });
    }
}

/// Resident bytes of this process; 0 if that cannot be read.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_speaks_five_times_a_second_and_knows_its_rate() {
        let began = Instant::now();
        let mut pace = Pace::new(began, 10);
        assert!(pace.beat(began + BEAT / 2, 15).is_none());
        let first = pace.beat(began + BEAT, 20).unwrap();
        assert_eq!((first.step, first.steps_per_second), (20, 50.0));
        assert!(first.memory_bytes > 0);
        assert!(pace.beat(began + BEAT, 21).is_none());
        let second = pace.beat(began + 2 * BEAT, 40).unwrap();
        assert_eq!(second.steps_per_second, 50.0 + FRESH * 50.0);
    }
}
