//! A point of a space: one raw value for each parameter that is active in it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point of a [`Space`](super::Space), by the index of its parameters. A parameter below a branch that was not taken
/// has no value.
#[derive(Clone, Debug, Default)]
pub struct Point(Vec<f64>);

impl Point {
    /// A point without values, of `len` parameters.
    pub fn empty(len: usize) -> Self {
        Self(vec![f64::NAN; len])
    }

    /// The raw value of a parameter: a number, or the index of a category.
    pub fn get(&self, parameter: usize) -> Option<f64> {
        self.0.get(parameter).copied().filter(|v| !v.is_nan())
    }

    /// Sets or clears the raw value of a parameter.
    pub fn set(&mut self, parameter: usize, raw: Option<f64>) {
        if self.0.len() <= parameter {
            self.0.resize(parameter + 1, f64::NAN);
        }
        self.0[parameter] = raw.unwrap_or(f64::NAN);
    }

    /// The parameters that have a value, and their values.
    pub fn iter(&self) -> impl Iterator<Item = (usize, f64)> {
        self.0.iter().copied().enumerate().filter(|(_, v)| !v.is_nan())
    }
}

/// Bit for bit, a parameter without a value included.
impl PartialEq for Point {
    fn eq(&self, other: &Self) -> bool {
        let len = self.0.len().max(other.0.len());
        (0..len).all(|i| self.get(i).map(f64::to_bits) == other.get(i).map(f64::to_bits))
    }
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((0..self.0.len()).map(|i| self.get(i)))
    }
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raws = Vec::<Option<f64>>::deserialize(deserializer)?;
        Ok(Self(raws.into_iter().map(|raw| raw.unwrap_or(f64::NAN)).collect()))
    }
}
