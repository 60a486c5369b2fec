//! The functions of the quality benchmark; `benches/peers/optuna_samplers.py` has the same.

use std::f64::consts::{E, PI};

use regatta_tune::space::{Space, branches, choice, float, group, int};
use serde_json::Value;

/// A function to be minimised.
pub(crate) struct Function {
    pub(crate) space: fn() -> Space,
    pub(crate) value: fn(&Value) -> f64,
    pub(crate) minimum: f64,
}

pub(crate) fn named(name: &str) -> Function {
    match name {
        "branin" => Function { space: branin_space, value: branin, minimum: 0.397_887_357_729_739 },
        "hartmann6" => Function {
            space: || cube(6, 0.0, 1.0),
            value: |c| hartmann6(&xs(c)),
            minimum: -3.322_368_011_415_51,
        },
        "rosenbrock5" => {
            Function { space: || cube(5, -5.0, 10.0), value: |c| rosenbrock(&xs(c)), minimum: 0.0 }
        }
        "ackley10" => {
            Function { space: || cube(10, -32.768, 32.768), value: |c| ackley(&xs(c)), minimum: 0.0 }
        }
        "levy10" => Function { space: || cube(10, -10.0, 10.0), value: |c| levy(&xs(c)), minimum: 0.0 },
        "rastrigin5" => {
            Function { space: || cube(5, -5.12, 5.12), value: |c| rastrigin(&xs(c)), minimum: 0.0 }
        }
        "mixed" => Function { space: mixed_space, value: mixed, minimum: 0.0 },
        "conditional" => Function { space: conditional_space, value: conditional, minimum: 0.0 },
        other => panic!("no such function: {other}"),
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

fn hartmann6(x: &[f64]) -> f64 {
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
