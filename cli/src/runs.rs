//! Finding runs by what people call them, and telling of them: `ls` and `show`.

use std::path::{Path, PathBuf};

use regatta_track::event::Outcome as Ended;
use regatta_track::state::{Checkpoint, Metric, Run, Status};
use regatta_track::{Reader, Timestamp};
use regatta_train::folder::is_run;
use serde_json::{Value, json};

use crate::args::{Ls, Show};
use crate::out::{self, table};
use crate::problem::{Outcome, Problem, advice};
use crate::study;
use crate::term::{bytes, duration, figure};
use crate::which::{self, Subject};

/// Where runs lie unless told otherwise.
pub(crate) const ROOT: &str = "runs";

/// The folder in which runs of this storage lie on the controller's host.
pub(crate) fn root_of(storage: &str) -> PathBuf {
    let elsewhere =
        (storage.contains("://") && !storage.starts_with("file://")) || storage.starts_with("memory:");
    PathBuf::from(if elsewhere { ROOT } else { storage.trim_start_matches("file://") })
}

/// A run's folder, and what it is called by its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Found {
    pub(crate) experiment: String,
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
}

/// All runs under a folder: `<root>/<experiment>/<run>`.
pub(crate) fn all(root: &Path) -> Vec<Found> {
    let folders = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let mut found: Vec<Found> =
        folders(root).iter().flat_map(|folder| folders(folder)).filter_map(run_at).collect();
    found.sort();
    found
}

fn run_at(folder: PathBuf) -> Option<Found> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    is_run(&folder).then(|| Found {
        experiment: folder.parent().and_then(name).unwrap_or_default(),
        name: name(&folder).unwrap_or_default(),
        folder,
    })
}

/// The run that is meant: its folder, `experiment/name`, its name, or the beginning of either that only one run has.
pub(crate) fn find(what: &str, root: &Path) -> Outcome<Found> {
    if let Some(found) = std::path::absolute(what).ok().and_then(run_at) {
        return Ok(found);
    }
    let runs = all(root);
    let full = |run: &Found| format!("{}/{}", run.experiment, run.name);
    let exact: Vec<&Found> = runs.iter().filter(|run| run.name == what || full(run) == what).collect();
    let begins: Vec<&Found> =
        runs.iter().filter(|run| run.name.starts_with(what) || full(run).starts_with(what)).collect();
    match (exact.as_slice(), begins.as_slice()) {
        ([one], _) | ([], [one]) => Ok((*one).clone()),
        ([], []) => {
            let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
            let root = root.display();
            Err(Problem::usage(format!(
                "there is no run `{what}` under {root}, and no run's folder of that name{}",
                advice(what, names)
            )))
        }
        ([], several) | (several, _) => {
            let names: Vec<String> = several.iter().map(|run| full(run)).collect();
            Err(Problem::usage(format!("`{what}` may be {}: write more of it", names.join(" or "))))
        }
    }
}

/// Whether some controller drives the run, as far as can be told from here without getting in its way.
pub(crate) fn is_driven(folder: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(folder.join("run.db.lock")) else { return false };
    let Some((process, host)) = text.trim().strip_prefix("process ").and_then(|text| text.split_once(" on "))
    else {
        return false;
    };
    let here = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host != here.trim() || Path::new("/proc").join(process).exists()
}

/// How a run stands, in a word.
pub(crate) fn status(run: &Run, folder: &Path) -> &'static str {
    match run.status {
        Status::Pending | Status::Running if !is_driven(folder) => "abandoned",
        Status::Pending => "pending",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Ended(Ended::Completed) => "done",
        Status::Ended(Ended::Stopped) => "stopped",
        Status::Ended(Ended::Interrupted) => "resumable",
        Status::Ended(Ended::Failed) => "failed",
    }
}

pub(crate) fn seconds(run: &Run) -> f64 {
    let end = run.ended.unwrap_or_else(Timestamp::now);
    (end.seconds() - run.created.seconds()).max(0.0)
}

pub(crate) fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

/// What a run's store says.
struct Look {
    run: Run,
    metrics: Vec<(std::sync::Arc<str>, Metric)>,
}

fn look(folder: &Path) -> Outcome<Look> {
    let mut reader = Reader::open(folder)?;
    let snapshot = reader.snapshot()?;
    Ok(Look { run: snapshot.run()?.unwrap_or_default(), metrics: snapshot.metrics(None)? })
}

/// `regatta ls`.
pub(crate) fn ls(args: &Ls, json: bool) -> Outcome {
    let root = &args.root;
    let mut rows = vec![["run", "status", "step", "attempts", "age", "took", "metrics"].map(str::to_owned)];
    let mut values = Vec::new();
    for found in all(root) {
        let full = format!("{}/{}", found.experiment, found.name);
        if args.experiment.as_ref().is_some_and(|wanted| *wanted != found.experiment) {
            continue;
        }
        match look(&found.folder) {
            Ok(Look { run, metrics }) => {
                let last: Vec<String> = metrics
                    .iter()
                    .take(4)
                    .map(|(name, metric)| format!("{name}={}", figure(metric.last)))
                    .collect();
                rows.push([
                    full,
                    status(&run, &found.folder).into(),
                    run.step.map_or("-".into(), |step| step.to_string()),
                    run.attempts.to_string(),
                    duration((Timestamp::now().seconds() - run.created.seconds()).max(0.0)),
                    duration(seconds(&run)),
                    last.join(" "),
                ]);
                let metrics: serde_json::Map<String, Value> =
                    metrics.iter().map(|(name, metric)| (name.to_string(), number(metric.last))).collect();
                values.push(json!({
                    "experiment": found.experiment, "name": found.name, "folder": found.folder, "status": status(&run, &found.folder),
                    "step": run.step, "attempts": run.attempts, "created": run.created.seconds(),
                    "seconds": seconds(&run), "metrics": metrics,
                }));
            }
            Err(problem) => {
                let [dash, more, none, nothing] = ["-"; 4].map(str::to_owned);
                rows.push([full, "unreadable".into(), dash, more, none, nothing, problem.message.clone()]);
                values.push(json!({
                    "experiment": found.experiment, "name": found.name, "folder": found.folder,
                    "status": "unreadable", "error": problem.message,
                }));
            }
        }
    }
    match json {
        true => out::json(json!({ "runs": values })),
        false if rows.len() == 1 => out::text(&format!("no runs under {}\n", root.display())),
        false => out::text(&table(&rows)),
    }
}

/// `regatta show RUN`, or a study, or a trial.
pub(crate) fn show(args: &Show, json: bool) -> Outcome {
    let found = match which::one(&args.run, &args.root)? {
        Subject::Run(found) => found,
        Subject::Study(found) => return study::show(&found, args, json),
        Subject::Trial(of, number) => {
            match which::run(&format!("{}/{number}", of.folder.display()), &args.root) {
                Ok(own) => own,
                Err(_) => return study::show_trial(&of, number, args, json),
            }
        }
    };
    let mut reader = Reader::open(&found.folder)?;
    let snapshot = reader.snapshot()?;
    let run = snapshot.run()?.unwrap_or_default();
    let metrics = snapshot.metrics(None)?;
    let attempts = snapshot.attempts(None)?;
    let checkpoints: Vec<_> = snapshot
        .checkpoints(None)?
        .into_iter()
        .filter(|(_, checkpoint)| checkpoint.deleted.is_none())
        .collect();
    if json {
        let metric = |metric: &Metric| {
            let extreme = |of: Option<(f64, u64)>| {
                of.map(|(value, step)| json!({ "value": number(value), "step": step }))
            };
            json!({
                "last": number(metric.last), "last_step": metric.last_step, "count": metric.count,
                "min": extreme(metric.min), "max": extreme(metric.max),
            })
        };
        let metrics: serde_json::Map<String, Value> =
            metrics.iter().map(|(name, row)| (name.to_string(), metric(row))).collect();
        let checkpoints: Vec<Value> = checkpoints
            .iter()
            .map(|(name, row)| json!({ "name": &**name, "step": row.step, "bytes": row.bytes, "metrics": row.metrics }))
            .collect();
        let attempts: Vec<Value> =
            attempts.iter().map(|(number, row)| json!({ "attempt": number, "row": row })).collect();
        return out::json(json!({
            "experiment": found.experiment, "name": found.name, "folder": found.folder, "status": status(&run, &found.folder),
            "step": run.step, "reports": run.reports, "created": run.created.seconds(), "seconds": seconds(&run),
            "cause": run.cause, "metrics": metrics, "checkpoints": checkpoints, "attempts": attempts,
            "config": run.config,
        }));
    }
    let mut text = format!(
        "run {}/{}  {}  step {}  {} reports  {} attempts  took {}\nfolder {}\n",
        found.experiment,
        found.name,
        status(&run, &found.folder),
        run.step.map_or("-".into(), |step| step.to_string()),
        run.reports,
        run.attempts,
        duration(seconds(&run)),
        found.folder.display(),
    );
    if !metrics.is_empty() {
        text.push('\n');
        text += &metric_table(&metrics);
    }
    if !checkpoints.is_empty() {
        text.push('\n');
        text += &checkpoint_table(&checkpoints);
    }
    if attempts.len() > 1 || run.cause.is_some() {
        text.push('\n');
        for (number, attempt) in &attempts {
            let cause = attempt.cause.as_ref().and_then(|cause| cause.message.lines().last());
            let cause = cause.map_or(String::new(), |cause| format!(": {cause}"));
            let outcome =
                attempt.outcome.map_or("running".into(), |outcome| format!("{outcome:?}").to_lowercase());
            let from = attempt.restored.as_deref().unwrap_or("the beginning");
            text +=
                &format!("attempt {number}: {} ranks from {from}, {outcome}{cause}\n", attempt.world_size);
        }
    }
    if let Some(cause) = &run.cause {
        text.push('\n');
        for line in &cause.log {
            text += &format!("  | {line}\n");
        }
        let rank = cause.rank.map_or(String::new(), |rank| format!(" on rank {rank}"));
        text += &format!("failed{rank}: {}\n", cause.message);
    }
    out::text(&text)
}

fn metric_table(metrics: &[(std::sync::Arc<str>, Metric)]) -> String {
    let extreme =
        |of: Option<(f64, u64)>| of.map_or("-".into(), |(value, step)| format!("{} @ {step}", figure(value)));
    let mut rows = vec![["metric", "last", "min", "max", "values"].map(str::to_owned)];
    rows.extend(metrics.iter().map(|(name, metric)| {
        let Metric { last, min, max, count, .. } = metric;
        [name.to_string(), figure(*last), extreme(*min), extreme(*max), count.to_string()]
    }));
    table(&rows)
}

fn checkpoint_table(checkpoints: &[(std::sync::Arc<str>, Checkpoint)]) -> String {
    let mut rows = vec![["checkpoint", "step", "size", "metrics"].map(str::to_owned)];
    rows.extend(checkpoints.iter().map(|(name, checkpoint)| {
        let figures: Vec<String> = checkpoint
            .metrics
            .iter()
            .take(4)
            .map(|(name, value)| format!("{name}={}", figure(value)))
            .collect();
        [name.to_string(), checkpoint.step.to_string(), bytes(checkpoint.bytes), figures.join(" ")]
    }));
    table(&rows)
}
