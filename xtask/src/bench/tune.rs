//! `bench tune`: what a suggestion costs, and how good suggestions are, against Optuna.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Args, Contestant, build, median, rounded};
use crate::{cache, python, root};

/// A case, and what the contestants are asked.
const COSTS: [(&str, &str); 7] = [
    ("tpe_100", "tpe 100"),
    ("tpe_1k", "tpe 1000"),
    ("tpe_10k", "tpe 10000"),
    ("tpe_100k", "tpe 100000"),
    ("judged_10k", "judged 10000"),
    ("gp_50", "gp 50"),
    ("gp_200", "gp 200"),
];
/// Optuna needs minutes to take in so many trials, and has no trials that are judged before they are over.
const OURS_ALONE: [&str; 2] = ["tpe_100k", "judged_10k"];

const FUNCTIONS: [&str; 14] = [
    "branin",
    "hartmann6",
    "rosenbrock5",
    "ackley10",
    "levy10",
    "rastrigin5",
    "mixed",
    "conditional",
    "griewank10",
    "styblinski5",
    "michalewicz5",
    "sphere20",
    "choices",
    "noisy6",
];
const SAMPLERS: [&str; 4] = ["tpe", "cma", "gp", "auto"];
const BUDGETS: [u64; 2] = [60, 200];

/// Prints `{"case","ms","optuna_ms","vs_optuna"}` a case: medians over the rounds.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !COSTS.iter().any(|(case, _)| case.contains(&args.case)) {
        return Ok(());
    }
    let mut ours = ours()?;
    let mut optuna = optuna(Command::new(python::OPTUNA.python()?).arg(root().join(PEER)))?;
    for (case, asked) in COSTS.iter().filter(|(case, _)| case.contains(&args.case)) {
        let (mut a, mut b) = (vec![], vec![]);
        for round in 0..=args.rounds {
            let left = ours.number(asked)?;
            let right = if OURS_ALONE.contains(case) { None } else { Some(optuna.number(asked)?) };
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
/// difference that the seeds' spread explains: the middle half of either contains the other's median. `Auto` has no peer:
/// it is measured against the best of ours.
pub(crate) fn quality(args: &Args) -> Result<()> {
    let mut ours = ours()?;
    // It may take hours: it yields to everything, and what it found is kept for the next time.
    let mut peer = Command::new("nice");
    peer.args(["-n", "19"]).arg(python::OPTUNA.python()?).arg(root().join(PEER));
    let mut optuna = optuna(peer.arg(cache::dir()?.join("optuna-regrets.jsonl")))?;
    let (mut held, mut all) = (0, 0);
    for (function, trials) in FUNCTIONS.iter().flat_map(|f| BUDGETS.map(|t| (*f, t))) {
        let mut best: Option<Vec<f64>> = None;
        for sampler in SAMPLERS {
            if !format!("{sampler}_{function}_{trials}").contains(&args.case) {
                continue;
            }
            let run = |contestant: &mut Contestant, seeds: u64| -> Result<Vec<f64>> {
                (0..seeds)
                    .map(|seed| last(contestant, &format!("regret {sampler} {function} {trials} {seed}")))
                    .collect()
            };
            let mine = run(&mut ours, args.seeds.max(1))?;
            let theirs = match sampler {
                "auto" => best.clone(),
                "gp" => Some(run(&mut optuna, args.gp_seeds.min(args.seeds).max(1))?),
                _ => Some(run(&mut optuna, args.seeds.max(1))?),
            };
            let tie = theirs.as_ref().map(|t| inside(median(&mine), t) || inside(median(t), &mine));
            let no_worse = theirs.as_ref().map(|t| median(&mine) <= median(t) || tie == Some(true));
            let against = if sampler == "auto" { "best_of_ours" } else { "optuna" };
            println!(
                "{}",
                json!({
                    "sampler": sampler, "function": function, "trials": trials, "seeds": mine.len(),
                    "regret": rounded(median(&mine)), against: theirs.as_ref().map(|t| rounded(median(t))),
                    "tie": tie, "no_worse": no_worse,
                })
            );
            all += usize::from(no_worse.is_some());
            held += usize::from(no_worse == Some(true));
            if best.as_ref().is_none_or(|best| median(&mine) < median(best)) {
                best = Some(mine);
            }
        }
    }
    println!("{}", json!({"no_worse": held, "of": all}));
    curves(args, &mut ours)
}

/// Studies of 1,530 epochs whose trials are learning curves of twelve tasks: scheduler and sampler.
const RACES: [(&str, &str); 8] = [
    ("fifo", "random"),
    ("fifo", "tpe"),
    ("stopping", "random"),
    ("stopping", "tpe"),
    ("promotion", "random"),
    ("hyper_band", "random"),
    ("promotion", "tpe"),
    ("hyper_band", "tpe"),
];
const TASKS: u64 = 12;

/// Prints `{"scheduler","sampler","tasks","seeds","regret"}`: the mean over tasks and seeds of what the best of a study is
/// above the best there is, where the middle trial is at 1.
fn curves(args: &Args, ours: &mut Contestant) -> Result<()> {
    let tables = args.tables.as_ref().map_or(String::new(), |path| format!(" {}", path.display()));
    for (scheduler, sampler) in RACES {
        if !format!("curves_{scheduler}_{sampler}").contains(&args.case) {
            continue;
        }
        let studies = (0..TASKS).flat_map(|task| (0..args.seeds.max(1)).map(move |seed| (task, seed)));
        let regrets: Vec<f64> = studies
            .map(|(task, seed)| ours.number(&format!("curves {scheduler} {sampler} {task} {seed}{tables}")))
            .collect::<Result<_>>()?;
        let mean = regrets.iter().sum::<f64>() / regrets.len() as f64;
        println!(
            "{}",
            json!({"scheduler": scheduler, "sampler": sampler, "tasks": TASKS, "seeds": args.seeds, "regret": rounded(mean)})
        );
    }
    Ok(())
}

/// The last of the regrets that a contestant answers with.
fn last(contestant: &mut Contestant, case: &str) -> Result<f64> {
    let answer = contestant.ask(case)?;
    let last = answer.as_array().and_then(|regrets| regrets.last()?.as_f64());
    last.with_context(|| format!("{case} was answered with {answer}, not with regrets"))
}

const PEER: &str = "benches/peers/optuna_samplers.py";

fn ours() -> Result<Contestant> {
    let mut ours = build("regatta-tune", "samplers")?;
    Contestant::start("ours", ours.env("RAYON_NUM_THREADS", "1"))
}

fn optuna(command: &mut Command) -> Result<Contestant> {
    Contestant::start("Optuna", command.env("OMP_NUM_THREADS", "1"))
}

/// Whether a figure lies in the middle half of others.
fn inside(figure: f64, others: &[f64]) -> bool {
    let mut sorted = others.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |q: usize| sorted[(sorted.len() - 1) * q / 4];
    (at(1)..=at(3)).contains(&figure)
}
