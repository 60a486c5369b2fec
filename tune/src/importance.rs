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
    let mut result: Vec<Importance> =
        parameters.map(|(path, domain, raws)| Importance { path, share: divergence(&domain, &raws) }).collect();
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

/// The probabilities of the parameter's cells: a Parzen estimate with Scott's bandwidth, and a prior that keeps all above
/// zero.
fn density(domain: &Domain, raws: &[f64]) -> Vec<f64> {
    let n = raws.len() as f64;
    let prior = 1.0 / (n + 1.0);
    if let Domain::Category(values) = domain {
        let share = |c: usize| raws.iter().filter(|r| **r == c as f64).count() as f64;
        return (0..values.len()).map(|c| share(c) / (n + 1.0) + prior / values.len() as f64).collect();
    }
    let cells = domain.count().map_or(CELLS, |c| c.min(CELLS as u64) as usize);
    let units: Vec<f64> = raws.iter().map(|r| domain.unit(*r)).collect();
    let mean = units.iter().sum::<f64>() / n;
    let deviation = (units.iter().map(|u| (u - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
    let mut sorted = units.clone();
    sorted.sort_by(f64::total_cmp);
    let quartile = |q: f64| sorted[((sorted.len() - 1) as f64 * q).round() as usize];
    let spread = match (quartile(0.75) - quartile(0.25)) / 1.34 {
        range if range > 0.0 => range.min(deviation),
        _ => deviation,
    };
    let width = (1.059 * spread * n.powf(-0.2)).max(0.5 / cells as f64);
    let edge = |k: usize| k as f64 / cells as f64;
    (0..cells)
        .map(|cell| {
            let kernel = |u: &f64| {
                let mass = |a: f64, b: f64| normal::between((a - u) / width, (b - u) / width);
                mass(edge(cell), edge(cell + 1)) / mass(0.0, 1.0)
            };
            units.iter().map(kernel).sum::<f64>() / (n + 1.0) + prior / cells as f64
        })
        .collect()
}
