//! The one hot loop of TPE: the density of thousands of product kernels at a few points.
//!
//! The same code is compiled for the plain machine and for AVX2, and gives the same bits on both: no fused operations,
//! and sums in an order that is written down here. So a study can be resumed on another machine.
#![allow(unsafe_code)]

use crate::normal::exp;

/// How many rows are worked on at a time: their columns stay in the first cache.
pub(super) const BLOCK: usize = 128;
const LANES: usize = 8;
/// After so many columns it is looked whether any of the rows still counts.
const LOOK: usize = 2;
/// What is smaller than the sum by this power of e changes none of its bits.
const FAR: f64 = 60.0;

/// One numeric dimension of the kernels of a block: their centres, and `1 / (sigma sqrt 2)`.
pub(super) struct Numbers<'a> {
    pub(super) centre: &'a [f64],
    pub(super) scale: &'a [f64],
}

/// A running sum of `weight * exp(exponent)`, kept relative to its largest exponent.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogSum {
    top: f64,
    sum: f64,
}

impl LogSum {
    /// A sum of one term.
    pub(super) fn new(exponent: f64) -> Self {
        Self { top: exponent, sum: 1.0 }
    }

    /// Its logarithm.
    pub(super) fn ln(self) -> f64 {
        self.top + self.sum.ln()
    }
}

/// Adds a block's kernels to the sum at one point. `exponents` comes with the logarithm of the kernels' constants, and
/// is used up.
pub(super) fn add(
    sum: &mut LogSum,
    exponents: &mut [f64],
    weights: &[f64],
    numbers: &[Numbers<'_>],
    at: &[f64],
) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this machine has AVX2.
        return unsafe { add_avx2(sum, exponents, weights, numbers, at) };
    }
    add_lanes(sum, exponents, weights, numbers, at);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_avx2(sum: &mut LogSum, exponents: &mut [f64], weights: &[f64], numbers: &[Numbers<'_>], at: &[f64]) {
    add_lanes(sum, exponents, weights, numbers, at);
}

#[inline(always)]
fn add_lanes(sum: &mut LogSum, exponents: &mut [f64], weights: &[f64], numbers: &[Numbers<'_>], at: &[f64]) {
    let len = exponents.len();
    let whole = len - len % LANES;
    // Kernels are narrow where trials are many, and most of them are far from any point: they are given up halfway.
    let lost = sum.top - FAR;
    for start in (0..whole).step_by(LANES) {
        let rows = start..start + LANES;
        let mut chunk = [0.0; LANES];
        chunk.copy_from_slice(&exponents[rows.clone()]);
        for (columns, at) in numbers.chunks(LOOK).zip(at.chunks(LOOK)) {
            for (column, x) in columns.iter().zip(at) {
                let (centre, scale) = (&column.centre[rows.clone()], &column.scale[rows.clone()]);
                for lane in 0..LANES {
                    let t = (x - centre[lane]) * scale[lane];
                    chunk[lane] -= t * t;
                }
            }
            if chunk.iter().all(|e| *e < lost) {
                chunk = [f64::NEG_INFINITY; LANES];
                break;
            }
        }
        exponents[rows].copy_from_slice(&chunk);
    }
    for (column, x) in numbers.iter().zip(at) {
        for (i, exponent) in exponents.iter_mut().enumerate().skip(whole) {
            let t = (x - column.centre[i]) * column.scale[i];
            *exponent -= t * t;
        }
    }
    let top = exponents.iter().fold(sum.top, |top, e| if *e > top { *e } else { top });
    let mut lanes = [0.0; LANES];
    let weights = &weights[..len];
    for start in (0..whole).step_by(LANES) {
        if exponents[start] == f64::NEG_INFINITY && exponents[start..start + LANES].iter().all(|e| *e < lost)
        {
            continue;
        }
        for lane in 0..LANES {
            lanes[lane] += weights[start + lane] * exp(exponents[start + lane] - top);
        }
    }
    for i in whole..len {
        lanes[i - whole] += weights[i] * exp(exponents[i] - top);
    }
    let added =
        ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
    sum.sum = sum.sum * exp(sum.top - top) + added;
    sum.top = top;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_adds_alike() {
        let row = |i: usize, k: usize| ((i * 37 + k * 101) % 97) as f64 / 97.0;
        for len in [1, 7, 64, 128] {
            let columns: Vec<(Vec<f64>, Vec<f64>)> =
                (0..3).map(|d| (0..len).map(|i| (row(i, d), 1.0 + 50.0 * row(i, d + 3))).unzip()).collect();
            let numbers: Vec<_> = columns.iter().map(|(centre, scale)| Numbers { centre, scale }).collect();
            let weights: Vec<f64> = (0..len).map(|i| row(i, 9)).collect();
            let (mut a, mut b) = (LogSum::new(-3.0), LogSum::new(-3.0));
            let at = [0.3, 0.5, 0.7];
            add(&mut a, &mut vec![0.5; len], &weights, &numbers, &at);
            add_lanes(&mut b, &mut vec![0.5; len], &weights, &numbers, &at);
            assert_eq!(a.ln().to_bits(), b.ln().to_bits());
        }
    }
}
