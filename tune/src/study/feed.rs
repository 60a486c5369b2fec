//! What a sampler is shown where a scheduler compares trials at rungs: one result a trial, all at the same resource. Results
//! at different resources are not comparable, and a model of them is worse than none.

use std::collections::BTreeSet;

use crate::sampler::{End, History, Told};

/// What was reported, in the order in which it was.
#[derive(Debug, Default)]
pub(super) struct Feed {
    reports: Vec<(u32, u64, f64)>,
    failed: BTreeSet<u32>,
}

impl Feed {
    pub(super) fn reported(&mut self, trial: u32, resource: u64, loss: f64) {
        self.reports.push((trial, resource, loss));
    }

    pub(super) fn failed(&mut self, trial: u32) {
        self.failed.insert(trial);
    }

    /// The history with each trial's loss when it first came to this resource; who has not yet come that far counts as
    /// running, if it still may.
    pub(super) fn seen(&self, resource: u64, all: &History) -> History {
        let mut seen = History::new();
        let point = |number: u64| {
            let running = all.running().get(&number).map(|running| (running.point.clone(), running.note));
            running.or_else(|| {
                let told = all.told().iter().find(|told| told.number == number)?;
                Some((told.point.clone(), told.note))
            })
        };
        let mut known = BTreeSet::new();
        for (trial, at, loss) in &self.reports {
            let number = u64::from(*trial);
            if *at < resource || self.failed.contains(trial) || !known.insert(number) {
                continue;
            }
            if let Some((point, note)) = point(number) {
                seen.tell(Told { note, ..Told::complete(number, point, vec![*loss]) });
            }
        }
        for told in all.told().iter().filter(|told| told.end == End::Failed) {
            seen.tell(told.clone());
        }
        for (number, running) in all.running().iter().filter(|(number, _)| !known.contains(number)) {
            seen.start(*number, running.point.clone(), running.note);
        }
        seen
    }
}
