//! A trial's own randomness: a stream that depends on the study's seed, the trial's number and a purpose, and on nothing
//! else. A study that is replayed therefore makes the same choices, whatever was decided in between.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::normal;

/// A random stream.
#[derive(Clone, Debug)]
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of a trial for one purpose.
    pub(crate) fn new(seed: u64, number: u64, purpose: &str) -> Self {
        let mut state =
            purpose.bytes().fold(mix(seed), |h, b| mix(h ^ u64::from(b))) ^ mix(number.wrapping_add(1));
        let mut key = [0; 32];
        for word in key.chunks_exact_mut(8) {
            state = mix(state);
            word.copy_from_slice(&state.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform on [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform on 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n.saturating_sub(1))
    }

    /// Standard normal.
    pub(crate) fn normal(&mut self) -> f64 {
        normal::quantile((self.unit() + 0.5 / (1u64 << 53) as f64).min(1.0 - 1e-16))
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// SplitMix64's step: every bit of the input reaches every bit of the output.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
