//! The plain reference: what each collective means, one element at a time, with no thought of speed.

use crate::{Element, Kind, ReduceOp};
use half::{bf16, f16};

/// A generator of values that is the same on every rank and in every run.
#[derive(Debug, Clone)]
pub struct Values(u64);

impl Values {
    /// From a seed.
    pub fn new(seed: u64) -> Values {
        Values(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    /// The next one.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// One less than `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.word() % n
    }

    /// Some elements.
    pub fn some<T: Sample>(&mut self, n: usize) -> Vec<T> {
        (0..n).map(|_| T::sample(self.word())).collect()
    }
}

/// An element type as the reference knows it.
pub trait Sample: Element {
    /// A value made of random bits.
    fn sample(bits: u64) -> Self;
    /// What the ranks' values become.
    fn combine(op: ReduceOp, values: &[Self]) -> Self;
    /// For comparing: the bits, all NaNs alike.
    fn bits(self) -> u64;
}

macro_rules! float {
    ($t:ty, $wide:ty, $widen:expr, $narrow:expr, $bits:expr) => {
        impl Sample for $t {
            fn sample(bits: u64) -> Self {
                let x = (bits >> 40) as f64 / 65536.0 - 128.0;
                $narrow(if bits % 997 == 0 { <$wide>::NAN } else { x as $wide })
            }
            fn combine(op: ReduceOp, values: &[Self]) -> Self {
                let wide = values.iter().map(|x| $widen(*x));
                let pick = |a: $wide, b: $wide, better: bool| {
                    if a.is_nan() || b.is_nan() {
                        <$wide>::NAN
                    } else if better {
                        a
                    } else {
                        b
                    }
                };
                let all = wide.reduce(|a: $wide, b: $wide| match op {
                    ReduceOp::Sum | ReduceOp::Mean => a + b,
                    ReduceOp::Min => pick(a, b, a <= b),
                    ReduceOp::Max => pick(a, b, a >= b),
                    ReduceOp::Product => a * b,
                });
                let all = all.expect("a world has a rank");
                $narrow(if op == ReduceOp::Mean { all * (1.0 / values.len() as $wide) } else { all })
            }
            fn bits(self) -> u64 {
                if self.is_nan() { u64::MAX } else { $bits(self) }
            }
        }
    };
}
float!(f32, f32, |x| x, |x| x, |x: f32| u64::from(x.to_bits()));
float!(f64, f64, |x| x, |x| x, |x: f64| x.to_bits());
float!(f16, f32, f16::to_f32, f16::from_f32, |x: f16| u64::from(x.to_bits()));
float!(bf16, f32, bf16::to_f32, bf16::from_f32, |x: bf16| u64::from(x.to_bits()));

macro_rules! integer {
    ($($t:ty),*) => {$(
        impl Sample for $t {
            fn sample(bits: u64) -> Self { bits as $t }
            fn combine(op: ReduceOp, values: &[Self]) -> Self {
                let all = values.iter().copied().reduce(|a, b| match op {
                    ReduceOp::Sum | ReduceOp::Mean => a.wrapping_add(b),
                    ReduceOp::Min => a.min(b),
                    ReduceOp::Max => a.max(b),
                    ReduceOp::Product => a.wrapping_mul(b),
                });
                all.expect("a world has a rank")
            }
            fn bits(self) -> u64 { self as u64 }
        }
    )*};
}
integer!(i32, i64, u8);

impl Sample for bool {
    fn sample(bits: u64) -> Self {
        bits & 1 == 1
    }
    fn combine(op: ReduceOp, values: &[Self]) -> Self {
        match op {
            ReduceOp::Max | ReduceOp::Sum | ReduceOp::Mean => values.iter().any(|x| *x),
            ReduceOp::Min | ReduceOp::Product => values.iter().all(|x| *x),
        }
    }
    fn bits(self) -> u64 {
        u64::from(self)
    }
}

/// What `rank` has in the end, given all ranks' inputs. Empty where a rank gets nothing.
pub fn expected<T: Sample>(kind: Kind, op: ReduceOp, root: usize, inputs: &[Vec<T>], rank: usize) -> Vec<T> {
    let world = inputs.len();
    let mut values = Vec::with_capacity(world);
    let mut column = |i: usize| {
        values.clear();
        values.extend(inputs.iter().map(|x| x[i]));
        T::combine(op, &values)
    };
    let block = |x: &[T], i: usize| x[i * (x.len() / world)..(i + 1) * (x.len() / world)].to_vec();
    match kind {
        Kind::AllReduce | Kind::BucketAllReduce => (0..inputs[0].len()).map(&mut column).collect(),
        Kind::Reduce if rank == root => (0..inputs[0].len()).map(&mut column).collect(),
        Kind::Reduce => inputs[rank].clone(),
        Kind::ReduceScatter => block(&(0..inputs[0].len()).map(&mut column).collect::<Vec<_>>(), rank),
        Kind::AllGather => inputs.concat(),
        Kind::Gather if rank == root => inputs.concat(),
        Kind::Broadcast => inputs[root].clone(),
        Kind::Scatter => block(&inputs[root], rank),
        Kind::AllToAll => inputs.iter().flat_map(|x| block(x, rank)).collect(),
        _ => Vec::new(),
    }
}
