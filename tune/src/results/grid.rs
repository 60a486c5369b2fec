//! A study's results, from its folder: while it runs, when it is over, and wherever it was moved to.

use std::path::{Path, PathBuf};

use regatta_track::Reader;
use regatta_track::event::Parameter;
use regatta_track::state::Run;
use regatta_train::RunResult;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::read::{self, Read};
use super::{Direction, Group, History, Scope, Table, over_seeds, ranked, table};
use crate::error::{Error, Result};
use crate::importance::{self, Importance};
use crate::pareto;

/// What a study optimises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objective {
    /// The metric's name in reports.
    pub metric: String,
    /// Which way it gets better.
    pub direction: Direction,
}

/// The trials of a study and what they came to.
#[derive(Clone, Debug)]
pub struct ResultGrid {
    folder: PathBuf,
    run: Run,
    objectives: Vec<Objective>,
    parameters: Vec<Parameter>,
    trials: Vec<History>,
    scope: Scope,
}

/// The best trial.
#[derive(Clone, Copy, Debug)]
pub struct Best<'a> {
    /// The trial.
    pub trial: &'a History,
    /// Its number.
    pub number: u32,
    /// Its value for the objective.
    pub value: f64,
    /// Its configuration.
    pub config: &'a Value,
}

impl ResultGrid {
    /// Reads the study in a folder, whoever is driving it.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let failed = |error: regatta_track::Error| Error::results(folder, error);
        let mut reader = Reader::open(folder).map_err(failed)?;
        let mut snapshot = reader.snapshot().map_err(failed)?;
        let run = snapshot.run().map_err(failed)?.unwrap_or_default();
        let Read { study, trials } = read::fold(&mut snapshot).map_err(failed)?;
        let study = study.unwrap_or_default();
        let direction = |maximize| if maximize { Direction::Maximize } else { Direction::Minimize };
        let objective = |objective: regatta_track::event::Objective| Objective {
            direction: direction(objective.maximize),
            metric: objective.metric,
        };
        Ok(ResultGrid {
            folder: folder.to_owned(),
            run,
            objectives: study.objectives.into_iter().map(objective).collect(),
            parameters: study.parameters,
            trials,
            scope: Scope::Last,
        })
    }

    /// With another of each trial's values standing for it; the last does otherwise.
    #[must_use]
    pub fn scope(self, scope: Scope) -> Self {
        ResultGrid { scope, ..self }
    }

    /// With another objective in place of the study's.
    #[must_use]
    pub fn by(self, metric: impl Into<String>, direction: Direction) -> Self {
        ResultGrid { objectives: vec![Objective { metric: metric.into(), direction }], ..self }
    }

    /// The study's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The study itself, as its store has it: name, state, environment, times.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// What it optimises. Where one must decide, it is the first.
    pub fn objectives(&self) -> &[Objective] {
        &self.objectives
    }

    /// What it varies.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// All trials, by number.
    pub fn trials(&self) -> &[History] {
        &self.trials
    }

    /// One trial.
    pub fn trial(&self, number: u32) -> Option<&History> {
        self.trials.binary_search_by_key(&number, |trial| trial.number).ok().map(|at| &self.trials[at])
    }

    /// The objective that decides.
    pub fn objective(&self) -> Result<&Objective> {
        self.objectives.first().ok_or_else(|| {
            Error::results(&self.folder, "it says of no metric that it is optimised: name one, and its direction")
        })
    }

    /// The value that stands for a trial.
    pub fn score(&self, trial: &History) -> Option<f64> {
        let objective = self.objectives.first()?;
        trial.score(&objective.metric, objective.direction, self.scope)
    }

    /// The trials with a value, the best first. Failed ones are left out: what they had is in [`trials`](Self::trials).
    pub fn ranked(&self) -> Vec<(&History, f64)> {
        let Some(objective) = self.objectives.first() else { return Vec::new() };
        ranked(self.sound(), &objective.metric, objective.direction, self.scope)
    }

    /// The best trial. An error says why there is none.
    pub fn best(&self) -> Result<Best<'_>> {
        let objective = self.objective()?;
        let found = self.ranked().into_iter().next().filter(|(_, value)| !value.is_nan());
        let (trial, value) = found.ok_or_else(|| {
            let failed = self.errors().count();
            let metric = &objective.metric;
            let trials = self.trials.len();
            let first = self.errors().next().map_or(String::new(), |(trial, why)| {
                format!("; {failed} failed, trial {} with: {why}", trial.number)
            });
            Error::results(&self.folder, format!("none of its {trials} trials has a number for `{metric}`{first}"))
        })?;
        Ok(Best { trial, number: trial.number, value, config: &trial.full })
    }

    /// The configuration of the best trial as the user's own type.
    pub fn best_config<C: DeserializeOwned>(&self) -> Result<C> {
        serde_path_to_error::deserialize(self.best()?.config.clone())
            .map_err(|error| Error::config(error.path().to_string(), error.inner().to_string()))
    }

    /// The trials that failed, and why.
    pub fn errors(&self) -> impl Iterator<Item = (&History, &str)> {
        self.trials.iter().filter_map(|trial| Some((trial, trial.error.as_deref()?)))
    }

    /// The trials that are beaten in all objectives by none, by number.
    pub fn pareto(&self) -> Vec<&History> {
        let losses = |trial: &History| -> Option<Vec<f64>> {
            let loss = |o: &Objective| {
                let value = trial.score(&o.metric, o.direction, self.scope)?;
                (!value.is_nan()).then(|| o.direction.loss(value))
            };
            self.objectives.iter().map(loss).collect()
        };
        let (trials, losses): (Vec<&History>, Vec<Vec<f64>>) =
            self.sound().filter_map(|trial| Some((trial, losses(trial)?))).unzip();
        pareto::front(&losses).into_iter().map(|index| trials[index]).collect()
    }

    /// How much each parameter matters for the first objective, by the trials that came to their end.
    pub fn importance(&self) -> Vec<Importance> {
        let done = |trial: &&History| trial.state == "done";
        let trials: Vec<&History> = (self.ranked().into_iter())
            .filter(|(_, value)| value.is_finite())
            .map(|(trial, _)| trial)
            .filter(done)
            .collect();
        let raws = |parameter: &Parameter| trials.iter().filter_map(|t| parameter.raw(&t.full)).collect();
        let parameters = self.parameters.iter().filter_map(|parameter| {
            Some((parameter.path.clone(), read::domain(&parameter.domain)?, raws(parameter)))
        });
        importance::shares(parameters)
    }

    /// One row a trial, the best first; see [`table`].
    pub fn table(&self) -> Result<Table> {
        let objective = self.objective()?;
        Ok(table(&self.trials, &objective.metric, objective.direction, self.scope))
    }

    /// The trials of each configuration together, but for a parameter that is the seed; the best first.
    pub fn over_seeds(&self, seed: &str) -> Result<Vec<Group>> {
        let objective = self.objective()?;
        Ok(over_seeds(&self.trials, seed, &objective.metric, objective.direction, self.scope))
    }

    /// Where a trial that is a run of its own, or files about it, lies.
    pub fn folder_of(&self, number: u32) -> PathBuf {
        self.folder.join("trials").join(format!("{number:05}"))
    }

    /// A trial that is a run of its own: its checkpoints, value and histories.
    pub fn run_of(&self, number: u32) -> Result<RunResult> {
        let folder = self.folder_of(number);
        RunResult::open(&folder).map_err(|error| Error::results(&folder, error))
    }

    fn sound(&self) -> impl Iterator<Item = &History> {
        self.trials.iter().filter(|trial| trial.error.is_none())
    }
}
