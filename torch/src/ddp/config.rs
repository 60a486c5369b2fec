//! What can be set about data-parallel training.

use serde::{Deserialize, Serialize};

/// How a [`DataParallel`](super::DataParallel) works. All ranks must have the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataParallelConfig {
    /// The first bucket is closed when it has this many bytes: small, so that communication begins early in the backward pass.
    pub first_bucket_bytes: usize,
    /// The others are closed when they have this many.
    pub bucket_bytes: usize,
    /// What to do about parameters that a backward pass does not reach.
    pub unused: Unused,
    /// What becomes of buffers, such as a batch normalisation's running means.
    pub buffers: Buffers,
    /// Ranks may have different numbers of batches: costs one small exchange a step, and makes
    /// [`join`](super::DataParallel::join) possible.
    pub uneven: bool,
    /// Whether the loss and the reduced gradients are looked at before the optimiser may use them.
    pub check_finite: bool,
    /// How gradients travel.
    pub compression: Compression,
    /// After every so many steps the ranks compare their parameters' hashes; 0 for never.
    pub verify_every: u64,
}

impl Default for DataParallelConfig {
    fn default() -> Self {
        DataParallelConfig {
            first_bucket_bytes: 1 << 20,
            bucket_bytes: 25 << 20,
            unused: Unused::default(),
            buffers: Buffers::default(),
            uneven: false,
            check_finite: true,
            compression: Compression::default(),
            verify_every: 0,
        }
    }
}

/// Parameters that a backward pass does not reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unused {
    /// Are an error, which names them, on all ranks.
    #[default]
    Refuse,
    /// Are found in the first pass and are the same ever after; it is an error if they are not.
    Static,
    /// Are found in every pass, by one more small reduction. What no rank has reached keeps no gradient.
    Find,
}

/// Buffers: tensors of a model that are not trained. They are treated at the end of every reducing backward pass, so that ranks hold
/// the same whenever they evaluate or save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Buffers {
    /// All ranks take rank 0's.
    #[default]
    Broadcast,
    /// Floating-point buffers become the mean over the ranks; all ranks take rank 0's other buffers.
    Mean,
    /// Each rank keeps its own.
    Leave,
}

/// How gradients travel between ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Compression {
    /// As they are.
    #[default]
    Exact,
    /// 32-bit gradients as bf16, summed in 32 bits and rounded once: half the bytes, for slow networks.
    Bf16,
    /// The same as f16, which has more digits and less range.
    F16,
    /// Matrices as products of two thin ones.
    PowerSgd(PowerSgd),
}

/// Low-rank compression with error feedback, after Vogels, Karimireddy and Jaggi (2019). What a rank could not send it adds to its next gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PowerSgd {
    /// The rank of the approximation.
    pub rank: usize,
    /// Steps that are reduced exactly before it begins: gradients change most at first.
    pub start: u64,
    /// Matrices are compressed only if that makes them this many times smaller.
    pub least_ratio: f64,
}

impl Default for PowerSgd {
    fn default() -> Self {
        PowerSgd { rank: 1, start: 1000, least_ratio: 2.0 }
    }
}
