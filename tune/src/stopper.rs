//! When a trial, or the whole study, has had enough: rules that need no comparison with how far others are. What compares
//! trials is a [scheduler](crate::scheduler).
//!
//! ```
//! use std::time::Duration;
//! use regatta_tune::stopper::{Observation, Stop, Stopper, StopperConfig};
//!
//! let mut stopper = StopperConfig::Any(vec![
//!     StopperConfig::MaxResource(100),
//!     StopperConfig::Threshold { metric: "accuracy".into(), at_least: Some(0.99), at_most: None },
//! ])
//! .build()?;
//! let metrics = |name: &str| (name == "accuracy").then_some(0.995);
//! let seen = Observation { trial: 3, resource: 7, loss: 0.005, metrics: &metrics, elapsed: Duration::ZERO };
//! assert_eq!(stopper.observe(&seen), Some(Stop::Trial("accuracy has reached 0.995, at least 0.99 was asked for".into())));
//! # Ok::<(), regatta_tune::scheduler::InvalidConfig>(())
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::scheduler::{InvalidConfig, Score};

/// One report, as stoppers see it.
#[derive(Clone, Copy)]
pub struct Observation<'a> {
    /// Whose it is.
    pub trial: u32,
    /// How much it has used.
    pub resource: u64,
    /// The objective, with its sign such that less is better.
    pub loss: f64,
    /// Its other figures, by name.
    pub metrics: &'a dyn Fn(&str) -> Option<f64>,
    /// How long the study has run, over all of its sessions.
    pub elapsed: Duration,
}

impl fmt::Debug for Observation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Observation { trial, resource, loss, elapsed, .. } = self;
        write!(f, "trial {trial} at {resource}: {loss} after {elapsed:?}")
    }
}

/// What is to stop, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The trial that reported.
    Trial(String),
    /// The study with all of its trials.
    Study(String),
}

/// A rule. Its state is a fold of what it is shown, so a replay brings it back. Every closure from observations to a
/// [`Stop`] is one.
pub trait Stopper: Send {
    /// A trial reported.
    fn observe(&mut self, seen: &Observation<'_>) -> Option<Stop>;

    /// Time passed without a report. Why the study is to stop, if it is.
    fn tick(&mut self, elapsed: Duration) -> Option<String> {
        let _ = elapsed;
        None
    }
}

impl<F: FnMut(&Observation<'_>) -> Option<Stop> + Send> Stopper for F {
    fn observe(&mut self, seen: &Observation<'_>) -> Option<Stop> {
        self(seen)
    }
}

/// Which rule, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub enum StopperConfig {
    /// A trial that has used so much stops.
    MaxResource(u64),
    /// The study stops after so many seconds.
    TimeBudget(f64),
    /// A trial stops once a metric is far enough up or down. The objective's own name need not be among the metrics:
    /// leave `metric` empty for the loss.
    Threshold {
        /// Which metric; empty for the loss.
        metric: String,
        /// It has reached at least this.
        #[serde(default)]
        at_least: Option<f64>,
        /// It has fallen to this.
        #[serde(default)]
        at_most: Option<f64>,
    },
    /// A trial stops when its latest losses hardly differ any more.
    TrialPlateau(TrialPlateau),
    /// The study stops when its best losses hardly differ any more.
    StudyPlateau(StudyPlateau),
    /// What any of these stops.
    Any(Vec<StopperConfig>),
    /// What all of these stop at the same report; a trial only, unless all of them stop the study.
    All(Vec<StopperConfig>),
}

/// A trial stops when its latest losses hardly differ any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrialPlateau {
    /// Their standard deviation is at most this: 0.01.
    pub deviation: f64,
    /// How many are looked at: 4.
    pub window: usize,
    /// No trial stops before it has used so much: 4.
    pub grace: u64,
}

impl Default for TrialPlateau {
    fn default() -> Self {
        TrialPlateau { deviation: 0.01, window: 4, grace: 4 }
    }
}

/// The study stops when the best losses of its trials hardly differ, and have not for some reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StudyPlateau {
    /// Their standard deviation is at most this: 0.001.
    pub deviation: f64,
    /// How many are looked at: 10.
    pub top: usize,
    /// For how many more reports it must stay so: 0.
    pub patience: u64,
}

impl Default for StudyPlateau {
    fn default() -> Self {
        StudyPlateau { deviation: 0.001, top: 10, patience: 0 }
    }
}

impl StopperConfig {
    /// A fresh rule.
    pub fn build(self) -> Result<Box<dyn Stopper>, InvalidConfig> {
        let parts = |configs: Vec<StopperConfig>, path| {
            InvalidConfig::unless(!configs.is_empty(), path, "must name at least one stopper")?;
            configs.into_iter().map(StopperConfig::build).collect::<Result<Vec<_>, _>>()
        };
        Ok(match self {
            StopperConfig::MaxResource(max) => {
                InvalidConfig::unless(max >= 1, "max_resource", "must be at least 1")?;
                Box::new(move |seen: &Observation<'_>| {
                    (seen.resource >= max).then(|| Stop::Trial(format!("it has had the resource of {max}")))
                })
            }
            StopperConfig::TimeBudget(seconds) => {
                let budget = Duration::try_from_secs_f64(seconds);
                let why = "must be a number of seconds that is not negative";
                Box::new(TimeBudget(budget.map_err(|_| InvalidConfig { path: "time_budget", why })?))
            }
            StopperConfig::Threshold { metric, at_least, at_most } => {
                let one = at_least.is_some() || at_most.is_some();
                InvalidConfig::unless(one, "threshold", "must say at_least or at_most")?;
                Box::new(Threshold { metric, at_least, at_most })
            }
            StopperConfig::TrialPlateau(config) => {
                InvalidConfig::unless(config.window >= 2, "trial_plateau.window", "must be at least 2")?;
                Box::new(TrialPlateauRule { config, windows: BTreeMap::new() })
            }
            StopperConfig::StudyPlateau(config) => {
                InvalidConfig::unless(config.top >= 2, "study_plateau.top", "must be at least 2")?;
                Box::new(StudyPlateauRule { config, best: BTreeMap::new(), top: BTreeSet::new(), flat: 0 })
            }
            StopperConfig::Any(configs) => Box::new(Any(parts(configs, "any")?)),
            StopperConfig::All(configs) => Box::new(All(parts(configs, "all")?)),
        })
    }
}

struct TimeBudget(Duration);

impl Stopper for TimeBudget {
    fn observe(&mut self, seen: &Observation<'_>) -> Option<Stop> {
        self.tick(seen.elapsed).map(Stop::Study)
    }

    fn tick(&mut self, elapsed: Duration) -> Option<String> {
        (elapsed >= self.0).then(|| format!("the time budget of {:?} is used up", self.0))
    }
}

struct Threshold {
    metric: String,
    at_least: Option<f64>,
    at_most: Option<f64>,
}

impl Stopper for Threshold {
    fn observe(&mut self, seen: &Observation<'_>) -> Option<Stop> {
        let loss = self.metric.is_empty();
        let value = if loss { seen.loss } else { (seen.metrics)(&self.metric)? };
        let name = if loss { "the loss" } else { &self.metric };
        let up = self.at_least.filter(|bound| value >= *bound);
        let down = self.at_most.filter(|bound| value <= *bound);
        let up = up.map(|bound| format!("{name} has reached {value}, at least {bound} was asked for"));
        up.or(down.map(|bound| format!("{name} is down to {value}, at most {bound} was asked for")))
            .map(Stop::Trial)
    }
}

struct TrialPlateauRule {
    config: TrialPlateau,
    windows: BTreeMap<u32, VecDeque<f64>>,
}

impl Stopper for TrialPlateauRule {
    fn observe(&mut self, seen: &Observation<'_>) -> Option<Stop> {
        let window = self.windows.entry(seen.trial).or_default();
        window.push_back(seen.loss);
        if window.len() > self.config.window {
            window.pop_front();
        }
        if window.len() < self.config.window || seen.resource < self.config.grace {
            return None;
        }
        let deviation = deviation(window.iter().copied());
        let flat = deviation <= self.config.deviation;
        flat.then(|| {
            self.windows.remove(&seen.trial);
            Stop::Trial(format!("its last {} losses deviate by {deviation:.2e} only", self.config.window))
        })
    }
}

struct StudyPlateauRule {
    config: StudyPlateau,
    best: BTreeMap<u32, f64>,
    /// The best of each trial, in order, as far as they matter.
    top: BTreeSet<Score>,
    flat: u64,
}

impl Stopper for StudyPlateauRule {
    fn observe(&mut self, seen: &Observation<'_>) -> Option<Stop> {
        let known = self.best.get(&seen.trial).copied();
        if !seen.loss.is_nan() && known.is_none_or(|known| seen.loss < known) {
            if let Some(known) = known {
                self.top.remove(&Score::new(known, seen.trial));
            }
            self.best.insert(seen.trial, seen.loss);
            self.top.insert(Score::new(seen.loss, seen.trial));
        }
        let deviation = deviation(self.top.iter().take(self.config.top).map(|score| score.value));
        let flat = self.top.len() >= self.config.top && deviation <= self.config.deviation;
        self.flat = if flat { self.flat + 1 } else { 0 };
        let stop = self.flat > self.config.patience;
        stop.then(|| {
            Stop::Study(format!(
                "the best losses of {} trials deviate by {deviation:.2e} only",
                self.config.top
            ))
        })
    }
}

struct Any(Vec<Box<dyn Stopper>>);

impl Stopper for Any {
    fn observe(&mut self, seen: &Observation<'_>) -> Option<Stop> {
        // All of them are shown everything, whatever the first of them says.
        let stops: Vec<Stop> = self.0.iter_mut().filter_map(|stopper| stopper.observe(seen)).collect();
        let study = stops.iter().position(|stop| matches!(stop, Stop::Study(_))).unwrap_or(0);
        stops.into_iter().nth(study)
    }

    fn tick(&mut self, elapsed: Duration) -> Option<String> {
        let stops: Vec<String> = self.0.iter_mut().filter_map(|stopper| stopper.tick(elapsed)).collect();
        stops.into_iter().next()
    }
}

struct All(Vec<Box<dyn Stopper>>);

impl Stopper for All {
    fn observe(&mut self, seen: &Observation<'_>) -> Option<Stop> {
        let stops: Vec<Option<Stop>> = self.0.iter_mut().map(|stopper| stopper.observe(seen)).collect();
        let stops: Vec<Stop> = stops.into_iter().collect::<Option<_>>()?;
        let study = stops.iter().all(|stop| matches!(stop, Stop::Study(_)));
        let reasons: Vec<String> = stops
            .into_iter()
            .map(|stop| match stop {
                Stop::Trial(why) | Stop::Study(why) => why,
            })
            .collect();
        let reason = reasons.join(", and ");
        Some(if study { Stop::Study(reason) } else { Stop::Trial(reason) })
    }

    fn tick(&mut self, elapsed: Duration) -> Option<String> {
        let stops: Vec<Option<String>> = self.0.iter_mut().map(|stopper| stopper.tick(elapsed)).collect();
        stops.into_iter().collect::<Option<Vec<_>>>().map(|reasons| reasons.join(", and "))
    }
}

/// The standard deviation of some numbers, as if they were all there are.
fn deviation(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let n = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / n;
    (values.map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt()
}
