//! What population-based training needs to know of a search space.

use std::fmt::Debug;

use serde_json::Value;

use super::draw::Draw;
use super::event::Config;

/// A space whose configurations can be changed a little. Everything it returns lies in the space.
pub trait Perturb: Debug + Send + Sync {
    /// The parameters of this configuration that may change, always in the same order: not fixed ones, and not those of
    /// branches that it does not take.
    fn parameters(&self, config: &Config) -> Vec<String>;

    /// A fresh value: the parameter's distribution at this quantile in `[0, 1)`.
    fn sample(&self, parameter: &str, quantile: f64) -> Value;

    /// Where in `[0, 1]` of its range (of the logarithms, for one on a logarithmic scale) a value lies; `None` where a
    /// parameter's values have no order. [`sample`](Perturb::sample) undoes it for uniform distributions.
    fn place(&self, parameter: &str, value: &Value) -> Option<f64>;

    /// The value times the factor, or the next choice in the factor's direction; an integer changes by at least one. At
    /// the end of the range it stays there.
    fn neighbour(&self, parameter: &str, value: &Value, factor: f64) -> Value;

    /// The configuration made to fit after changes: values clamped, parameters of branches no longer taken left out, those
    /// of branches newly taken drawn.
    fn settle(&self, config: Config, draw: &mut Draw) -> Config;
}

/// Changes each parameter: with the probability `resample` to a fresh value, else times one of the factors.
pub(super) fn perturb(
    space: &dyn Perturb,
    config: &Config,
    resample: f64,
    factors: (f64, f64),
    draw: &mut Draw,
) -> Config {
    let mut changed = config.clone();
    for parameter in space.parameters(config) {
        let Some(value) = config.get(&parameter) else { continue };
        let value = if draw.chance(resample) {
            space.sample(&parameter, draw.unit())
        } else {
            let factor = if draw.chance(0.5) { factors.0 } else { factors.1 };
            space.neighbour(&parameter, value, factor)
        };
        changed.insert(parameter, value);
    }
    space.settle(changed, draw)
}
