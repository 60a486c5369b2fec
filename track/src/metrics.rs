//! The figures of a report, small enough to make a hundred thousand a second, and their layout in the file.
//!
//! A report's body is `step, count, (name, value) * count`: the integers as LEB128, the name as its number in the table of
//! names, the value as the eight bytes of an f64.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Named figures in the order they were given. Serialised as a map, in which a value that JSON cannot say is one of the
/// strings `"NaN"`, `"Infinity"` and `"-Infinity"`.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Vec<(Arc<str>, f64)>);

impl Metrics {
    /// No figures.
    pub fn new() -> Self {
        Metrics::default()
    }

    /// These and one more; a name given before takes the new value.
    pub fn with(mut self, name: impl Into<Arc<str>>, value: f64) -> Self {
        self.insert(name, value);
        self
    }

    /// Adds a figure; a name given before takes the new value.
    pub fn insert(&mut self, name: impl Into<Arc<str>>, value: f64) {
        let name = name.into();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| &**known == name).map(|(_, value)| *value)
    }

    /// The figures in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, f64)> {
        self.0.iter().map(|(name, value)| (name, *value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// By bits, so that a NaN equals itself: what was stored is compared with what was meant.
impl PartialEq for Metrics {
    fn eq(&self, other: &Self) -> bool {
        let bits = |(name, value): &(Arc<str>, f64)| (name.clone(), value.to_bits());
        self.0.iter().map(bits).eq(other.0.iter().map(bits))
    }
}

impl<N: Into<Arc<str>>> FromIterator<(N, f64)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (N, f64)>>(figures: I) -> Self {
        let mut metrics = Metrics::new();
        for (name, value) in figures {
            metrics.insert(name, value);
        }
        metrics
    }
}

impl<N: Into<Arc<str>>, const K: usize> From<[(N, f64); K]> for Metrics {
    fn from(figures: [(N, f64); K]) -> Self {
        figures.into_iter().collect()
    }
}

/// A figure as JSON can say it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Figure {
    Number(f64),
    Word(String),
}

/// A figure as a JSON value.
pub(crate) fn to_json(value: f64) -> serde_json::Value {
    serde_json::to_value(figure(value)).unwrap_or_default()
}

fn figure(value: f64) -> Figure {
    let word = if value.is_nan() {
        "NaN"
    } else if value == f64::INFINITY {
        "Infinity"
    } else if value == f64::NEG_INFINITY {
        "-Infinity"
    } else {
        return Figure::Number(value);
    };
    Figure::Word(word.into())
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(&**name, &figure(*value))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Figures;
        impl<'de> Visitor<'de> for Figures {
            type Value = Metrics;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names to numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metrics, A::Error> {
                let mut metrics = Metrics::new();
                while let Some((name, figure)) = map.next_entry::<String, Figure>()? {
                    let value = match figure {
                        Figure::Number(value) => value,
                        Figure::Word(word) => match word.as_str() {
                            "NaN" => f64::NAN,
                            "Infinity" => f64::INFINITY,
                            "-Infinity" => f64::NEG_INFINITY,
                            _ => return Err(de::Error::custom(format!("{name}: {word:?} is not a number"))),
                        },
                    };
                    metrics.insert(name, value);
                }
                Ok(metrics)
            }
        }
        deserializer.deserialize_map(Figures)
    }
}

/// Writes a report's body.
pub(crate) fn pack(step: u64, figures: &[(u32, f64)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(12 + figures.len() * 10);
    put_varint(&mut out, step);
    put_varint(&mut out, figures.len() as u64);
    for (name, value) in figures {
        put_varint(&mut out, u64::from(*name));
        out.extend_from_slice(&value.to_le_bytes());
    }
    out
}

/// Reads a report's body; `name` gives the name of a number. `None` is a body that is none.
pub(crate) fn unpack(
    mut body: &[u8],
    mut name: impl FnMut(u32) -> Option<Arc<str>>,
) -> Option<(u64, Metrics)> {
    let step = take_varint(&mut body)?;
    let count = usize::try_from(take_varint(&mut body)?).ok()?;
    let mut figures = Vec::with_capacity(count.min(body.len() / 9));
    for _ in 0..count {
        let name = name(u32::try_from(take_varint(&mut body)?).ok()?)?;
        let (value, rest) = body.split_first_chunk::<8>()?;
        figures.push((name, f64::from_le_bytes(*value)));
        body = rest;
    }
    body.is_empty().then_some((step, Metrics(figures)))
}

/// LEB128, as protobuf has it too.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(body: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = body.split_first()?;
        *body = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
