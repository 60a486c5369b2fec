//! Our side of `cargo xtask bench tune` for what trials cost. It reads a case from stdin and answers with a line of JSON: the
//! seconds, and the driver's peak memory in megabytes.
//!
//! - `memory <trials> <at once>`: the peak when the last of so many calls has ended, too, before the results are read.
//! - `threads <trials> <at once>`: calls of this process, each with its configuration, its report and its end on the disk.
//! - `pooled <trials> <workers>`: trainings in processes that are kept, of one report each.
//! - `results <count> <at once>`: reports of calls that never end otherwise, each heard by the scheduler and stored.
//! - `sleeps <trials> <at once> <milliseconds>`: calls that only wait.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use regatta_train::registry::{Registration, normalise, parse, run, write};
use regatta_train::{TrainContext, Trainer, metrics, worker};
use regatta_tune::sampler::Random;
use regatta_tune::space::{Space, float, group};
use regatta_tune::study::Machine;
use regatta_tune::{Ending, Halt, RunningTrial, StudyEvent, Tuner};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Default, Serialize, Deserialize)]
struct Config {
    x: f64,
    y: f64,
}

fn training(ctx: &mut TrainContext, config: Config) -> regatta_train::Result<f64> {
    let sum = config.x + config.y;
    ctx.report(metrics! { sum }).send()?;
    Ok(sum)
}

regatta_train::__private::inventory::submit! {
    Registration {
        name: "training",
        type_name: || std::any::type_name_of_val(&training),
        config: std::any::type_name::<Config>,
        run: |context, config| run(training, context, config),
        normalise: normalise::<Config>,
        parse: parse::<Config>,
        write: write::<Config>,
    }
}

fn main() {
    worker::enter();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let numbers: Vec<u64> = words.iter().skip(1).filter_map(|word| word.parse().ok()).collect();
        let running = Arc::new(AtomicU64::new(0));
        let (tuner, trials) = match (words.first(), &numbers[..]) {
            (Some(&"memory"), [trials, at_once]) => {
                let running = running.clone();
                let watch = move |event: &StudyEvent<'_>, _: &Machine| {
                    if matches!(event, StudyEvent::Ended { .. }) {
                        running.store(peak(), Ordering::Relaxed);
                    }
                };
                (calls(sum, *at_once).callback(watch), *trials)
            }
            (Some(&"threads"), [trials, at_once]) => (calls(sum, *at_once), *trials),
            (Some(&"pooled"), [trials, workers]) => {
                let tuner = Tuner::new(Trainer::new(training, Config::default())).reuse(true);
                (tuner.concurrent(*workers as usize), *trials)
            }
            (Some(&"results"), [count, at_once]) => {
                let each = count / at_once;
                let report = move |trial: &mut RunningTrial| -> Result<f64, Halt> {
                    (1..=each).try_for_each(|step| trial.report(step, 1.0 / step as f64))?;
                    Ok(0.0)
                };
                (calls(report, *at_once), *at_once)
            }
            (Some(&"sleeps"), [trials, at_once, milliseconds]) => {
                let length = Duration::from_millis(*milliseconds);
                let sleep = move |trial: &mut RunningTrial| {
                    std::thread::sleep(length);
                    sum(trial)
                };
                (calls(sleep, *at_once), *trials)
            }
            _ => panic!("no such case: {line}"),
        };
        let mut line = measured(tuner, trials);
        if let running @ 1.. = running.load(Ordering::Relaxed) {
            line["mb_running"] = megabytes(running);
        }
        println!("{line}");
    }
}

fn sum(trial: &mut RunningTrial) -> f64 {
    ["x", "y"].iter().map(|name| trial.config()[name].as_f64().unwrap_or(0.0)).sum()
}

fn calls<V: regatta_tune::runner::IntoValues>(
    objective: impl Fn(&mut RunningTrial) -> V + Send + Sync + 'static,
    at_once: u64,
) -> Tuner {
    Tuner::objective(objective).concurrent(at_once as usize)
}

fn space() -> Space {
    group().with("x", float(0.0..=1.0)).with("y", float(0.0..=1.0)).build().expect("a space")
}

fn measured(tuner: Tuner, trials: u64) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let tuner = tuner.minimize("sum").space(space()).sampler(Random).samples(trials);
    let tuner = tuner.storage(folder.path().to_string_lossy()).experiment("e").name("bench");
    let begun = Instant::now();
    let (ending, grid) = tuner.drive().expect("it comes to its end");
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!((ending, grid.trials().len() as u64), (Ending::Done, trials));
    assert!(grid.errors().next().is_none(), "{:?}", grid.errors().next());
    json!({ "seconds": seconds, "mb": megabytes(peak()) })
}

/// The most memory this process ever had, in kilobytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("");
    peak.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

fn megabytes(kilobytes: u64) -> Value {
    json!((kilobytes as f64 / 1e3).round())
}
