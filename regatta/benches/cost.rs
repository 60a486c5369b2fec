//! What the trainer adds around a training loop; `cargo xtask bench train` runs it: a program with one trainable that does nothing
//! but look at the clock.
#![allow(clippy::print_stdout)]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use regatta::prelude::*;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    case: Case,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Case {
    /// Until the first line of the user's code.
    Start,
    /// What a report costs the step, in seconds.
    Report,
    /// From a worker's death until the user's code runs again.
    Recovery,
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[regatta::trainable]
fn cost(ctx: &mut TrainContext, cfg: Config) -> Result<f64> {
    let entered = now();
    let died = Tracked::new(0.0);
    let mut state = ctx.state().with("died", died.clone());
    ctx.restore(&mut state)?;
    match cfg.case {
        Case::Start => Ok(entered),
        Case::Report => {
            let mut costs = Vec::new();
            for i in 0..1000u64 {
                let begun = Instant::now();
                ctx.report(metrics! { i }).send()?;
                costs.push(begun.elapsed().as_secs_f64());
            }
            costs.sort_by(f64::total_cmp);
            Ok(costs[costs.len() / 2])
        }
        Case::Recovery if ctx.attempt() > 1 => Ok(entered - died.get()),
        Case::Recovery => {
            // Rank 1 dies soon after the checkpoint that says when; the rest of its life is not counted.
            let planned = now() + 1.0;
            died.set(ctx.broadcast(planned)?);
            ctx.save(&state)?;
            while now() < died.get() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            if ctx.rank() == 1 {
                std::process::abort();
            }
            ctx.barrier()?;
            Ok(0.0)
        }
    }
}

fn main() -> ExitCode {
    regatta::main()
}
