//! How a loader is to read, and for whom.

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::sampler::Mode;

/// How a [`Loader`](super::Loader) reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderConfig {
    /// Samples in a batch of one rank. Give this or `global_batch_size`.
    pub batch_size: Option<usize>,
    /// Samples in the batches of all ranks together, the same however many ranks there are; each gets its part of them.
    pub global_batch_size: Option<usize>,
    /// Whether each epoch has an order of its own, drawn from the run's seed. Streams keep theirs.
    pub shuffle: bool,
    /// What happens to samples that do not fill a last batch.
    pub mode: Mode,
    /// Threads that make batches. With 0 the training loop makes them itself, when it wants them.
    pub workers: usize,
    /// How many batches are made before they are wanted; at least one for each worker.
    pub prefetch: usize,
    /// A batch that takes longer than this many seconds is an error (not with `workers` 0).
    pub timeout_s: u64,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        LoaderConfig {
            batch_size: None,
            global_batch_size: None,
            shuffle: true,
            mode: Mode::Exact,
            workers: 1,
            prefetch: 2,
            timeout_s: 600,
        }
    }
}

impl LoaderConfig {
    /// So many samples in a batch of one rank.
    pub fn batch_size(samples: usize) -> Self {
        LoaderConfig { batch_size: Some(samples), ..Default::default() }
    }

    /// So many samples in the batches of all ranks together.
    pub fn global_batch_size(samples: usize) -> Self {
        LoaderConfig { global_batch_size: Some(samples), ..Default::default() }
    }

    /// Sets [`LoaderConfig::shuffle`].
    pub fn shuffle(mut self, shuffle: bool) -> Self {
        self.shuffle = shuffle;
        self
    }

    /// Sets [`LoaderConfig::mode`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets [`LoaderConfig::workers`].
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Sets [`LoaderConfig::prefetch`].
    pub fn prefetch(mut self, batches: usize) -> Self {
        self.prefetch = batches;
        self
    }

    /// Sets [`LoaderConfig::timeout_s`].
    pub fn timeout_s(mut self, seconds: u64) -> Self {
        self.timeout_s = seconds;
        self
    }

    /// Samples of a global step.
    pub(super) fn resolve(&self, world: u64) -> Result<u64> {
        let fail = |what, why: &str| Err(Error::Config { what, why: why.into() });
        match (self.batch_size, self.global_batch_size) {
            (Some(0), _) => fail("batch_size", "a batch of 0 samples; give at least 1"),
            (None, None) => fail("batch_size", "is missing: give it, or `global_batch_size`"),
            (Some(_), Some(_)) => fail("batch_size", "is given beside `global_batch_size`; give one of them"),
            (Some(each), None) => (each as u64)
                .checked_mul(world)
                .ok_or_else(|| Error::Config { what: "batch_size", why: format!("{each} is too large") }),
            (None, Some(all)) => Ok(all as u64),
        }
    }
}

/// Whose part of the data it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// This rank.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// What epochs are shuffled by, the same on all ranks.
    pub seed: u64,
}

impl Shard {
    /// All of it.
    pub fn whole(seed: u64) -> Self {
        Shard { rank: 0, world: 1, seed }
    }
}
