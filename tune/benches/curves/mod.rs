//! Learning curves for the quality benchmark of schedulers: made-up trainings, or published tables.

use std::path::Path;

use regatta_tune::scheduler::Config;
use regatta_tune::sim::{Step, Workload};
use regatta_tune::space::{Point, Space, choice, float, group, int};
use serde_json::Value;

/// Every trial is done after so many epochs.
pub(crate) const EPOCHS: u64 = 51;
/// What a study trains.
pub(crate) struct Task {
    pub(crate) space: Space,
    /// The least loss there is, and the middle one of trials that are trained to their end.
    pub(crate) best: f64,
    pub(crate) middle: f64,
    kind: Kind,
}

enum Kind {
    Made(u64),
    /// Rows' places in the unit cube, and their curves.
    Table(Vec<Vec<f64>>, Vec<Vec<f64>>),
}

impl Task {
    /// A made-up training: a loss that falls towards what the configuration can reach, as fast as it lets it, with noise.
    /// What learns fast is not what ends best, and some never start or blow up.
    pub(crate) fn made(seed: u64) -> Self {
        let space = group()
            .with("lr", float(1e-6..=1.0).log())
            .with("momentum", float(0.0..=0.99))
            .with("decay", float(1e-8..=1e-1).log())
            .with("dropout", float(0.0..=0.8))
            .with("width", int(8..=1024).log())
            .with("batch", choice([16, 32, 64, 128, 256]))
            .with("act", choice(["relu", "tanh", "gelu"]))
            .build()
            .expect("a space");
        let draw = |number: u64, k: usize| unit(seed ^ 0xabcd, number * 64 + k as u64);
        let config = |number: u64| -> Config {
            let values = space.parameters().iter().enumerate();
            values.map(|(k, p)| (p.path.clone(), p.domain.json(p.domain.raw(draw(number, k))))).collect()
        };
        let middle = median((0..1001).map(|number| made(seed, &config(number), EPOCHS)).collect());
        Self { best: 0.0, middle, kind: Kind::Made(seed), space }
    }

    /// A published table: a JSON list of `{"hp": {name: number}, "train": {"loss": [..]}, ..}`.
    pub(crate) fn table(path: &Path, split: &str) -> Self {
        let text = std::fs::read_to_string(path).expect("a table");
        let text = text.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
        let trials: Vec<Value> = serde_json::from_str(&text).expect("a list of trials");
        let names: Vec<&String> = trials[0]["hp"].as_object().expect("hyperparameters").keys().collect();
        // What is close to one varies in its distance from it.
        let number = |trial: &Value, name: &str| {
            let value = trial["hp"][name].as_f64().expect("a number");
            if name.starts_with("beta") { 1.0 - value } else { value }
        };
        let space = names.iter().fold(group(), |group, name| {
            let column = trials.iter().map(|t| number(t, name));
            let (low, high) = column.fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(x), b.max(x)));
            group.with(name.as_str(), float(low..=high).log())
        });
        let space = space.build().expect("a space");
        let row = |t: &Value| space.parameters().iter().map(|p| p.domain.unit(number(t, &p.path))).collect();
        let curve = |t: &Value| {
            let losses = t[split]["loss"].as_array().expect("losses");
            let mut losses: Vec<f64> = losses.iter().map(|x| x.as_f64().unwrap_or(f64::NAN)).collect();
            losses.resize(EPOCHS as usize, f64::NAN);
            losses
        };
        let rows: Vec<Vec<f64>> = trials.iter().map(row).collect();
        let curves: Vec<Vec<f64>> = trials.iter().map(curve).collect();
        let best = curves.iter().flatten().copied().filter(|l| l.is_finite()).fold(f64::INFINITY, f64::min);
        let middle = median(curves.iter().map(|c| c[c.len() - 1]).collect());
        Self { space, best, middle, kind: Kind::Table(rows, curves) }
    }

    /// The points that a table knows: only these are asked for. To answer for others by the nearest row would try rows at
    /// the edge much more often than others, and some rows again and again.
    pub(crate) fn points(&self) -> Option<Vec<Point>> {
        let Kind::Table(rows, _) = &self.kind else { return None };
        let point = |row: &Vec<f64>| {
            let mut point = Point::empty(row.len());
            for (index, (parameter, unit)) in self.space.parameters().iter().zip(row).enumerate() {
                point.set(index, Some(parameter.domain.raw(*unit)));
            }
            point
        };
        Some(rows.iter().map(point).collect())
    }
}

impl Workload for Task {
    /// The row of a table.
    type State = usize;

    fn begin(&self, _: u32, config: &Config) -> usize {
        let Kind::Table(rows, _) = &self.kind else { return 0 };
        let at: Vec<f64> = (self.space.parameters().iter())
            .map(|p| p.domain.unit(config.get(&p.path).and_then(Value::as_f64).unwrap_or(f64::NAN)))
            .collect();
        let far = |row: usize| rows[row].iter().zip(&at).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        (0..rows.len()).min_by(|a, b| far(*a).total_cmp(&far(*b))).unwrap_or(0)
    }

    fn step(&self, row: &mut usize, config: &Config, resource: u64) -> Step {
        let value = match &self.kind {
            Kind::Made(seed) => made(*seed, config, resource),
            Kind::Table(_, curves) => curves[*row][resource as usize - 1],
        };
        Step { value, seconds: 1.0 }
    }

    fn horizon(&self) -> u64 {
        EPOCHS
    }
}

/// The loss of a made-up training after an epoch.
fn made(seed: u64, config: &Config, epoch: u64) -> f64 {
    let nature = |k: u64| unit(seed, k);
    let at = |name: &str| config.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    // The step that really is taken: momentum lengthens it, a large batch shortens it.
    let step = at("lr").log10() - (1.0 - at("momentum")).log10() - 0.15 * (at("batch").log2() - 4.0);
    let best_step = -3.0 + 2.0 * nature(1);
    if step > best_step + 1.5 + nature(2) {
        return if nature(3) < 0.5 { f64::NAN } else { 3.0 + 0.2 * (step - best_step) };
    }
    let width = at("width").log2();
    let spare = (width - 4.0 - 5.0 * nature(4)) / 4.0;
    let regular = (at("decay").log10() + 5.0) / 3.0 + at("dropout") - 0.4;
    let act = match config.get("act").and_then(Value::as_str) {
        Some("relu") => 0.10 * nature(6),
        Some("tanh") => 0.20 * nature(7),
        _ => 0.05 * nature(8),
    };
    let overfit = (spare - regular - 0.6 * nature(5)).powi(2) * 0.15;
    let small = 0.25 * (-0.5 * (width - 3.0)).exp();
    let shaken = 0.05 * 10f64.powf(step - best_step).min(20.0);
    let end = overfit + act + small + shaken + 0.02 * (best_step - step).max(0.0);
    let speed = 0.25 * 10f64.powf(0.8 * (step - best_step)) * (1.0 - 0.3 * nature(9));
    let wobble = normal(seed ^ bits(config), epoch) * 0.01 * (1.0 + 10.0 * shaken);
    (end + (2.3 - end).max(0.0) * (-speed * epoch as f64).exp() + wobble).max(0.0)
}

/// The middle of those that are finite.
fn median(mut losses: Vec<f64>) -> f64 {
    losses.retain(|loss| loss.is_finite());
    losses.sort_by(f64::total_cmp);
    losses[losses.len() / 2]
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Uniform on [0, 1), the same for the same numbers.
fn unit(seed: u64, number: u64) -> f64 {
    (mix(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ mix(number.wrapping_add(1))) >> 11) as f64
        / (1u64 << 53) as f64
}

fn normal(seed: u64, number: u64) -> f64 {
    (0..12).map(|i| unit(seed, number * 12 + i)).sum::<f64>() - 6.0
}

fn bits(config: &Config) -> u64 {
    config.values().fold(1, |h, v| mix(h ^ v.as_f64().unwrap_or(0.5).to_bits()))
}
