//! The half of `bench tune` that is about running trials: what one costs, against Ray Tune, and what the driver holds.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Args, Contestant, build, median, rounded};
use crate::{python, root};

const PEER: &str = "benches/peers/ray_tune.py";
/// Trials in kept processes: ours are many, Ray's fewer, as it takes that long for them.
const POOLED: u64 = 1_000;
const REUSED: u64 = 100;
const FRESH: u64 = 12;
/// Trials that sleep, on so many slots, for so many milliseconds each.
const SLEEPS: (u64, u64, u64) = (1_600, 16, 250);

/// Prints a JSON line a case: `trials_pooled` {per_s, vs_ray_reuse, vs_ray_default}, `trials_threads` {per_s}, `results` {per_s},
/// `memory` {mb_running, mb} at 10,000 and 100,000 trials, while they run and with all results read at the end, `sleeps`
/// {of_ideal}. Ratios are per trial, medians over the rounds.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = |case: &str| case.contains(&args.case);
    let cases = ["trials_pooled", "trials_threads", "results", "memory", "sleeps"];
    if !cases.into_iter().any(wanted) {
        return Ok(());
    }
    let mut program = build("regatta-tune", "trials")?;
    let mut ours = Contestant::start("ours", &mut program)?;
    if wanted("trials_pooled") {
        pooled(args, &mut ours)?;
    }
    for (case, asked, count) in
        [("trials_threads", "threads 20000 16", 20_000.0), ("results", "results 200000 16", 200_000.0)]
    {
        if wanted(case) {
            let rates: Vec<f64> =
                (0..args.rounds).map(|_| Ok(count / seconds(&ours.ask(asked)?)?)).collect::<Result<_>>()?;
            println!("{}", json!({"case": case, "per_s": median(&rates).round()}));
        }
    }
    if wanted("memory") {
        // A process of its own each: the peak is the process's.
        let mut line = json!({"case": "memory"});
        for trials in [10_000, 100_000] {
            let mut fresh = Contestant::start("ours", &mut program)?;
            let answer = fresh.ask(&format!("memory {trials} 16"))?;
            line[format!("mb_{trials}")] = answer["mb"].clone();
            line[format!("mb_running_{trials}")] = answer["mb_running"].clone();
        }
        println!("{line}");
    }
    if wanted("sleeps") {
        let (trials, slots, milliseconds) = SLEEPS;
        let took = seconds(&ours.ask(&format!("sleeps {trials} {slots} {milliseconds}"))?)?;
        let ideal = (trials * milliseconds) as f64 / 1e3 / slots as f64;
        println!(
            "{}",
            json!({"case": "sleeps", "seconds": rounded(took), "of_ideal": rounded(took / ideal)})
        );
    }
    Ok(())
}

fn pooled(args: &Args, ours: &mut Contestant) -> Result<()> {
    let mut ray = Command::new(python::RAY.python()?);
    let mut ray = Contestant::start("Ray", ray.arg(root().join(PEER)))?;
    let (mut rates, mut reuse, mut fresh) = (vec![], vec![], vec![]);
    for round in 0..=args.rounds {
        let mine = seconds(&ours.ask(&format!("pooled {POOLED} 2"))?)? / POOLED as f64;
        let kept = ray.number(&format!("reuse {REUSED}"))? / REUSED as f64;
        let own = ray.number(&format!("default {FRESH}"))? / FRESH as f64;
        if round > 0 {
            rates.push(1.0 / mine);
            reuse.push(kept / mine);
            fresh.push(own / mine);
        }
    }
    println!(
        "{}",
        json!({"case": "trials_pooled", "per_s": median(&rates).round(), "vs_ray_reuse": rounded(median(&reuse)),
               "vs_ray_default": rounded(median(&fresh))})
    );
    Ok(())
}

fn seconds(answer: &Value) -> Result<f64> {
    answer["seconds"].as_f64().with_context(|| format!("{answer} says no seconds"))
}
