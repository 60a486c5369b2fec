//! Axes: from values to places and back to a few round ones, for numbers, magnitudes and names.

use regatta_track::event::Domain;
use serde_json::Value;

use super::svg::{Anchor, Canvas, short};

/// How values lie along an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scale {
    Linear {
        low: f64,
        high: f64,
    },
    /// With ticks at integers only.
    Whole {
        low: f64,
        high: f64,
    },
    Log {
        low: f64,
        high: f64,
    },
    /// By index.
    Names(Vec<String>),
}

impl Scale {
    /// For these values, with some room around them; by magnitude if they span several.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let finite = values.into_iter().filter(|value| value.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            return Scale::Linear { low: 0.0, high: 1.0 };
        }
        if low > 0.0 && high / low > 100.0 {
            return Scale::Log { low: low / 1.2, high: high * 1.2 };
        }
        let room = if high > low { (high - low) * 0.04 } else { high.abs().max(1.0) * 0.1 };
        Scale::Linear { low: low - room, high: high + room }
    }

    /// For these values to the edges, from 0 at most.
    pub(super) fn from_zero(values: impl IntoIterator<Item = f64>) -> Self {
        let high = values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max);
        Scale::Linear { low: 0.0, high: if high > 0.0 { high } else { 1.0 } }
    }

    /// For a parameter's raw values.
    pub(super) fn of_domain(domain: &Domain) -> Self {
        let names = |values: Vec<String>| Scale::Names(values);
        match domain {
            Domain::Float { low, high, log: true, .. } => Scale::Log { low: *low, high: *high },
            Domain::Float { low, high, .. } if low < high => Scale::Linear { low: *low, high: *high },
            Domain::Int { low, high, log: true, .. } if low < high => {
                Scale::Log { low: *low as f64, high: *high as f64 }
            }
            Domain::Int { low, high, .. } if low < high => {
                Scale::Whole { low: *low as f64, high: *high as f64 }
            }
            Domain::Float { low, .. } => names(vec![label(*low)]),
            Domain::Int { low, .. } => names(vec![low.to_string()]),
            Domain::Normal { mean, deviation } => {
                Scale::Linear { low: mean - 3.0 * deviation, high: mean + 3.0 * deviation }
            }
            Domain::Grid(values) => names(values.iter().map(|value| label(*value)).collect()),
            Domain::Category(values) => names(values.iter().map(plain).collect()),
            _ => Scale::Linear { low: 0.0, high: 1.0 },
        }
    }

    /// Where a value lies, from 0 to 1.
    pub(super) fn place(&self, value: f64) -> f64 {
        let part = |value: f64, low: f64, high: f64| match high > low {
            true => ((value - low) / (high - low)).clamp(0.0, 1.0),
            false => 0.5,
        };
        match self {
            Scale::Linear { low, high } | Scale::Whole { low, high } => part(value, *low, *high),
            Scale::Log { low, high } => part(value.ln(), low.ln(), high.ln()),
            Scale::Names(names) => (value + 0.5) / names.len() as f64,
        }
    }

    /// A few values to write at the axis, with their texts.
    pub(super) fn ticks(&self, about: usize) -> Vec<(f64, String)> {
        match self {
            Scale::Linear { low, high } | Scale::Whole { low, high } => {
                let whole = matches!(self, Scale::Whole { .. });
                let step = round((high - low) / about.max(1) as f64).max(if whole { 1.0 } else { 0.0 });
                let first = (low / step).ceil();
                // Counted, not added up: a sum of tenths is none.
                let count = ((high / step).floor() - first).clamp(0.0, 50.0) as usize;
                let tick = |k: usize| (first + k as f64) * step;
                (0..=count).map(tick).map(|value| (value, label(value))).collect()
            }
            Scale::Log { low, high } => {
                let (first, last) = (low.log10().ceil() as i32, high.log10().floor() as i32);
                if last - first < 1 {
                    let middle = (low * high).sqrt();
                    return [*low, middle, *high].map(|value| (value, label(value))).to_vec();
                }
                let every = ((last - first) as usize / about.max(1) + 1).max(1);
                let powers = (first..=last).step_by(every).map(|power| 10f64.powi(power));
                powers.map(|value| (value, label(value))).collect()
            }
            Scale::Names(names) => {
                let every = names.len() / (about * 3).max(1) + 1;
                let named = names.iter().enumerate().step_by(every);
                named.map(|(at, name)| (at as f64, short(name, 14))).collect()
            }
        }
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn round(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * power >= step * 0.999);
    digit.unwrap_or(10.0) * power
}

/// A number in as few characters as tell it.
pub(super) fn label(value: f64) -> String {
    let size = value.abs();
    if value != 0.0 && !(1e-3..1e5).contains(&size) {
        let text = format!("{value:.1e}");
        return text.replace(".0e", "e");
    }
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// A value of a configuration, as one writes it.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A rectangle with an axis to its left and one below it.
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) x: Scale,
    pub(super) y: Scale,
}

impl Frame {
    /// Where a point lies in the picture.
    pub(super) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let (x, y) = (self.x.place(x), self.y.place(y));
        (self.left + x * self.width, self.top + (1.0 - y) * self.height)
    }

    /// Its bottom.
    pub(super) fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Grid, ticks and the axes' names.
    pub(super) fn draw(&self, canvas: &mut Canvas, x: &str, y: &str) {
        let bottom = self.bottom();
        for (value, text) in self.y.ticks((self.height / 45.0) as usize) {
            let (_, at) = self.at(0.0, value);
            canvas.line((self.left, at), (self.left + self.width, at), "grid");
            canvas.text(self.left - 6.0, at + 4.0, Anchor::End, "small", &text);
        }
        for (value, text) in self.x.ticks((self.width / 90.0) as usize) {
            let at = self.left + self.x.place(value) * self.width;
            canvas.line((at, bottom), (at, bottom + 4.0), "axis");
            canvas.text(at, bottom + 16.0, Anchor::Middle, "small", &text);
        }
        canvas.line((self.left, bottom), (self.left + self.width, bottom), "axis");
        canvas.line((self.left, self.top), (self.left, bottom), "axis");
        canvas.text(self.left + self.width / 2.0, bottom + 34.0, Anchor::Middle, "faint", x);
        if !y.is_empty() {
            canvas.upright(self.left - 52.0, self.top + self.height / 2.0, y);
        }
    }
}
