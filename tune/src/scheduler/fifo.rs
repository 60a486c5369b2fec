//! No scheduling at all: trials run in the order in which they were made, each to its own end.

use serde::{Deserialize, Serialize};

use super::Scheduler;
use super::turn::Turn;

/// First in, first out. Paused trials (their machine was taken away) go before new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fifo {}

impl Scheduler for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn slot(&mut self, turn: &mut Turn<'_>) {
        next_in_line(turn);
    }

    fn looks_back(&self) -> bool {
        false
    }
}

/// Places the oldest paused trial, or else a new one.
pub(super) fn next_in_line(turn: &mut Turn<'_>) {
    let oldest = turn.roster().paused().next().map(|(trial, _)| trial);
    match oldest {
        Some(trial) => turn.resume(trial, "the oldest of those that wait"),
        None if !turn.roster().exhausted() => turn.start_new("nobody else waits"),
        None => {}
    }
}
