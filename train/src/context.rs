//! What a training function is given: who it is among the ranks, and the ways to report, save, restore and stop.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use regatta_checkpoint::{Coordinator, Solo};
use regatta_comm::ProcessGroup;
use regatta_comm::store::{ScopedStore, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::agree::{self, Agreement, Flags};
use crate::coordinator::{Over, StoreCoordinator};
use crate::data::Position;
use crate::link::Link;
use crate::metrics::{Merge, Metrics};
use crate::pace::Pace;
use crate::report::{LastReport, Report};
use crate::restore::{self, Restored};
use crate::saving::{Moment, Saving};
use crate::state::{Counters, State, Stateful};
use crate::wire::{Done, FromRank, RankReport, Start, StopReason};
use crate::{Error, Result};

/// How often who waits for a decision looks whether there is anybody left to take it.
const LOOK_UP: Duration = Duration::from_millis(200);

/// A component that every state has.
type Always = (String, Box<dyn Fn() -> Box<dyn Stateful> + Send>);

/// A rank's place in its run. All ranks call [`step`](TrainContext::step), [`report`](TrainContext::report),
/// [`restore`](TrainContext::restore) and [`save`](TrainContext::save) alike, in the same order.
pub struct TrainContext {
    // Dropped first, as it waits for the group's calls.
    agreement: Agreement,
    group: ProcessGroup,
    local_rank: usize,
    start: Arc<Start>,
    link: Arc<dyn Link>,
    coordinator: Arc<dyn Coordinator>,
    saving: Saving,
    counters: Arc<Counters>,
    pace: Pace,
    began: Instant,
    reports: u64,
    stepped: bool,
    last: LastReport,
    stopped: Option<(StopReason, String)>,
    always: Vec<Always>,
}

/// What a context is made of.
pub(crate) struct Parts {
    pub(crate) group: ProcessGroup,
    pub(crate) local_rank: usize,
    pub(crate) start: Arc<Start>,
    pub(crate) link: Arc<dyn Link>,
    /// Where the ranks met.
    pub(crate) store: Arc<dyn Store>,
}

impl TrainContext {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { group, local_rank, start, link, store } = parts;
        let deadline = Duration::from_secs_f64(start.failure.collective_deadline_seconds);
        let group = group.within(deadline);
        let coordinator: Arc<dyn Coordinator> = match group.world_size() {
            1 => Arc::new(Solo),
            world => Arc::new(StoreCoordinator {
                store: Arc::new(ScopedStore::new(store, format!("checkpoint/g{}", start.generation))),
                rank: group.rank() as u32,
                world: world as u32,
                over: over(&group, &link),
            }),
        };
        let counters = Arc::new(Counters::default());
        counters.fast.store(start.fast_dev_run, Relaxed);
        TrainContext {
            agreement: Agreement::default(),
            local_rank,
            saving: Saving::new(start.clone(), coordinator.clone(), link.clone()),
            coordinator,
            pace: Pace::new(Instant::now(), 0),
            began: Instant::now(),
            reports: 0,
            stepped: false,
            last: LastReport::default(),
            stopped: None,
            always: Vec::new(),
            counters,
            group,
            start,
            link,
        }
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.group.rank()
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.group.world_size()
    }

    /// This rank among those of its host, from 0.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Which try of the run this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.start.attempt
    }

    /// Which incarnation of the group of ranks this is; it never goes back.
    pub fn generation(&self) -> u64 {
        self.start.generation
    }

    /// The run's name.
    pub fn run(&self) -> &str {
        &self.start.run
    }

    /// The name of the experiment it belongs to.
    pub fn experiment(&self) -> &str {
        &self.start.experiment
    }

    /// The run's folder, on the controller's host.
    pub fn folder(&self) -> &Path {
        &self.start.folder
    }

    /// The run's seed. Derive all of your randomness from it and the rank.
    pub fn seed(&self) -> u64 {
        self.start.seed
    }

    /// Whether this is only to try that everything works: a few batches of one epoch are enough.
    pub fn fast_dev_run(&self) -> bool {
        self.start.fast_dev_run
    }

    /// When the run will have had its time, if that is limited; it is then stopped as when asked to.
    pub fn deadline(&self) -> Option<Instant> {
        let left = (self.start.stop.seconds? - self.start.spent_seconds).max(0.0);
        self.began.checked_add(Duration::try_from_secs_f64(left).ok()?)
    }

    /// The process group of all ranks, for collectives of your own.
    pub fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// Returns when all ranks have come.
    pub fn barrier(&self) -> Result<()> {
        Ok(self.group.barrier()?)
    }

    /// Rank 0's value on every rank, by way of JSON. For configuration and the like; tensors go through the group.
    pub fn broadcast<T: Serialize + DeserializeOwned>(&self, value: T) -> Result<T> {
        if self.world_size() == 1 {
            return Ok(value);
        }
        let mut bytes =
            serde_json::to_vec(&value).map_err(|error| Error::other("broadcast a value", error))?;
        let mut length = [bytes.len() as i64];
        self.group.broadcast(&mut length, 0)?;
        bytes.resize(length[0] as usize, 0);
        self.group.broadcast(&mut bytes, 0)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::other("take a value that was broadcast", error))
    }

    /// Reads what the loss of the present batch is multiplied by before its gradient is averaged over the ranks: 1 but where
    /// batches do not divide evenly. Of the loader that is followed at the time.
    pub fn batch_weight(&self) -> impl Fn() -> f64 + Send + Sync + use<> {
        let counters = self.counters.clone();
        move || counters.followed().as_ref().map_or(1.0, |position| position.weight().get())
    }

    /// Takes progress and batch weights from this loader, unless another is followed already or is in the state as its data.
    pub fn follow(&mut self, position: &Position) {
        self.counters.followed().get_or_insert_with(|| position.clone());
    }

    /// Gives every state that is made from now on this component: for libraries whose random state is part of any. The second
    /// of a name is called `name-2`, and so on.
    pub fn always(&mut self, key: impl Into<String>, make: impl Fn() -> Box<dyn Stateful> + Send + 'static) {
        let key = key.into();
        let taken = |name: &String| self.always.iter().any(|(known, _)| known == name);
        let numbered = (2..).map(|number| format!("{key}-{number}"));
        let name = std::iter::once(key.clone()).chain(numbered).find(|name| !taken(name));
        self.always.push((name.unwrap_or(key), Box::new(make)));
    }

    /// An empty state, to be given components by [`State::with`].
    pub fn state(&self) -> State {
        let components = self.always.iter().map(|(key, make)| (key.clone(), make())).collect();
        State { components, counters: self.counters.clone() }
    }

    /// Whether the controller asked to stop. [`step`](TrainContext::step) acts on it, on all ranks at the same step.
    pub fn should_stop(&self) -> bool {
        self.link.orders().stopping().is_some()
    }

    /// Whether the machine is about to be taken away.
    pub fn preempted(&self) -> bool {
        self.link.orders().stopping() == Some(StopReason::Preempted)
    }

    /// Takes up the checkpoint that the run is to go on from, if there is one. To be called once, before the loop.
    pub fn restore(&mut self, state: &mut State) -> Result<Option<Restored>> {
        let checkpoints = self.saving.open()?;
        let found = restore::find(&self.start.restore, &checkpoints, &*self.coordinator)?;
        let restored = match found {
            None => None,
            Some(found) => {
                self.saving.resumed_from(found.checkpoint.name(), found.ours);
                Some(restore::load(state, found, self.rank(), self.world_size())?)
            }
        };
        let reports = restored.as_ref().and_then(|restored| restored.reports);
        self.saving.counts_from(reports.unwrap_or(0));
        self.saving.prepare(state)?;
        let step = self.counters.step();
        self.pace.restart(Instant::now(), step);
        if self.rank() == 0 {
            let checkpoint = restored.as_ref().map(|restored| restored.checkpoint.clone());
            let damaged = restored.as_ref().map(|restored| restored.damaged.clone()).unwrap_or_default();
            self.link.tell(step, FromRank::Restored { checkpoint, step, reports, damaged })?;
        }
        Ok(restored)
    }

    /// Saves the state now, as the configuration says in the background. All ranks call this together. A save that fails is told
    /// and does not end training.
    pub fn save(&mut self, state: &State) -> Result<()> {
        let moment = self.moment(self.counters.epoch())?;
        self.saving.begin(state, moment)
    }

    /// Metrics to report: `ctx.report(metrics! { loss }).send()?`. Costs the step a push to a queue.
    pub fn report(&mut self, metrics: Metrics) -> Report<'_> {
        Report::new(self, metrics)
    }

    /// Says that a training step is done: to be called once after each. Saves when the configuration says so, and ends the loop by
    /// [`Error::Stopped`] when all ranks agreed to stop, at the same step, once its checkpoint is committed.
    pub fn step(&mut self, state: &State) -> Result<()> {
        self.refuse_after_stop()?;
        let step = self.counters.step.fetch_add(1, Relaxed) + 1;
        self.stepped = true;
        self.saving.poll()?;
        self.tell_progress(step)?;
        let mine = self.flags();
        let agreed = self.agreement.exchange(&self.group, mine)?;
        if let Some(reason) = self.stop_reason(step, agreed)? {
            let moment = self.moment(self.counters.epoch())?;
            self.saving.commit_now(state, moment)?;
            return Err(self.stop(reason));
        }
        if agreed.save || self.saving.due_at_step(step) {
            self.save(state)?;
        }
        Ok(())
    }

    /// What this rank would have all of them do.
    fn flags(&self) -> Flags {
        let orders = self.link.orders();
        if self.rank() == 0
            && let (Some(deadline), Some(seconds)) = (self.deadline(), self.start.stop.seconds)
            && Instant::now() >= deadline
        {
            orders.stop(StopReason::Reached(format!("{seconds} seconds")));
        }
        let stop = orders.stopping().as_ref().map_or(0, agree::code);
        let save = orders.take_save() || (self.rank() == 0 && self.saving.due_by_time());
        Flags { stop, save }
    }

    /// Why to stop now, the same on all ranks.
    fn stop_reason(&self, step: u64, agreed: Flags) -> Result<Option<StopReason>> {
        if let Some(limit) = self.start.stop.steps.filter(|limit| step >= *limit) {
            return Ok(Some(StopReason::Reached(format!("{limit} steps"))));
        }
        if self.link.is_over() {
            let why = "the controller has ended this attempt".to_owned();
            return Err(Error::NotAvailable { what: "training on", why });
        }
        if agreed.stop == 0 {
            return Ok(None);
        }
        let words = self.link.orders().stopping().filter(|reason| agree::code(reason) == agreed.stop);
        Ok(Some(self.broadcast(words.unwrap_or_else(|| agree::reason(agreed.stop)))?))
    }

    fn stop(&mut self, reason: StopReason) -> Error {
        let stopped = Error::Stopped {
            step: self.counters.step(),
            reason: reason.clone(),
            checkpoint: self.saving.last(),
        };
        self.stopped = Some((reason, stopped.to_string()));
        stopped
    }

    fn refuse_after_stop(&self) -> Result<()> {
        match &self.stopped {
            None => Ok(()),
            Some((reason, _)) => Err(Error::Stopped {
                step: self.counters.step(),
                reason: reason.clone(),
                checkpoint: self.saving.last(),
            }),
        }
    }

    fn moment(&mut self, epoch: u64) -> Result<Moment> {
        let metrics: BTreeMap<String, f64> = self.last.merged(&self.group)?;
        Ok(Moment { step: self.counters.step(), epoch, reports: self.reports, metrics })
    }

    fn tell_progress(&mut self, step: u64) -> Result<()> {
        if self.rank() != 0 {
            return Ok(());
        }
        let Some(mut progress) = self.pace.beat(Instant::now(), step) else { return Ok(()) };
        let epochs = self.counters.epochs.load(Relaxed);
        progress.epoch = self.counters.epoch();
        progress.epochs = (epochs > 0).then_some(epochs);
        progress.steps = self.start.stop.steps;
        if let Some(position) = &*self.counters.followed() {
            self.pace.follow(&mut progress, position, self.group.world_size());
        }
        self.link.tell(step, FromRank::Progress(progress))
    }

    pub(crate) fn tell_report(&mut self, metrics: Metrics) -> Result<()> {
        self.refuse_after_stop()?;
        self.reports += 1;
        self.last = LastReport::new(&metrics);
        let step = self.counters.step();
        if let Some((_, loss, _)) = metrics.iter().find(|(name, ..)| &**name == "loss") {
            self.pace.loss = Some(*loss);
        }
        let all = self.rank() == 0;
        let report = RankReport {
            index: self.reports,
            step,
            epoch: self.counters.epoch(),
            metrics: metrics.iter().filter(|(.., merge)| all || *merge != Merge::Rank0).cloned().collect(),
            seconds: self.began.elapsed().as_secs_f64(),
        };
        self.link.tell(step, FromRank::Report(report))
    }

    /// Where the loop has no steps, reports are where ranks agree.
    pub(crate) fn after_report(&mut self) -> Result<()> {
        if std::mem::take(&mut self.stepped) && !self.start.lockstep {
            return Ok(());
        }
        self.saving.poll()?;
        self.await_leave()?;
        let mine = Flags { save: false, ..self.flags() };
        let agreed = self.agree(mine)?;
        match self.stop_reason(self.counters.step(), agreed)? {
            None => Ok(()),
            Some(reason) => {
                self.saving.settle().or_else(|error| self.passed_over(error))?;
                Err(self.stop(reason))
            }
        }
    }

    pub(crate) fn checkpoint_report(&mut self, state: &State) -> Result<()> {
        self.stepped = false;
        let epoch = self.counters.epoch() + u64::from(state.epoch_done());
        let moment = self.moment(epoch)?;
        self.saving.begin(state, moment)?;
        self.await_leave()?;
        let mine = self.flags();
        let agreed = self.agree(mine)?;
        match self.stop_reason(self.counters.step(), agreed)? {
            None => Ok(()),
            Some(reason) => {
                let moment = self.moment(epoch)?;
                self.saving.commit_now(state, moment)?;
                Err(self.stop(reason))
            }
        }
    }

    /// What all ranks do after a report. Who waited for leave to go on has just been told what is wanted, so that what was
    /// agreed on at the last step is not enough.
    fn agree(&mut self, mine: Flags) -> Result<Flags> {
        match self.start.lockstep {
            true => self.agreement.afresh(&self.group, mine),
            false => self.agreement.now(&self.group, mine),
        }
    }

    /// Where a tuner decides at every report whether the trial goes on, waits for its decision.
    fn await_leave(&mut self) -> Result<()> {
        if !self.start.lockstep {
            return Ok(());
        }
        let within = Duration::from_secs_f64(self.start.failure.report_deadline_seconds);
        let deadline = Instant::now() + within;
        while !self.link.orders().wait_granted(self.reports, LOOK_UP) {
            if self.link.is_over() {
                let why = "the controller has ended this attempt".to_owned();
                return Err(Error::NotAvailable { what: "training on", why });
            }
            if Instant::now() >= deadline {
                let why = format!(
                    "nobody said within {within:?} (failure.report_deadline_seconds) whether report {} was the last",
                    self.reports
                );
                return Err(Error::NotAvailable { what: "training on", why });
            }
        }
        Ok(())
    }

    fn passed_over(&self, error: Error) -> Result<()> {
        tracing::warn!(%error, "the save under way failed");
        Ok(())
    }

    /// Whether this error only passes on that the run was stopped, even if a wrapper hides all but its words.
    pub(crate) fn stopped_by(&self, error: &(dyn StdError + 'static)) -> bool {
        let Some((_, words)) = &self.stopped else { return false };
        let mut next = Some(error);
        while let Some(error) = next {
            if matches!(error.downcast_ref(), Some(Error::Stopped { .. })) || error.to_string() == *words {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// Waits for what is under way: what a rank says last.
    pub(crate) fn finish(&mut self, value: Value) -> Result<Done> {
        self.agreement.settle()?;
        // Its failure was told. The commits before it stand.
        self.saving.settle().or_else(|error| self.passed_over(error))?;
        Ok(Done {
            value,
            step: self.counters.step(),
            stopped: self.stopped.as_ref().map(|(reason, _)| reason.clone()),
            checkpoint: self.saving.last(),
        })
    }
}

/// Who was lost, once the group or the generation is over.
fn over(group: &ProcessGroup, link: &Arc<dyn Link>) -> Over {
    let (group, link) = (group.clone(), link.clone());
    Arc::new(move || {
        let health = group.health();
        let lost = health.lost.first().copied().filter(|_| health.over.is_some());
        match (health.over, lost) {
            (Some(why), lost) => Some((lost.unwrap_or(group.rank()) as u32, why)),
            (None, _) if link.is_over() => {
                Some((group.rank() as u32, "the controller has ended this attempt".into()))
            }
            (None, _) => None,
        }
    })
}
