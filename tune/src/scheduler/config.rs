//! A scheduler as a file or a builder names it, and its way to a scheduler that runs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::perturb::Perturb;
use super::{Asha, Fifo, HyperBand, Median, Pb2, Pbt, PbtReplay, Resizing, Scheduler, Wilcoxon};

/// Which scheduler, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub enum SchedulerConfig {
    /// Trials run to their own end.
    Fifo(Fifo),
    /// Asynchronous successive halving.
    Asha(Asha),
    /// HyperBand.
    HyperBand(HyperBand),
    /// HyperBand whose sampler models the largest resource that has enough results.
    Bohb(HyperBand),
    /// The median rule.
    Median(Median),
    /// Population-based training.
    Pbt(Pbt),
    /// Population-based bandits.
    Pb2(Pb2),
    /// One member of a population again, with the schedule it found.
    PbtReplay(PbtReplay),
    /// The signed-rank test.
    Wilcoxon(Wilcoxon),
    /// Another scheduler, whose trials get the workers that would be idle.
    Resizing(Resizing),
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig::Fifo(Fifo::default())
    }
}

/// A setting that cannot be: correct it where the path says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` {why}")]
pub struct InvalidConfig {
    /// The setting, such as `asha.eta`.
    pub path: &'static str,
    /// What it must be.
    pub why: &'static str,
}

impl InvalidConfig {
    pub(crate) fn unless(holds: bool, path: &'static str, why: &'static str) -> Result<(), InvalidConfig> {
        if holds { Ok(()) } else { Err(InvalidConfig { path, why }) }
    }
}

impl SchedulerConfig {
    /// A fresh scheduler. Those of populations change configurations and need the space for it.
    pub fn build(self, space: Option<Arc<dyn Perturb>>) -> Result<Box<dyn Scheduler>, InvalidConfig> {
        let needed = |path| {
            space.clone().ok_or(InvalidConfig { path, why: "changes configurations and needs a space" })
        };
        match self {
            SchedulerConfig::Fifo(config) => Ok(Box::new(config)),
            SchedulerConfig::Asha(config) => config.build(),
            SchedulerConfig::HyperBand(config) => config.build("hyper_band"),
            SchedulerConfig::Bohb(config) => config.build("bohb"),
            SchedulerConfig::Median(config) => config.build(),
            SchedulerConfig::Pbt(config) => config.build(needed("pbt")?),
            SchedulerConfig::Pb2(config) => config.build(needed("pb2")?),
            SchedulerConfig::PbtReplay(config) => config.build(),
            SchedulerConfig::Wilcoxon(config) => config.build(),
            SchedulerConfig::Resizing(config) => config.build(space),
        }
    }
}

macro_rules! from {
    ($($name:ident)*) => {
        $(impl From<$name> for SchedulerConfig {
            fn from(config: $name) -> Self { SchedulerConfig::$name(config) }
        })*
    };
}

from! { Fifo Asha HyperBand Median Pbt Pb2 PbtReplay Wilcoxon Resizing }
