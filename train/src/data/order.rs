//! The order in which an epoch takes its samples: a bijection that answers for any position at once.
//!
//! A table of a shuffled epoch costs memory and time in proportion to the data, and must be made again to resume. This is a
//! Feistel network on the smallest power of two that holds all samples, its round keys derived from seed and epoch; a value
//! past the end is put through it again until it is one of ours: less than two turns on average, but for tiny datasets.

/// Part of what saved positions mean: another construction needs another name here and in [`OrderKind`].
const DOMAIN: &[u8] = b"regatta data order 1";

/// Pairs of rounds. From four on, all orders of up to seven samples are equally likely and position and pair statistics are
/// those of a real shuffle; `tests/data/order.rs` measures them.
const PAIRS: usize = 6;

/// The network is never on fewer bits. On four, all that it gives are even permutations, and what is left of that after the
/// turns for values past the end still shows; on eight it does not. A whole epoch of a tiny dataset takes 256 turns.
const LEAST_BITS: u32 = 8;

/// How the samples of an epoch are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OrderKind {
    /// By index.
    Sequential,
    /// Shuffled by seed and epoch.
    Shuffled,
    /// As a stream gives them.
    Stream,
}

/// A permutation of `0..len`, a pure function of (len, seed, epoch).
///
/// ```
/// use regatta_train::data::Order;
///
/// let order = Order::shuffled(1 << 48, 7, 0);
/// let far = order.at(123_456_789_012); // no table, no replay
/// assert!(far < 1 << 48);
/// let mut all: Vec<u64> = (0..10).map(|position| Order::shuffled(10, 7, 1).at(position)).collect();
/// all.sort();
/// assert_eq!(all, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
/// ```
#[derive(Debug, Clone)]
pub struct Order {
    len: u64,
    rounds: Option<Rounds>,
}

#[derive(Debug, Clone)]
struct Rounds {
    keys: [[u64; 2]; PAIRS],
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
}

impl Order {
    /// By index.
    pub fn sequential(len: u64) -> Self {
        Order { len, rounds: None }
    }

    /// Shuffled by seed and epoch.
    pub fn shuffled(len: u64, seed: u64, epoch: u64) -> Self {
        if len < 2 {
            return Order::sequential(len);
        }
        let mut stream = blake3::Hasher::new()
            .update(DOMAIN)
            .update(&seed.to_le_bytes())
            .update(&epoch.to_le_bytes())
            .finalize_xof();
        let mut keys = [[0; 2]; PAIRS];
        for key in keys.as_flattened_mut() {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            *key = u64::from_le_bytes(bytes);
        }
        let bits = (u64::BITS - (len - 1).leading_zeros()).max(LEAST_BITS);
        let low_bits = bits / 2;
        let mask = |bits: u32| (1u64 << bits) - 1;
        let (low_mask, high_mask) = (mask(low_bits), mask(bits - low_bits));
        Order { len, rounds: Some(Rounds { keys, low_bits, low_mask, high_mask }) }
    }

    /// How many samples there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sample at a position of the order.
    ///
    /// # Panics
    /// When there is no such position.
    pub fn at(&self, position: u64) -> u64 {
        assert!(position < self.len, "position {position} of {} samples", self.len);
        let Some(rounds) = &self.rounds else { return position };
        let mut value = rounds.apply(position);
        // Ends: the values lie on a cycle that goes through `position`, which is less than `len`.
        while value >= self.len {
            value = rounds.apply(value);
        }
        value
    }
}

impl Rounds {
    fn apply(&self, value: u64) -> u64 {
        let (mut high, mut low) = (value >> self.low_bits, value & self.low_mask);
        for [first, second] in self.keys {
            high ^= mix(low, first) & self.high_mask;
            low ^= mix(high, second) & self.low_mask;
        }
        high << self.low_bits | low
    }
}

/// A 64-bit finaliser in the manner of MurmurHash3, the key added first.
fn mix(value: u64, key: u64) -> u64 {
    let mut z = value.wrapping_add(key).wrapping_mul(0xff51_afd7_ed55_8ccd);
    z ^= z >> 32;
    z = z.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    z ^ (z >> 29)
}
