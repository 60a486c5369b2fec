//! Which samples are whose in which global step: arithmetic on positions, without state.
//!
//! The global order knows nothing of the world: global step after global step takes a run of it, and each run is split over
//! the ranks as evenly as it goes. So a run may stop after any step and go on with another number of ranks.

use std::ops::Range;

use super::error::{Error, Result};

/// What to do with samples that do not fill a last global batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every sample exactly once an epoch: the last global batch is smaller, and spread over all ranks. Fewer samples than
    /// ranks are added to the batch before.
    #[default]
    Exact,
    /// They are left out.
    DropLast,
    /// The batch is filled from the epoch's beginning: some samples come twice.
    Pad,
}

/// One rank's part of a global step.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// The positions in the epoch's order. In [`Mode::Pad`] they go on past its end; take them modulo its length.
    pub positions: Range<u64>,
    /// What a mean over this part must be multiplied by, so that the mean over ranks is the mean over the global batch:
    /// 1 for equal parts. Where there are fewer samples than ranks (only after a resume with more ranks can that be), a
    /// rank without one gets another's, to keep in step, with weight 0.
    pub weight: f64,
    /// The samples of the epoch that are consumed when the global step is done.
    pub consumed: u64,
}

/// Splits an epoch over the ranks.
///
/// ```
/// use regatta_train::data::{Mode, Sampler};
///
/// // 10 samples, 2 ranks, 4 samples a global step; this is rank 1.
/// let sampler = Sampler { len: 10, global_batch: 4, world: 2, rank: 1, mode: Mode::Exact };
/// let parts: Vec<_> = (0..sampler.steps(0)).filter_map(|step| sampler.share(0, step)).collect();
/// assert_eq!(parts.iter().map(|part| part.positions.clone()).collect::<Vec<_>>(), [2..4, 6..8, 9..10]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// Samples in an epoch.
    pub len: u64,
    /// Samples in a full global step; at least one for each rank.
    pub global_batch: u64,
    /// How many ranks there are.
    pub world: u64,
    /// Which of them this is.
    pub rank: u64,
    /// What to do with the rest.
    pub mode: Mode,
}

impl Sampler {
    /// Says what cannot work: no samples, too few for the ranks, or a batch that leaves ranks without samples.
    pub fn check(&self) -> Result<()> {
        let Sampler { len, global_batch, world, rank, mode } = *self;
        let fail = |what, why| Err(Error::Config { what, why });
        if rank >= world {
            return fail("rank", format!("rank {rank} is none of {world}"));
        }
        if global_batch < world {
            let why =
                format!("{global_batch} samples are fewer than the {world} ranks; give at least {world}");
            return fail("global_batch_size", why);
        }
        let (least, remedy) = match mode {
            Mode::Exact => (world, "use fewer workers, or `mode: pad`"),
            Mode::DropLast => (global_batch, "take smaller batches, or `mode: exact`"),
            Mode::Pad => (1, "add some"),
        };
        if len < least {
            let of = match mode {
                Mode::DropLast => "samples of one global batch",
                _ => "ranks, each of which needs one",
            };
            let why = match len {
                0 => "it has no samples".to_owned(),
                _ => format!("its {len} samples are fewer than the {least} {of}; {remedy}"),
            };
            return fail("the dataset", why);
        }
        Ok(())
    }

    /// How many global steps follow when `from` samples of the epoch are consumed. The same on all ranks.
    pub fn steps(&self, from: u64) -> u64 {
        let left = self.len.saturating_sub(from);
        let (full, rest) = (left / self.global_batch, left % self.global_batch);
        match self.mode {
            Mode::Exact => full + u64::from(rest >= self.world || (full == 0 && rest > 0)),
            Mode::DropLast => full,
            Mode::Pad => full + u64::from(rest > 0),
        }
    }

    /// This rank's part of the global step `step`, counted from the first after `from` samples; none past the last.
    pub fn share(&self, from: u64, step: u64) -> Option<Share> {
        if step >= self.steps(from) {
            return None;
        }
        let start = from + step * self.global_batch;
        let left = self.len - start;
        let size = match self.mode {
            Mode::Exact => next_batch(left, self.global_batch, self.world),
            Mode::DropLast | Mode::Pad => self.global_batch,
        };
        let (each, extra) = (size / self.world, size % self.world);
        let count = each + u64::from(self.rank < extra);
        let first = start + self.rank * each + self.rank.min(extra);
        Some(Share {
            positions: if count == 0 { start..start + 1 } else { first..first + count },
            weight: weight(count, size, self.world),
            consumed: (start + size).min(self.len),
        })
    }
}

/// The size of the next global batch when every one of `left` samples is to be taken once: all of them where a full batch
/// would leave fewer than one for each rank.
pub(super) fn next_batch(left: u64, global_batch: u64, world: u64) -> u64 {
    if left < global_batch + world { left } else { global_batch }
}

pub(super) fn weight(count: u64, size: u64, world: u64) -> f64 {
    (count * world) as f64 / size as f64
}
