//! The figures of a report, each with how the ranks' values become one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How the ranks' values of a metric become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Merge {
    /// Rank 0's counts.
    #[default]
    Rank0,
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
    /// The smallest; NaN if any is.
    Min,
    /// The largest; NaN if any is.
    Max,
}

impl Merge {
    /// The one value. NaN if there is none.
    pub fn of(self, values: impl IntoIterator<Item = f64>) -> f64 {
        let mut values = values.into_iter();
        let Some(first) = values.next() else { return f64::NAN };
        let nan_wins = |pick: fn(f64, f64) -> f64| {
            move |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { pick(a, b) }
        };
        match self {
            Merge::Rank0 => first,
            Merge::Sum => values.fold(first, |a, b| a + b),
            Merge::Min => values.fold(first, nan_wins(f64::min)),
            Merge::Max => values.fold(first, nan_wins(f64::max)),
            Merge::Mean => {
                let (sum, count) = values.fold((first, 1.0), |(sum, n), value| (sum + value, n + 1.0));
                sum / count
            }
        }
    }
}

/// Named figures in the order they were given; see [`metrics!`](macro@crate::metrics).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(Vec<(Arc<str>, f64, Merge)>);

impl Metrics {
    /// No figures.
    pub fn new() -> Self {
        Metrics::default()
    }

    /// These and one more; a name given before takes the new value.
    #[must_use]
    pub fn with(mut self, name: impl Into<Arc<str>>, value: impl Figure) -> Self {
        let name = name.into();
        let (value, merge) = value.figure();
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some(known) => (known.1, known.2) = (value, merge),
            None => self.0.push((name, value, merge)),
        }
        self
    }

    /// The figures in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &(Arc<str>, f64, Merge)> {
        self.0.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What can be a metric's value: any number, alone or with how ranks' values become one.
pub trait Figure {
    /// The value and the rule.
    fn figure(self) -> (f64, Merge);
}

macro_rules! figures {
    ($($number:ty),*) => { $(
        impl Figure for $number {
            fn figure(self) -> (f64, Merge) { (self as f64, Merge::Rank0) }
        }
    )* };
}
figures!(f64, f32, u64, u32, usize, i64, i32);

impl<T: Figure> Figure for (T, Merge) {
    fn figure(self) -> (f64, Merge) {
        (self.0.figure().0, self.1)
    }
}

/// The mean over the ranks: `metrics! { loss: mean(loss) }`.
pub fn mean(value: impl Figure) -> (f64, Merge) {
    (value.figure().0, Merge::Mean)
}

/// The sum over the ranks.
pub fn sum(value: impl Figure) -> (f64, Merge) {
    (value.figure().0, Merge::Sum)
}

/// The smallest of the ranks'.
pub fn min(value: impl Figure) -> (f64, Merge) {
    (value.figure().0, Merge::Min)
}

/// The largest of the ranks'.
pub fn max(value: impl Figure) -> (f64, Merge) {
    (value.figure().0, Merge::Max)
}

/// Names figures: `metrics! { epoch, accuracy, loss: mean(loss), "val/top5": top5 }`.
///
/// ```
/// use regatta_train::metrics::{Merge, mean};
/// let (epoch, accuracy) = (3u64, 0.98);
/// let metrics = regatta_train::metrics! { epoch, accuracy, loss: mean(0.25), "val/top5": 0.99f32 };
/// let names: Vec<&str> = metrics.iter().map(|(name, ..)| &**name).collect();
/// assert_eq!(names, ["epoch", "accuracy", "loss", "val/top5"]);
/// assert_eq!(metrics.iter().nth(2).unwrap().2, Merge::Mean);
/// ```
#[macro_export]
macro_rules! metrics {
    (@add $m:expr;) => { $m };
    (@add $m:expr; $name:ident : $value:expr $(, $($rest:tt)*)?) => {
        $crate::metrics!(@add $m.with(stringify!($name), $value); $($($rest)*)?)
    };
    (@add $m:expr; $name:literal : $value:expr $(, $($rest:tt)*)?) => {
        $crate::metrics!(@add $m.with($name, $value); $($($rest)*)?)
    };
    (@add $m:expr; $name:ident $(, $($rest:tt)*)?) => {
        $crate::metrics!(@add $m.with(stringify!($name), $name); $($($rest)*)?)
    };
    ($($all:tt)*) => { $crate::metrics!(@add $crate::metrics::Metrics::new(); $($all)*) };
}

/// JSON knows neither NaN nor infinities, so values travel as their bits.
pub(crate) mod wire {
    use super::{Arc, Deserialize, Merge, Serialize};
    use serde::{Deserializer, Serializer};

    type List = Vec<(Arc<str>, f64, Merge)>;

    pub(crate) fn serialize<S: Serializer>(list: &List, to: S) -> Result<S::Ok, S::Error> {
        let bits: Vec<(&str, u64, Merge)> = list.iter().map(|(n, v, m)| (&**n, v.to_bits(), *m)).collect();
        bits.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<List, D::Error> {
        let bits: Vec<(String, u64, Merge)> = Vec::deserialize(from)?;
        Ok(bits.into_iter().map(|(n, v, m)| (n.into(), f64::from_bits(v), m)).collect())
    }
}
