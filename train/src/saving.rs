//! Saves of a rank: what goes into a checkpoint, when it is written, and how its end is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_checkpoint::retention::Retention;
use regatta_checkpoint::{
    CheckpointName, Coordinator, Encoding, Error as CheckpointError, Save, SaveReport, Saved, Saver,
    SaverConfig, Store, Tensor, Ticket, store,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::link::Link;
use crate::policy::Policy;
use crate::state::{MODEL, State, StateTensor};
use crate::wire::{Committed, Start};
use crate::{Error, Result};

/// The form of [`RankState`].
pub(crate) const STATE_VERSION: u32 = 1;

/// What each rank saves beside tensors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RankState {
    pub(crate) step: u64,
    pub(crate) epoch: u64,
    /// How many reports the run had made.
    #[serde(default)]
    pub(crate) reports: Option<u64>,
    pub(crate) parts: Vec<PartState>,
}

/// A component's small values.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PartState {
    pub(crate) key: String,
    pub(crate) version: u32,
    pub(crate) values: Value,
}

/// What a tensor of a component is called in a checkpoint.
pub(crate) fn tensor_name(key: &str, name: &str) -> String {
    if key == MODEL { name.to_owned() } else { format!("{key}/{name}") }
}

/// What a save is taken with, besides the state.
pub(crate) struct Moment {
    pub(crate) step: u64,
    pub(crate) epoch: u64,
    /// How many reports of the attempt came before.
    pub(crate) reports: u64,
    pub(crate) metrics: BTreeMap<String, f64>,
}

struct Flight {
    ticket: Ticket,
    step: u64,
    reports: u64,
    metrics: BTreeMap<String, f64>,
}

/// The saves of a rank. All ranks call the same methods at the same steps.
pub(crate) struct Saving {
    start: Arc<Start>,
    coordinator: Arc<dyn Coordinator>,
    link: Arc<dyn Link>,
    began: Instant,
    policy: Policy,
    saver: Option<Saver>,
    flight: Option<Flight>,
    /// The run's reports before this attempt.
    before: u64,
    /// The last commit.
    last: Option<String>,
    /// Step and epoch of the last save that was begun, and of the last that was committed.
    begun: Option<(u64, u64)>,
    committed: Option<(u64, u64)>,
    /// Why the last save failed, if it did.
    failure: Option<String>,
}

impl Saving {
    pub(crate) fn new(start: Arc<Start>, coordinator: Arc<dyn Coordinator>, link: Arc<dyn Link>) -> Self {
        let policy = Policy::new(start.checkpoint.every, 0.0);
        let began = Instant::now();
        Saving {
            start,
            coordinator,
            link,
            began,
            policy,
            saver: None,
            flight: None,
            before: 0,
            last: None,
            begun: None,
            committed: None,
            failure: None,
        }
    }

    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs_f64(self.start.checkpoint.deadline_seconds)
    }

    /// Whether a save is due at this step, by what every rank knows alike.
    pub(crate) fn due_at_step(&self, step: u64) -> bool {
        self.policy.at_step(step)
    }

    /// Whether a save is due by the clock; for rank 0 to say to the others.
    pub(crate) fn due_by_time(&self) -> bool {
        self.flight.is_none() && self.policy.at_time(self.now())
    }

    /// The last checkpoint that was committed or restored.
    pub(crate) fn last(&self) -> Option<String> {
        self.last.clone()
    }

    /// The store of checkpoints. Opening the saver first fences off the generations before, so that nothing newer appears
    /// once it was looked for.
    pub(crate) fn open(&mut self) -> Result<Arc<dyn Store>> {
        let checkpoints = store::open(&self.start.storage)?;
        if self.saver.is_none() {
            let config = &self.start.checkpoint;
            let config = SaverConfig {
                generation: Some(self.start.generation),
                deadline_seconds: config.deadline_seconds,
                wait_seconds: SaverConfig::default().wait_seconds.min(config.deadline_seconds),
                retention: Retention { last: config.keep, best: config.best.clone(), every: None },
                encoding: if config.zstd { Encoding::Zstd } else { Encoding::Plain },
                ..SaverConfig::default()
            };
            self.saver = Some(config.build(checkpoints.clone(), self.coordinator.clone())?);
        }
        Ok(checkpoints)
    }

    /// Makes room for copies of the state, which takes longer than copying, before the first save does.
    pub(crate) fn prepare(&self, state: &State) -> Result<()> {
        let Some(saver) = &self.saver else { return Ok(()) };
        let tensors = tensors(state)?;
        Ok(saver.prepare(&views(&tensors))?)
    }

    /// The run goes on from this checkpoint.
    pub(crate) fn resumed_from(&mut self, name: &CheckpointName, ours: bool) {
        if let Some(saver) = &mut self.saver {
            saver.resumed_from(name);
        }
        self.last = ours.then(|| name.to_string());
    }

    /// So many reports of the run led to what it goes on from.
    pub(crate) fn counts_from(&mut self, reports: u64) {
        self.before = reports;
    }

    /// Begins a save; what it comes to is told by [`Saving::poll`]. A save that fails is told and does not end training,
    /// but for one by a rank that has a successor.
    pub(crate) fn begin(&mut self, state: &State, moment: Moment) -> Result<()> {
        state.check()?;
        self.open()?;
        // The one before must be told first, and its buffer is needed.
        self.settle().or_else(tolerable)?;
        self.policy.saved(self.now());
        self.begun = Some((moment.step, moment.epoch));
        match self.start_save(state, &moment) {
            Ok(ticket) => {
                let Moment { step, reports, metrics, .. } = moment;
                self.flight = Some(Flight { ticket, step, reports, metrics });
                if self.start.checkpoint.r#async { Ok(()) } else { self.settle().or_else(tolerable) }
            }
            Err(error) => {
                self.tell(failed(&moment, &error));
                tolerable(error)
            }
        }
    }

    fn start_save(&mut self, state: &State, moment: &Moment) -> Result<Ticket> {
        let tensors = tensors(state)?;
        let views = views(&tensors);
        let mut parts = Vec::with_capacity(state.components.len());
        for (key, component) in &state.components {
            let (version, values) = (component.version(), component.values()?);
            parts.push(PartState { key: key.clone(), version, values });
        }
        let reports = Some(self.before + moment.reports);
        let own = RankState { step: moment.step, epoch: moment.epoch, reports, parts };
        let mut save = Save::new(moment.step, &views).state(STATE_VERSION, &own)?;
        for (name, value) in moment.metrics.iter().filter(|(_, value)| value.is_finite()) {
            save = save.metric(name, *value);
        }
        let saver =
            self.saver.as_mut().ok_or_else(|| Error::config("checkpoint", "the saver is not open"))?;
        match saver.save(&save)? {
            Saved::Started(ticket) => Ok(ticket),
            Saved::Skipped { .. } => {
                Err(CheckpointError::NotAvailable("the save before is still under way".into()).into())
            }
        }
    }

    /// Tells the end of a save that has come to one. Never waits.
    pub(crate) fn poll(&mut self) -> Result<()> {
        let over = |flight: &Flight| flight.ticket.is_done();
        let idle = |saver: &Saver| saver.stats().in_flight.is_none();
        if self.flight.as_ref().is_some_and(over) && self.saver.as_ref().is_some_and(idle) {
            return self.settle().or_else(tolerable);
        }
        Ok(())
    }

    /// Waits for the save under way and tells its end; its failure is this one's.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let Some(flight) = self.flight.take() else { return Ok(()) };
        let Flight { ticket, step, reports, metrics } = flight;
        let deadline = self.deadline();
        let mut outcome = ticket.wait(deadline);
        // Old checkpoints are removed after the commit; what was removed is told with it.
        if let (Ok(_), Some(saver)) = (&outcome, &self.saver)
            && let Err(error) = saver.finish(deadline)
        {
            tracing::warn!(%error, "old checkpoints are still being removed");
        }
        if let Ok(report) = &mut outcome {
            self.policy.cost(report.blocked_seconds + report.waited_seconds);
            self.last = Some(report.name.clone());
            self.committed = self.begun;
        }
        let moment = Moment { step, epoch: 0, reports, metrics };
        match outcome {
            Ok(report) => {
                let removed = self.saver.as_ref().map(Saver::take_removed).unwrap_or_default();
                self.tell(committed(&moment, report, removed));
                Ok(())
            }
            Err(error) => {
                let error = Error::from(error);
                self.tell(failed(&moment, &error));
                Err(error)
            }
        }
    }

    /// Has this very state on storage: by the save under way or the last one if that is of this moment, else by a new one.
    pub(crate) fn commit_now(&mut self, state: &State, moment: Moment) -> Result<()> {
        let this = Some((moment.step, moment.epoch));
        if self.begun == this {
            self.settle().or_else(tolerable)?;
        }
        if self.committed == this {
            return Ok(());
        }
        self.begin(state, moment)?;
        self.settle()?;
        match self.committed == this {
            true => Ok(()),
            false => {
                let why = self.failure.take().unwrap_or_else(|| "it was not committed".into());
                let what = "the checkpoint that the stop asks for";
                Err(Error::NotAvailable { what, why: format!("{why}; the earlier ones are untouched") })
            }
        }
    }

    fn tell(&mut self, committed: Committed) {
        self.failure.clone_from(&committed.error);
        if let Some(error) = &committed.error {
            tracing::error!(step = committed.step, error, "a checkpoint was not saved; training goes on");
        }
        if self.coordinator.rank() == 0
            && let Err(error) = self.link.committed(committed)
        {
            tracing::warn!(%error, "could not tell the controller of a checkpoint; it will find it in the storage");
        }
    }
}

fn committed(moment: &Moment, report: SaveReport, removed: Vec<String>) -> Committed {
    let mut metrics = regatta_track::Metrics::new();
    moment.metrics.iter().for_each(|(name, value)| metrics.insert(name.as_str(), *value));
    Committed {
        name: report.name,
        step: report.step,
        bytes: report.all_bytes,
        metrics,
        reports: moment.reports,
        blocked_seconds: report.blocked_seconds + report.waited_seconds,
        seconds: report.total_seconds,
        removed,
        error: None,
    }
}

fn failed(moment: &Moment, error: &Error) -> Committed {
    Committed { step: moment.step, error: Some(error.to_string()), ..Committed::default() }
}

/// A save that failed costs its checkpoint, not the run. But who has a successor must not go on; and a component that cannot be
/// saved has failed itself.
fn tolerable(error: Error) -> Result<()> {
    match error {
        Error::Checkpoint(CheckpointError::Fenced { .. }) => Err(error),
        Error::Checkpoint(_) => Ok(()),
        other => Err(other),
    }
}

/// The tensors of all components, by their names in the checkpoint.
pub(crate) fn tensors(state: &State) -> Result<Vec<(String, StateTensor<'_>)>> {
    let mut all = Vec::new();
    for (key, component) in &state.components {
        all.extend(component.tensors()?.into_iter().map(|tensor| (tensor_name(key, &tensor.name), tensor)));
    }
    Ok(all)
}

fn views<'a>(tensors: &'a [(String, StateTensor<'_>)]) -> Vec<Tensor<'a>> {
    let view = |(name, tensor): &'a (String, StateTensor<'_>)| Tensor {
        name,
        dtype: tensor.dtype,
        shape: &tensor.shape,
        placement: tensor.placement.clone(),
        data: &*tensor.data,
    };
    tensors.iter().map(view).collect()
}
