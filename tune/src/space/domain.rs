//! One parameter: what values it takes, and its way into the unit interval, where all samplers work.
//!
//! A value is kept *raw*, as one `f64`: a number is itself, a category or a grid's entry is its index.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::normal;
use crate::space::Node;

/// Integers beyond this are not exact in an `f64`.
const EXACT: f64 = 9_007_199_254_740_992.0;
/// How far in its tails a normal parameter is cut off, as a probability on either side.
const TAIL: f64 = 1e-9;

/// What values a parameter takes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Domain {
    /// Real numbers of a closed interval, uniform, uniform in the logarithm, or every `step` from `low`.
    Float {
        /// The smallest value.
        low: f64,
        /// The largest value.
        high: f64,
        /// Whether magnitudes are equally likely, rather than values.
        log: bool,
        /// Only values `low + k * step`.
        step: Option<f64>,
    },
    /// A normal distribution (cut off at six standard deviations).
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
        log: bool,
        /// Only values `low + k * step`.
        step: i64,
    },
    /// A list of numbers in order: neighbours are alike.
    Grid(Vec<f64>),
    /// Alternatives without an order, as they stand in the configuration.
    Category(Vec<Value>),
}

impl Domain {
    /// Refuses what cannot be sampled.
    pub(crate) fn check(&self, path: &str) -> Result<()> {
        let wrong = |problem: String| Err(Error::space(path, problem));
        match self {
            Self::Float { low, high, log, step } => {
                if !low.is_finite() || !high.is_finite() {
                    return wrong(format!("the range {low}..={high} is not finite"));
                }
                if low > high {
                    return wrong(format!("the range {low}..={high} is inverted: write {high}..={low}"));
                }
                if !(high - low).is_finite() {
                    return wrong(format!("the range {low}..={high} is wider than a double can say"));
                }
                if *log && *low <= 0.0 {
                    return wrong(format!("a logarithmic range starts above zero, not at {low}"));
                }
                match step {
                    Some(_) if *log => wrong("log and step exclude each other: choose one".into()),
                    Some(step) if !(step.is_finite() && *step > 0.0) => {
                        wrong(format!("a step is a positive number, not {step}"))
                    }
                    Some(step) if (high - low) / step > EXACT => {
                        wrong(format!("a step of {step} is too fine"))
                    }
                    _ => Ok(()),
                }
            }
            Self::Normal { mean, deviation }
                if !(mean.is_finite() && deviation.is_finite() && *deviation > 0.0) =>
            {
                wrong(format!("normal({mean}, {deviation}) wants a finite mean and a positive deviation"))
            }
            Self::Normal { .. } => Ok(()),
            Self::Int { low, high, log, step } => {
                if low > high {
                    return wrong(format!("the range {low}..={high} is inverted: write {high}..={low}"));
                }
                if low.unsigned_abs().max(high.unsigned_abs()) as f64 >= EXACT {
                    return wrong(format!(
                        "the range {low}..={high} leaves +-2^53, where integers are exact"
                    ));
                }
                if *log && *low < 1 {
                    return wrong(format!(
                        "a logarithmic range of integers starts at 1 or above, not at {low}"
                    ));
                }
                if *step < 1 {
                    return wrong(format!("a step is a positive number, not {step}"));
                }
                if *log && *step > 1 {
                    return wrong("log and step exclude each other: choose one".into());
                }
                Ok(())
            }
            Self::Grid(values) => {
                if values.is_empty() {
                    return wrong("the grid is empty".into());
                }
                if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
                    return wrong(format!("{bad} in a grid is not finite"));
                }
                if !values.windows(2).all(|w| w[0] < w[1]) {
                    return wrong(format!("a grid is in rising order without repetition, unlike {values:?}"));
                }
                Ok(())
            }
            Self::Category(values) => {
                if values.is_empty() {
                    return wrong("there is nothing to choose from".into());
                }
                let twice = values.iter().enumerate().find(|(i, v)| values[..*i].contains(v));
                match twice {
                    Some((_, value)) => wrong(format!("{value} is offered twice")),
                    None => Ok(()),
                }
            }
        }
    }

    /// How many values there are, where they can be counted.
    pub fn count(&self) -> Option<u64> {
        match self {
            Self::Float { low, high, step: None, .. } => (low == high).then_some(1),
            Self::Float { low, high, step: Some(step), .. } => Some(steps(*low, *high, *step) as u64 + 1),
            Self::Normal { .. } => None,
            Self::Int { low, high, step, .. } => Some((high.abs_diff(*low)) / step.unsigned_abs() + 1),
            Self::Grid(values) => Some(values.len() as u64),
            Self::Category(values) => Some(values.len() as u64),
        }
    }

    /// The node that says the same.
    pub(crate) fn node(&self) -> Node {
        match self {
            &Self::Float { low, high, log, step } => {
                Node::Float { low, high, log, step: step.unwrap_or(0.0) }
            }
            &Self::Normal { mean, deviation } => Node::Normal { mean, deviation },
            &Self::Int { low, high, log, step } => Node::Int { low, high, log, step },
            Self::Grid(values) => Node::Grid(values.clone()),
            Self::Category(values) => Node::Choice(values.clone()),
        }
    }

    /// Whether its values have no order.
    pub fn is_category(&self) -> bool {
        matches!(self, Self::Category(_))
    }

    /// The range of a stepped or integer domain, its end moved onto the last step: (low, high, step, log).
    fn lattice(&self) -> Option<(f64, f64, f64, bool)> {
        match self {
            Self::Float { low, high, step: Some(step), .. } => {
                Some((*low, low + steps(*low, *high, *step) * step, *step, false))
            }
            Self::Int { low, high, log, step } => {
                Some((*low as f64, (low + (high - low) / step * step) as f64, *step as f64, *log))
            }
            Self::Grid(values) => Some((0.0, values.len() as f64 - 1.0, 1.0, false)),
            Self::Category(values) => Some((0.0, values.len() as f64 - 1.0, 1.0, false)),
            _ => None,
        }
    }

    /// A raw value's place in the unit interval. Countable values lie in the middle of equal cells (equal after the
    /// logarithm's stretching).
    pub fn unit(&self, raw: f64) -> f64 {
        match self {
            Self::Normal { mean, deviation } => normal::cdf((raw - mean) / deviation),
            Self::Float { low, high, log, step: None } => {
                if low == high {
                    return 0.5;
                }
                let w = |v: f64| if *log { v.ln() } else { v };
                ((w(raw) - w(*low)) / (w(*high) - w(*low))).clamp(0.0, 1.0)
            }
            _ => self.place(raw),
        }
    }

    /// Where a number lies between the outer edges of a lattice.
    fn place(&self, value: f64) -> f64 {
        let (low, high, step, log) = self.lattice().expect("everything else is a lattice");
        let w = |v: f64| if log { v.ln() } else { v };
        let (from, to) = (w(low - step / 2.0), w(high + step / 2.0));
        ((w(value) - from) / (to - from)).clamp(0.0, 1.0)
    }

    /// The raw value at a place of the unit interval; always inside the domain.
    pub fn raw(&self, unit: f64) -> f64 {
        let u = if unit.is_nan() { 0.5 } else { unit.clamp(0.0, 1.0) };
        match self {
            Self::Normal { mean, deviation } => {
                mean + deviation * normal::quantile(u.clamp(TAIL, 1.0 - TAIL))
            }
            Self::Float { low, high, log, step: None } => {
                let value =
                    if *log { (low.ln() + u * (high.ln() - low.ln())).exp() } else { low + u * (high - low) };
                value.clamp(*low, *high)
            }
            _ => {
                let (low, high, step, log) = self.lattice().expect("everything else is a lattice");
                let (from, to) = (low - step / 2.0, high + step / 2.0);
                let value =
                    if log { (from.ln() + u * (to.ln() - from.ln())).exp() } else { from + u * (to - from) };
                let last = ((high - low) / step).round();
                (low + ((value - low) / step).round().clamp(0.0, last) * step).min(high)
            }
        }
    }

    /// The cell of the unit interval that a countable value stands for.
    pub fn cell(&self, raw: f64) -> Option<(f64, f64)> {
        let (_, _, step, _) = self.lattice()?;
        Some((self.place(raw - step / 2.0), self.place(raw + step / 2.0)))
    }

    /// Whether a raw value is one of the domain's.
    pub fn contains(&self, raw: f64) -> bool {
        match self {
            Self::Float { low, high, step: None, .. } => (*low..=*high).contains(&raw),
            Self::Normal { .. } => raw.is_finite(),
            _ => {
                let (low, high, step, _) = self.lattice().expect("everything else is a lattice");
                let at = (raw - low) / step;
                raw.is_finite() && at > -1e-6 && raw <= high + 1e-6 * step && (at - at.round()).abs() < 1e-6
            }
        }
    }

    /// A raw value as it stands in the configuration.
    pub fn json(&self, raw: f64) -> Value {
        match self {
            Self::Float { .. } | Self::Normal { .. } => Value::from(raw),
            Self::Int { .. } => Value::from(raw as i64),
            Self::Grid(values) => number(values[raw as usize]),
            Self::Category(values) => values[raw as usize].clone(),
        }
    }

    /// The raw value of what stands in a configuration.
    pub(crate) fn parse(&self, path: &str, value: &Value) -> Result<f64> {
        let found = match self {
            Self::Category(values) => values.iter().position(|v| same(v, value)).map(|i| i as f64),
            Self::Grid(values) => {
                value.as_f64().and_then(|x| values.iter().position(|v| *v == x)).map(|i| i as f64)
            }
            _ => value.as_f64().filter(|raw| self.contains(*raw)),
        };
        found.ok_or_else(|| Error::config(path, format!("{value} is not {self}")))
    }
}

/// Whole steps that fit, forgiving the last bits of a decimal step.
fn steps(low: f64, high: f64, step: f64) -> f64 {
    ((high - low) / step + 1e-9).floor()
}

/// A number without a fraction is written without one, so that it fits an integer's field too.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < EXACT { Value::from(value as i64) } else { Value::from(value) }
}

/// 1 and 1.0 are the same choice.
fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && b.is_number() && a.as_f64() == b.as_f64())
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Float { low, high, log, step } => {
                write!(f, "a number in {low}..={high}")?;
                match step {
                    Some(step) => write!(f, " by {step}"),
                    None if *log => f.write_str(", log"),
                    None => Ok(()),
                }
            }
            Self::Normal { mean, deviation } => write!(f, "a number, normal({mean}, {deviation})"),
            Self::Int { low, high, log, step } => {
                write!(f, "an integer in {low}..={high}")?;
                match step {
                    1 if *log => f.write_str(", log"),
                    1 => Ok(()),
                    step => write!(f, " by {step}"),
                }
            }
            Self::Grid(values) => write!(f, "one of {values:?}"),
            Self::Category(values) => {
                let values: Vec<String> = values.iter().map(Value::to_string).collect();
                write!(f, "one of [{}]", values.join(", "))
            }
        }
    }
}
