//! What a user asks of a study, as typed: the `tune` section of an experiment file, and what builders fill in.
//!
//! ```
//! use regatta_tune::config::{Mode, TuneConfig};
//!
//! let config = TuneConfig::read(
//!     r#"(
//!         metric: "accuracy", mode: Max, samples: 24, concurrent: 4,
//!         space: { "lr": Float(low: 1e-5, high: 0.1, log: true), "layers": Int(low: 1, high: 8) },
//!         sampler: Tpe(startup: 8),
//!         scheduler: Asha(min: 1, max: 10),
//!         stop: TimeBudget(3600.0),
//!     )"#,
//! )?;
//! assert_eq!((config.metric.as_str(), config.mode, config.samples), ("accuracy", Mode::Max, Some(24)));
//! assert_eq!(TuneConfig::read(&config.write()?)?, config);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use ron::extensions::Extensions;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::results::Direction;
use crate::sampler::{Auto, CmaEs, Gp, Grid, Random, Sampler, Sobol, Tpe};
use crate::scheduler::SchedulerConfig;
use crate::space::Fields;
use crate::stopper::StopperConfig;

/// The metric that counts a trial's reports, from 1: what schedulers count in unless told otherwise.
pub const ITERATION: &str = "iteration";

/// A study as it is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TuneConfig {
    /// What is to get better.
    pub metric: String,
    /// Which way is better.
    pub mode: Mode,
    /// Further objectives; schedulers go by the first alone.
    pub also: Vec<Objective>,
    /// Metrics that are to stay at or below zero.
    pub constraints: Vec<String>,
    /// How many trials: 10, or all points of a grid.
    pub samples: Option<u64>,
    /// How many of them at once: as many as there is room for, by the CPUs or GPUs of this machine.
    pub concurrent: Option<usize>,
    /// What is searched; by name, what is to replace or narrow the program's own space. What is not named is as the program
    /// says.
    pub space: Option<Fields>,
    /// Who chooses configurations.
    pub sampler: SamplerConfig,
    /// Who decides which trials go on.
    pub scheduler: SchedulerConfig,
    /// When a trial or the study has had enough.
    pub stop: Option<StopperConfig>,
    /// What schedulers and stoppers count in: a metric that grows, `iteration` (reports) by default.
    pub resource: String,
    /// Configurations to be tried first. What they leave out is drawn.
    pub enqueue: Vec<Value>,
    /// Whether the first trial that fails ends the study.
    pub fail_fast: bool,
    /// Whether worker processes go from trial to trial, which then have no run's folder of their own: for many short trials.
    pub reuse: bool,
    /// Whether trials of calls and of workers that are kept write their metrics to folders of their own, as CSV, JSON lines and
    /// for TensorBoard, too. Whole trainings always do.
    pub files: bool,
}

impl Default for TuneConfig {
    fn default() -> Self {
        TuneConfig {
            metric: String::new(),
            mode: Mode::Min,
            also: Vec::new(),
            constraints: Vec::new(),
            samples: None,
            concurrent: None,
            space: None,
            sampler: SamplerConfig::default(),
            scheduler: SchedulerConfig::default(),
            stop: None,
            resource: ITERATION.into(),
            enqueue: Vec::new(),
            fail_fast: false,
            reuse: false,
            files: false,
        }
    }
}

/// Which way a metric gets better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Less is better.
    #[default]
    Min,
    /// More is better.
    Max,
}

impl From<Mode> for Direction {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Min => Direction::Minimize,
            Mode::Max => Direction::Maximize,
        }
    }
}

/// A metric that is to get better.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// Its name.
    pub metric: String,
    /// Which way is better.
    pub mode: Mode,
}

impl Objective {
    /// A metric to be made small.
    pub fn minimize(metric: impl Into<String>) -> Self {
        Objective { metric: metric.into(), mode: Mode::Min }
    }

    /// A metric to be made large.
    pub fn maximize(metric: impl Into<String>) -> Self {
        Objective { metric: metric.into(), mode: Mode::Max }
    }

    /// Its value as a loss, of which less is better.
    #[must_use]
    pub fn loss(&self, value: f64) -> f64 {
        Direction::from(self.mode).loss(value)
    }
}

/// Which sampler, with its settings. Each sampler is its own configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub enum SamplerConfig {
    /// Whichever suits the study.
    #[default]
    Auto,
    /// Independent draws.
    Random,
    /// A sequence that covers the space evenly.
    Sobol,
    /// Every combination of a countable space.
    Grid,
    /// Tree-structured Parzen estimation.
    Tpe(Box<Tpe>),
    /// A Gaussian process.
    Gp(Gp),
    /// The covariance matrix adaptation evolution strategy.
    CmaEs(Box<CmaEs>),
}

/// By what is written of them: what they remember of a study is no setting.
impl PartialEq for SamplerConfig {
    fn eq(&self, other: &Self) -> bool {
        serde_json::to_value(self).ok() == serde_json::to_value(other).ok()
    }
}

impl SamplerConfig {
    /// A fresh sampler.
    #[must_use]
    pub fn build(&self) -> Box<dyn Sampler> {
        match self {
            SamplerConfig::Auto => Box::new(Auto::default()),
            SamplerConfig::Random => Box::new(Random),
            SamplerConfig::Sobol => Box::new(Sobol),
            SamplerConfig::Grid => Box::new(Grid),
            SamplerConfig::Tpe(tpe) => tpe.clone(),
            SamplerConfig::Gp(gp) => Box::new(gp.clone()),
            SamplerConfig::CmaEs(cma) => cma.clone(),
        }
    }
}

impl From<Auto> for SamplerConfig {
    fn from(_: Auto) -> Self {
        SamplerConfig::Auto
    }
}

impl From<Random> for SamplerConfig {
    fn from(_: Random) -> Self {
        SamplerConfig::Random
    }
}

impl From<Sobol> for SamplerConfig {
    fn from(_: Sobol) -> Self {
        SamplerConfig::Sobol
    }
}

impl From<Grid> for SamplerConfig {
    fn from(_: Grid) -> Self {
        SamplerConfig::Grid
    }
}

impl From<Tpe> for SamplerConfig {
    fn from(tpe: Tpe) -> Self {
        SamplerConfig::Tpe(Box::new(tpe))
    }
}

impl From<Gp> for SamplerConfig {
    fn from(gp: Gp) -> Self {
        SamplerConfig::Gp(gp)
    }
}

impl From<CmaEs> for SamplerConfig {
    fn from(cma: CmaEs) -> Self {
        SamplerConfig::CmaEs(Box::new(cma))
    }
}

impl TuneConfig {
    /// Reads the `tune` section of a file. The error's place is counted from the section's beginning.
    pub fn read(text: &str) -> Result<Self, ron::error::SpannedError> {
        options().from_str(text)
    }

    /// The section as it stands in a file.
    pub fn write(&self) -> Result<String> {
        let pretty = ron::ser::PrettyConfig::new()
            .struct_names(false)
            .extensions(Extensions::IMPLICIT_SOME | Extensions::UNWRAP_VARIANT_NEWTYPES);
        let text = options().to_string_pretty(self, pretty);
        let text = text.map_err(|error| Error::config("tune", format!("it cannot be written: {error}")))?;
        // What switches the extensions on stands in files of their own; this is a part of one.
        Ok(text.lines().filter(|line| !line.starts_with("#![enable")).collect::<Vec<_>>().join("\n"))
    }

    /// Adds the section to the text of an experiment file, which ends with the bracket that it begins with.
    pub fn append_to(&self, experiment: &str) -> Result<String> {
        let body = experiment.trim_end().strip_suffix(')').map(str::trim_end);
        let body = body.ok_or_else(|| Error::config("tune", "the experiment does not end with a bracket"))?;
        let comma = if body.ends_with([',', '(']) { "" } else { "," };
        let section = self.write()?.replace('\n', "\n    ");
        Ok(format!("{body}{comma}\n    tune: {section},\n)\n"))
    }

    /// All objectives, the first one first.
    #[must_use]
    pub fn objectives(&self) -> Vec<Objective> {
        let first = Objective { metric: self.metric.clone(), mode: self.mode };
        std::iter::once(first).chain(self.also.iter().cloned()).collect()
    }

    /// Checks what can be without a space.
    pub fn check(&self) -> Result<()> {
        if self.metric.is_empty() {
            return Err(Error::config(
                "tune.metric",
                "name the metric that is to get better, such as \"accuracy\"",
            ));
        }
        let mut names: Vec<String> = self.objectives().into_iter().map(|o| o.metric).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::config("tune.also", format!("`{}` is an objective twice", twice[0])));
        }
        if self.samples == Some(0) {
            return Err(Error::config("tune.samples", "no trial is no study: give 1 or more"));
        }
        if self.concurrent == Some(0) {
            return Err(Error::config("tune.concurrent", "0 trials at once is never: give 1 or more"));
        }
        if self.resource.is_empty() {
            return Err(Error::config("tune.resource", "name a metric that grows, such as \"iteration\""));
        }
        Ok(())
    }
}

fn options() -> ron::Options {
    ron::Options::default()
        .with_default_extension(Extensions::IMPLICIT_SOME | Extensions::UNWRAP_VARIANT_NEWTYPES)
}
