//! What a trial costs that is a call of this process: trials a second, each with its configuration, its report and its end on
//! the disk. `trials [COUNT] [AT ONCE]` prints a line of JSON.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use regatta_tune::sampler::Random;
use regatta_tune::space::{float, group};
use regatta_tune::{RunningTrial, Tuner};

fn main() {
    // `cargo bench` passes flags of its own.
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let count = numbers.next().unwrap_or(20_000);
    let concurrent = numbers.next().unwrap_or(16) as usize;
    let folder = tempfile::tempdir().expect("a folder");
    let space = group().with("x", float(0.0..=1.0)).with("y", float(0.0..=1.0)).build().expect("a space");
    let objective = |trial: &mut RunningTrial| {
        let value = |name: &str| trial.config()[name].as_f64().unwrap_or(0.0);
        value("x") + value("y")
    };
    let tuner = Tuner::objective(objective).minimize("sum").space(space).sampler(Random);
    let tuner =
        tuner.samples(count).concurrent(concurrent).storage(folder.path().to_string_lossy()).name("bench");
    let begun = Instant::now();
    let (ending, grid) = tuner.drive().expect("it comes to its end");
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!((ending, grid.trials().len() as u64), (regatta_tune::Ending::Done, count));
    let memory = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("").trim().to_owned();
    println!(
        "{}",
        serde_json::json!({ "case": "trials_threads", "trials": count, "concurrent": concurrent, "seconds": seconds,
                            "per_s": (count as f64 / seconds).round(), "peak": peak })
    );
}
