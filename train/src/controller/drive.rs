//! The loop around a run's [`Machine`]: it hears the crew, the clock and whoever gives orders, does what the machine
//! decides, and stores what happened before anybody is told that it is safe.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use regatta_checkpoint::catalog;
use regatta_cluster::{CauseKind, Failure};
use regatta_track::event::{
    Cause, CheckpointCommitted, CheckpointDeleted, Decision as Decided, Report, RunEnvironment,
};
use regatta_track::{Draft, Metrics, Reader, Timestamp};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::books::{Books, Opening};
use super::ledger::{ITERATION, Ledger};
use super::machine::{Action, Ending, Input, Machine, Phase, Plan, Problem, ProblemKind, Status};
use super::merge::{Merged, Merger};
use super::receipts::Receipts;
use crate::callback::{Callback, RunEvent};
use crate::config::Experiment;
use crate::crew::{Crew, CrewEvent, Saying};
use crate::environment::Environment;
use crate::folder::RunFolder;
use crate::handle::Order;
use crate::preflight::NOT_SHARED;
use crate::wire::{Committed, Decision, Done, FromRank, RankReport, Restore, Start, StopReason};
use crate::{Error, Result};

/// The metric that says how long the run took so far, over all attempts.
pub(crate) const TIME_TOTAL: &str = "time_total";
/// The metric that says how long a report's steps took.
const TIME_ITERATION: &str = "time_iteration";
/// The metric that says which epoch is under way, from 0.
const EPOCH: &str = "epoch";

/// How long a storage may take to list its checkpoints.
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// How much longer than its grace the end of a crew may take.
const DOWN_WITHIN: Duration = Duration::from_secs(60);
/// The exit code of a worker whose program does not know that it is one.
pub(crate) const NOT_A_WORKER: i32 = 78;

/// What a run is driven with.
pub(crate) struct Parts {
    pub(crate) experiment: Experiment<Value>,
    pub(crate) folder: RunFolder,
    pub(crate) resume: bool,
    pub(crate) restore: Restore,
    pub(crate) crew: Box<dyn Crew>,
    pub(crate) callbacks: Vec<Box<dyn Callback>>,
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    pub(crate) lockstep: bool,
}

/// What is known of the attempt that is on.
#[derive(Default)]
struct Attempt {
    /// Reports of the run before it, on the way to the state it took up.
    before: u64,
    /// Rank 0's reports: the step of each that is later than the last checkpoint, and its number.
    made: VecDeque<(u64, u64)>,
    /// Rank 0's clock at the last merged report.
    seconds: f64,
    value: Value,
    stopped: Option<StopReason>,
}

/// A run at work.
struct Drive {
    parts: Parts,
    machine: Machine,
    books: Books,
    origin: Instant,
    actions: VecDeque<Action>,
    merger: Merger,
    receipts: Receipts,
    attempt: Attempt,
    environment: Option<JoinHandle<Environment>>,
    orders_open: bool,
}

/// Drives a run to its end. An error is that it could not be begun; how it went is in the ending.
pub(crate) async fn drive(mut parts: Parts) -> Result<Ending> {
    let (folder, resume) = (parts.folder.clone(), parts.resume);
    let config = serde_json::to_value(&parts.experiment)
        .map_err(|error| Error::other("write the configuration as JSON", error))?;
    let mut books = Books::open(Opening { folder: folder.clone(), resume, config });
    let ledger = if resume { books.ready().await?.ledger.clone() } else { Ledger::default() };
    let seed = parts.experiment.run.seed;
    let path = folder.path.clone();
    let environment = tokio::task::spawn_blocking(move || Environment::record(seed, &path));
    let begun = RunEvent::Begun {
        experiment: &folder.experiment,
        run: &folder.name,
        folder: &folder.path,
        seed,
        resumed: resume,
    };
    parts.callbacks.iter_mut().for_each(|callback| callback.on(&begun));
    let restore = match &parts.restore {
        // Though nothing may be known of it: a store that was brought back can be older than its checkpoints.
        Restore::Nothing if resume => Restore::Newest,
        other => other.clone(),
    };
    let plan = Plan {
        run: format!("{}/{}", folder.experiment, folder.name),
        failure: parts.experiment.failure.clone(),
        stop: parts.experiment.run.stop.clone(),
        restore,
        world_size: parts.experiment.scaling.workers.max() as u32,
        rehearsal: parts.experiment.run.fast_dev_run,
    };
    let drive = Drive {
        machine: Machine::new(plan, ledger, Timestamp::now()),
        parts,
        books,
        origin: Instant::now(),
        actions: VecDeque::new(),
        merger: Merger::new(0, Duration::ZERO),
        receipts: Receipts::default(),
        attempt: Attempt::default(),
        environment: Some(environment),
        orders_open: true,
    };
    drive.run().await
}

impl Drive {
    async fn run(mut self) -> Result<Ending> {
        if self.parts.resume {
            self.compare().await;
        }
        self.feed(Input::Begin).await;
        while self.machine.phase() != Phase::Ended {
            match self.actions.pop_front() {
                Some(action) => self.perform(action).await,
                None => self.wait().await,
            }
        }
        let Drive { parts: Parts { mut callbacks, .. }, machine, mut books, mut environment, .. } = self;
        let mut ending =
            machine.into_ending().unwrap_or(Ending { status: Status::Failed, error: None, value: None });
        if let Some(handle) = environment.take()
            && let Ok(environment) = handle.await
        {
            // Should the store be broken, its closing says so.
            books.append(environment_event(&environment)).await.ok();
            callbacks.iter_mut().for_each(|callback| callback.on(&RunEvent::Environment(&environment)));
        }
        if let Err(error) = books.close().await {
            ending.error.get_or_insert(error);
        }
        callbacks.iter_mut().for_each(|callback| callback.on(&RunEvent::Ended { status: &ending.status }));
        Ok(ending)
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn tell(&mut self, event: &RunEvent<'_>) {
        self.parts.callbacks.iter_mut().for_each(|callback| callback.on(event));
    }

    /// Gives the machine what was seen, stores what happened, and keeps what is to be done.
    async fn feed(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let phase = self.machine.phase();
            let output = self.machine.handle(self.now(), input);
            self.actions.extend(output.actions);
            for draft in output.events {
                if let Err(error) = self.books.append(draft).await {
                    next = Some(Input::Broken(error));
                }
            }
            self.tell_phase(phase);
        }
    }

    fn tell_phase(&mut self, before: Phase) {
        let after = self.machine.phase();
        if before == after {
            return;
        }
        if let (Phase::Stopping, Some(reason)) = (after, self.machine.stopping().cloned()) {
            let grace =
                Duration::try_from_secs_f64(self.parts.experiment.failure.grace_seconds).unwrap_or_default();
            self.tell(&RunEvent::Stopping { reason: &reason, grace });
        }
        if after == Phase::Recovering {
            let wait = self.machine.backoff_left();
            self.tell(&RunEvent::Recovering { wait });
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Decide(decision) => self.parts.crew.decide(&decision),
            Action::Launch { attempt, generation, restore, spent } => {
                let start = self.start(attempt, generation, restore, spent);
                self.launch(start).await;
            }
            Action::TakeDown { grace } => self.take_down(grace).await,
        }
    }

    fn start(&self, attempt: u32, generation: u64, restore: Restore, spent: Duration) -> Start {
        let Experiment { config, run, checkpoint, failure, .. } = &self.parts.experiment;
        let folder = &self.parts.folder;
        Start {
            experiment: folder.experiment.clone(),
            run: folder.name.clone(),
            folder: folder.path.clone(),
            storage: folder.storage.clone(),
            attempt,
            generation,
            config: config.clone(),
            seed: run.seed,
            restore,
            checkpoint: checkpoint.clone(),
            failure: failure.clone(),
            stop: run.stop.clone(),
            spent_seconds: spent.as_secs_f64(),
            fast_dev_run: run.fast_dev_run,
            lockstep: self.parts.lockstep,
        }
    }

    /// Launches a crew, as long as nobody wants the run to stop. The workers do not begin before the attempt's number is
    /// on the disk, since it must never be used twice; that they are made meanwhile costs nothing.
    async fn launch(&mut self, start: Start) {
        let (launched, order) = {
            let Drive { parts: Parts { crew, orders, .. }, books, .. } = self;
            let launching = async {
                let (launched, stored) = tokio::join!(crew.launch(start), books.ready());
                (launched, stored.map(drop))
            };
            tokio::pin!(launching);
            loop {
                tokio::select! {
                    biased;
                    Some(order) = orders.recv() => {
                        if !matches!(order, Order::Save | Order::GoOn(_)) {
                            break (None, Some(order));
                        }
                    }
                    launched = &mut launching => break (Some(launched), None),
                }
            }
        };
        let input = match (launched, order.and_then(Order::input)) {
            (_, Some(input)) => input,
            (Some((_, Err(error))), _) => Input::Broken(error),
            (Some((Err(error), _)), _) => Input::Failed(Problem::new(ProblemKind::Fatal, error)),
            _ => Input::Placed,
        };
        self.feed(input).await;
    }

    async fn take_down(&mut self, grace: Duration) {
        if !grace.is_zero() && self.books.settle().await.is_ok() {
            self.acknowledge();
        }
        let stopping = tokio::time::timeout(grace + DOWN_WITHIN, self.parts.crew.stop(grace));
        let gone = stopping.await.unwrap_or_else(|_| {
            let waited = grace + DOWN_WITHIN;
            let detail = ": something of them hangs in the kernel".into();
            Err(regatta_cluster::Error::Timeout { operation: "the end of the workers", waited, detail }
                .into())
        });
        self.compare().await;
        self.feed(Input::Gone(gone)).await;
    }

    /// Waits for whatever comes first.
    async fn wait(&mut self) {
        let deadline = [self.machine.deadline(), self.merger.deadline()].into_iter().flatten().min();
        let deadline = deadline.map(|at| tokio::time::Instant::from_std(self.origin + at));
        let up = matches!(self.machine.phase(), Phase::Joining | Phase::Running | Phase::Stopping);
        let clock = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        enum Seen {
            Order(Option<Order>),
            Stored(Result<()>),
            Crew(Option<CrewEvent>),
            Environment(Option<Environment>),
            Time,
        }
        let seen = {
            let Drive { parts: Parts { crew, orders, .. }, books, environment, orders_open, .. } = self;
            let known = async {
                match environment {
                    Some(handle) => handle.await.ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                order = orders.recv(), if *orders_open => Seen::Order(order),
                stored = books.progress() => Seen::Stored(stored),
                event = crew.next(), if up => Seen::Crew(event),
                found = known => Seen::Environment(found),
                () = clock => Seen::Time,
            }
        };
        match seen {
            Seen::Order(Some(order)) => self.order(order).await,
            Seen::Order(None) => self.orders_open = false,
            Seen::Stored(Ok(())) => self.acknowledge(),
            Seen::Stored(Err(error)) => self.feed(Input::Broken(error)).await,
            Seen::Crew(event) => self.crew(event).await,
            Seen::Environment(found) => self.found(found).await,
            Seen::Time => {
                let overdue = self.merger.overdue(self.now());
                match overdue {
                    Err(error) if up => self.failed(ProblemKind::Failure, error).await,
                    _ => self.feed(Input::Tick).await,
                }
            }
        }
    }

    async fn order(&mut self, order: Order) {
        // Ranks count the reports of their attempt.
        if let Order::GoOn(iteration) = order {
            let report = iteration.saturating_sub(self.attempt.before);
            self.parts.crew.decide(&Decision::GoOn(report));
        } else if let Some(input) = order.input() {
            self.feed(input).await;
        }
    }

    async fn found(&mut self, environment: Option<Environment>) {
        self.environment = None;
        let Some(environment) = environment else { return };
        if let Err(error) = self.books.append(environment_event(&environment)).await {
            self.feed(Input::Broken(error)).await;
        }
        self.tell(&RunEvent::Environment(&environment));
    }

    fn acknowledge(&mut self) {
        for (rank, sequence) in self.receipts.due(self.books.committed()) {
            self.parts.crew.acknowledge(rank, sequence);
        }
    }

    async fn failed(&mut self, kind: ProblemKind, error: Error) {
        let problem = Problem::new(kind, error);
        self.failed_with(problem).await;
    }

    async fn failed_with(&mut self, problem: Problem) {
        let (attempt, text) = (self.machine.ledger().attempt, problem.error.to_string());
        // No rank is waited for any more.
        self.merger = Merger::new(0, Duration::ZERO);
        self.tell(&RunEvent::Failed { attempt, error: &text });
        self.feed(Input::Failed(problem)).await;
    }

    async fn crew(&mut self, event: Option<CrewEvent>) {
        match event {
            Some(CrewEvent::Started { world_size, about }) => {
                let deadline = self.parts.experiment.failure.report_deadline_seconds;
                let deadline = Duration::try_from_secs_f64(deadline).unwrap_or(Duration::from_secs(300));
                self.merger = Merger::new(world_size as usize, deadline);
                (self.receipts, self.attempt) = (Receipts::default(), Attempt::default());
                let attempt = self.machine.ledger().attempt;
                self.tell(&RunEvent::Started { attempt, world_size, about: &about });
                self.feed(Input::Started { world_size }).await;
            }
            Some(CrewEvent::Said { rank, sequence, saying }) => self.said(rank, sequence, saying).await,
            Some(CrewEvent::Line { rank, text }) => self.tell(&RunEvent::Line { rank, text: &text }),
            Some(CrewEvent::Failed(failure)) => self.failed_with(problem_of(*failure)).await,
            Some(CrewEvent::Finished) => {
                let Attempt { value, stopped, .. } = std::mem::take(&mut self.attempt);
                self.feed(Input::Finished { value, stopped }).await;
            }
            None => {
                let why =
                    "the crew ended without a word: this is a fault of the program, not of its configuration";
                self.failed(ProblemKind::Failure, Error::other("drive the run", why)).await;
            }
        }
    }

    async fn said(&mut self, rank: u32, sequence: u64, saying: Saying) {
        match saying {
            Saying::Told(FromRank::Report(report)) => {
                self.receipts.waiting(rank, sequence);
                self.reported(rank, report).await;
                return;
            }
            Saying::Told(FromRank::Progress(progress)) => self.tell(&RunEvent::Progress(&progress)),
            Saying::Told(FromRank::Restored { checkpoint, step, reports, damaged }) => {
                self.restored(checkpoint, step, reports, damaged).await;
            }
            Saying::Committed(committed) => self.committed(committed).await,
            Saying::Done(done) => self.done(rank, done).await,
        }
        let until = self.books.appended();
        self.receipts.stored(rank, sequence, until);
        self.acknowledge();
    }

    async fn reported(&mut self, rank: u32, report: RankReport) {
        if rank == 0 {
            self.attempt.made.push_back((report.step, report.index));
        }
        let merged = self.merger.report(self.now(), rank, report);
        match merged {
            Ok(None) => {}
            Ok(Some(merged)) => self.merged(merged).await,
            Err(error) => self.failed(ProblemKind::Failure, error).await,
        }
    }

    async fn merged(&mut self, merged: Merged) {
        let Merged { index, step, epoch, metrics, seconds } = merged;
        let iteration = self.attempt.before + index;
        let took = seconds - std::mem::replace(&mut self.attempt.seconds, seconds);
        let total = self.machine.spent(self.now()).as_secs_f64();
        let filled = [
            (EPOCH, epoch as f64),
            (ITERATION, iteration as f64),
            (TIME_TOTAL, total),
            (TIME_ITERATION, took),
        ];
        // What the user calls so is the user's.
        let mut all: Metrics = metrics;
        for (name, value) in filled {
            if all.get(name).is_none() {
                all.insert(name, value);
            }
        }
        self.tell(&RunEvent::Report { iteration, step, epoch, metrics: &all });
        let reached = self.reached(&all);
        let draft = Draft::new(Report { step, metrics: all }).attempt(self.machine.ledger().attempt);
        match self.books.append(draft).await {
            Ok(place) => self.receipts.merged(place),
            Err(error) => return self.feed(Input::Broken(error)).await,
        }
        if let Some(what) = reached {
            self.feed(Input::Stop(StopReason::Reached(what))).await;
        }
    }

    fn reached(&self, metrics: &Metrics) -> Option<String> {
        let goals = &self.parts.experiment.run.stop.metrics;
        goals.iter().find_map(|(name, threshold)| {
            let value = metrics.get(name).filter(|&value| threshold.reached(value))?;
            Some(format!("{name} {value}"))
        })
    }

    async fn restored(
        &mut self,
        checkpoint: Option<String>,
        step: u64,
        reports: Option<u64>,
        damaged: Vec<String>,
    ) {
        let kept = checkpoint.as_deref().and_then(|name| self.machine.ledger().checkpoints.get(name));
        self.attempt.before = match (reports, kept.map(|kept| kept.iteration)) {
            (Some(reports), _) | (None, Some(Some(reports))) => reports,
            // One that was found, not told, and does not say itself: the reports know.
            (None, Some(None)) => self.iteration_at(step).await,
            (None, None) => match &self.parts.restore {
                Restore::From { checkpoint: taken, iteration, .. } if checkpoint.as_ref() == Some(taken) => {
                    *iteration
                }
                _ => 0,
            },
        };
        let event = RunEvent::Restored { checkpoint: checkpoint.as_deref(), step, damaged: &damaged };
        self.tell(&event);
        self.feed(Input::Restored { checkpoint, step, damaged }).await;
    }

    /// How many reports the run had made when it was last at this step.
    async fn iteration_at(&mut self, step: u64) -> u64 {
        if self.books.settle().await.is_err() {
            return 0;
        }
        let path = self.parts.folder.path.clone();
        let reading = tokio::task::spawn_blocking(move || -> Result<u64> {
            let points = Reader::open(path)?.snapshot()?.history(None, ITERATION)?;
            Ok(points.iter().rev().find(|point| point.step <= step).map_or(0, |point| point.value as u64))
        });
        reading.await.ok().and_then(Result::ok).unwrap_or(0)
    }

    async fn committed(&mut self, mut committed: Committed) {
        if committed.error.is_none() {
            let iteration = self.iteration_of(&committed);
            committed.metrics.insert(ITERATION, iteration as f64);
        }
        self.tell(&RunEvent::Checkpoint(&committed));
        let Committed { name, step, bytes, metrics, removed, error, .. } = committed;
        if let Some(error) = error {
            let (by, action) = ("checkpoint".into(), "save_failed".into());
            let decided = Decided { by, action, reason: error, data: serde_json::json!({ "step": step }) };
            let draft = Draft::new(decided).attempt(self.machine.ledger().attempt);
            if let Err(error) = self.books.append(draft).await {
                self.feed(Input::Broken(error)).await;
            }
            return;
        }
        let generation = self.machine.ledger().generation;
        self.feed(Input::Committed(CheckpointCommitted { id: name, step, generation, bytes, metrics })).await;
        for id in removed {
            let reason = "retention".into();
            self.feed(Input::Deleted(CheckpointDeleted { id, reason })).await;
        }
    }

    /// How many reports of the run led to a checkpoint.
    fn iteration_of(&mut self, committed: &Committed) -> u64 {
        // Reports before the one that came with an earlier checkpoint are asked for no more.
        let Attempt { before, made, .. } = &mut self.attempt;
        let last = match committed.reports {
            0 => made.iter().rev().find(|(step, _)| *step <= committed.step).map(|(_, index)| *index),
            known => Some(known),
        };
        made.retain(|(_, index)| last.is_none_or(|last| *index >= last));
        *before + last.unwrap_or(0)
    }

    async fn done(&mut self, rank: u32, done: Done) {
        if rank == 0 {
            self.attempt.value = done.value;
        }
        if let Some(reason) = done.stopped {
            self.attempt.stopped.get_or_insert(reason);
        }
        if let Err(error) = self.merger.done(rank) {
            self.failed(ProblemKind::Failure, error).await;
        }
    }

    /// Compares the checkpoints that were told with those that there are: one may have been committed just before its
    /// crew died, another may have been removed by hand.
    async fn compare(&mut self) {
        let known: Vec<String> = self.machine.ledger().checkpoints.keys().cloned().collect();
        let storage = self.parts.folder.storage.clone();
        let listing = tokio::task::spawn_blocking(move || differences(&storage, &known));
        let found = match tokio::time::timeout(LIST_WITHIN, listing).await {
            Ok(Ok(Ok(found))) => found,
            Ok(Ok(Err(error))) => return tracing::warn!(%error, "the run's checkpoints could not be listed"),
            Ok(Err(error)) => return tracing::warn!(%error, "the run's checkpoints could not be listed"),
            Err(_) => return tracing::warn!("the run's checkpoints were not listed within {LIST_WITHIN:?}"),
        };
        let Differences { committed, gone, generation } = found;
        self.feed(Input::Fence(generation)).await;
        for committed in committed {
            self.feed(Input::Committed(committed)).await;
        }
        for id in gone {
            let reason = "it is not in the storage any more".into();
            self.feed(Input::Deleted(CheckpointDeleted { id, reason })).await;
        }
    }
}

fn environment_event(environment: &Environment) -> Draft {
    Draft::new(RunEnvironment { env: serde_json::to_value(environment).unwrap_or_default() })
}

/// What the storage says otherwise than the log.
struct Differences {
    /// Checkpoints that are there and not known.
    committed: Vec<CheckpointCommitted>,
    /// Those known and not there.
    gone: Vec<String>,
    /// The newest generation that saved there, or was about to.
    generation: u64,
}

fn differences(storage: &str, known: &[String]) -> Result<Differences> {
    let store = regatta_checkpoint::store::open(storage)?;
    let names = catalog::names(&*store)?;
    let here: Vec<String> = names.iter().map(ToString::to_string).collect();
    let gone = known.iter().filter(|name| !here.contains(name)).cloned().collect();
    let mut committed = Vec::new();
    for name in names.into_iter().filter(|name| !known.contains(&name.to_string())) {
        let (id, step, generation) = (name.to_string(), name.step, name.generation);
        if let catalog::Listed { status: catalog::Status::Committed(manifest), bytes, .. } =
            catalog::inspect(&*store, name)?
        {
            // How many reports led to it is not known here, whatever the user calls so.
            let metrics = manifest.metrics.iter().filter(|(name, _)| *name != ITERATION);
            let metrics = metrics.map(|(name, value)| (name.as_str(), *value)).collect();
            committed.push(CheckpointCommitted { id, step, generation, bytes, metrics });
        }
    }
    committed.reverse();
    Ok(Differences { committed, gone, generation: catalog::newest_generation(&*store)? })
}

/// What a crew's failure counts as, and what is kept of it.
fn problem_of(failure: Failure) -> Problem {
    let root = &failure.root;
    let kind = match &root.kind {
        CauseKind::Preempted => ProblemKind::Preemption,
        CauseKind::Exited { code: NOT_A_WORKER } => ProblemKind::Fatal,
        // Wherever it is started again, the storage is the same.
        CauseKind::Error if root.message.contains(NOT_SHARED) => ProblemKind::Fatal,
        _ => ProblemKind::Failure,
    };
    let log = failure.log_tail.clone();
    let cause = Cause { rank: Some(root.rank), log, ..Cause::new(root.to_string()) };
    Problem { kind, cause, error: Error::Failed(Box::new(failure)) }
}
