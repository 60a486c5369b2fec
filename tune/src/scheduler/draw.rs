//! Random choices that a replay repeats: a stream of numbers that is a hash of the study's seed and of what is being decided
//! on. Not for sampling configurations; the samplers have better streams.

/// The random stream of one decision.
#[derive(Clone, Debug)]
pub struct Draw {
    state: u64,
}

impl Draw {
    /// The stream of a seed and an event number.
    #[must_use]
    pub fn new(seed: u64, event: u64) -> Self {
        Draw { state: mix(mix(seed) ^ event.wrapping_mul(0xd134_2543_de82_ef95)) }
    }

    /// The stream of a seed and several numbers.
    pub(super) fn of(seed: u64, what: [u64; 4]) -> Self {
        Draw { state: what.into_iter().fold(mix(seed), |state, number| mix(state ^ number).wrapping_add(1)) }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// One of so many, which must not be none.
    pub fn below(&mut self, count: usize) -> usize {
        debug_assert!(count > 0, "one of none");
        ((u128::from(self.bits()) * count as u128) >> 64) as usize
    }
}

/// The finaliser of SplitMix64.
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
