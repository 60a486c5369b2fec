//! What a user asks for, as typed: in code, in a file, or on the command line. Every field has a default that is right for
//! the first run; [`Experiment::check`] says what cannot be.

use regatta_checkpoint::retention::Best;
use regatta_cluster::engine::EngineConfig;
use regatta_cluster::{GangRequest, Placement, Resources};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::{Error, Result};

/// All of an experiment with one run: what `regatta train FILE` reads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment<C> {
    /// What is trained.
    pub trainable: Trainable,
    /// Its configuration, the trainable's own type.
    pub config: C,
    /// How many workers, and what each needs.
    #[serde(default)]
    pub scaling: ScalingConfig,
    /// The run's name, place, seed and end.
    #[serde(default)]
    pub run: RunConfig,
    /// What is saved when, and what stays.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// How much may go wrong.
    #[serde(default)]
    pub failure: FailureConfig,
    /// What places its workers: this host by default, or `Slurm(partition: "gpu", nodes: 2)` and its like.
    #[serde(default)]
    pub engine: EngineConfig,
}

/// What is trained. Written `"resnet"`, or `Command("python train.py --lr {lr}")`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "TrainableForm", into = "TrainableForm")]
pub enum Trainable {
    /// A function of this program, by its name.
    Function(String),
    /// A program in any language: it gets torchrun's environment and prints `regatta: {"loss": 0.1}` lines. In its
    /// arguments, `{lr}` stands for the configuration's `lr`.
    Command(String),
}

/// How it is written: a plain string, or the one variant there is.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "a trainable's name in quotes, or Command(\"program arguments\")")]
enum TrainableForm {
    Function(String),
    Tagged(Tagged),
}

#[derive(Clone, Serialize, Deserialize)]
enum Tagged {
    Command(String),
}

impl From<TrainableForm> for Trainable {
    fn from(form: TrainableForm) -> Self {
        match form {
            TrainableForm::Function(name) => Trainable::Function(name),
            TrainableForm::Tagged(Tagged::Command(line)) => Trainable::Command(line),
        }
    }
}

impl From<Trainable> for TrainableForm {
    fn from(trainable: Trainable) -> Self {
        match trainable {
            Trainable::Function(name) => TrainableForm::Function(name),
            Trainable::Command(line) => TrainableForm::Tagged(Tagged::Command(line)),
        }
    }
}

impl Trainable {
    /// What the experiment is called unless it is named: after the function, or the command's program.
    pub fn experiment_name(&self) -> String {
        match self {
            Trainable::Function(name) => name.clone(),
            Trainable::Command(line) => program_name(line),
        }
    }
}

/// What a command's experiment is called.
fn program_name(line: &str) -> String {
    let words = line.split_whitespace().filter(|word| !word.starts_with('-'));
    let script =
        words.clone().find(|word| word.contains('.')).or_else(|| words.clone().next()).unwrap_or("command");
    let stem = Path::new(script).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    short_name(&stem.unwrap_or_default())
}

/// The last part of a function's full name; a closure's is that of the function it is in.
pub(crate) fn short_name(full: &str) -> String {
    let parts = full.split("::").filter(|part| !part.starts_with('{'));
    let last = parts.last().unwrap_or("run");
    let plain: String = last.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    if plain.is_empty() { "run".into() } else { plain }
}

impl std::fmt::Display for Trainable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trainable::Function(name) => f.write_str(name),
            Trainable::Command(line) => write!(f, "Command({line:?})"),
        }
    }
}

impl Default for Trainable {
    fn default() -> Self {
        Trainable::Function(String::new())
    }
}

/// How many workers pull, and what each needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScalingConfig {
    /// How many workers: `2`, or `(min: 1, max: 4)` for as many of these as there is room for at each start.
    pub workers: Workers,
    /// Whether each worker needs a GPU; short for `resources: (gpu: 1)`.
    pub gpu: bool,
    /// What each worker needs. One CPU by default.
    pub resources: Resources,
    /// How workers are laid out over nodes.
    pub placement: Placement,
    /// Threads of one operation of a worker; by default the CPUs it was given, at least one.
    pub threads: Option<usize>,
    /// How long to wait in line for room.
    pub patience_seconds: f64,
}

impl Default for ScalingConfig {
    fn default() -> Self {
        ScalingConfig {
            workers: Workers::default(),
            gpu: false,
            resources: Resources::cpus(1),
            placement: Placement::default(),
            threads: None,
            patience_seconds: 86_400.0,
        }
    }
}

impl ScalingConfig {
    /// The seats that a run of this name asks for.
    pub fn request(&self, run: &str) -> GangRequest {
        let mut resources = self.resources.clone();
        if self.gpu && resources.gpu.is_zero() {
            resources = resources.with_gpus(1);
        }
        let patience = Duration::try_from_secs_f64(self.patience_seconds);
        GangRequest::new(run, self.workers.min(), resources)
            .workers(self.workers.min()..=self.workers.max())
            .placement(self.placement)
            .patience(patience.unwrap_or(GangRequest::DEFAULT_PATIENCE))
    }
}

/// A number of workers, or a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number of workers, or (min: 1, max: 4)")]
pub enum Workers {
    /// Exactly so many.
    Fixed(usize),
    /// As many as there is room for, within bounds.
    Range {
        /// Fewer will not do.
        min: usize,
        /// More are not wanted.
        max: usize,
    },
}

impl Default for Workers {
    fn default() -> Self {
        Workers::Fixed(1)
    }
}

impl Workers {
    /// The fewest that will do.
    pub fn min(self) -> usize {
        match self {
            Workers::Fixed(n) | Workers::Range { min: n, .. } => n,
        }
    }

    /// The most that are wanted.
    pub fn max(self) -> usize {
        match self {
            Workers::Fixed(n) | Workers::Range { max: n, .. } => n,
        }
    }
}

/// The run's name, place, seed and end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The experiment it belongs to; the trainable's name by default.
    pub experiment: Option<String>,
    /// The run's name, unique in its experiment; a pronounceable one is drawn by default.
    pub name: Option<String>,
    /// Where runs lie: a folder, or an object store's URL for checkpoints and copies (the run's own store then lies under
    /// `./runs`).
    pub storage: String,
    /// All randomness is derived from it.
    pub seed: u64,
    /// When the run has had enough.
    pub stop: StopConfig,
    /// How much is shown.
    pub verbosity: Verbosity,
    /// Two batches through training, evaluation, saving and restoring, to see that all of it works.
    pub fast_dev_run: bool,
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig {
            experiment: None,
            name: None,
            storage: "runs".into(),
            seed: 42,
            stop: StopConfig::default(),
            verbosity: Verbosity::default(),
            fast_dev_run: false,
        }
    }
}

/// When a run has had enough; whichever comes first. It ends as completed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopConfig {
    /// After so many steps.
    pub steps: Option<u64>,
    /// After so long, over all attempts.
    pub seconds: Option<f64>,
    /// Once a metric reaches a value: `metrics: {"accuracy": AtLeast(0.99)}`.
    pub metrics: BTreeMap<String, Threshold>,
}

/// A value a metric may reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Threshold {
    /// It is this or more.
    AtLeast(f64),
    /// It is this or less.
    AtMost(f64),
}

impl Threshold {
    /// Whether the value reaches it; NaN never does.
    pub fn reached(self, value: f64) -> bool {
        match self {
            Threshold::AtLeast(bound) => value >= bound,
            Threshold::AtMost(bound) => value <= bound,
        }
    }
}

/// How much a run shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Progress and results.
    #[default]
    Normal,
    /// The workers' log lines too.
    Verbose,
}

/// What is saved when, and what stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// How often `TrainContext::step` saves by itself. Reports that bring a checkpoint
    /// save in any case.
    pub every: Every,
    /// How many stay; all by default.
    pub keep: Option<usize>,
    /// The metric by which the best are kept beside the last.
    pub best: Option<Best>,
    /// Whether training goes on while a checkpoint is written.
    pub r#async: bool,
    /// A save that takes longer has failed.
    pub deadline_seconds: f64,
    /// Compress shards with zstd.
    pub zstd: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig {
            every: Every::default(),
            keep: None,
            best: None,
            r#async: true,
            deadline_seconds: 1800.0,
            zstd: false,
        }
    }
}

/// How often to save.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub enum Every {
    /// Only with reports that bring a checkpoint, and when the run is stopped.
    #[default]
    Report,
    /// Every so many steps.
    Steps(u64),
    /// Every so many seconds.
    Seconds(f64),
    /// As often as is worth it for this mean time between failures, in seconds: Young's interval, from the measured cost.
    Failures(f64),
}

/// How much may go wrong before the run fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailureConfig {
    /// How many failures of workers are made good by a restart from the last checkpoint.
    pub max_failures: u32,
    /// How many preemptions are, which are nobody's fault.
    pub max_preemptions: u32,
    /// How long to wait before the first restart; doubled by each that follows without progress, up to a minute.
    pub backoff_seconds: f64,
    /// How long workers get to finish their step and save when the run is stopped.
    pub grace_seconds: f64,
    /// A rank that has not reported this long after the first has failed.
    pub report_deadline_seconds: f64,
    /// The deadline of a collective.
    pub collective_deadline_seconds: f64,
    /// After this silence a worker is dead.
    pub dead_seconds: f64,
    /// The signal by which the machine's owner announces a preemption.
    pub preemption_signal: PreemptionSignal,
}

impl Default for FailureConfig {
    fn default() -> Self {
        FailureConfig {
            max_failures: 3,
            max_preemptions: 100,
            backoff_seconds: 0.1,
            grace_seconds: 30.0,
            report_deadline_seconds: 300.0,
            collective_deadline_seconds: 60.0,
            dead_seconds: 5.0,
            preemption_signal: PreemptionSignal::default(),
        }
    }
}

/// The signal that announces a preemption.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PreemptionSignal {
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    #[default]
    Usr2,
    /// SIGTERM, in place of stopping the run.
    Term,
}

impl<C> Experiment<C> {
    /// Checks all that can be without starting anything.
    pub fn check(&self) -> Result<()> {
        let ScalingConfig { workers, .. } = &self.scaling;
        if workers.min() == 0 || workers.min() > workers.max() {
            let why =
                format!("{} to {} workers make no crew; ask for at least one", workers.min(), workers.max());
            return Err(Error::config("scaling.workers", why));
        }
        let seconds = [
            ("scaling.patience_seconds", self.scaling.patience_seconds),
            ("checkpoint.deadline_seconds", self.checkpoint.deadline_seconds),
            ("failure.backoff_seconds", self.failure.backoff_seconds),
            ("failure.grace_seconds", self.failure.grace_seconds),
            ("failure.report_deadline_seconds", self.failure.report_deadline_seconds),
            ("failure.collective_deadline_seconds", self.failure.collective_deadline_seconds),
            ("failure.dead_seconds", self.failure.dead_seconds),
        ];
        for (path, value) in seconds {
            if !(0.0..=366.0 * 86_400.0).contains(&value) {
                return Err(Error::config(path, format!("{value} is no time: give seconds, at most a year")));
            }
        }
        self.engine.check().map_err(|error| match error {
            regatta_cluster::Error::BadRequest { what, problem } => Error::config(what, problem),
            other => other.into(),
        })?;
        match self.checkpoint.every {
            Every::Steps(0) => Err(Error::config(
                "checkpoint.every",
                "every 0 steps is never; leave it out, or give 1 or more",
            )),
            Every::Seconds(s) | Every::Failures(s) if !(s > 0.0 && s.is_finite()) => Err(Error::config(
                "checkpoint.every",
                format!("{s} is no interval: give seconds, more than 0"),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experiments_are_named_after_what_is_trained() {
        assert_eq!(short_name("mnist::models::resnet"), "resnet");
        assert_eq!(short_name("mnist::main::{{closure}}"), "main");
        assert_eq!(program_name("python -u train/cifar.py --lr {lr}"), "cifar");
        assert_eq!(program_name("./trainer --lr 1"), "trainer");
        assert_eq!(program_name(""), "command");
    }
}
