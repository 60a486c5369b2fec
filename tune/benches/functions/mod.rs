//! The functions of the quality benchmark; `benches/peers/optuna_samplers.py` has the same.

use std::f64::consts::{E, PI};

use regatta_tune::space::{Space, branches, choice, float, group, int};
use serde_json::Value;

/// A function to be minimised.
pub(crate) struct Function {
    pub(crate) space: Space,
    pub(crate) value: fn(&Value) -> f64,
    pub(crate) minimum: f64,
    /// The deviation of the noise on what is measured.
    pub(crate) noise: f64,
}

pub(crate) fn named(name: &str) -> Function {
    let exact =
        |space: Space, value: fn(&Value) -> f64, minimum: f64| Function { space, value, minimum, noise: 0.0 };
    let hartmann6: (Space, fn(&Value) -> f64, f64) =
        (cube(6, 0.0, 1.0), |c| hartmann(&xs(c)), -3.322_368_011_415_51);
    match name {
        "branin" => exact(branin_space(), branin, 0.397_887_357_729_739),
        "hartmann6" => exact(hartmann6.0, hartmann6.1, hartmann6.2),
        "noisy6" => Function { noise: 0.2, ..exact(hartmann6.0, hartmann6.1, hartmann6.2) },
        "rosenbrock5" => exact(cube(5, -5.0, 10.0), |c| rosenbrock(&xs(c)), 0.0),
        "ackley10" => exact(cube(10, -32.768, 32.768), |c| ackley(&xs(c)), 0.0),
        "levy10" => exact(cube(10, -10.0, 10.0), |c| levy(&xs(c)), 0.0),
        "rastrigin5" => exact(cube(5, -5.12, 5.12), |c| rastrigin(&xs(c)), 0.0),
        "griewank10" => exact(cube(10, -600.0, 600.0), |c| griewank(&xs(c)), 0.0),
        "styblinski5" => exact(cube(5, -5.0, 5.0), |c| styblinski(&xs(c)), -195.830_828_518_857),
        "michalewicz5" => exact(cube(5, 0.0, PI), |c| michalewicz(&xs(c)), -4.687_658_179_088_148),
        "sphere20" => exact(cube(20, -5.0, 5.0), |c| sphere(&xs(c)), 0.0),
        "mixed" => exact(mixed_space(), mixed, 0.0),
        "conditional" => exact(conditional_space(), conditional, 0.0),
        "choices" => exact(choices_space(), choices, 0.0),
        other => panic!("no such function: {other}"),
    }
}

/// Normal noise, the same for the same seed.
pub(crate) struct Noise {
    state: u64,
    deviation: f64,
}

impl Noise {
    pub(crate) fn new(seed: u64, deviation: f64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d, deviation }
    }

    /// The next one: twelve uniform numbers are normal enough.
    pub(crate) fn draw(&mut self) -> f64 {
        let mut unit = || {
            self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.state >> 11) as f64 / (1u64 << 53) as f64
        };
        self.deviation * ((0..12).map(|_| unit()).sum::<f64>() - 6.0)
    }
}

fn cube(n: usize, low: f64, high: f64) -> Space {
    (0..n).fold(group(), |g, i| g.with(format!("x{i}"), float(low..=high))).build().expect("a space")
}

fn at(config: &Value, name: &str) -> f64 {
    config[name].as_f64().unwrap_or(f64::NAN)
}

fn xs(config: &Value) -> Vec<f64> {
    let count = config.as_object().map_or(0, serde_json::Map::len);
    (0..count).map(|i| at(config, &format!("x{i}"))).collect()
}

fn branin_space() -> Space {
    group().with("x0", float(-5.0..=10.0)).with("x1", float(0.0..=15.0)).build().expect("a space")
}

fn branin(config: &Value) -> f64 {
    let (x, y) = (at(config, "x0"), at(config, "x1"));
    let a = y - 5.1 / (4.0 * PI * PI) * x * x + 5.0 / PI * x - 6.0;
    a * a + 10.0 * (1.0 - 1.0 / (8.0 * PI)) * x.cos() + 10.0
}

fn hartmann(x: &[f64]) -> f64 {
    const A: [[f64; 6]; 4] = [
        [10.0, 3.0, 17.0, 3.5, 1.7, 8.0],
        [0.05, 10.0, 17.0, 0.1, 8.0, 14.0],
        [3.0, 3.5, 1.7, 10.0, 17.0, 8.0],
        [17.0, 8.0, 0.05, 10.0, 0.1, 14.0],
    ];
    const P: [[f64; 6]; 4] = [
        [0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886],
        [0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991],
        [0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650],
        [0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381],
    ];
    let term = |i: usize| (0..6).map(|j| A[i][j] * (x[j] - P[i][j]).powi(2)).sum::<f64>();
    -[1.0, 1.2, 3.0, 3.2].iter().enumerate().map(|(i, alpha)| alpha * (-term(i)).exp()).sum::<f64>()
}

fn rosenbrock(x: &[f64]) -> f64 {
    x.windows(2).map(|w| 100.0 * (w[1] - w[0] * w[0]).powi(2) + (1.0 - w[0]).powi(2)).sum()
}

fn ackley(x: &[f64]) -> f64 {
    let n = x.len() as f64;
    let squares = x.iter().map(|x| x * x).sum::<f64>() / n;
    let waves = x.iter().map(|x| (2.0 * PI * x).cos()).sum::<f64>() / n;
    -20.0 * (-0.2 * squares.sqrt()).exp() - waves.exp() + 20.0 + E
}

fn levy(x: &[f64]) -> f64 {
    let w: Vec<f64> = x.iter().map(|x| 1.0 + (x - 1.0) / 4.0).collect();
    let last = w[w.len() - 1];
    let middle =
        w[..w.len() - 1].iter().map(|w| (w - 1.0).powi(2) * (1.0 + 10.0 * (PI * w + 1.0).sin().powi(2)));
    (PI * w[0]).sin().powi(2)
        + middle.sum::<f64>()
        + (last - 1.0).powi(2) * (1.0 + (2.0 * PI * last).sin().powi(2))
}

fn rastrigin(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x - 10.0 * (2.0 * PI * x).cos() + 10.0).sum()
}

fn griewank(x: &[f64]) -> f64 {
    let waves: f64 = x.iter().enumerate().map(|(i, x)| (x / (i as f64 + 1.0).sqrt()).cos()).product();
    x.iter().map(|x| x * x).sum::<f64>() / 4000.0 - waves + 1.0
}

fn styblinski(x: &[f64]) -> f64 {
    x.iter().map(|x| x.powi(4) - 16.0 * x * x + 5.0 * x).sum::<f64>() / 2.0
}

fn michalewicz(x: &[f64]) -> f64 {
    let term = |(i, x): (usize, &f64)| x.sin() * ((i as f64 + 1.0) * x * x / PI).sin().powi(20);
    -x.iter().enumerate().map(term).sum::<f64>()
}

fn sphere(x: &[f64]) -> f64 {
    x.iter().map(|x| (x - 1.0).powi(2)).sum()
}

/// Two reals, one of them logarithmic, an integer and a category that shifts and tilts.
fn mixed_space() -> Space {
    group()
        .with("x", float(-5.0..=5.0))
        .with("lr", float(1e-5..=1e-1).log())
        .with("layers", int(1..=12))
        .with("kind", choice(["a", "b", "c"]))
        .build()
        .expect("a space")
}

fn mixed(config: &Value) -> f64 {
    let (shift, extra) = match config["kind"].as_str() {
        Some("a") => (-2.0, 0.5),
        Some("b") => (1.5, 0.0),
        _ => (3.0, 1.0),
    };
    let lr = (at(config, "lr").log10() + 2.7).powi(2);
    (at(config, "x") - shift).powi(2) + lr + 0.1 * (at(config, "layers") - 7.0).powi(2) + extra
}

/// Two branches with parameters of their own; the one that looks worse at first has the minimum.
fn conditional_space() -> Space {
    let sgd = group().with("lr", float(1e-4..=1.0).log()).with("momentum", float(0.0..=1.0));
    let adam = group().with("lr", float(1e-5..=1e-1).log());
    let optimizer = branches().with("sgd", sgd).with("adam", adam);
    group().with("width", int(8..=256).log()).with("optimizer", optimizer).build().expect("a space")
}

fn conditional(config: &Value) -> f64 {
    let width = (at(config, "width").log2() - 6.0).powi(2) * 0.2;
    let optimizer = &config["optimizer"];
    match optimizer.get("sgd") {
        Some(sgd) => {
            width + (at(sgd, "lr").log10() + 1.0).powi(2) + 4.0 * (at(sgd, "momentum") - 0.9).powi(2)
        }
        None => width + 0.3 + 0.3 * (at(&optimizer["adam"], "lr").log10() + 3.0).powi(2),
    }
}

/// Categories, integers and steps, some of which depend on each other.
fn choices_space() -> Space {
    group()
        .with("kind", choice(["a", "b", "c", "d"]))
        .with("act", choice(["relu", "tanh", "gelu"]))
        .with("norm", choice([false, true]))
        .with("depth", int(1..=20))
        .with("width", int(4..=512).log())
        .with("heads", int(2..=16).step(2))
        .with("dropout", float(0.0..=0.9).step(0.1))
        .build()
        .expect("a space")
}

fn choices(config: &Value) -> f64 {
    let (best, kind) = match config["kind"].as_str() {
        Some("a") => (3.0, 0.6),
        Some("b") => (6.0, 0.3),
        Some("c") => (11.0, 0.0),
        _ => (16.0, 0.4),
    };
    let act = match config["act"].as_str() {
        Some("relu") => 0.3,
        Some("tanh") => 0.5,
        _ => 0.0,
    };
    let depth = at(config, "depth");
    let norm = if config["norm"] == true { 0.0 } else { 0.2 + 0.05 * depth };
    let sizes = 0.2 * (at(config, "width").log2() - 7.0).powi(2) + 0.01 * (at(config, "heads") - 8.0).powi(2);
    0.02 * (depth - best).powi(2) + sizes + kind + act + norm + (at(config, "dropout") - 0.3).powi(2)
}
