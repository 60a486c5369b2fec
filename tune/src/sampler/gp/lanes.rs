//! The hot loops of the process: correlations over thousands of pairs, and products of long rows.
//!
//! The same code is compiled for the plain machine and for AVX2, and gives the same bits on both: no fused operations,
//! and sums in an order that is written down here.
#![allow(unsafe_code)]

use crate::normal::exp;

/// How many pairs are worked on at a time: they stay in the first cache while the columns pass by.
const BLOCK: usize = 512;
const LANES: usize = 8;

/// One parameter of a process: where its points are along it, and its inverse squared length scale.
pub(super) struct Column<'a> {
    pub(super) places: &'a [f64],
    pub(super) weight: f64,
    pub(super) category: bool,
}

/// Correlations of all points with one, and their slopes by squared distance.
pub(super) fn correlations(columns: &[Column<'_>], at: &[f64], correlations: &mut [f64], slopes: &mut [f64]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this machine has AVX2.
        return unsafe { correlations_avx2(columns, at, correlations, slopes) };
    }
    correlations_lanes(columns, at, correlations, slopes);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn correlations_avx2(columns: &[Column<'_>], at: &[f64], correlations: &mut [f64], slopes: &mut [f64]) {
    correlations_lanes(columns, at, correlations, slopes);
}

#[inline(always)]
fn correlations_lanes(columns: &[Column<'_>], at: &[f64], correlations: &mut [f64], slopes: &mut [f64]) {
    correlations.fill(0.0);
    for (column, x) in columns.iter().zip(at) {
        let w = column.weight;
        let pairs = correlations.iter_mut().zip(column.places);
        if column.category {
            pairs.for_each(|(sum, p)| *sum += if p == x { 0.0 } else { w });
        } else {
            pairs.for_each(|(sum, p)| *sum += w * ((p - x) * (p - x)));
        }
    }
    matern(correlations, slopes);
}

/// The same where squared distances along each parameter are known: one table a parameter.
pub(super) fn weighed(tables: &[Vec<f64>], weights: &[f64], correlations: &mut [f64], slopes: &mut [f64]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this machine has AVX2.
        return unsafe { weighed_avx2(tables, weights, correlations, slopes) };
    }
    weighed_lanes(tables, weights, correlations, slopes);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn weighed_avx2(tables: &[Vec<f64>], weights: &[f64], correlations: &mut [f64], slopes: &mut [f64]) {
    weighed_lanes(tables, weights, correlations, slopes);
}

#[inline(always)]
fn weighed_lanes(tables: &[Vec<f64>], weights: &[f64], correlations: &mut [f64], slopes: &mut [f64]) {
    let blocks = correlations.chunks_mut(BLOCK).zip(slopes.chunks_mut(BLOCK));
    for (block, (sums, slopes)) in blocks.enumerate() {
        sums.fill(0.0);
        for (table, w) in tables.iter().zip(weights) {
            sums.iter_mut().zip(&table[block * BLOCK..]).for_each(|(sum, t)| *sum += w * t);
        }
        matern(sums, slopes);
    }
}

/// Matern 5/2 at squared distances, in place, and its slopes there.
#[inline(always)]
fn matern(squared: &mut [f64], slopes: &mut [f64]) {
    for (s, slope) in squared.iter_mut().zip(slopes) {
        let r = (5.0 * *s).sqrt();
        let e = exp(-r);
        *slope = -5.0 / 6.0 * (r + 1.0) * e;
        *s = e * (5.0 / 3.0 * *s + r + 1.0);
    }
}

/// The sum of products.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this machine has AVX2.
        return unsafe { dot_avx2(a, b) };
    }
    dot_lanes(a, b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dot_avx2(a: &[f64], b: &[f64]) -> f64 {
    dot_lanes(a, b)
}

#[inline(always)]
fn dot_lanes(a: &[f64], b: &[f64]) -> f64 {
    let (whole, b) = (a.chunks_exact(LANES), &b[..a.len()]);
    let rest = whole.remainder().iter().zip(&b[a.len() - a.len() % LANES..]);
    let mut lanes = [0.0; LANES];
    for (a, b) in whole.zip(b.chunks_exact(LANES)) {
        lanes.iter_mut().zip(a).zip(b).for_each(|((lane, a), b)| *lane += a * b);
    }
    rest.zip(&mut lanes).for_each(|((a, b), lane)| *lane += a * b);
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// Adds `times` a row to another.
pub(super) fn add(to: &mut [f64], times: f64, row: &[f64]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this machine has AVX2.
        return unsafe { add_avx2(to, times, row) };
    }
    add_lanes(to, times, row);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_avx2(to: &mut [f64], times: f64, row: &[f64]) {
    add_lanes(to, times, row);
}

#[inline(always)]
fn add_lanes(to: &mut [f64], times: f64, row: &[f64]) {
    to.iter_mut().zip(row).for_each(|(to, r)| *to += times * r);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_gives_the_same_bits() {
        let row = |n: usize, k: usize| -> Vec<f64> {
            (0..n).map(|i| ((i * 37 + k * 101) % 97) as f64 / 97.0).collect()
        };
        let bits = |v: &[f64]| -> Vec<u64> { v.iter().map(|x| x.to_bits()).collect() };
        for n in [1, 7, 8, 300, 1100] {
            let tables = [row(n, 1), row(n, 2), row(n, 3)];
            let (mut a, mut b) = ([vec![0.0; n], vec![0.0; n]], [vec![0.0; n], vec![0.0; n]]);
            let [x, y] = &mut a;
            weighed(&tables, &[3.0, 0.1, 20.0], x, y);
            let [x, y] = &mut b;
            weighed_lanes(&tables, &[3.0, 0.1, 20.0], x, y);
            assert!(bits(&a[0]) == bits(&b[0]) && bits(&a[1]) == bits(&b[1]));

            let columns: Vec<Column<'_>> = (tables.iter().enumerate())
                .map(|(k, places)| Column { places, weight: 2.0 + k as f64, category: k == 1 })
                .collect();
            let [x, y] = &mut a;
            correlations(&columns, &[0.3, 0.0, 0.9], x, y);
            let [x, y] = &mut b;
            correlations_lanes(&columns, &[0.3, 0.0, 0.9], x, y);
            assert!(bits(&a[0]) == bits(&b[0]) && bits(&a[1]) == bits(&b[1]));

            assert_eq!(dot(&tables[0], &tables[1]).to_bits(), dot_lanes(&tables[0], &tables[1]).to_bits());
            let plain: f64 = tables[0].iter().zip(&tables[1]).map(|(a, b)| a * b).sum();
            assert!((dot(&tables[0], &tables[1]) - plain).abs() < 1e-12 * n as f64);
            add(&mut a[0], 0.7, &tables[2]);
            add_lanes(&mut b[0], 0.7, &tables[2]);
            assert_eq!(bits(&a[0]), bits(&b[0]));
        }
    }
}
