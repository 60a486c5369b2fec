//! `regatta tune`, and `regatta resume` of a study.

use std::path::Path;

use regatta_train::folder::CONFIG;
use regatta_train::registry;
use regatta_tune::{Ending, ResultGrid, TuneConfig, Tuner};
use serde_json::{Value, json};

use crate::args::{self, Resume, Tune};
use crate::configure;
use crate::out;
use crate::place;
use crate::problem::{Outcome, Problem, exit};
use crate::runs;
use crate::settings::{self, Override, Settings};
use crate::sweep::{Look, Sweep};
use crate::term::{self, Terminal};
use crate::train::{options, program, resume_command, writable};

/// What values of the `tune` section are called on the command line.
const SECTION: &str = "tune.";

/// `regatta tune FILE`.
pub(crate) fn run(args: &Tune, json: bool) -> Outcome {
    let (ours, theirs): (Vec<String>, Vec<String>) =
        args.source.overrides.iter().cloned().partition(|change| change.starts_with(SECTION));
    let source = args::Source { file: args.source.file.clone(), overrides: theirs };
    let settings = configure::load(&source, options(&args.common))?;
    let mut changes = ours.iter().map(|text| Override::parse(text)).collect::<Outcome<Vec<_>>>()?;
    let mut add = |option: &str, key: &str, value: Option<String>| {
        changes.extend(value.map(|value| Override::option(option, &format!("{SECTION}{key}"), value)));
    };
    add("--samples", "samples", args.samples.map(|samples| samples.to_string()));
    add("--concurrent", "concurrent", args.concurrent.map(|trials| trials.to_string()));
    let config = section(&settings, &changes)?;
    let experiment = settings.experiment().clone();
    let command = resume_command(&experiment, None);
    writable(&experiment.run.storage)?;
    if args.dry_run {
        let text = config.append_to(&registry::to_ron(&experiment)?)?;
        return match json {
            true => out::json(json!({ "experiment": settings.tree(), "tune": config })),
            false => out::text(&text),
        };
    }
    drive(Tuner::from_experiment(experiment, config)?, (&args.show, command), json)
}

/// `regatta resume STUDY`.
pub(crate) fn resume(args: &Resume, folder: &Path, json: bool) -> Outcome {
    let mut tuner = Tuner::of_study(&folder.to_string_lossy())?;
    let before = tuner.tune_config().samples;
    if let Some(samples) = &args.samples {
        let more = samples.strip_prefix('+');
        let number: u64 = more.unwrap_or(samples).parse().map_err(|_| {
            Problem::usage(format!(
                "--samples {samples} is no number of trials: write 40, or +20 for 20 more"
            ))
        })?;
        let known =
            before.unwrap_or_else(|| ResultGrid::open(folder).map_or(0, |grid| grid.trials().len() as u64));
        tuner = tuner.samples(if more.is_some() { known + number } else { number });
    }
    if let Some(concurrent) = args.concurrent {
        tuner = tuner.concurrent(concurrent);
    }
    if args.workers.is_some() {
        return Err(Problem::usage(
            "a study's trials have as many workers as it was begun with: leave out --workers",
        ));
    }
    let tuner = tuner.allow_changed_space(args.allow_changed_space);
    let command = resumed_command(folder);
    drive(tuner, (&args.show, command), json)
}

/// Whether a folder holds a study.
pub(crate) fn is_study(folder: &Path) -> bool {
    let text = std::fs::read_to_string(folder.join(CONFIG)).unwrap_or_default();
    match registry::read(&text) {
        Ok(parsed) => parsed.tune.is_some(),
        Err(_) => registry::parse::<Value>(&text).is_ok_and(|parsed| parsed.tune.is_some()),
    }
}

fn resumed_command(folder: &Path) -> String {
    let program = program();
    match folder.starts_with(std::env::current_dir().unwrap_or_default().join(runs::ROOT)) {
        true => format!("{program} resume {{run}}"),
        false => format!("{program} resume {}", folder.display()),
    }
}

/// The file's `tune` section, with what changes it.
fn section(settings: &Settings, changes: &[Override]) -> Outcome<TuneConfig> {
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

fn drive(tuner: Tuner, (show, resume): (&args::Shown, String), json: bool) -> Outcome {
    let terminal = Terminal::of_stderr();
    let look = Look { mode: terminal.mode(show.progress), resume };
    let sweep = Sweep::new(look, std::io::stderr(), term::width);
    let (ending, grid) = tuner.callback(sweep).handle_signals(true).drive()?;
    if json {
        out::json(told(ending, &grid))?;
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

fn told(ending: Ending, grid: &ResultGrid) -> Value {
    let status = match ending {
        Ending::Done => "done",
        Ending::Stopped => "stopped",
        _ => "resumable",
    };
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

impl From<regatta_tune::Error> for Problem {
    fn from(error: regatta_tune::Error) -> Self {
        use regatta_tune::Error as E;
        match error {
            E::Train(error) => error.into(),
            E::Track(error) => error.into(),
            E::Space { .. }
            | E::Config { .. }
            | E::Setting(_)
            | E::StudyExists { .. }
            | E::ChangedSpace { .. } => Problem::usage(crate::problem::chain(&error)),
            other => Problem::failed(crate::problem::chain(&other)),
        }
    }
}
