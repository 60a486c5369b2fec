//! The one tree that every face of a search space compiles to, and that a configuration file spells out.

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// A node of a search space. In a RON file: `Struct({"lr": Float(low: 1e-4, high: 0.1, log: true), "layers": Int(low: 1,
/// high: 8)})`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub enum Node {
    /// A real number between two bounds.
    Float {
        /// The smallest value.
        low: f64,
        /// The largest value.
        high: f64,
        /// Whether magnitudes are equally likely, rather than values.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        log: bool,
        /// Only values `low + k * step`; 0 for all.
        #[serde(default, skip_serializing_if = "is_zero")]
        step: f64,
    },
    /// A real number, normally distributed.
    Normal {
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        deviation: f64,
    },
    /// An integer between two bounds.
    Int {
        /// The smallest value.
        low: i64,
        /// The largest value.
        high: i64,
        /// Whether magnitudes are equally likely, rather than values.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        log: bool,
        /// Only values `low + k * step`.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        step: i64,
    },
    /// True or false.
    Bool,
    /// One of these values, without an order.
    Choice(Vec<Value>),
    /// One of these numbers, in rising order: neighbours are alike.
    Grid(Vec<f64>),
    /// One of these branches, with whatever is below it: a Rust enum, its variants by name.
    Branch(Fields),
    /// A group of named nodes: a Rust struct.
    Struct(Fields),
    /// This value, always.
    Fixed(Value),
    /// The value of the base configuration, always.
    Keep,
    /// Nothing: the body of a branch without fields.
    Unit,
}

fn is_zero(step: &f64) -> bool {
    *step == 0.0
}

fn one() -> i64 {
    1
}

fn is_one(step: &i64) -> bool {
    *step == 1
}

/// Named nodes in the order in which they were declared. A name that occurs twice is kept, for the space to refuse.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields(pub Vec<(String, Node)>);

impl Fields {
    /// The node of a name.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, node)| node)
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, node) in &self.0 {
            map.serialize_entry(name, node)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map from names to nodes of a search space")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some((name, node)) = map.next_entry::<String, Node>()? {
                    if fields.get(&name).is_some() {
                        return Err(A::Error::custom(format!("`{name}` is declared twice")));
                    }
                    fields.0.push((name, node));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
