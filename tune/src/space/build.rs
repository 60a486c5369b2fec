//! Building a tree in code. Nothing here fails: [`Space::new`](super::Space::new) says what is wrong, and where.

use std::ops::RangeInclusive;

use serde::Serialize;
use serde_json::Value;

use super::tree::{Fields, Node};
use super::{Result, Space};

/// A real number in a closed range.
pub fn float(range: RangeInclusive<f64>) -> Float {
    Float { low: *range.start(), high: *range.end(), log: false, step: 0.0 }
}

/// An integer in a closed range.
pub fn int(range: RangeInclusive<i64>) -> Int {
    Int { low: *range.start(), high: *range.end(), log: false, step: 1 }
}

/// A normally distributed number.
pub fn normal(mean: f64, deviation: f64) -> Node {
    Node::Normal { mean, deviation }
}

/// One of these values, without an order. A value that JSON cannot say becomes null.
pub fn choice<T: Serialize>(values: impl IntoIterator<Item = T>) -> Node {
    Node::Choice(values.into_iter().map(json).collect())
}

/// One of these numbers, in rising order.
pub fn grid<T: Into<f64>>(values: impl IntoIterator<Item = T>) -> Node {
    Node::Grid(values.into_iter().map(Into::into).collect())
}

/// This value, always. One that JSON cannot say becomes null.
pub fn fixed(value: impl Serialize) -> Node {
    Node::Fixed(json(value))
}

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// A group of named parameters.
pub fn group() -> Group {
    Group::default()
}

/// A choice between groups, each with parameters of its own.
pub fn branches() -> Branches {
    Branches::default()
}

/// Builds a [`Node::Float`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Float {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) log: bool,
    pub(super) step: f64,
}

/// Builds a [`Node::Int`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Int {
    pub(super) low: i64,
    pub(super) high: i64,
    pub(super) log: bool,
    pub(super) step: i64,
}

impl Float {
    /// Magnitudes are equally likely, rather than values.
    pub fn log(mut self) -> Self {
        self.log = true;
        self
    }

    /// Only values `low + k * step`.
    pub fn step(mut self, step: f64) -> Self {
        self.step = step;
        self
    }
}

impl Int {
    /// Magnitudes are equally likely, rather than values.
    pub fn log(mut self) -> Self {
        self.log = true;
        self
    }

    /// Only values `low + k * step`.
    pub fn step(mut self, step: i64) -> Self {
        self.step = step;
        self
    }
}

/// Builds a [`Node::Struct`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Group(Fields);

impl Group {
    /// Adds a named node.
    pub fn with(mut self, name: impl Into<String>, node: impl Into<Node>) -> Self {
        self.0.0.push((name.into(), node.into()));
        self
    }

    /// The space with this group as its root.
    pub fn build(self) -> Result<Space> {
        Space::new(self)
    }
}

/// Builds a [`Node::Branch`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Branches(Fields);

impl Branches {
    /// A branch with parameters below it.
    pub fn with(mut self, name: impl Into<String>, body: impl Into<Node>) -> Self {
        self.0.0.push((name.into(), body.into()));
        self
    }

    /// A branch with nothing below it.
    pub fn unit(self, name: impl Into<String>) -> Self {
        self.with(name, Node::Unit)
    }
}

impl From<Float> for Node {
    fn from(Float { low, high, log, step }: Float) -> Self {
        Self::Float { low, high, log, step }
    }
}

impl From<Int> for Node {
    fn from(Int { low, high, log, step }: Int) -> Self {
        Self::Int { low, high, log, step }
    }
}

impl From<Group> for Node {
    fn from(group: Group) -> Self {
        Self::Struct(group.0)
    }
}

impl From<Branches> for Node {
    fn from(branches: Branches) -> Self {
        Self::Branch(branches.0)
    }
}
