//! `bench tune`: what a suggestion costs, and how good suggestions are, against Optuna.

use anyhow::Result;
use serde_json::json;

use super::{Args, Contestant, build, median, rounded};
use crate::{python, root};

/// A case, and what the contestants are asked.
const COSTS: [(&str, &str); 6] = [
    ("tpe_100", "tpe 100"),
    ("tpe_1k", "tpe 1000"),
    ("tpe_10k", "tpe 10000"),
    ("tpe_100k", "tpe 100000"),
    ("gp_50", "gp 50"),
    ("gp_200", "gp 200"),
];
/// Optuna needs minutes to take in so many trials.
const OURS_ALONE: &str = "tpe_100k";

const FUNCTIONS: [&str; 8] =
    ["branin", "hartmann6", "rosenbrock5", "ackley10", "levy10", "rastrigin5", "mixed", "conditional"];
const SAMPLERS: [&str; 4] = ["tpe", "cma", "gp", "auto"];
const BUDGETS: [u64; 2] = [60, 200];

/// Prints `{"case","ms","optuna_ms","vs_optuna"}` a case: medians over the rounds.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (mut ours, mut optuna) = contestants()?;
    for (case, asked) in COSTS.iter().filter(|(case, _)| case.contains(&args.case)) {
        let (mut a, mut b) = (vec![], vec![]);
        for round in 0..=args.rounds {
            let left = ours.number(asked)?;
            let right = if *case == OURS_ALONE { None } else { Some(optuna.number(asked)?) };
            if round > 0 {
                a.push(left);
                b.extend(right);
            }
        }
        let theirs = (!b.is_empty()).then(|| median(&b));
        let ratio = theirs.map(|t| rounded(t / median(&a)));
        println!(
            "{}",
            json!({"case": case, "ms": rounded(median(&a)), "optuna_ms": theirs.map(rounded), "vs_optuna": ratio})
        );
    }
    Ok(())
}

/// Prints `{"sampler","function","trials","regret","optuna","tie","no_worse"}`: medians over the seeds. A tie is a
/// difference that the seeds' spread explains: the middle half of either contains the other's median.
pub(crate) fn quality(args: &Args, seeds: u64) -> Result<()> {
    let (mut ours, mut optuna) = contestants()?;
    for function in FUNCTIONS {
        for sampler in SAMPLERS {
            for trials in BUDGETS {
                let case = format!("{sampler}_{function}_{trials}");
                if !case.contains(&args.case) {
                    continue;
                }
                let (mut a, mut b) = (vec![], vec![]);
                for seed in 0..seeds {
                    a.push(ours.number(&format!("regret {sampler} {function} {trials} {seed}"))?);
                    if sampler != "auto" {
                        b.push(optuna.number(&format!("regret {sampler} {function} {trials} {seed}"))?);
                    }
                }
                let mine = median(&a);
                let theirs = (!b.is_empty()).then(|| median(&b));
                let tie = theirs.map(|t| inside(mine, &b) || inside(t, &a));
                let no_worse = theirs.map(|t| mine <= t || tie == Some(true));
                println!(
                    "{}",
                    json!({
                        "sampler": sampler, "function": function, "trials": trials, "seeds": seeds,
                        "regret": rounded(mine), "optuna": theirs.map(rounded), "tie": tie, "no_worse": no_worse,
                    })
                );
            }
        }
    }
    Ok(())
}

fn contestants() -> Result<(Contestant, Contestant)> {
    let mut ours = build("regatta-tune", "samplers")?;
    let mut peer = std::process::Command::new(python::OPTUNA.python()?);
    peer.arg(root().join("benches/peers/optuna_samplers.py"));
    let ours = Contestant::start("ours", ours.env("RAYON_NUM_THREADS", "1"))?;
    Ok((ours, Contestant::start("Optuna", peer.env("OMP_NUM_THREADS", "1"))?))
}

/// Whether a figure lies in the middle half of others.
fn inside(figure: f64, others: &[f64]) -> bool {
    let mut sorted = others.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |q: usize| sorted[(sorted.len() - 1) * q / 4];
    (at(1)..=at(3)).contains(&figure)
}
