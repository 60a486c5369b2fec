//! Trials that are whole trainings: each a run with a folder of its own, `trials/00007/`, on the site that all share. One
//! allocator seats their crews, all of a crew or none, so trials of many workers wait for room and never for each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use regatta_checkpoint::{CheckpointName, collect, store};
use regatta_track::event::{Cause, CheckpointCommitted};
use regatta_track::{Event, Query, Reader};
use regatta_train::folder::{RunFolder, is_run};
use regatta_train::wire::Restore;
use regatta_train::{RunEvent, RunHandle, Site, Status, StopReason, Trainer};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::{Executor, Heard, Task, tell};
use crate::config::ITERATION;
use crate::error::Result;
use crate::scheduler::Checkpoint;
use crate::study::{Input, Order};

/// Where a study keeps its trials.
pub(crate) const TRIALS: &str = "trials";

/// The folder of a trial.
pub(crate) fn folder_of(study: &Path, trial: u32) -> PathBuf {
    study.join(TRIALS).join(format!("{trial:05}"))
}

/// Drives trainers.
pub(crate) struct TrainerExecutor {
    /// What every trial is like.
    pub(crate) like: Trainer,
    pub(crate) study: PathBuf,
    /// Where checkpoints lie: the study's folder, or its URL.
    pub(crate) storage: String,
    /// Whether the study was begun before: perhaps on another machine, where its trials are.
    pub(crate) resumed: bool,
    /// Whether anything is decided at reports.
    pub(crate) decides: bool,
    pub(crate) site: Option<Site>,
    pub(crate) to: Sender<Heard>,
    pub(crate) runtime: Runtime,
    pub(crate) running: BTreeMap<u32, Running>,
}

/// A trial at work.
pub(crate) struct Running {
    handle: RunHandle,
    /// The last report that was told.
    iteration: Arc<AtomicU64>,
    resize: Arc<Mutex<Option<usize>>>,
    incarnation: u64,
    task: JoinHandle<()>,
}

/// One launch of a trial.
struct Launch {
    trial: u32,
    incarnation: u64,
    trainer: Trainer,
    site: Option<Site>,
    to: Sender<Heard>,
    /// The donor's checkpoint that must stay until it was taken up.
    pinned: Option<Pin>,
}

/// A checkpoint that is kept from being removed.
struct Pin {
    storage: String,
    name: CheckpointName,
    owner: String,
}

impl Pin {
    /// Pins a checkpoint; one that is gone already shows when it is restored.
    fn new(storage: String, id: &str, owner: String) -> Option<Self> {
        let name: CheckpointName = id.parse().ok()?;
        let opened = store::open_existing(&storage).ok()?;
        collect::pin(&*opened, &name, &owner).ok()?;
        Some(Pin { storage, name, owner })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let unpinned = store::open_existing(&self.storage)
            .and_then(|store| collect::unpin(&*store, &self.name, &self.owner));
        if let Err(error) = unpinned {
            tracing::warn!(%error, checkpoint = %self.name, "a checkpoint stays pinned");
        }
    }
}

impl TrainerExecutor {
    fn storage_of(&self, trial: u32) -> String {
        match self.storage.contains("://") || self.storage.starts_with("memory:") {
            true => format!("{}/{TRIALS}/{trial:05}", self.storage.trim_end_matches('/')),
            false => folder_of(&self.study, trial).to_string_lossy().into_owned(),
        }
    }

    fn run_folder(&self, trial: u32) -> RunFolder {
        RunFolder {
            experiment: TRIALS.into(),
            name: format!("{trial:05}"),
            path: folder_of(&self.study, trial),
            storage: self.storage_of(trial),
        }
    }

    /// The folder of a trial. One that was begun on another machine is brought here from its storage.
    fn brought(&self, trial: u32) -> Result<RunFolder> {
        let place = self.run_folder(trial);
        if self.resumed && !is_run(&place.path) && place.has_copy()? {
            place.bring_back()?;
        }
        Ok(place)
    }

    fn launch(
        &mut self,
        task: (u32, u64),
        config: Value,
        restore: Option<Checkpoint>,
        workers: Option<u32>,
    ) -> Result<()> {
        let (trial, incarnation) = task;
        let known = is_run(&self.run_folder(trial).path);
        let place = self.brought(trial)?;
        // The study's copy may be older than its trials': what they did since is done again, as the study is to hear of it.
        let unknown = !known && is_run(&place.path);
        let mut trainer = self.like.another()?.config(config).at(place);
        if let Some(workers) = workers {
            trainer = trainer.workers(workers as usize);
        }
        // Where every report is decided upon, a trial goes on from what the log knows of. What it saved beyond that, under a
        // driver that died before it heard, would leave out the reports in between.
        match restore.as_ref().filter(|checkpoint| checkpoint.owner == trial) {
            Some(own) if self.decides => trainer = trainer.restore(Restore::Named(own.id.clone())),
            None if (self.decides || unknown) && restore.is_none() => {
                trainer = trainer.restore(Restore::Beginning);
            }
            _ => {}
        }
        let foreign = restore.filter(|checkpoint| checkpoint.owner != trial);
        let pinned = foreign.as_ref().and_then(|checkpoint| {
            Pin::new(self.storage_of(checkpoint.owner), &checkpoint.id, format!("trial-{trial:05}"))
        });
        if let Some(checkpoint) = foreign {
            let storage = self.storage_of(checkpoint.owner);
            let Checkpoint { id, resource, .. } = checkpoint;
            trainer = trainer.restore(Restore::From { storage, checkpoint: id, iteration: resource });
        }
        let iteration = Arc::new(AtomicU64::new(0));
        let trainer = trainer.callback(teller(trial, incarnation, iteration.clone(), self.to.clone()));
        let handle = trainer.handle();
        let resize = Arc::new(Mutex::new(None));
        let launch =
            Launch { trial, incarnation, trainer, site: self.site.clone(), to: self.to.clone(), pinned };
        // What ran for it before has been told to end; its folder is free only when it has.
        let before = self.running.remove(&trial).map(|running| running.task);
        let again = Again {
            like: self.like.another()?,
            folder: self.run_folder(trial),
            iteration: iteration.clone(),
        };
        let task = self.runtime.spawn(drive(launch, before, resize.clone(), again));
        self.running.insert(trial, Running { handle, iteration, resize, incarnation, task });
        Ok(())
    }
}

/// What a resized trial is launched again with.
struct Again {
    like: Trainer,
    folder: RunFolder,
    iteration: Arc<AtomicU64>,
}

/// Drives a trial to where it leaves, and tells how.
async fn drive(
    launch: Launch,
    before: Option<JoinHandle<()>>,
    resize: Arc<Mutex<Option<usize>>>,
    again: Again,
) {
    let Launch { trial, incarnation, mut trainer, site, to, pinned } = launch;
    if let Some(before) = before {
        let _ = before.await;
    }
    let config = trainer.experiment().config.clone();
    let mut again = Some(again);
    let input = loop {
        let input = ended(trial, trainer.drive(site.as_ref()).await);
        let workers = resize.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(workers), Input::Paused { .. }) = (workers, &input) else { break input };
        let Some(Again { like, folder, iteration }) = again.take() else { break input };
        let next = like.another().map(|one| one.config(config.clone()).at(folder.clone()).workers(workers));
        match next {
            Ok(next) => trainer = next.callback(teller(trial, incarnation, iteration.clone(), to.clone())),
            Err(error) => break Input::Failed { trial, cause: Cause::new(error.to_string()) },
        }
        again = Some(Again { like, folder, iteration });
    };
    drop(pinned);
    tell(&to, trial, incarnation, input);
}

/// What the end of a run is to the study.
fn ended(trial: u32, result: regatta_train::Result<regatta_train::RunResult>) -> Input {
    match result {
        Ok(result) => match result.status() {
            Status::Stopped { reason: StopReason::Scheduler, .. } | Status::Completed => {
                Input::Finished { trial }
            }
            Status::Stopped { .. } | Status::Running => Input::Paused { trial },
            Status::Failed => {
                let why = result.error().map_or("it failed".into(), chain);
                Input::Failed { trial, cause: Cause::new(why) }
            }
        },
        Err(error) => Input::Failed { trial, cause: Cause::new(chain(&error)) },
    }
}

/// An error and what it came from, the root last, nothing said twice.
fn chain(error: &regatta_train::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

/// Tells the study what happens in a trial's run.
fn teller(
    trial: u32,
    incarnation: u64,
    iteration: Arc<AtomicU64>,
    to: Sender<Heard>,
) -> impl FnMut(&RunEvent<'_>) + Send + 'static {
    move |event| {
        let input = match event {
            RunEvent::Started { attempt, .. } => Input::Started { trial, attempt: *attempt },
            RunEvent::Report { iteration: number, step, metrics, .. } => {
                iteration.store(*number, Ordering::Release);
                Input::Reported { trial, step: *step, metrics: (*metrics).clone() }
            }
            RunEvent::Checkpoint(committed) if committed.error.is_none() => {
                let generation = committed.name.parse().map_or(0, |name: CheckpointName| name.generation);
                let committed = CheckpointCommitted {
                    id: committed.name.clone(),
                    step: committed.step,
                    generation,
                    bytes: committed.bytes,
                    metrics: committed.metrics.clone(),
                };
                Input::Checkpointed { trial, committed }
            }
            _ => return,
        };
        tell(&to, trial, incarnation, input);
    }
}

impl Executor for TrainerExecutor {
    fn outlives(&self) -> bool {
        true
    }

    fn obey(&mut self, task: Task) -> Result<()> {
        let Task { incarnation, order } = task;
        if let Order::Launch { trial, config, restore, workers } = order {
            return self.launch((trial, incarnation), config, restore, workers);
        }
        let Some(running) = self.running.get(&order.trial()) else { return Ok(()) };
        match order {
            Order::GoOn { .. } => running.handle.go_on(running.iteration.load(Ordering::Acquire)),
            Order::Pause { .. } => running.handle.stop(StopReason::Paused),
            Order::Stop { .. } => running.handle.stop(StopReason::Scheduler),
            Order::Kill { .. } => running.handle.kill(),
            Order::Resize { workers, .. } => {
                *running.resize.lock().unwrap_or_else(PoisonError::into_inner) = Some(workers as usize);
                running.handle.stop(StopReason::Paused);
            }
            Order::Launch { .. } => {}
        }
        Ok(())
    }

    fn interrupt(&mut self, trial: u32) {
        if let Some(running) = self.running.get(&trial) {
            running.handle.stop(StopReason::User);
        }
    }

    fn left_behind(&mut self, trial: u32, attempt: u32, begun: bool) -> Result<Vec<Input>> {
        let folder = self.brought(trial)?.path;
        if !is_run(&folder) {
            return Ok(Vec::new());
        }
        let first = if begun { attempt } else { attempt + 1 };
        let mut reader = Reader::open(&folder)?;
        let mut snapshot = reader.snapshot()?;
        let (mut inputs, mut after) = (Vec::new(), 0);
        loop {
            let kinds = ["attempt_started", "report", "checkpoint_committed"];
            let page = snapshot.events(&Query { after, limit: 4_000, scope: Some(None), kinds: &kinds })?;
            let Some(last) = page.last() else { break };
            after = last.seq;
            for stored in page.into_iter().filter(|stored| stored.attempt >= first) {
                match stored.event {
                    Event::AttemptStarted(_) if stored.attempt > attempt => {
                        inputs.push(Input::Started { trial, attempt: stored.attempt });
                    }
                    Event::Report(report) if stored.rank.unwrap_or(0) == 0 => {
                        inputs.push(Input::Reported { trial, step: report.step, metrics: report.metrics });
                    }
                    // One that was found after a crash does not say how many reports led to it, as some may not have been
                    // heard; where they are decided upon, nobody goes on from there.
                    Event::CheckpointCommitted(committed)
                        if !self.decides || committed.metrics.get(ITERATION).is_some() =>
                    {
                        inputs.push(Input::Checkpointed { trial, committed });
                    }
                    _ => {}
                }
            }
        }
        Ok(inputs)
    }

    fn end(&mut self) {
        for running in self.running.values() {
            running.handle.kill();
        }
        let running = std::mem::take(&mut self.running);
        let gone = self.runtime.block_on(async {
            tokio::time::timeout(GOING, async {
                for running in running.into_values() {
                    let _ = (running.incarnation, running.task.await);
                }
            })
            .await
        });
        if gone.is_err() {
            tracing::warn!("trials were not gone within {GOING:?}; they end with this process");
        }
    }
}

/// How long what is killed may take to be gone.
const GOING: Duration = Duration::from_secs(30);
