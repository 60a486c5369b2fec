//! Where an acquisition function is largest: thousands of spread points first, then a climb from the best of them.

use super::acquisition::Acquisition;
use super::lbfgs::{self, Stop};
use super::table::Table;
use crate::sampler::sobol;
use crate::space::Point;
use crate::stream::Stream;

/// So many climbs are made.
const CLIMBS: usize = 10;
/// A number with at most so many values is tried value by value.
const FEW: u64 = 16;
/// A climb ends after so many rounds of continuous and discrete moves.
const ROUNDS: usize = 20;

/// What is climbed, and from how many spread points the starts are chosen.
pub(super) struct Hunt<'a> {
    pub(super) table: &'a Table<'a>,
    pub(super) acquisition: &'a Acquisition,
    pub(super) spread: usize,
}

/// The point that promises most, starting from spread points and from those given.
pub(super) fn best(hunt: &Hunt<'_>, known: Vec<Vec<f64>>, stream: &mut Stream) -> Point {
    let Hunt { table, acquisition, spread } = *hunt;
    let scramble = stream.bits();
    let spread: Vec<Vec<f64>> =
        (0..spread).map(|i| table.spread(|k| sobol::coarse(scramble, i as u64, k))).collect();
    let values = acquisition.values(&spread);
    let mut starts = known;
    starts.truncate(CLIMBS - 1);
    starts.extend(roulette(&values, CLIMBS - starts.len(), stream).into_iter().map(|i| spread[i].clone()));
    let mut top: Option<(f64, Vec<f64>)> = None;
    for start in starts {
        let (value, at) = climb(hunt, start);
        if top.as_ref().is_none_or(|(best, _)| value > *best) {
            top = Some((value, at));
        }
    }
    table.point(&top.map(|(_, at)| at).unwrap_or_else(|| spread[0].clone()))
}

/// The largest value's index, and others by chance in proportion to the exponent of theirs.
fn roulette(values: &[f64], count: usize, stream: &mut Stream) -> Vec<usize> {
    let better = |a: &usize, b: &usize| values[*a].total_cmp(&values[*b]);
    let Some(top) = (0..values.len()).filter(|i| !values[*i].is_nan()).max_by(better) else { return vec![0] };
    let mut weights: Vec<f64> = values.iter().map(|v| (v - values[top]).exp()).collect();
    weights.iter_mut().filter(|w| !w.is_finite()).for_each(|w| *w = 0.0);
    weights[top] = 0.0;
    let mut chosen = vec![top];
    while chosen.len() < count {
        let total: f64 = weights.iter().sum();
        if total <= 0.0 {
            break;
        }
        let mut left = stream.unit() * total;
        let hit = weights.iter().position(|w| {
            left -= w;
            *w > 0.0 && left < 0.0
        });
        let Some(hit) = hit.or_else(|| weights.iter().rposition(|w| *w > 0.0)) else { break };
        weights[hit] = 0.0;
        chosen.push(hit);
    }
    chosen
}

/// Climbs along the continuous parameters together and along each discrete one, in turns, until neither helps.
fn climb(hunt: &Hunt<'_>, mut at: Vec<f64>) -> (f64, Vec<f64>) {
    let (table, acquisition) = (hunt.table, hunt.acquisition);
    let smooth: Vec<usize> =
        (0..at.len()).filter(|k| table.is_active(&at, *k) && table.is_smooth(*k)).collect();
    let discrete: Vec<usize> = (0..at.len())
        .filter(|k| table.is_active(&at, *k) && !table.is_smooth(*k) && !table.decides(*k))
        .collect();
    let mut value = acquisition.values(std::slice::from_ref(&at))[0];
    for _ in 0..ROUNDS {
        let before = value;
        value = slide(hunt, &mut at, &smooth, value);
        if discrete.is_empty() {
            break;
        }
        // Every one of them gets its step, whatever the others did.
        let moved = discrete.iter().filter(|k| step(hunt, &mut at, **k, &mut value)).count() > 0;
        if !moved || value - before < 1e-4 {
            break;
        }
    }
    (value, at)
}

/// A climb along the continuous parameters, each measured in its own length scale.
fn slide(hunt: &Hunt<'_>, at: &mut [f64], smooth: &[usize], value: f64) -> f64 {
    let (table, acquisition) = (hunt.table, hunt.acquisition);
    if smooth.is_empty() {
        return value;
    }
    let scales: Vec<f64> = smooth.iter().map(|k| table.scale(acquisition, *k)).collect();
    let mut x: Vec<f64> = smooth.iter().zip(&scales).map(|(k, s)| at[*k] / s).collect();
    let low = vec![0.0; x.len()];
    let high: Vec<f64> = scales.iter().map(|s| 1.0 / s).collect();
    let mut full = at.to_vec();
    let mut gradient = vec![0.0; at.len()];
    let objective = |x: &[f64], slope: &mut [f64]| {
        for ((k, s), x) in smooth.iter().zip(&scales).zip(x) {
            full[*k] = (x * s).clamp(0.0, 1.0);
        }
        let value = acquisition.slope(&full, &mut gradient);
        for ((k, s), slope) in smooth.iter().zip(&scales).zip(slope) {
            *slope = -gradient[*k] * s;
        }
        -value
    };
    let climbed = -lbfgs::minimise(objective, &mut x, (&low, &high), Stop { slope: 1e-2, iterations: 50 });
    if climbed > value {
        for ((k, s), x) in smooth.iter().zip(&scales).zip(&x) {
            at[*k] = (x * s).clamp(0.0, 1.0);
        }
        return climbed;
    }
    value
}

/// The best value of one discrete parameter: all of them where they are few, else by strides that double and halve.
fn step(hunt: &Hunt<'_>, at: &mut [f64], k: usize, value: &mut f64) -> bool {
    let (table, acquisition) = (hunt.table, hunt.acquisition);
    let before = at[k];
    let mut consider = |at: &mut [f64], places: Vec<f64>| {
        let others: Vec<Vec<f64>> = places
            .iter()
            .map(|place| {
                let mut other = at.to_vec();
                other[k] = *place;
                other
            })
            .collect();
        let mut better = false;
        for (other, v) in others.iter().zip(acquisition.values(&others)) {
            if v > *value + 1e-12 {
                (*value, at[k], better) = (v, other[k], true);
            }
        }
        better
    };
    match table.places(k) {
        places if places.len() as u64 <= FEW || table.is_category(k) => {
            consider(at, places.into_iter().filter(|p| *p != before).collect());
        }
        places => {
            let mut stride = (places.len() / 4).max(1);
            for _ in 0..64 {
                let here = places.iter().position(|p| *p == at[k]).unwrap_or(0);
                let near = [here.checked_sub(stride), Some(here + stride)].into_iter().flatten();
                let near = near.filter_map(|i| places.get(i).copied()).collect();
                if !consider(at, near) {
                    if stride == 1 {
                        break;
                    }
                    stride /= 2;
                }
            }
        }
    }
    at[k] != before
}
