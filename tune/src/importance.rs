//! Which parameters matter: PED-ANOVA, which asks how differently a parameter is distributed among the good trials and
//! among all of them.
//!
//! ```
//! use regatta_tune::importance::importance;
//! use regatta_tune::sampler::{Random, Search};
//! use regatta_tune::space::{float, group};
//!
//! let space = group().with("x", float(0.0..=1.0)).with("y", float(0.0..=1.0)).build()?;
//! let mut search = Search::new(space, Random, 1);
//! for _ in 0..200 {
//!     let trial = search.ask()?;
//!     let at = |name: &str| trial.config[name].as_f64().unwrap();
//!     search.tell(trial.number, &[at("x") + 0.01 * at("y")])?;
//! }
//! let importance = importance(search.space(), search.history().told(), 0);
//! assert_eq!(importance[0].path, "x");
//! assert!(importance[0].share > 0.9);
//! # Ok::<(), regatta_tune::Error>(())
//! ```

use crate::normal;
use crate::sampler::{End, Told};
use crate::space::{Domain, Space};

/// The part of the trials that counts as good.
const GOOD: f64 = 0.1;
/// Into so many cells a continuous parameter is divided.
const CELLS: usize = 50;

/// How much a parameter matters.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Importance {
    /// The parameter.
    pub path: String,
    /// Its share of all that matters: the shares add up to one.
    pub share: f64,
}

/// How much each parameter matters for an objective, the most important first. Trials without a finite loss are left out;
/// with fewer than two trials nothing is known, and all shares are zero. A parameter below a branch is judged by the
/// trials that took it.
pub fn importance(space: &Space, told: &[Told], objective: usize) -> Vec<Importance> {
    let loss = |t: &&Told| t.losses.get(objective).copied().filter(|l| l.is_finite());
    let mut trials: Vec<(&Told, f64)> =
        told.iter().filter(|t| t.end == End::Complete).filter_map(|t| Some((t, loss(&t)?))).collect();
    trials.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.number.cmp(&b.0.number)));
    shares((space.parameters().iter().enumerate()).map(|(index, parameter)| {
        let raws: Vec<f64> = trials.iter().filter_map(|(t, _)| t.point.get(index)).collect();
        (parameter.path.clone(), parameter.domain.clone(), raws)
    }))
}

/// The same of parameters with their domains and their raw values in the trials that had them, the best trial first.
pub(crate) fn shares(parameters: impl Iterator<Item = (String, Domain, Vec<f64>)>) -> Vec<Importance> {
    let mut result: Vec<Importance> = parameters
        .map(|(path, domain, raws)| Importance { path, share: divergence(&domain, &raws) })
        .collect();
    let total: f64 = result.iter().map(|i| i.share).sum();
    if total > 0.0 {
        result.iter_mut().for_each(|i| i.share /= total);
    }
    result.sort_by(|a, b| b.share.total_cmp(&a.share));
    result
}

/// The Pearson divergence of the good ones among `raws` (best first) from all of them.
fn divergence(domain: &Domain, raws: &[f64]) -> f64 {
    let good = ((raws.len() as f64 * GOOD).ceil() as usize).max(2);
    if raws.len() < 2 || good > raws.len() || domain.count() == Some(1) {
        return 0.0;
    }
    let (all, best) = (density(domain, raws), density(domain, &raws[..good]));
    all.iter().zip(&best).map(|(p, q)| p * (q / p - 1.0).powi(2)).sum()
}

/// The probabilities of the parameter's cells: a Parzen estimate over how many trials fell into each, with Scott's bandwidth, and a prior
/// that keeps all above zero. All of it as Optuna has it, whose figures the tests compare.
fn density(domain: &Domain, raws: &[f64]) -> Vec<f64> {
    let prior = 1.0 / (raws.len() as f64 + 1.0);
    if let Domain::Category(values) = domain {
        return of_categories(&count(raws.iter().map(|raw| *raw as usize), values.len()), prior);
    }
    let exact = domain.count().filter(|count| *count <= CELLS as u64).map(|count| count as usize);
    let cells = exact.unwrap_or(CELLS);
    let place = |raw: &f64| match exact {
        Some(_) => (domain.unit(*raw) * cells as f64) as usize,
        None => (domain.unit(*raw) * (cells - 1) as f64).round() as usize,
    };
    let counts = count(raws.iter().map(|raw| place(raw).min(cells - 1)), cells);
    let width = bandwidth(&counts);
    let edges = |cell: usize| (cell as f64 - 0.5, cell as f64 + 0.5);
    let kernel = |centre: f64, width: f64, (from, to): (f64, f64)| {
        let mass = |a: f64, b: f64| normal::between((a - centre) / width, (b - centre) / width);
        mass(from, to) / mass(-0.5, cells as f64 - 0.5)
    };
    let known: Vec<(f64, f64)> =
        counts.iter().enumerate().filter(|(_, n)| **n > 0.0).map(|(cell, n)| (cell as f64, *n)).collect();
    (0..cells)
        .map(|cell| {
            let near: f64 = known.iter().map(|(at, n)| n * kernel(*at, width, edges(cell))).sum();
            prior * (near + kernel((cells - 1) as f64 / 2.0, cells as f64, edges(cell)))
        })
        .collect()
}

/// How many fell into each cell.
fn count(places: impl Iterator<Item = usize>, cells: usize) -> Vec<f64> {
    let mut counts = vec![0.0; cells];
    places.for_each(|place| counts[place.min(cells - 1)] += 1.0);
    counts
}

/// Each category that was seen speaks for the others a little, the more so the fewer were seen.
fn of_categories(counts: &[f64], prior: f64) -> Vec<f64> {
    let (all, categories) = (counts.iter().sum::<f64>(), counts.len() as f64);
    let little = 1.0 / (counts.iter().filter(|n| **n > 0.0).count() as f64 + 1.0);
    let share = |n: &f64| prior * ((n + little * all) / (1.0 + categories * little) + 1.0 / categories);
    counts.iter().map(share).collect()
}

/// Scott's rule, in cells; a narrow kernel still has most of its mass within its own.
fn bandwidth(counts: &[f64]) -> f64 {
    let n: f64 = counts.iter().sum();
    let cells = || counts.iter().enumerate().map(|(cell, n)| (cell as f64, n));
    let mean = cells().map(|(cell, n)| cell * n).sum::<f64>() / n;
    let deviation =
        (cells().map(|(cell, k)| (cell - mean).powi(2) * k).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
    let until = |cell: usize| counts[..=cell].iter().sum::<f64>();
    let last = counts.len() - 1;
    let first = (0..last).find(|cell| until(*cell) >= (n / 4.0).floor()).unwrap_or(last);
    let third = (0..last).find(|cell| until(*cell) > (n * 3.0 / 4.0).floor()).unwrap_or(last);
    let spread = ((third - first) as f64 / 1.34).min(deviation);
    (1.059 * spread * n.powf(-0.2)).max(0.5 / 1.64)
}
