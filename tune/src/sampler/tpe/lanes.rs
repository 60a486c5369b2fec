//! The one hot loop of TPE: the density of thousands of product kernels at a few points.
//!
//! The same code is compiled for the plain machine, for AVX2 and for AVX-512, and gives the same bits on all: no fused
//! operations, and sums in an order that is written down here. So a study can be resumed on another machine.
#![allow(unsafe_code)]

use crate::normal::exp;

/// How many rows are worked on at a time: their columns stay in the first cache.
pub(super) const BLOCK: usize = 128;
const LANES: usize = 8;
/// Rows that pass the columns together: a register each eight of them, while those of one column are loaded.
const ROWS: usize = 4 * LANES;
/// After so many columns it is looked whether any of the rows still counts.
const LOOK: usize = 5;
/// What is smaller than the sum by this power of e changes none of its bits.
const FAR: f64 = 60.0;

type Lanes = [f64; LANES];

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
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: this machine has AVX-512.
        return unsafe { add_avx512(sum, exponents, weights, numbers, at) };
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this machine has AVX2.
        return unsafe { add_avx2(sum, exponents, weights, numbers, at) };
    }
    add_lanes(sum, exponents, weights, numbers, at);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn add_avx512(sum: &mut LogSum, exponents: &mut [f64], weights: &[f64], numbers: &[Numbers<'_>], at: &[f64]) {
    add_lanes(sum, exponents, weights, numbers, at);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_avx2(sum: &mut LogSum, exponents: &mut [f64], weights: &[f64], numbers: &[Numbers<'_>], at: &[f64]) {
    add_lanes(sum, exponents, weights, numbers, at);
}

#[inline(always)]
fn add_lanes(sum: &mut LogSum, exponents: &mut [f64], weights: &[f64], numbers: &[Numbers<'_>], at: &[f64]) {
    let (count, whole) = (exponents.len(), exponents.len() - exponents.len() % ROWS);
    let (exponents, rest) = exponents.split_at_mut(whole);
    let (weights, rest_weights) = weights[..count].split_at(whole);
    let mut last = [f64::NEG_INFINITY; ROWS];
    let mut last_weights = [0.0; ROWS];
    last[..rest.len()].copy_from_slice(rest);
    last_weights[..rest.len()].copy_from_slice(rest_weights);
    for (column, x) in numbers.iter().zip(at) {
        for (exponent, (c, s)) in
            last.iter_mut().zip(column.centre[whole..].iter().zip(&column.scale[whole..]))
        {
            let t = (x - c) * s;
            *exponent -= t * t;
        }
    }
    // Kernels are narrow where trials are many, and most of them are far from any point: they are given up halfway.
    let lost = sum.top - FAR;
    let mut tops = [f64::NEG_INFINITY; LANES];
    let mut near = [false; BLOCK / ROWS];
    for (index, chunk) in exponents.chunks_exact_mut(ROWS).enumerate() {
        near[index] = pass(chunk, index * ROWS, numbers, at, lost, &mut tops);
    }
    let last_near = !rest.is_empty() && pass(&mut last, 0, &[], &[], lost, &mut tops);
    let top = largest(&tops);
    if top < lost {
        return;
    }
    if top > sum.top {
        *sum = LogSum { top, sum: sum.sum * exp(sum.top - top) };
    }
    let mut sums = [0.0; LANES];
    let chunks = exponents.chunks_exact_mut(ROWS).zip(weights.chunks_exact(ROWS)).zip(near);
    for ((chunk, weights), near) in chunks {
        if near {
            total(chunk, weights, sum.top, &mut sums);
        }
    }
    if last_near {
        total(&mut last, &last_weights, sum.top, &mut sums);
    }
    sum.sum += across(&sums);
}

/// Takes a chunk of rows past all columns. Whether any of them counts; `tops` is raised to those that do.
#[inline(always)]
fn pass(
    chunk: &mut [f64],
    start: usize,
    numbers: &[Numbers<'_>],
    at: &[f64],
    lost: f64,
    tops: &mut Lanes,
) -> bool {
    let (mut a, mut b, mut c, mut d) = (lanes(chunk, 0), lanes(chunk, 1), lanes(chunk, 2), lanes(chunk, 3));
    let mut from = 0;
    loop {
        let to = numbers.len().min(from + LOOK);
        for (column, x) in numbers[from..to].iter().zip(&at[from..to]) {
            let (centre, scale) = (&column.centre[start..start + ROWS], &column.scale[start..start + ROWS]);
            less(&mut a, &centre[..LANES], &scale[..LANES], *x);
            less(&mut b, &centre[LANES..2 * LANES], &scale[LANES..2 * LANES], *x);
            less(&mut c, &centre[2 * LANES..3 * LANES], &scale[2 * LANES..3 * LANES], *x);
            less(&mut d, &centre[3 * LANES..], &scale[3 * LANES..], *x);
        }
        let highest = higher(&higher(&a, &b), &higher(&c, &d));
        if !highest.iter().fold(false, |any, e| any | (*e >= lost)) {
            return false;
        }
        from = to;
        if to == numbers.len() {
            *tops = higher(tops, &highest);
            for (lanes, to) in [a, b, c, d].iter().zip(chunk.chunks_exact_mut(LANES)) {
                to.copy_from_slice(lanes);
            }
            return true;
        }
    }
}

#[inline(always)]
fn lanes(chunk: &[f64], index: usize) -> Lanes {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&chunk[index * LANES..(index + 1) * LANES]);
    lanes
}

#[inline(always)]
fn less(lanes: &mut Lanes, centre: &[f64], scale: &[f64], x: f64) {
    for i in 0..LANES {
        let t = (x - centre[i]) * scale[i];
        lanes[i] -= t * t;
    }
}

#[inline(always)]
fn higher(a: &Lanes, b: &Lanes) -> Lanes {
    std::array::from_fn(|i| if b[i] > a[i] { b[i] } else { a[i] })
}

/// Adds the weighed exponentials of a chunk. They are put down before they are added: then a compiler does as many at once
/// as the machine can.
#[inline(always)]
fn total(chunk: &mut [f64], weights: &[f64], top: f64, sums: &mut Lanes) {
    for (e, weight) in chunk.iter_mut().zip(weights) {
        *e = weight * exp(*e - top);
    }
    for part in chunk.chunks_exact(LANES) {
        for i in 0..LANES {
            sums[i] += part[i];
        }
    }
}

// What is done across lanes stays out of the loops' sight, or a compiler would work in pairs for its sake.

#[inline(never)]
fn largest(lanes: &Lanes) -> f64 {
    lanes.iter().fold(f64::NEG_INFINITY, |top, e| if *e > top { *e } else { top })
}

#[inline(never)]
fn across(l: &Lanes) -> f64 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Add = unsafe fn(&mut LogSum, &mut [f64], &[f64], &[Numbers<'_>], &[f64]);

    /// What is compiled for this machine, one name each.
    fn variants() -> Vec<(&'static str, Add)> {
        let mut variants: Vec<(&str, Add)> = vec![("plain", |a, b, c, d, e| add_lanes(a, b, c, d, e))];
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx2") {
                variants.push(("avx2", add_avx2));
            }
            if std::arch::is_x86_feature_detected!("avx512f") {
                variants.push(("avx512", add_avx512));
            }
        }
        variants
    }

    /// Rows of every length, some of them absent, some with all columns and some with none; kernels wide and narrow, so that
    /// some, all or none of them count.
    #[test]
    fn every_machine_adds_alike_and_rightly() {
        let row = |i: usize, k: usize| ((i * 37 + k * 101) % 97) as f64 / 97.0;
        let at: Vec<f64> = (0..7).map(|d| 0.2 + 0.1 * f64::from(d)).collect();
        for len in [1, 7, 31, 32, 33, 64, 100, 128] {
            for (columns, narrow, top) in
                [(0, 1.0, -3.0_f64), (3, 50.0, -3.0), (7, 9.0, 2.0), (7, 900.0, -90.0)]
            {
                let columns: Vec<(Vec<f64>, Vec<f64>)> = (0..columns)
                    .map(|d| (0..len).map(|i| (row(i, d), 1.0 + narrow * row(i, d + 3))).unzip())
                    .collect();
                let numbers: Vec<_> =
                    columns.iter().map(|(centre, scale)| Numbers { centre, scale }).collect();
                let weights: Vec<f64> = (0..len).map(|i| row(i, 9)).collect();
                let base: Vec<f64> =
                    (0..len).map(|i| if i % 5 == 0 { f64::NEG_INFINITY } else { row(i, 11) }).collect();
                let term = |i: usize| {
                    let squares = columns.iter().zip(&at).map(|((c, s), x)| ((x - c[i]) * s[i]).powi(2));
                    weights[i] * (base[i] - squares.sum::<f64>()).exp()
                };
                let expected = (top.exp() + (0..len).map(term).sum::<f64>()).ln();
                let sums: Vec<f64> = (variants().into_iter())
                    .map(|(_, add)| {
                        let mut sum = LogSum::new(top);
                        // SAFETY: only what this machine has is among the variants.
                        unsafe { add(&mut sum, &mut base.clone(), &weights, &numbers, &at[..columns.len()]) };
                        sum.ln()
                    })
                    .collect();
                assert!((sums[0] - expected).abs() < 1e-12, "{len} {narrow}: {} {expected}", sums[0]);
                assert!(sums.iter().all(|s| s.to_bits() == sums[0].to_bits()), "{len} {narrow}: {sums:?}");
            }
        }
    }
}
