//! Define-by-run: a space that a trial's own code discovers, one question after the other.
//!
//! ```
//! use regatta_tune::space::open::Asked;
//! use regatta_tune::space::{Point, Space};
//!
//! let mut space = Space::open();
//! let mut trial = Asked::new(&space, &Point::default(), 42, 0);
//! let lr = trial.float("lr", 1e-5..=1e-1).log().get()?;
//! let layers = trial.int("layers", 1..=3).get()?;
//! for layer in 0..layers {
//!     trial.int(&format!("width_{layer}"), 16..=256).log().get()?;
//! }
//! let point = trial.finish(&mut space)?; // what was asked is now part of the space
//! assert_eq!(space.parameters().len(), 2 + layers as usize);
//! assert_eq!(point.get(0), Some(lr));
//! # Ok::<(), regatta_tune::Error>(())
//! ```

use std::ops::RangeInclusive;

use serde::Serialize;
use serde_json::Value;

use super::{Domain, Node, Parameter, Point, Result, Space};
use crate::error::Error;
use crate::stream::Stream;

impl Space {
    /// A space without parameters, for trials to discover.
    pub fn open() -> Self {
        Self { root: Node::Unit, parameters: vec![], open: true }
    }

    /// Adds what a trial of another process, or of an earlier one, found.
    pub(crate) fn extend(&mut self, name: &str, node: &Node) -> Result<()> {
        let one = Space::new(Node::Struct(super::Fields(vec![(name.to_owned(), node.clone())])))?;
        match one.parameters() {
            [parameter] => self.discover(name, &parameter.domain).map(drop),
            _ => Err(Error::space(name, "an open space is made of single parameters")),
        }
    }

    /// Adds a parameter to an open space, or finds it again.
    fn discover(&mut self, path: &str, domain: &Domain) -> Result<usize> {
        if let Some(index) = self.find(path) {
            let known = &self.parameters[index].domain;
            if known != domain {
                return Err(changed(path, known, domain));
            }
            return Ok(index);
        }
        self.parameters.push(Parameter { path: path.into(), domain: domain.clone(), parent: None });
        Ok(self.parameters.len() - 1)
    }
}

fn changed(path: &str, known: &Domain, asked: &Domain) -> Error {
    Error::space(path, format!("it was {known}, and now it is asked as {asked}: give it another name"))
}

/// A running trial of an open space. Values that the sampler had in mind are handed out; what it did not know of is
/// drawn from the trial's own random stream, by name, so that the order of questions does not matter.
#[derive(Debug)]
pub struct Asked {
    suggested: Vec<(String, Domain, f64)>,
    taken: Vec<(String, Domain, f64)>,
    /// Values that were chosen before, whatever they are asked as.
    given: Value,
    seed: u64,
    number: u64,
}

impl Asked {
    /// A trial to which a sampler suggested `point`.
    pub fn new(space: &Space, point: &Point, seed: u64, number: u64) -> Self {
        let suggested = point
            .iter()
            .map(|(index, raw)| {
                let Parameter { path, domain, .. } = &space.parameters[index];
                (path.clone(), domain.clone(), raw)
            })
            .collect();
        Self { suggested, taken: vec![], given: Value::Null, seed, number }
    }

    /// A trial that is to get the values of this configuration where it asks for them.
    pub(crate) fn given(config: &Value, seed: u64, number: u64) -> Self {
        Self { suggested: vec![], taken: vec![], given: config.clone(), seed, number }
    }

    /// Asks for a real number.
    pub fn float(&mut self, name: &str, range: RangeInclusive<f64>) -> AskFloat<'_> {
        AskFloat { trial: self, name: name.into(), node: super::float(range) }
    }

    /// Asks for an integer.
    pub fn int(&mut self, name: &str, range: RangeInclusive<i64>) -> AskInt<'_> {
        AskInt { trial: self, name: name.into(), node: super::int(range) }
    }

    /// Asks for true or false.
    pub fn bool(&mut self, name: &str) -> Result<bool> {
        Ok(self.value(name, Domain::Category(vec![Value::Bool(false), Value::Bool(true)]))? == 1.0)
    }

    /// Asks for one of these values.
    pub fn choice<T: Serialize + Clone>(&mut self, name: &str, values: &[T]) -> Result<T> {
        let json = |v: &T| serde_json::to_value(v).map_err(|e| Error::space(name, e.to_string()));
        let domain = Domain::Category(values.iter().map(json).collect::<Result<_>>()?);
        Ok(values[self.value(name, domain)? as usize].clone())
    }

    /// What the trial asked for and got, by name.
    pub(crate) fn taken(&self) -> impl Iterator<Item = (&str, Node, Value)> {
        self.taken.iter().map(|(name, domain, raw)| (name.as_str(), domain.node(), domain.json(*raw)))
    }

    /// The trial's point, after everything it asked for became part of the space.
    pub fn finish(self, space: &mut Space) -> Result<Point> {
        let mut point = Point::default();
        for (name, domain, raw) in &self.taken {
            point.set(space.discover(name, domain)?, Some(*raw));
        }
        Ok(point)
    }

    fn value(&mut self, name: &str, domain: Domain) -> Result<f64> {
        if let Some((_, known, raw)) = self.taken.iter().find(|(n, ..)| n == name) {
            return if *known == domain { Ok(*raw) } else { Err(changed(name, known, &domain)) };
        }
        domain.check(name)?;
        let raw = match self.suggested.iter().find(|(n, ..)| n == name) {
            Some((_, known, _)) if *known != domain => return Err(changed(name, known, &domain)),
            Some((.., raw)) => *raw,
            None => {
                let given = self.given.get(name).and_then(|value| domain.parse(name, value).ok());
                given.unwrap_or_else(|| domain.raw(Stream::new(self.seed, self.number, name).unit()))
            }
        };
        self.taken.push((name.into(), domain, raw));
        Ok(raw)
    }
}

/// A question for a real number; [`get`](AskFloat::get) answers it.
#[derive(Debug)]
#[must_use]
pub struct AskFloat<'a> {
    trial: &'a mut Asked,
    name: String,
    node: super::Float,
}

impl AskFloat<'_> {
    /// Magnitudes are equally likely, rather than values.
    pub fn log(mut self) -> Self {
        self.node.log = true;
        self
    }

    /// Only values `low + k * step`.
    pub fn step(mut self, step: f64) -> Self {
        self.node.step = step;
        self
    }

    /// The value.
    pub fn get(self) -> Result<f64> {
        let super::Float { low, high, log, step } = self.node;
        self.trial.value(&self.name, Domain::Float { low, high, log, step: (step != 0.0).then_some(step) })
    }
}

/// A question for an integer; [`get`](AskInt::get) answers it.
#[derive(Debug)]
#[must_use]
pub struct AskInt<'a> {
    trial: &'a mut Asked,
    name: String,
    node: super::Int,
}

impl AskInt<'_> {
    /// Magnitudes are equally likely, rather than values.
    pub fn log(mut self) -> Self {
        self.node.log = true;
        self
    }

    /// Only values `low + k * step`.
    pub fn step(mut self, step: i64) -> Self {
        self.node.step = step;
        self
    }

    /// The value.
    pub fn get(self) -> Result<i64> {
        let super::Int { low, high, log, step } = self.node;
        Ok(self.trial.value(&self.name, Domain::Int { low, high, log, step })? as i64)
    }
}
