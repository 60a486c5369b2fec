//! `regatta train` and `regatta resume`.

use std::path::Path;
use std::time::Duration;

use regatta_cluster::Allocator;
use regatta_cluster::local::LocalNode;
use regatta_train::config::Verbosity;
use regatta_train::folder::RunFolder;
use regatta_train::registry;
use regatta_train::{EngineConfig, Experiment, RunResult, Status, Trainable, Trainer};
use serde_json::{Value, json};

use crate::args::{self, Common, Resume, Train};
use crate::configure;
use crate::drive::Order;
use crate::out;
use crate::problem::{Outcome, Problem, exit};
use crate::progress::{Look, Shown};
use crate::runs;
use crate::settings::{Override, Settings};
use crate::submit;
use crate::term::{self, Mode, Terminal};
use crate::tune;

/// How often the line is drawn on a terminal.
const DRAWN: Duration = Duration::from_millis(100);
/// How often a line is written elsewhere.
const PLAIN: Duration = Duration::from_secs(30);

/// `regatta train FILE`.
pub(crate) fn run(args: &Train, json: bool) -> Outcome {
    let mut overrides = options(&args.common);
    if args.fast_dev_run {
        overrides.push(Override::option("--fast-dev-run", "run.fast_dev_run", "true"));
    }
    let settings = configure::load(&args.source, overrides)?;
    let experiment = settings.experiment().clone();
    if args.dry_run {
        return plan(&settings, json);
    }
    if submit::is_elsewhere(&experiment.engine) && !args.here {
        return submit::submit_and_follow(Order { experiment, study: None, resume: None }, json);
    }
    writable(&experiment.run.storage)?;
    let trainer = Trainer::from_experiment(experiment)?;
    fit(trainer, None, &args.show, json)
}

/// `regatta resume RUN`.
pub(crate) fn resume(args: &Resume, json: bool) -> Outcome {
    let remote = args.run.contains("://") && !args.run.starts_with("file://");
    let folder = match remote {
        true => regatta_tune::fetch(&args.run)?,
        false => runs::find(args.run.trim_start_matches("file://"), &args.root)?.folder,
    };
    if tune::is_study(&folder) {
        return tune::resume(args, &folder, json);
    }
    if args.samples.is_some() || args.concurrent.is_some() || args.allow_changed_space {
        return Err(Problem::usage(
            "--samples, --concurrent and --allow-changed-space are for studies, and this is a run",
        ));
    }
    let mut trainer = Trainer::of_run(&folder.to_string_lossy())?;
    if let Some(workers) = args.workers {
        trainer = trainer.workers(workers);
    }
    if let Some(engine) = &args.engine {
        trainer = trainer.engine(read_engine(engine)?);
    }
    if submit::is_elsewhere(&trainer.experiment().engine) && !args.here {
        let order = Order { experiment: trainer.experiment().clone(), study: None, resume: Some(folder) };
        return submit::submit_and_follow(order, json);
    }
    fit(trainer, Some(&folder), &args.show, json)
}

/// What options of their own stand for.
pub(crate) fn options(args: &Common) -> Vec<Override> {
    let mut options = Vec::new();
    let mut add = |option: &str, path: &str, value: Option<String>| {
        options.extend(value.map(|value| Override::option(option, path, value)));
    };
    add("--name", "run.name", args.name.clone());
    add("--experiment", "run.experiment", args.experiment.clone());
    add("--workers", "scaling.workers", args.workers.clone());
    add("--storage", "run.storage", args.storage.clone());
    add("--seed", "run.seed", args.seed.map(|seed| seed.to_string()));
    options
}

pub(crate) fn fit(trainer: Trainer, resumed: Option<&Path>, show: &args::Shown, json: bool) -> Outcome {
    let experiment = trainer.experiment();
    let terminal = Terminal::of_stderr();
    let quiet = experiment.run.verbosity == Verbosity::Quiet;
    let best = experiment.checkpoint.best.as_ref();
    let mode = if quiet { Mode::None } else { terminal.mode(show.progress) };
    let look = Look {
        mode,
        every: if mode == Mode::Bar { DRAWN } else { PLAIN },
        colour: terminal.colour(),
        verbose: show.verbose || experiment.run.verbosity == Verbosity::Verbose,
        best: best.map(|best| (best.metric.clone(), best.mode == regatta_checkpoint::Mode::Max)),
        resume: resume_command(experiment, resumed),
    };
    let shown = Shown::new(look, std::io::stderr(), term::width);
    let result = trainer.callback(shown).handle_signals(true).fit()?;
    if json {
        out::json(told(&result))?;
    }
    match result.status() {
        Status::Stopped { forced: true, .. } => Err(Problem { code: exit::FORCED, message: String::new() }),
        Status::Stopped { .. } => Err(Problem { code: exit::RESUMABLE, message: String::new() }),
        _ => Ok(()),
    }
}

/// The command that goes on with a run; `{run}` and `{experiment}` are filled in once its names are known.
pub(crate) fn resume_command(experiment: &Experiment<Value>, resumed: Option<&Path>) -> String {
    let program = program();
    let storage = &experiment.run.storage;
    if storage.contains("://") && !storage.starts_with("file://") {
        // From there it goes on anywhere, whatever becomes of the folder here.
        return format!("{program} resume {}/{{experiment}}/{{run}}", storage.trim_end_matches('/'));
    }
    let root = runs::root_of(storage);
    let root = root.to_string_lossy();
    match resumed {
        Some(folder) if !folder.starts_with(std::env::current_dir().unwrap_or_default().join(runs::ROOT)) => {
            format!("{program} resume {}", folder.display())
        }
        _ if root.trim_start_matches("./") == runs::ROOT || resumed.is_some() => {
            format!("{program} resume {{run}}")
        }
        _ => format!("{program} resume {{run}} --root {root}"),
    }
}

/// This program, as it was called.
pub(crate) fn program() -> String {
    std::env::args_os().next().map_or("regatta".into(), |arg| arg.to_string_lossy().into_owned())
}

/// An engine as it stands on the command line.
pub(crate) fn read_engine(text: &str) -> Outcome<EngineConfig> {
    let read: Result<EngineConfig, _> = registry::ron_options().from_str(text);
    let engine = read.map_err(|error| {
        Problem::usage(format!(
            "--engine {text}: {error}; write `Local`, or as in `Slurm(partition: \"gpu\", nodes: 2)`"
        ))
    })?;
    engine.check()?;
    Ok(engine)
}

pub(crate) fn told(result: &RunResult) -> Value {
    let status = match result.status() {
        Status::Completed => "done",
        Status::Stopped { .. } => "resumable",
        Status::Failed => "failed",
        _ => "running",
    };
    let metrics: serde_json::Map<String, Value> = result
        .metrics()
        .iter()
        .map(|(name, value)| {
            (name.to_string(), if value.is_finite() { json!(value) } else { json!(value.to_string()) })
        })
        .collect();
    json!({
        "experiment": result.experiment(), "name": result.name(), "folder": result.path(), "status": status,
        "step": result.step(), "attempts": result.attempts(), "metrics": metrics,
        "checkpoint": result.last_checkpoint().map(|checkpoint| checkpoint.name.clone()),
        "best_checkpoint": result.best_checkpoint().map(|checkpoint| checkpoint.name.clone()),
        "value": result.value::<Value>().unwrap_or(Value::Null),
    })
}

/// A folder that runs cannot be put into is found out before anything is started.
pub(crate) fn writable(storage: &str) -> Outcome {
    if storage.contains("://") && !storage.starts_with("file://") || storage.starts_with("memory:") {
        return Ok(());
    }
    let folder = Path::new(storage.trim_start_matches("file://"));
    let refused = |error: std::io::Error| {
        let folder = folder.display();
        Problem::usage(format!(
            "run.storage: runs cannot be written to {folder}: {error}; choose another place with --storage, or make this \
             one writable"
        ))
    };
    std::fs::create_dir_all(folder).map_err(refused)?;
    let probe = folder.join(format!(".regatta-{}", std::process::id()));
    std::fs::write(&probe, "").map_err(refused)?;
    std::fs::remove_file(&probe).map_err(refused)
}

/// `--dry-run`: what would be done.
fn plan(settings: &Settings, json: bool) -> Outcome {
    let experiment = settings.experiment();
    let name = experiment.trainable.experiment_name();
    // Drawn anew when it is run; only the form counts.
    let folder = RunFolder::new(&experiment.run, &name)?;
    if experiment.run.name.is_some() && regatta_train::folder::is_run(&folder.path) {
        let folder = folder.path.display().to_string();
        let name = experiment.run.name.clone().unwrap_or_default();
        return Err(regatta_train::Error::RunExists { name, folder }.into());
    }
    let elsewhere = submit::is_elsewhere(&experiment.engine);
    let host = LocalNode::this_host();
    let scaling = &experiment.scaling;
    let request = scaling.request(&name);
    let resources = request.per_worker.clone();
    // What there is elsewhere, its engine knows.
    let (node, has) = match elsewhere {
        true => (experiment.engine.name().to_owned(), None),
        false => {
            Allocator::new([(host.name.clone(), host.resources.clone())])?.request(request)?;
            (host.name, Some(host.resources))
        }
    };
    let (least, most) = (scaling.workers.min(), scaling.workers.max());
    let workers = if least == most { least.to_string() } else { format!("{least} to {most}") };
    let place = match &experiment.run.name {
        Some(_) => folder.path.display().to_string(),
        None => format!("{}/<a name that is drawn>", folder.path.parent().unwrap_or(&folder.path).display()),
    };
    if json {
        return out::json(json!({
            "experiment": settings.tree(),
            "plan": { "workers": { "min": least, "max": most }, "resources": resources, "engine": experiment.engine.name(),
                      "node": node, "node_resources": has, "folder": place },
        }));
    }
    let words = match &experiment.trainable {
        Trainable::Command(line) => {
            format!("command    {}\n", regatta_train::command::words(line, &experiment.config)?.join(" "))
        }
        Trainable::Function(_) => String::new(),
    };
    out::text(&format!(
        "{}\n\n{words}workers    {workers}, each {resources}\nplaced on  {node}{}\nfolder     {place}\nwould make run.db, \
         config.ron, env.json, logs/, checkpoints/, progress.csv, result.jsonl and TensorBoard's events\n",
        registry::to_ron(experiment)?,
        has.map_or(String::new(), |has| format!(", which has {has}")),
    ))
}
