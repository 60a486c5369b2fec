//! Our side of `cargo xtask bench tune`: reads a case from stdin, answers with one figure.
//!
//! - `tpe 10000`: milliseconds of an ask and a tell of TPE with ten floats, after so many trials; the median of eleven.
//! - `gp 200`: the same of the Gaussian process.
//! - `regret <sampler> <function> <trials> <seed>`: how far above the minimum the best of a search is.
#![allow(missing_docs, clippy::print_stdout)]

mod functions;

use std::time::Instant;

use regatta_tune::sampler::{Auto, CmaEs, Gp, Random, Sampler, Search, Tpe};
use regatta_tune::space::{float, group};
use serde_json::{Value, json};

fn main() {
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let figure = match words[..] {
            ["tpe", trials] => ask_and_tell(Tpe::default(), number(trials), 0),
            ["gp", trials] => ask_and_tell(Gp::default(), number(trials), 1),
            ["regret", sampler, function, trials, seed] => {
                regret(sampler, function, number(trials), number(seed))
            }
            // Cargo runs benchmarks with `--bench` and an empty stdin; anything else is a mistake of the caller's.
            _ => panic!("no such case: {line}"),
        };
        println!("{figure}");
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is not a number"))
}

/// What one trial costs after `trials` of them; `warm` more suggestions go before those that count.
fn ask_and_tell(sampler: impl Sampler + 'static, trials: u64, warm: usize) -> f64 {
    let space =
        (0..10).fold(group(), |g, i| g.with(format!("x{i}"), float(-5.0..=5.0))).build().expect("a space");
    let mut search = Search::new(space, sampler, 0);
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64 * 10.0 - 5.0
    };
    let value = |config: &Value| {
        (0..10).map(|i| (config[format!("x{i}")].as_f64().unwrap_or(0.0) - 1.0).powi(2)).sum::<f64>()
    };
    let known: Vec<(Value, [f64; 1])> = (0..trials)
        .map(|_| (0..10).map(|i| (format!("x{i}"), json!(random()))).collect())
        .map(|config| (Value::Object(config), 0.0))
        .map(|(config, _)| (config.clone(), [value(&config)]))
        .collect();
    search.warm_start(known.iter().map(|(c, l)| (c, l.as_slice()))).expect("points of the space");
    let mut times: Vec<f64> = (0..12 + warm)
        .map(|_| {
            let start = Instant::now();
            let trial = search.ask().expect("a suggestion");
            search.tell(trial.number, &[value(&trial.config)]).expect("it runs");
            start.elapsed().as_secs_f64() * 1e3
        })
        .skip(1 + warm)
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn regret(sampler: &str, function: &str, trials: u64, seed: u64) -> f64 {
    let sampler: Box<dyn Sampler> = match sampler {
        "random" => Box::new(Random),
        "tpe" => Box::new(Tpe::default()),
        "gp" => Box::new(Gp::default()),
        "cma" => Box::new(CmaEs::default()),
        "auto" => Box::new(Auto::default()),
        other => panic!("no such sampler: {other}"),
    };
    let function = functions::named(function);
    let mut search = Search::new((function.space)(), sampler, seed);
    for _ in 0..trials {
        let trial = search.ask().expect("a suggestion");
        search.tell(trial.number, &[(function.value)(&trial.config)]).expect("it runs");
    }
    search.best().map_or(f64::INFINITY, |(_, loss)| loss - function.minimum)
}
