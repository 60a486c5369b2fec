//! What a job runs: the same program once more, as the driver of a run or study that was resolved where it was submitted.

use std::path::PathBuf;

use regatta_train::{Experiment, Trainer};
use regatta_tune::TuneConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::Shown;
use crate::problem::{Outcome, Problem};
use crate::term::Mode;
use crate::train;
use crate::tune;

/// The variable with the order: engines hand variables to the driver alone, wherever it is.
pub(crate) const ORDER: &str = "REGATTA_DRIVE";

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The experiment, all of it.
    pub(crate) experiment: Experiment<Value>,
    /// What is searched, where it is a study.
    #[serde(default)]
    pub(crate) study: Option<Study>,
    /// The run or study to go on with.
    pub(crate) resume: Option<PathBuf>,
}

/// A study, beside the experiment that its trials vary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Study {
    pub(crate) tune: TuneConfig,
    pub(crate) allow_changed_space: bool,
}

impl From<TuneConfig> for Study {
    fn from(tune: TuneConfig) -> Self {
        Study { tune, allow_changed_space: false }
    }
}

/// `regatta drive`.
pub(crate) fn run() -> Outcome {
    let text = std::env::var(ORDER).map_err(|_| {
        Problem::usage(format!(
            "{ORDER} is not set: `drive` is what jobs run; use `submit`, or `train --here` within an allocation"
        ))
    })?;
    let order: Order = serde_json::from_str(&text).map_err(|error| {
        Problem::usage(format!("{ORDER} cannot be read (was it another build that submitted it?): {error}"))
    })?;
    let show = Shown { progress: Mode::Plain, verbose: false };
    if order.study.is_some() {
        return tune::drive(order, &show, false);
    }
    let mut trainer = Trainer::from_experiment(order.experiment)?;
    if let Some(folder) = &order.resume {
        trainer = trainer.resume(folder.to_string_lossy());
    }
    train::fit(trainer, order.resume.as_deref(), &show, false)
}
