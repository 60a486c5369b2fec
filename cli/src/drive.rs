//! What a job runs: the same program once more, as the driver of a run that was resolved where it was submitted.

use std::path::PathBuf;

use regatta_train::{Experiment, Trainer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::Shown;
use crate::problem::{Outcome, Problem};
use crate::term::Mode;
use crate::train;

/// The variable with the order: engines hand variables to the driver alone, wherever it is.
pub(crate) const ORDER: &str = "REGATTA_DRIVE";

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The experiment, all of it.
    pub(crate) experiment: Experiment<Value>,
    /// The run to go on with.
    pub(crate) resume: Option<PathBuf>,
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
    let mut trainer = Trainer::from_experiment(order.experiment)?;
    if let Some(folder) = &order.resume {
        trainer = trainer.resume(folder.to_string_lossy());
    }
    let show = Shown { progress: Mode::Plain, verbose: false };
    train::fit(trainer, order.resume.as_deref(), &show, false)
}
