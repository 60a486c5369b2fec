//! `regatta show` of a study and of a trial: the trials, best first, each with its course; what matters; what failed, and
//! why.

use std::collections::BTreeSet;

use regatta_tune::results::{History, ResultGrid, sparkline};
use serde_json::{Map, Value, json};

use crate::args::Show;
use crate::judge::Judged;
use crate::out::{self, table};
use crate::problem::{Outcome, Problem};
use crate::runs::{Found, number, seconds, status};
use crate::term::{duration, figure};
use crate::which;

/// Characters of a trial's course.
const SPARK: usize = 12;
/// Columns of the configuration, at most.
const COLUMNS: usize = 6;
/// Failures that are told of, at most.
const FAILURES: usize = 5;

/// `regatta show STUDY`.
pub(crate) fn show(study: &Found, args: &Show, json: bool) -> Outcome {
    let whole = which::grid(study)?;
    let none = whole.trials().iter().all(|trial| trial.metrics.is_empty());
    // Before the first report there is nothing to judge by.
    let grid = if none { whole } else { Judged::grid(&args.judge, whole)? };
    if json {
        return out::json(value(study, &grid));
    }
    let mut text = heading(study, &grid);
    text += &best(&grid)?;
    text.push('\n');
    text += &trials(&grid, args.trials);
    text += &importance(&grid);
    text += &failures(study, &grid);
    out::text(&text)
}

fn value(study: &Found, grid: &ResultGrid) -> Value {
    let trials: Vec<Value> = ordered(grid).into_iter().map(|trial| trial_value(grid, trial)).collect();
    let importance: Map<String, Value> =
        grid.importance().into_iter().map(|i| (i.path, number(i.share))).collect();
    let objectives: Vec<Value> =
        (grid.objectives().iter()).map(|o| json!({ "metric": o.metric, "direction": o.direction })).collect();
    let front: Vec<u32> = match grid.objectives().len() {
        0 | 1 => Vec::new(),
        _ => grid.pareto().iter().map(|trial| trial.number).collect(),
    };
    json!({
        "experiment": study.experiment, "name": study.name, "folder": study.folder,
        "status": status(grid.run(), &study.folder), "seconds": seconds(grid.run()), "objectives": objectives,
        "best": grid.best().ok().map(|best| best.number), "pareto": front, "importance": importance, "trials": trials,
        "cause": grid.run().cause,
    })
}

fn trial_value(grid: &ResultGrid, trial: &History) -> Value {
    let last: Map<String, Value> = (trial.metrics.iter())
        .filter_map(|(name, series)| Some((name.clone(), number(series.last()?.1))))
        .collect();
    json!({
        "trial": trial.number, "state": trial.state, "value": grid.score(trial).map(number), "step": step(trial),
        "metrics": last, "config": trial.full, "attempts": trial.attempts, "cause": trial.cause,
        "cloned_from": trial.cloned_from,
    })
}

fn heading(study: &Found, grid: &ResultGrid) -> String {
    let mut counts: Vec<String> = Vec::new();
    for state in ["pending", "running", "paused", "stopped", "done", "interrupted", "failed"] {
        match grid.trials().iter().filter(|trial| trial.state == state).count() {
            0 => {}
            count => counts.push(format!("{count} {state}")),
        }
    }
    let objectives: Vec<String> = (grid.objectives().iter())
        .map(|o| format!("{} {}", format!("{:?}", o.direction).to_lowercase(), o.metric))
        .collect();
    let counts = if counts.is_empty() { String::new() } else { format!(": {}", counts.join(", ")) };
    format!(
        "study {}/{}  {}  {} trials{counts}  took {}\nfolder {}\n{}\n",
        study.experiment,
        study.name,
        status(grid.run(), &study.folder),
        grid.trials().len(),
        duration(seconds(grid.run())),
        study.folder.display(),
        objectives.join(", "),
    )
}

/// The best trial in a line; of several objectives those that none beats.
fn best(grid: &ResultGrid) -> Outcome<String> {
    if grid.objectives().len() > 1 {
        let front: Vec<String> = grid.pareto().iter().map(|trial| trial.number.to_string()).collect();
        return Ok(format!("beaten by none: trials {}\n", front.join(", ")));
    }
    let Ok(best) = grid.best() else { return Ok("no trial has a value yet\n".into()) };
    let config: Vec<String> = paths(grid)
        .iter()
        .filter_map(|path| Some(format!("{path}={}", cell(best.trial.config.get(path))?)))
        .collect();
    Ok(format!("best {}  trial {}  {}\n", figure(best.value), best.number, config.join(" ")))
}

/// The ranked first, then those without a value, and the failed last.
fn ordered(grid: &ResultGrid) -> Vec<&History> {
    let ranked: Vec<&History> = grid.ranked().into_iter().map(|(trial, _)| trial).collect();
    let known: BTreeSet<u32> = ranked.iter().map(|trial| trial.number).collect();
    let (failed, rest): (Vec<&History>, Vec<&History>) = (grid.trials().iter())
        .filter(|trial| !known.contains(&trial.number))
        .partition(|trial| trial.error.is_some());
    ranked.into_iter().chain(rest).chain(failed).collect()
}

/// What varies, the most important first.
fn paths(grid: &ResultGrid) -> Vec<String> {
    if grid.parameters().is_empty() {
        return varying(grid.trials());
    }
    grid.importance().into_iter().map(|importance| importance.path).collect()
}

/// The parts of the configurations that are not the same in all.
pub(crate) fn varying(trials: &[History]) -> Vec<String> {
    let all: BTreeSet<&String> = trials.iter().flat_map(|trial| trial.config.keys()).collect();
    let varies = |path: &&&String| {
        let first = trials.first().and_then(|trial| trial.config.get(**path));
        trials.iter().any(|trial| trial.config.get(**path) != first)
    };
    all.iter().filter(varies).map(|path| (*path).clone()).collect()
}

fn trials(grid: &ResultGrid, most: usize) -> String {
    let paths: Vec<String> = paths(grid).into_iter().take(COLUMNS).collect();
    let metrics: Vec<&str> = grid.objectives().iter().map(|objective| objective.metric.as_str()).collect();
    let mut head = vec!["trial".to_owned(), "state".into(), "step".into()];
    head.extend(metrics.iter().map(|metric| (*metric).to_owned()));
    head.push("course".into());
    head.extend(paths.iter().map(|path| path.rsplit('.').next().unwrap_or(path).to_owned()));
    let mut rows = vec![head];
    let all = ordered(grid);
    let shown = if most == 0 { all.len() } else { most.min(all.len()) };
    for trial in &all[..shown] {
        let step = step(trial).map_or("-".into(), |step| step.to_string());
        let mut row = vec![trial.number.to_string(), trial.state.clone(), step];
        for (at, metric) in metrics.iter().enumerate() {
            let value = match at {
                0 => grid.score(trial),
                _ => trial.values(metric).last().copied(),
            };
            row.push(value.map_or("-".into(), figure));
        }
        row.push(metrics.first().map_or(String::new(), |metric| sparkline(trial.values(metric), SPARK)));
        row.extend(paths.iter().map(|path| cell(trial.config.get(path)).unwrap_or_else(|| "-".into())));
        rows.push(row);
    }
    let more = all.len() - shown;
    let more = if more > 0 { format!("... {more} more: -n {}\n", all.len()) } else { String::new() };
    table(&rows) + &more
}

fn importance(grid: &ResultGrid) -> String {
    let shares = grid.importance();
    if shares.iter().all(|importance| importance.share == 0.0) {
        return String::new();
    }
    let mut text = "\nimportance\n".to_owned();
    for importance in shares.iter().take(10) {
        let bar = "█".repeat((importance.share * 30.0).round() as usize);
        text += &format!("  {:>5.1} %  {bar:<30}  {}\n", 100.0 * importance.share, importance.path);
    }
    text
}

fn failures(study: &Found, grid: &ResultGrid) -> String {
    let failed: Vec<_> = grid.errors().collect();
    let mut text = String::new();
    if !failed.is_empty() {
        text.push_str("\nfailed\n");
    }
    for (trial, why) in failed.iter().take(FAILURES) {
        let cause = trial.cause.as_ref();
        let rank = cause.and_then(|c| c.rank).map_or(String::new(), |rank| format!(" on rank {rank}"));
        let at = cause.and_then(|c| c.step).map_or(String::new(), |step| format!(" at step {step}"));
        let logs = grid.folder_of(trial.number).join("run.db").is_file();
        let logs =
            if logs { format!("  -> regatta logs {}/{}", study.name, trial.number) } else { String::new() };
        let lines: Vec<&str> = why.lines().rev().take(2).collect();
        // Before the root cause stands the end of the log, whose last line often says more.
        let said = lines.get(1).and_then(|line| line.trim_start().strip_prefix("| "));
        let said = said.map_or(String::new(), |line| format!(", having said: {line}"));
        let why = lines.first().copied().unwrap_or_default();
        text += &format!("  trial {}{rank}{at}: {why}{said}{logs}\n", trial.number);
    }
    if failed.len() > FAILURES {
        text += &format!("  ... {} more: --json tells of all\n", failed.len() - FAILURES);
    }
    if let Some(cause) = &grid.run().cause {
        text += &format!("\nfailed: {}\n", cause.message);
    }
    text
}

/// `regatta show STUDY/7`, of a trial that has no folder of its own.
pub(crate) fn show_trial(study: &Found, trial: u32, args: &Show, json: bool) -> Outcome {
    let grid = which::grid(study)?;
    let known = grid.trial(trial).ok_or_else(|| no_trial(study, trial, &grid))?;
    let grid = if known.metrics.is_empty() { grid.clone() } else { Judged::grid(&args.judge, grid.clone())? };
    if json {
        let mut value = trial_value(&grid, known);
        (value["experiment"], value["study"]) = (json!(study.experiment), json!(study.name));
        return out::json(value);
    }
    let value = grid.score(known).map_or(String::new(), |value| format!("  {}", figure(value)));
    let mut text =
        format!("trial {}/{} of {}  {}{value}\n\n", study.name, trial, study.experiment, known.state);
    let mut rows = vec![["metric", "last", "step", "course"].map(str::to_owned)];
    for (name, series) in &known.metrics {
        let Some((step, last)) = series.last() else { continue };
        rows.push([name.clone(), figure(*last), step.to_string(), sparkline(known.values(name), 30)]);
    }
    text += &table(&rows);
    text.push('\n');
    let rows: Vec<[String; 2]> = (known.config.iter())
        .map(|(path, value)| [path.clone(), cell(Some(value)).unwrap_or_default()])
        .collect();
    text += &table(&rows);
    if let Some(from) = known.cloned_from {
        text += &format!("\ntaken over from trial {from}\n");
    }
    if let Some(cause) = &known.cause {
        text.push('\n');
        cause.log.iter().for_each(|line| text += &format!("  | {line}\n"));
        text += &format!("failed: {}\n", cause.message);
    }
    out::text(&text)
}

/// The error for a trial that a study does not have.
pub(crate) fn no_trial(study: &Found, trial: u32, grid: &ResultGrid) -> Problem {
    let has = match (grid.trials().first(), grid.trials().last()) {
        (Some(first), Some(last)) => format!("it has {} to {}", first.number, last.number),
        _ => "it has none yet".into(),
    };
    Problem::usage(format!("study {} has no trial {trial}: {has}", study.name))
}

fn step(trial: &History) -> Option<u64> {
    trial.metrics.values().filter_map(|series| series.last()).map(|(step, _)| *step).max()
}

/// A value of a configuration in a table.
pub(crate) fn cell(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_f64() => number.as_f64().map(figure),
        other => Some(other.to_string()),
    }
}
