//! Trials in worker processes that go from trial to trial: for trainings that are shorter than the start of a process. They
//! report to the study alone; what has a folder of its own is their checkpoints, if they take any.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use regatta_checkpoint::CheckpointName;
use regatta_track::event::{Cause, CheckpointCommitted};
use regatta_train::controller::Merger;
use regatta_train::crew::{Crew, CrewEvent, Saying};
use regatta_train::wire::{Committed, Decision, FromRank, Restore, Start};
use regatta_train::{Experiment, Site, StopReason, Trainer};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::trainer::{TRIALS, folder_of};
use super::{Executor, Heard, Task, tell};
use crate::config::ITERATION;
use crate::error::Result;
use crate::scheduler::Checkpoint;
use crate::study::{Input, Order};

/// The metric that says which epoch is under way, from 0.
const EPOCH: &str = "epoch";
/// How long what is ended may take to be gone.
const GOING: Duration = Duration::from_secs(30);

/// A trial that waits for a worker or has one.
struct Job {
    trial: u32,
    incarnation: u64,
    config: Value,
    restore: Restore,
    /// Reports that led to what it goes on from.
    before: u64,
    orders: mpsc::UnboundedReceiver<Wish>,
}

/// What a running trial is told.
enum Wish {
    GoOn,
    Leave(StopReason),
    Kill,
}

/// What the workers share.
struct Shared {
    experiment: Experiment<Value>,
    study: PathBuf,
    storage: String,
    lockstep: bool,
    /// What begins every generation of this session's, above those of all sessions before.
    era: u64,
    waiting: Mutex<VecDeque<Job>>,
    news: Notify,
    to: Sender<Heard>,
}

impl Shared {
    fn next(&self) -> Option<Job> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn storage_of(&self, trial: u32) -> String {
        match self.storage.contains("://") || self.storage.starts_with("memory:") {
            true => format!("{}/{TRIALS}/{trial:05}", self.storage.trim_end_matches('/')),
            false => folder_of(&self.study, trial).to_string_lossy().into_owned(),
        }
    }

    fn start(&self, job: &Job, attempt: u32, restore: Restore) -> Start {
        let Experiment { run, checkpoint, failure, .. } = &self.experiment;
        Start {
            experiment: TRIALS.into(),
            run: format!("{:05}", job.trial),
            folder: folder_of(&self.study, job.trial),
            storage: self.storage_of(job.trial),
            attempt,
            generation: self.era + job.incarnation * 100 + u64::from(attempt),
            config: job.config.clone(),
            seed: run.seed,
            restore,
            checkpoint: checkpoint.clone(),
            failure: failure.clone(),
            stop: run.stop.clone(),
            spent_seconds: 0.0,
            fast_dev_run: run.fast_dev_run,
            lockstep: self.lockstep,
        }
    }
}

/// Runs trials on workers that are kept.
pub(crate) struct PoolExecutor {
    shared: Arc<Shared>,
    runtime: Runtime,
    workers: Vec<JoinHandle<()>>,
    running: BTreeMap<u32, mpsc::UnboundedSender<Wish>>,
}

/// What a pool is made of.
pub(crate) struct PoolPlan {
    pub(crate) trainer: Trainer,
    pub(crate) lockstep: bool,
    pub(crate) study: PathBuf,
    pub(crate) storage: String,
    pub(crate) site: Site,
    pub(crate) workers: usize,
    /// How often the study was opened.
    pub(crate) epoch: u64,
    pub(crate) to: Sender<Heard>,
}

impl PoolExecutor {
    /// A pool whose workers are started by their first trial.
    pub(crate) fn start(plan: PoolPlan, runtime: Runtime) -> Result<Self> {
        let PoolPlan { trainer, lockstep, study, storage, site, workers, epoch, to } = plan;
        let shared = Arc::new(Shared {
            experiment: trainer.experiment().clone(),
            study: study.clone(),
            storage,
            lockstep,
            era: epoch * 1_000_000_000,
            waiting: Mutex::default(),
            news: Notify::new(),
            to,
        });
        let work = |index: usize| {
            let name = format!("worker-{index}");
            let crew = trainer.kept_crew(&site, &name, study.join("logs").join(&name))?;
            Ok(runtime.spawn(Worker { shared: shared.clone(), crew }.work()))
        };
        let workers = (0..workers).map(work).collect::<Result<_>>()?;
        Ok(PoolExecutor { shared, runtime, workers, running: BTreeMap::new() })
    }

    fn wish(&self, trial: u32, wish: Wish) {
        if let Some(orders) = self.running.get(&trial) {
            orders.send(wish).ok();
        }
    }

    fn launch(&mut self, (trial, incarnation): (u32, u64), config: Value, restore: Option<Checkpoint>) {
        let before = restore.as_ref().map_or(0, |checkpoint| checkpoint.resource);
        let restore = match restore {
            // By name: what a driver that died was ahead of its log is not gone on from.
            Some(Checkpoint { owner, id, .. }) if owner == trial => Restore::Named(id),
            Some(Checkpoint { owner, id, resource }) => {
                let storage = self.shared.storage_of(owner);
                Restore::From { storage, checkpoint: id, iteration: resource }
            }
            None => Restore::Nothing,
        };
        let (sender, orders) = mpsc::unbounded_channel();
        self.running.retain(|_, orders| !orders.is_closed());
        self.running.insert(trial, sender);
        let job = Job { trial, incarnation, config, restore, before, orders };
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
        self.shared.news.notify_one();
    }
}

impl Executor for PoolExecutor {
    /// Workers end with this process, and a trial goes on from the checkpoint that the log names.
    fn outlives(&self) -> bool {
        false
    }

    fn obey(&mut self, task: Task) -> Result<()> {
        let Task { incarnation, order } = task;
        match order {
            Order::Launch { trial, config, restore, .. } => {
                self.launch((trial, incarnation), config, restore)
            }
            Order::GoOn { trial } => self.wish(trial, Wish::GoOn),
            Order::Pause { trial } => self.wish(trial, Wish::Leave(StopReason::Paused)),
            Order::Stop { trial } => self.wish(trial, Wish::Leave(StopReason::Scheduler)),
            Order::Kill { trial } => self.wish(trial, Wish::Kill),
            // The crews of a pool are all alike: it goes on as it is.
            Order::Resize { trial, .. } => {
                tell(&self.shared.to, trial, incarnation, Input::Started { trial, attempt: 0 });
                self.wish(trial, Wish::GoOn);
            }
        }
        Ok(())
    }

    fn interrupt(&mut self, trial: u32) {
        self.wish(trial, Wish::Leave(StopReason::User));
    }

    fn end(&mut self) {
        self.workers.iter().for_each(JoinHandle::abort);
        let workers = std::mem::take(&mut self.workers);
        let gone = self.runtime.block_on(async {
            tokio::time::timeout(GOING, async {
                for worker in workers {
                    // Its crew went with it, and with that its processes.
                    let _ = worker.await;
                }
            })
            .await
        });
        if gone.is_err() {
            tracing::warn!("workers were not gone within {GOING:?}; they end with this process");
        }
    }
}

/// One crew of the pool.
struct Worker {
    shared: Arc<Shared>,
    crew: Box<dyn Crew>,
}

/// What is known of the trial at work.
struct Attempt {
    merger: Merger,
    begun: Instant,
    /// Reports of this attempt.
    reports: u64,
    before: u64,
    stopped: Option<StopReason>,
    /// The last that was committed, and how many reports led to it.
    checkpoint: Option<(String, u64)>,
}

/// How an attempt ended.
enum End {
    Input(Input),
    Failed(String),
    Killed,
}

impl Worker {
    async fn work(mut self) {
        loop {
            let news = self.shared.clone();
            let notified = news.news.notified();
            match self.shared.next() {
                Some(job) => {
                    // Whoever else waits is not to miss the next.
                    self.shared.news.notify_one();
                    self.run(job).await;
                }
                None => notified.await,
            }
        }
    }

    /// Runs a trial, and again from its last checkpoint if that fails within the budget.
    async fn run(&mut self, mut job: Job) {
        let (trial, incarnation) = (job.trial, job.incarnation);
        let (mut restore, mut before) = (job.restore.clone(), job.before);
        let most = self.shared.experiment.failure.max_failures;
        let mut first = None;
        for attempt in 1..=most + 1 {
            let start = self.shared.start(&job, attempt, restore.clone());
            let mut known = Attempt {
                merger: Merger::new(0, Duration::ZERO),
                begun: Instant::now(),
                reports: 0,
                before,
                stopped: None,
                checkpoint: None,
            };
            let end = match self.crew.launch(start).await {
                Ok(()) => self.attend(&mut job, attempt, &mut known).await,
                Err(error) => End::Failed(error.to_string()),
            };
            match end {
                End::Input(input) => return tell(&self.shared.to, trial, incarnation, input),
                End::Killed => return self.stop().await,
                End::Failed(why) => {
                    self.stop().await;
                    first.get_or_insert(why);
                    if let Some((checkpoint, reports)) = known.checkpoint {
                        (restore, before) = (Restore::Named(checkpoint), reports);
                    }
                }
            }
        }
        let cause = Cause::new(first.unwrap_or_else(|| "it failed".into()));
        tell(&self.shared.to, trial, incarnation, Input::Failed { trial, cause });
    }

    async fn stop(&mut self) {
        if let Err(error) = self.crew.stop(Duration::ZERO).await {
            tracing::warn!(%error, "a worker could not be ended");
        }
    }

    /// Hears a trial to its end.
    async fn attend(&mut self, job: &mut Job, attempt: u32, known: &mut Attempt) -> End {
        let trial = job.trial;
        let mut grace: Option<tokio::time::Instant> = None;
        loop {
            let late = async {
                match grace {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(wish) = job.orders.recv() => match wish {
                    Wish::GoOn => self.crew.decide(&Decision::GoOn(known.reports)),
                    Wish::Leave(reason) => {
                        let seconds = self.shared.experiment.failure.grace_seconds;
                        let length = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(30));
                        grace.get_or_insert(tokio::time::Instant::now() + length);
                        self.crew.decide(&Decision::Stop(reason));
                    }
                    Wish::Kill => return End::Killed,
                },
                event = self.crew.next() => {
                    if let Some(end) = self.happened(job, attempt, known, event) {
                        return end;
                    }
                }
                () = late => {
                    self.stop().await;
                    return End::Input(Input::Paused { trial });
                }
            }
        }
    }

    fn happened(
        &mut self,
        job: &Job,
        attempt: u32,
        known: &mut Attempt,
        event: Option<CrewEvent>,
    ) -> Option<End> {
        let (trial, incarnation) = (job.trial, job.incarnation);
        match event {
            Some(CrewEvent::Started { world_size, .. }) => {
                let seconds = self.shared.experiment.failure.report_deadline_seconds;
                let deadline = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(300));
                known.merger = Merger::new(world_size as usize, deadline);
                tell(&self.shared.to, trial, incarnation, Input::Started { trial, attempt });
                None
            }
            Some(CrewEvent::Said { rank, sequence, saying }) => {
                self.crew.acknowledge(rank, sequence);
                match self.said((trial, incarnation), known, rank, saying) {
                    Ok(()) => None,
                    Err(error) => Some(End::Failed(error.to_string())),
                }
            }
            Some(CrewEvent::Failed(failure)) => Some(End::Failed(failure.to_string())),
            Some(CrewEvent::Finished) => Some(End::Input(match known.stopped.take() {
                None | Some(StopReason::Scheduler | StopReason::Reached(_)) => Input::Finished { trial },
                Some(_) => Input::Paused { trial },
            })),
            Some(_) => None,
            None => Some(End::Failed("its workers ended without a word".into())),
        }
    }

    fn said(
        &self,
        (trial, incarnation): (u32, u64),
        known: &mut Attempt,
        rank: u32,
        saying: Saying,
    ) -> regatta_train::Result<()> {
        match saying {
            Saying::Told(FromRank::Report(report)) => {
                let merged = known.merger.report(known.begun.elapsed(), rank, report)?;
                let Some(merged) = merged else { return Ok(()) };
                known.reports = merged.index;
                let (step, mut metrics) = (merged.step, merged.metrics);
                let filled =
                    [(EPOCH, merged.epoch as f64), (ITERATION, (known.before + merged.index) as f64)];
                for (name, value) in filled {
                    if metrics.get(name).is_none() {
                        metrics.insert(name, value);
                    }
                }
                tell(&self.shared.to, trial, incarnation, Input::Reported { trial, step, metrics });
            }
            Saying::Told(FromRank::Restored { reports: Some(reports), .. }) => known.before = reports,
            Saying::Told(_) => {}
            Saying::Committed(Committed { name, step, bytes, mut metrics, reports, error: None, .. }) => {
                let iteration = known.before + reports;
                metrics.insert(ITERATION, iteration as f64);
                known.checkpoint = Some((name.clone(), iteration));
                let generation = name.parse().map_or(0, |name: CheckpointName| name.generation);
                let committed = CheckpointCommitted { id: name, step, generation, bytes, metrics };
                tell(&self.shared.to, trial, incarnation, Input::Checkpointed { trial, committed });
            }
            Saying::Committed(_) => {}
            Saying::Done(done) => {
                known.merger.done(rank)?;
                known.stopped = known.stopped.take().or(done.stopped);
            }
        }
        Ok(())
    }
}
