//! `regatta tune`, and `regatta resume` of a study.

use std::path::Path;

use regatta_train::folder::CONFIG;
use regatta_train::registry;
use regatta_tune::{Ending, ResultGrid, TuneConfig, Tuner};
use serde_json::{Value, json};

use crate::args::{self, Resume, Source, Tune};
use crate::configure;
use crate::drive::{Order, Study};
use crate::out;
use crate::place;
use crate::problem::{Outcome, Problem, exit};
use crate::settings::{self, Override, Settings};
use crate::submit;
use crate::sweep::{Look, Sweep};
use crate::term::{self, Terminal};
use crate::train::{options, read_engine, resume_command, writable};

/// What values of the `tune` section are called on the command line.
const SECTION: &str = "tune.";

/// `regatta tune FILE`.
pub(crate) fn run(args: &Tune, json: bool) -> Outcome {
    let (source, mut changes) = split(&args.source)?;
    let settings = configure::load(&source, options(&args.common))?;
    let mut add = |option: &str, key: &str, value: Option<String>| {
        changes.extend(value.map(|value| Override::option(option, &format!("{SECTION}{key}"), value)));
    };
    add("--samples", "samples", args.samples.map(|samples| samples.to_string()));
    add("--concurrent", "concurrent", args.concurrent.map(|trials| trials.to_string()));
    let config = section(&settings, &changes)?;
    let experiment = settings.experiment().clone();
    if args.dry_run {
        let text = config.append_to(&registry::to_ron(&experiment)?)?;
        return match json {
            true => out::json(json!({ "experiment": settings.tree(), "tune": config })),
            false => out::text(&text),
        };
    }
    let order = Order { experiment, study: Some(config.into()), resume: None };
    if submit::is_elsewhere(&order.experiment.engine) && !args.here {
        return submit::submit_and_follow(order, json);
    }
    writable(&order.experiment.run.storage)?;
    drive(order, &args.show, json)
}

/// The file and what changes its experiment; and what changes its `tune` section.
pub(crate) fn split(source: &Source) -> Outcome<(Source, Vec<Override>)> {
    let (ours, theirs): (Vec<String>, Vec<String>) =
        source.overrides.iter().cloned().partition(|change| change.starts_with(SECTION));
    let changes = ours.iter().map(|text| Override::parse(text)).collect::<Outcome<Vec<_>>>()?;
    Ok((Source { file: source.file.clone(), overrides: theirs }, changes))
}

/// `regatta resume STUDY`.
pub(crate) fn resume(args: &Resume, folder: &Path, json: bool) -> Outcome {
    let settings = Settings::load(&folder.join(CONFIG), &[])?;
    let (mut experiment, mut config) = (settings.experiment().clone(), section(&settings, &[])?);
    if let Some(samples) = &args.samples {
        let more = samples.strip_prefix('+');
        let number: u64 = more.unwrap_or(samples).parse().map_err(|_| {
            Problem::usage(format!(
                "--samples {samples} is no number of trials: write 40, or +20 for 20 more"
            ))
        })?;
        let known = config
            .samples
            .unwrap_or_else(|| ResultGrid::open(folder).map_or(0, |grid| grid.trials().len() as u64));
        config.samples = Some(if more.is_some() { known + number } else { number });
    }
    config.concurrent = args.concurrent.or(config.concurrent);
    if args.workers.is_some() {
        return Err(Problem::usage(
            "a study's trials have as many workers as it was begun with: leave out --workers",
        ));
    }
    if let Some(engine) = &args.engine {
        experiment.engine = read_engine(engine)?;
    }
    let study = Study { tune: config, allow_changed_space: args.allow_changed_space };
    let order = Order { experiment, study: Some(study), resume: Some(folder.to_owned()) };
    if submit::is_elsewhere(&order.experiment.engine) && !args.here {
        return submit::submit_and_follow(order, json);
    }
    drive(order, &args.show, json)
}

/// Whether a folder holds a study.
pub(crate) fn is_study(folder: &Path) -> bool {
    let text = std::fs::read_to_string(folder.join(CONFIG)).unwrap_or_default();
    match registry::read(&text) {
        Ok(parsed) => parsed.tune.is_some(),
        Err(_) => registry::parse::<Value>(&text).is_ok_and(|parsed| parsed.tune.is_some()),
    }
}

/// The file's `tune` section, with what changes it.
pub(crate) fn section(settings: &Settings, changes: &[Override]) -> Outcome<TuneConfig> {
    let file = settings.file().display();
    let Some(text) = settings.tune() else {
        return Err(Problem::usage(format!(
            "{file}: there is no `tune` section: say what is to get better and how it is searched, as in tune: (metric: \
             \"accuracy\", mode: Max, samples: 24)"
        )));
    };
    let config = TuneConfig::read(text).map_err(|error| {
        let at = settings.text().find(text).unwrap_or(0);
        let begin = place::at(settings.text(), at);
        let start = error.span.start;
        let column = if start.line == 1 { begin.column + start.col - 1 } else { start.col };
        Problem::usage(format!("{file}:{}:{column}: {}", begin.line + start.line - 1, error.code))
    })?;
    changes.iter().try_fold(config, changed)
}

fn changed(config: TuneConfig, change: &Override) -> Outcome<TuneConfig> {
    let path = change.path.strip_prefix(SECTION).unwrap_or(&change.path);
    let tree = serde_json::to_value(&config)
        .map_err(|error| Problem::failed(format!("cannot write the tune section: {error}")))?;
    let mut first = None;
    for value in settings::values(&change.text, settings::get(&tree, path)) {
        let mut tree = tree.clone();
        settings::set(&mut tree, path, value);
        match serde_path_to_error::deserialize::<_, TuneConfig>(tree) {
            Ok(config) => return Ok(config),
            Err(error) => first = first.or(Some(format!("tune.{}: {}", error.path(), error.inner()))),
        }
    }
    Err(Problem::usage(format!("{}: {}", change.layer, first.unwrap_or_default())))
}

/// Runs a study in this process.
pub(crate) fn drive(order: Order, show: &args::Shown, json: bool) -> Outcome {
    let Order { experiment, study, resume } = order;
    let study = study.ok_or_else(|| Problem::usage("it is no study"))?;
    let command = resume_command(&experiment, resume.as_deref());
    let mut tuner = Tuner::from_experiment(experiment, study.tune)?;
    if let Some(folder) = &resume {
        tuner = tuner.resume(folder).allow_changed_space(study.allow_changed_space);
    }
    let terminal = Terminal::of_stderr();
    let look = Look { mode: terminal.mode(show.progress), resume: command };
    let sweep = Sweep::new(look, std::io::stderr(), term::width);
    let (ending, grid) = tuner.callback(sweep).handle_signals(true).drive()?;
    if json {
        let status = match ending {
            Ending::Done => "done",
            Ending::Stopped => "stopped",
            _ => "resumable",
        };
        out::json(told(status, &grid))?;
    }
    let failed = grid.trials().iter().filter(|trial| trial.state == "failed").count();
    let code = |code| Err(Problem { code, message: String::new() });
    match ending {
        Ending::Interrupted => code(exit::RESUMABLE),
        Ending::Killed => code(exit::FORCED),
        _ if failed > 0 && failed == grid.trials().len() => code(exit::FAILED),
        Ending::Done | Ending::Stopped if failed > 0 => code(exit::SOME_FAILED),
        _ => Ok(()),
    }
}

/// What is told of a study that stands so.
pub(crate) fn told(status: &str, grid: &ResultGrid) -> Value {
    let count = |state: &str| grid.trials().iter().filter(|trial| trial.state == state).count();
    let best = grid
        .best()
        .ok()
        .map(|best| json!({ "trial": best.number, "value": best.value, "config": best.config }));
    json!({
        "experiment": grid.run().experiment, "name": grid.run().name, "folder": grid.folder(), "status": status,
        "trials": grid.trials().len(), "done": count("done"), "stopped": count("stopped"), "failed": count("failed"),
        "best": best,
    })
}
