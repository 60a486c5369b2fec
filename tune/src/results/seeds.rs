//! Trials that differ in nothing but their seed are one result with a spread.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Direction, History, Scope};
use crate::scheduler::Config;

/// Trials of one configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What they have in common: the configuration without the seed.
    pub config: Config,
    /// Their numbers.
    pub trials: Vec<u32>,
    /// The mean of their values.
    pub mean: f64,
    /// The sample's standard deviation of their values; 0 for a single one.
    pub deviation: f64,
    /// How much worse the mean is than that of the best group; 0 for the best, and never negative.
    pub behind: f64,
}

/// Groups the trials that have a value for the metric by all of their configuration but the parameter `seed`, the best
/// group first; a group one of whose values is not a number comes last.
#[must_use]
pub fn over_seeds(
    trials: &[History],
    seed: &str,
    metric: &str,
    direction: Direction,
    scope: Scope,
) -> Vec<Group> {
    // Values of JSON have no order; their texts do, and equal values have equal texts.
    let mut groups: BTreeMap<String, (Config, Vec<(u32, f64)>)> = BTreeMap::new();
    for trial in trials {
        let Some(value) = trial.score(metric, direction, scope) else { continue };
        let mut config = trial.config.clone();
        config.remove(seed);
        let key = Value::from_iter(config.clone()).to_string();
        groups.entry(key).or_insert_with(|| (config, Vec::new())).1.push((trial.number, value));
    }
    let group = |(config, values): (_, Vec<(u32, f64)>)| {
        let n = values.len() as f64;
        let mean = values.iter().map(|(_, value)| value).sum::<f64>() / n;
        let squares: f64 = values.iter().map(|(_, value)| (value - mean).powi(2)).sum();
        let deviation = if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        Group {
            config,
            trials: values.iter().map(|(trial, _)| *trial).collect(),
            mean,
            deviation,
            behind: 0.0,
        }
    };
    let mut groups: Vec<Group> = groups.into_values().map(group).collect();
    groups.sort_by(|a, b| direction.order(a.mean, b.mean).then(a.trials.cmp(&b.trials)));
    let best = groups.first().map_or(f64::NAN, |group| group.mean);
    for group in &mut groups {
        group.behind = direction.loss(group.mean) - direction.loss(best);
    }
    groups
}
