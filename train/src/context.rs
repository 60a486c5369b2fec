//! What a training function is given: who it is among the ranks, and the ways to report, save, restore and stop.

use std::sync::Arc;

use regatta_comm::ProcessGroup;

use crate::link::Link;
use crate::wire::Start;

/// A rank's place in its run.
pub struct TrainContext {
    group: ProcessGroup,
    start: Arc<Start>,
    link: Arc<dyn Link>,
}

impl TrainContext {
    /// This rank.
    pub fn rank(&self) -> usize {
        self.group.rank()
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.group.world_size()
    }

    /// The process group of all ranks, for collectives of your own.
    pub fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.start.seed
    }

    /// Whether the controller asked to stop. `step` acts on it, on all ranks at the same step.
    pub fn should_stop(&self) -> bool {
        self.link.orders().stopping().is_some()
    }
}
