//! The shuffle without a table against a real one, and against its own past.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use regatta_train::data::Order;

fn shuffled(len: u64, seed: u64, epoch: u64) -> Vec<u64> {
    let order = Order::shuffled(len, seed, epoch);
    (0..len).map(|position| order.at(position)).collect()
}

/// (observed - expected)^2 / expected, summed, in standard deviations from what chance gives.
fn chi_squared_z(counts: impl IntoIterator<Item = u64>, expected: f64, freedom: f64) -> f64 {
    let sum: f64 = counts.into_iter().map(|count| (count as f64 - expected).powi(2) / expected).sum();
    (sum - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn it_is_a_bijection_at_every_length() {
    let lengths = (0..200).chain([255, 256, 257, 1023, 1024, 1025, 65_535, 65_536, 65_537]);
    for len in lengths {
        for seed in 0..if len < 200 { 4 } else { 1 } {
            let mut all = shuffled(len, seed, 3);
            all.sort_unstable();
            assert!(all.iter().copied().eq(0..len), "{len} samples, seed {seed}");
        }
    }
}

#[test]
fn it_reaches_any_position_of_more_samples_than_fit_in_memory() {
    for len in [(1u64 << 48) - 1, 1 << 48, (1 << 48) + 1, u64::MAX] {
        let order = Order::shuffled(len, 1, 2);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut positions: Vec<u64> = (0..20_000).map(|_| rng.random_range(0..len)).collect();
        positions.extend([0, 1, len - 2, len - 1]);
        positions.sort_unstable();
        positions.dedup();
        let mut values: Vec<u64> = positions.iter().map(|&position| order.at(position)).collect();
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), positions.len(), "two positions of {len} gave one sample");
        assert!(values.iter().all(|&value| value < len));
        let mean = values.iter().map(|&value| value as f64 / len as f64).sum::<f64>() / values.len() as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}

/// Saved positions mean these orders. If this fails, runs cannot be resumed any more: give the new order a name of its own.
#[test]
fn orders_stay_what_they_were() {
    let far = Order::shuffled(1 << 48, 42, 3);
    let values = (shuffled(10, 7, 0), [0, 1, 1 << 40].map(|position| far.at(position)));
    assert_eq!(
        values,
        (vec![7, 8, 0, 4, 6, 2, 9, 5, 1, 3], [117_120_566_702_662, 99_324_235_287_988, 55_241_674_122_488])
    );
}

#[test]
fn all_orders_of_a_few_samples_are_equally_likely() {
    let index = |order: &[u64]| {
        order.iter().enumerate().fold(0, |index, (at, value)| {
            index * (order.len() - at) + order[at + 1..].iter().filter(|later| *later < value).count()
        })
    };
    for (len, orders) in [(2u64, 2usize), (3, 6), (4, 24), (5, 120), (6, 720)] {
        let mut counts = vec![0u64; orders];
        let expected = 100;
        for seed in 0..(expected * orders) as u64 {
            counts[index(&shuffled(len, seed, 0))] += 1;
        }
        let z = chi_squared_z(counts, expected as f64, (orders - 1) as f64);
        assert!(z.abs() < 4.0, "{len} samples: {z} standard deviations");
    }
}

#[test]
fn every_sample_is_equally_likely_at_every_position() {
    for len in [7usize, 32, 100] {
        let (mut counts, epochs) = (vec![0u64; len * len], 200 * len as u64);
        for epoch in 0..epochs {
            for (position, sample) in shuffled(len as u64, 11, epoch).into_iter().enumerate() {
                counts[position * len + sample as usize] += 1;
            }
        }
        let freedom = ((len - 1) * (len - 1)) as f64;
        let z = chi_squared_z(counts, epochs as f64 / len as f64, freedom);
        assert!(z.abs() < 4.0, "{len} samples: {z} standard deviations");
    }
}

#[test]
fn neighbours_are_equally_likely_at_every_distance() {
    for (len, apart) in [(16usize, 1usize), (100, 1), (100, 2), (100, 50), (128, 64)] {
        let (mut counts, epochs) = (vec![0u64; len], 3_000u64);
        for epoch in 0..epochs {
            let order = shuffled(len as u64, 13, epoch);
            for position in 0..len - apart {
                let distance = order[position + apart] as usize + len - order[position] as usize;
                counts[distance % len] += 1;
            }
        }
        assert_eq!(counts[0], 0);
        let expected = (epochs as usize * (len - apart)) as f64 / (len - 1) as f64;
        let z = chi_squared_z(counts.into_iter().skip(1), expected, (len - 2) as f64);
        assert!(z.abs() < 4.0, "{len} samples, {apart} apart: {z} standard deviations");
    }
}

/// How long the longest run of growing values is, those between left out: about 2 sqrt(n) for a real shuffle, and far from
/// it for anything with order left in it.
fn longest_growing(order: &[u64]) -> usize {
    let mut tails: Vec<u64> = Vec::new();
    for &value in order {
        let at = tails.partition_point(|&tail| tail < value);
        match tails.get_mut(at) {
            Some(tail) => *tail = value,
            None => tails.push(value),
        }
    }
    tails.len()
}

/// Of two neighbours' values, as of independent ones.
fn correlation(a: &[u64], b: &[u64]) -> f64 {
    let mean = |values: &[u64]| values.iter().sum::<u64>() as f64 / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (a as f64 - mean_a, b as f64 - mean_b);
        (ab, aa, bb) = (ab + a * b, aa + a * a, bb + b * b);
    }
    ab / (aa * bb).sqrt()
}

#[test]
fn it_is_as_disordered_as_a_real_shuffle() {
    let (len, rounds) = (10_000u64, 40);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut real = || {
        let mut order: Vec<u64> = (0..len).collect();
        order.shuffle(&mut rng as &mut dyn Rng);
        order
    };
    let mean = |of: &mut dyn FnMut(u64) -> Vec<u64>| {
        (0..rounds).map(|round| longest_growing(&of(round)) as f64).sum::<f64>() / rounds as f64
    };
    let (ours, theirs) = (mean(&mut |epoch| shuffled(len, 17, epoch)), mean(&mut |_| real()));
    // One such length has a standard deviation of about 4; the difference of two means of 40, 0.9.
    assert!((ours - theirs).abs() < 3.5, "{ours} against {theirs}");
    for epoch in 0..rounds {
        let (order, next) = (shuffled(len, 17, epoch), shuffled(len, 17, epoch + 1));
        let bound = 4.5 / (len as f64).sqrt();
        for (what, r) in [
            ("neighbours", correlation(&order[1..], &order[..order.len() - 1])),
            ("halves", correlation(&order[..5_000], &order[5_000..])),
            ("epochs", correlation(&order, &next)),
        ] {
            assert!(
                r.abs() < bound * if what == "halves" { 1.5 } else { 1.0 },
                "{what} of epoch {epoch}: {r}"
            );
        }
        let same = order.iter().zip(&next).filter(|(a, b)| a == b).count();
        assert!(same < 9, "{same} samples keep their place from epoch {epoch} to the next");
    }
}

#[test]
fn seeds_and_epochs_are_not_confused() {
    assert_eq!(shuffled(1000, 1, 2), shuffled(1000, 1, 2));
    assert_ne!(shuffled(1000, 1, 2), shuffled(1000, 2, 1));
    assert_ne!(shuffled(1000, 0, 1), shuffled(1000, 1, 0));
    assert_eq!(Order::sequential(5).at(3), 3);
    assert!(std::panic::catch_unwind(|| Order::shuffled(5, 0, 0).at(5)).is_err());
}
