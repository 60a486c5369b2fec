//! What a study optimises and what it varies, as far as those who only read its log need it: the writers of other
//! programs' formats, tables and plots. How values are chosen is the tuner's business.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// See [`Event::StudyConfigured`](crate::Event::StudyConfigured).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StudyConfigured {
    /// What is optimised. Where one must decide, it is the first.
    pub objectives: Vec<Objective>,
    /// What is varied, each parameter after the one it depends on. A study whose trials discover parameters as they run is
    /// configured again with each that is new, the others in their places.
    pub parameters: Vec<Parameter>,
    /// What else the tuner wants to find again: seed, sampler, scheduler.
    pub plan: Value,
}

/// A metric that is optimised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objective {
    /// Its name in reports.
    pub metric: String,
    /// Whether more is better.
    #[serde(default)]
    pub maximize: bool,
}

/// Something that a study varies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// Where it stands in a trial's configuration, the names joined by dots.
    pub path: String,
    /// What values it takes.
    pub domain: Domain,
    /// The earlier parameter it depends on and the index of that one's value: elsewhere it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<(usize, usize)>,
}

/// What values a parameter takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Domain {
    /// Real numbers of a closed interval.
    Float {
        /// The smallest value.
        low: f64,
        /// The largest value.
        high: f64,
        /// Whether magnitudes are equally likely, rather than values.
        #[serde(default)]
        log: bool,
        /// Only values `low + k * step`.
        #[serde(default)]
        step: Option<f64>,
    },
    /// A normal distribution.
    Normal {
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        deviation: f64,
    },
    /// Integers of a closed interval.
    Int {
        /// The smallest value.
        low: i64,
        /// The largest value.
        high: i64,
        /// Whether magnitudes are equally likely, rather than values.
        #[serde(default)]
        log: bool,
        /// Only values `low + k * step`.
        step: i64,
    },
    /// Numbers in order: neighbours are alike.
    Grid(Vec<f64>),
    /// Alternatives without an order, as they stand in the configuration. A branch with parameters below it stands there as
    /// an object whose only name is the alternative.
    Category(Vec<Value>),
}

impl Parameter {
    /// The parameter's value in a trial's configuration: what stands under its path, and of an alternative with parameters
    /// below it the name. Nothing where the configuration took another branch.
    pub fn value<'a>(&self, config: &'a Value) -> Option<std::borrow::Cow<'a, Value>> {
        use std::borrow::Cow;
        let found = at(config, &self.path)?;
        if let (Value::Object(branch), Domain::Category(names)) = (found, &self.domain)
            && branch.len() == 1
            && let Some(name) = branch.keys().next().map(|name| Value::from(name.as_str()))
            && names.contains(&name)
        {
            return Some(Cow::Owned(name));
        }
        Some(Cow::Borrowed(found))
    }

    /// The same as one number: a number itself, an alternative's or a grid value's index.
    pub fn raw(&self, config: &Value) -> Option<f64> {
        let value = self.value(config)?;
        let same = |known: &Value| {
            *known == *value || (known.is_number() && value.is_number() && known.as_f64() == value.as_f64())
        };
        match &self.domain {
            Domain::Category(values) => values.iter().position(same).map(|index| index as f64),
            Domain::Grid(values) => {
                values.iter().position(|known| value.as_f64() == Some(*known)).map(|index| index as f64)
            }
            _ => value.as_f64(),
        }
    }
}

/// What stands under a path: the whole path as one name, as a study that discovers its parameters has it, or its names
/// one below the other. The root has no name.
fn at<'a>(config: &'a Value, path: &str) -> Option<&'a Value> {
    if path == "." {
        return Some(config);
    }
    config.get(path).or_else(|| path.split('.').try_fold(config, |value, name| value.get(name)))
}
