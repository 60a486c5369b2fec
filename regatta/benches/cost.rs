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
    /// What being able to stop, report and resume costs a training, in parts of its time.
    Overhead,
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
        Case::Overhead => overhead(ctx),
    }
}

/// Steps of a network of 1.9 million parameters and Adam, in blocks that take turns: bare ones, and ones that agree on stopping at every
/// step, report every tenth and take a checkpoint.
fn overhead(ctx: &mut TrainContext) -> Result<f64> {
    const STEPS: usize = 200;
    // Moments and gradients fade while one batch is learned by heart, and would make later blocks slower than earlier ones.
    regatta::torch::threads::flush_denormals(true)?;
    let vs = nn::VarStore::new(ctx.device());
    let linear = |name: &str, from, to| nn::linear(vs.root() / name, from, to, Default::default());
    let (first, second, third) = (linear("a", 784, 1024), linear("b", 1024, 1024), linear("c", 1024, 10));
    let model = ctx.data_parallel(&vs)?;
    let mut opt = Adam::new(&vs, 1e-3);
    let state = ctx.state().model(&vs).optimizer(&opt);
    let x = Tensor::randn([64, 784], (Kind::Float, ctx.device()));
    let y = Tensor::zeros([64], (Kind::Int64, ctx.device()));
    let mut block = |ctx: &mut TrainContext, guarded: bool| -> Result<f64> {
        ctx.barrier()?;
        let begun = Instant::now();
        for i in 0..STEPS {
            let hidden = x.apply(&first).relu().apply(&second).relu();
            let loss = hidden.apply(&third).cross_entropy_for_logits(&y);
            model.backward(&loss)?;
            opt.step()?;
            if guarded {
                ctx.step(&state)?;
                match i {
                    0 => ctx.report(metrics! { i }).checkpoint(&state)?,
                    i if i % 10 == 0 => ctx.report(metrics! { i }).send()?,
                    _ => {}
                }
            }
        }
        ctx.barrier()?;
        Ok(begun.elapsed().as_secs_f64())
    };
    block(ctx, true)?;
    let mut shares = Vec::new();
    for _ in 0..7 {
        let bare = block(ctx, false)?;
        shares.push(block(ctx, true)? / bare - 1.0);
    }
    shares.sort_by(f64::total_cmp);
    Ok(shares[shares.len() / 2])
}

fn main() -> ExitCode {
    regatta::main()
}
