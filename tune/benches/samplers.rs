//! Our side of `cargo xtask bench tune`: reads a case from stdin, answers with one line of JSON.
//!
//! - `tpe 10000`: milliseconds of an ask and a tell of TPE with ten floats, after so many trials; the median of eleven.
//! - `gp 200`: the same of the Gaussian process.
//! - `judged 10000`: the same of TPE where so many trials are paused at the rungs of a scheduler, and none is over.
//! - `regret <sampler> <function> <trials> <seed>`: how far above the minimum the best of a search is after 60 and after
//!   200 trials, as far as it went.
//! - `curves <scheduler> <sampler> <task> <seed> [folder]`: the best loss that a study of 1,530 epochs sees, as a share of the
//!   way from the best there is to the middle one; of a made-up task, or of the task-th table and split of a folder.
#![allow(missing_docs, clippy::print_stdout)]

mod curves;
mod functions;

use std::collections::BTreeMap;
use std::time::Instant;

use curves::{EPOCHS, Task};
use regatta_tune::sampler::{Auto, CmaEs, Gp, Random, Sampler, Search, Suggestion, Tpe, Trial};
use regatta_tune::scheduler::{Asha, Fifo, HyperBand, Scheduler, SchedulerConfig, Turn};
use regatta_tune::sim::Simulation;
use regatta_tune::space::{Space, float, group};
use serde_json::{Value, json};

fn main() {
    let mut tables: BTreeMap<u64, Task> = BTreeMap::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let figure = match words[..] {
            ["tpe", trials] => json!(ask_and_tell(Tpe::default(), number(trials), 0)),
            ["gp", trials] => json!(ask_and_tell(Gp::default(), number(trials), 1)),
            ["judged", trials] => json!(ask_under_rungs(number(trials))),
            ["regret", sampler, function, trials, seed] => {
                json!(regret(sampler, function, number(trials), number(seed)))
            }
            ["curves", scheduler, sampler, task, seed] => {
                json!(race(&Task::made(number(task)), scheduler, sampler, number(seed)))
            }
            ["curves", scheduler, sampler, task, seed, folder] => {
                let task = tables.entry(number(task)).or_insert_with_key(|task| table(folder, *task));
                json!(race(task, scheduler, sampler, number(seed)))
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

/// Ten floats; a source of such points; and what they are worth.
fn ten() -> (Space, impl FnMut() -> Value, fn(&Value) -> f64) {
    let space =
        (0..10).fold(group(), |g, i| g.with(format!("x{i}"), float(-5.0..=5.0))).build().expect("a space");
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64 * 10.0 - 5.0
    };
    let point = move || Value::Object((0..10).map(|i| (format!("x{i}"), json!(random()))).collect());
    let value = |config: &Value| {
        (0..10).map(|i| (config[format!("x{i}")].as_f64().unwrap_or(0.0) - 1.0).powi(2)).sum()
    };
    (space, point, value)
}

/// What one trial costs after `trials` of them; `warm` more suggestions go before those that count.
fn ask_and_tell(sampler: impl Sampler + 'static, trials: u64, warm: usize) -> f64 {
    let (space, mut point, value) = ten();
    let mut search = Search::new(space, sampler, 0);
    let known: Vec<(Value, [f64; 1])> =
        (0..trials).map(|_| point()).map(|config| (config.clone(), [value(&config)])).collect();
    search.warm_start(known.iter().map(|(c, l)| (c, l.as_slice()))).expect("points of the space");
    let times = (0..12 + warm).map(|_| {
        let start = Instant::now();
        let trial = search.ask().expect("a suggestion");
        search.tell(trial.number, &[value(&trial.config)]).expect("it runs");
        start.elapsed().as_secs_f64() * 1e3
    });
    middle(times.skip(1 + warm).collect())
}

/// Two rungs: the trials by their loss, and the best third of them.
#[derive(Debug, Default)]
struct Ladder(Vec<(f64, u32)>);

impl Ladder {
    fn add(&mut self, trial: &Trial, loss: f64) {
        let place = self.0.partition_point(|(known, _)| *known < loss);
        self.0.insert(place, (loss, trial.number as u32));
    }
}

impl Scheduler for Ladder {
    fn name(&self) -> &'static str {
        "ladder"
    }

    fn slot(&mut self, _: &mut Turn<'_>) {}

    fn rungs(&self) -> Vec<Vec<u32>> {
        let all: Vec<u32> = self.0.iter().map(|(_, trial)| *trial).collect();
        let best = all[..all.len() / 3].to_vec();
        vec![all, best]
    }
}

/// What a suggestion and its result at the lowest rung cost after `trials` of them.
fn ask_under_rungs(trials: u64) -> f64 {
    let (space, mut point, value) = ten();
    let points: Vec<(Suggestion, f64)> = (0..trials)
        .map(|_| point())
        .map(|config| (Suggestion::new(space.point(&config).expect("a point of the space")), value(&config)))
        .collect();
    let (mut search, mut ladder) = (Search::new(space, Tpe::default(), 0), Ladder::default());
    for (suggestion, loss) in points {
        ladder.add(&search.begin(suggestion).expect("a trial"), loss);
    }
    let times = (0..12).map(|_| {
        let start = Instant::now();
        let suggestion = search.suggest_under(&ladder).expect("a suggestion");
        let trial = search.begin(suggestion).expect("a trial");
        ladder.add(&trial, value(&trial.config));
        start.elapsed().as_secs_f64() * 1e3
    });
    middle(times.skip(1).collect())
}

fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn sampler(name: &str) -> Box<dyn Sampler> {
    match name {
        "random" => Box::new(Random),
        "tpe" => Box::new(Tpe::default()),
        "gp" => Box::new(Gp::default()),
        "cma" => Box::new(CmaEs::default()),
        "auto" => Box::new(Auto::default()),
        other => panic!("no such sampler: {other}"),
    }
}

const BUDGETS: [u64; 2] = [60, 200];

/// Three tasks a table: its losses in training, validation and test.
fn table(folder: &str, task: u64) -> Task {
    let mut files: Vec<_> = (std::fs::read_dir(folder).expect("a folder of tables"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    Task::table(&files[task as usize / 3], ["train", "valid", "test"][task as usize % 3])
}

fn race(task: &Task, scheduler: &str, sampler: &str, seed: u64) -> f64 {
    let scheduler: SchedulerConfig = match scheduler {
        "fifo" => Fifo::default().into(),
        "stopping" => Asha::new(1..=EPOCHS).stopping().into(),
        "promotion" => Asha::new(1..=EPOCHS).into(),
        "hyper_band" => HyperBand::new(1..=EPOCHS).into(),
        other => panic!("no such scheduler: {other}"),
    };
    let study = Simulation::new(task).seed(seed).budget(30 * EPOCHS);
    let scheduler = scheduler.build(None).expect("a good configuration");
    let sampler: Box<dyn Sampler> = match (sampler, task.points()) {
        // Without a model it draws rows at random, none of them twice.
        ("random", Some(points)) => Box::new(Tpe::default().startup(usize::MAX).among(points)),
        ("tpe", Some(points)) => Box::new(Tpe::default().among(points)),
        (name, None) => self::sampler(name),
        (other, Some(_)) => panic!("{other} cannot choose among the rows of a table"),
    };
    let outcome = study.search(scheduler, sampler, &task.space, u32::MAX).expect("it ends");
    let best = outcome.best().map_or(f64::INFINITY, |best| best.value);
    (best - task.best) / (task.middle - task.best)
}

/// The trial with the least measured value is judged by what it is without noise.
fn regret(sampler: &str, function: &str, trials: u64, seed: u64) -> Vec<f64> {
    let function = functions::named(function);
    let mut noise = functions::Noise::new(seed, function.noise);
    let mut search = Search::new(function.space, self::sampler(sampler), seed);
    let mut best = (f64::INFINITY, f64::INFINITY);
    let mut regrets = vec![];
    for trial in 1..=trials {
        let asked = search.ask().expect("a suggestion");
        let truth = (function.value)(&asked.config);
        let measured = truth + noise.draw();
        if measured < best.0 {
            best = (measured, truth - function.minimum);
        }
        search.tell(asked.number, &[measured]).expect("it runs");
        if BUDGETS.contains(&trial) {
            regrets.push(best.1);
        }
    }
    regrets
}
