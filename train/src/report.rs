//! A report under way: metrics, and whether a checkpoint goes with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use regatta_comm::ProcessGroup;

use crate::metrics::{Merge, Metrics};
use crate::state::State;
use crate::{Result, TrainContext};

/// Metrics to be reported; made by [`TrainContext::report`].
#[must_use = "a report is sent by `.send()?`, or by `.checkpoint(&state)?` together with a checkpoint"]
pub struct Report<'a> {
    context: &'a mut TrainContext,
    metrics: Metrics,
}

impl<'a> Report<'a> {
    pub(crate) fn new(context: &'a mut TrainContext, metrics: Metrics) -> Self {
        Report { context, metrics }
    }

    /// Reports the metrics. Where the loop does not call [`TrainContext::step`], this also may end it, as that does.
    pub fn send(self) -> Result<()> {
        self.context.tell_report(self.metrics)?;
        self.context.after_report()
    }

    /// Reports the metrics and saves the state with them. If every position in the data is at its epoch's end, or the state has
    /// none, the epoch counts as finished: a resume begins with the next. May end the loop, as [`TrainContext::step`] does; the
    /// checkpoint is committed then.
    pub fn checkpoint(self, state: &State) -> Result<()> {
        self.context.tell_report(self.metrics)?;
        self.context.checkpoint_report(state)
    }
}

/// The metrics of the last report, as a checkpoint keeps them.
#[derive(Default)]
pub(crate) struct LastReport {
    metrics: Vec<(Arc<str>, f64, Merge)>,
    merged: Option<BTreeMap<String, f64>>,
}

impl LastReport {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        LastReport { metrics: metrics.iter().cloned().collect(), merged: None }
    }

    /// The values of all ranks made one, which takes a word between them if any rule needs it. All ranks call this together.
    pub(crate) fn merged(&mut self, group: &ProcessGroup) -> Result<BTreeMap<String, f64>> {
        if let Some(merged) = &self.merged {
            return Ok(merged.clone());
        }
        let shared: Vec<f64> = self.metrics.iter().map(|(_, value, _)| *value).collect();
        let world = group.world_size();
        let mut all = shared.clone();
        if world > 1 && self.metrics.iter().any(|(.., merge)| *merge != Merge::Rank0) {
            all = vec![0.0; shared.len() * world];
            group.all_gather(&shared, &mut all)?;
        }
        let count = self.metrics.len();
        let value =
            |index: usize, merge: Merge| merge.of(all.iter().skip(index).step_by(count.max(1)).copied());
        let merged: BTreeMap<String, f64> = self
            .metrics
            .iter()
            .enumerate()
            .map(|(index, (name, _, merge))| (name.to_string(), value(index, *merge)))
            .collect();
        self.merged = Some(merged.clone());
        Ok(merged)
    }
}
