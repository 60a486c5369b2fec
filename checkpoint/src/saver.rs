//! Saving: the training step is stopped for one copy, a thread does the rest, and the ranks agree on how it ended.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::collect;
use crate::commit::{self, Finish};
use crate::committer::Head;
use crate::coordinator::Coordinator;
use crate::error::{Error, Result};
use crate::manifest::Encoding;
use crate::names::{self, CheckpointName, FOLDER};
use crate::plan::{Plan, Split, plan};
use crate::retention::Retention;
use crate::shard::{PieceInfo, RankJob};
use crate::staging::{HostMemory, Staging, StagingAllocator};
use crate::store::Store;
use crate::tensor::Tensor;

/// What a save does while the one before it is still under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenBusy {
    /// It waits, up to the limit configured.
    #[default]
    Wait,
    /// It is skipped, on all ranks or on none; agreeing on that costs the step a message to rank 0 and back.
    Skip,
}

/// How to save, as typed by the user.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SaverConfig {
    /// The run's generation: every restart of the run has a higher one, and fences the ones before. Without one given,
    /// the next one that is free is taken.
    pub generation: Option<u64>,
    /// A save that takes longer has failed.
    pub deadline_seconds: f64,
    /// What a save does while another one is under way.
    pub when_busy: WhenBusy,
    /// How long a save waits for the one before it.
    pub wait_seconds: f64,
    /// Which checkpoints stay.
    pub retention: Retention,
    /// How shards are stored.
    pub encoding: Encoding,
    /// The level of zstd.
    pub zstd_level: i32,
    /// A replicated tensor is not cut to shift less than this from one rank to another.
    pub min_split_bytes: u64,
    /// Threads for the staging copy; 0 for one a core, up to eight.
    pub copy_threads: usize,
    /// What to stage into.
    pub staging: HostMemory,
}

impl Default for SaverConfig {
    fn default() -> Self {
        SaverConfig {
            generation: None,
            deadline_seconds: 1800.0,
            when_busy: WhenBusy::Wait,
            wait_seconds: 60.0,
            retention: Retention::default(),
            encoding: Encoding::Plain,
            zstd_level: 1,
            min_split_bytes: 64 << 10,
            copy_threads: 0,
            staging: HostMemory::Pageable,
        }
    }
}

impl SaverConfig {
    /// Opens the store for saving, together with all ranks: takes the generation, fences the earlier ones, and tries
    /// on every rank whether it can write.
    pub fn build(self, store: Arc<dyn Store>, coordinator: Arc<dyn Coordinator>) -> Result<Saver> {
        let allocator = Arc::new(self.staging);
        self.build_with(store, coordinator, allocator)
    }

    /// The same, staging into memory of the caller's.
    pub fn build_with(
        self,
        store: Arc<dyn Store>,
        coordinator: Arc<dyn Coordinator>,
        allocator: Arc<dyn StagingAllocator>,
    ) -> Result<Saver> {
        for (name, value) in
            [("deadline_seconds", self.deadline_seconds), ("wait_seconds", self.wait_seconds)]
        {
            if !(value >= 0.0 && Duration::try_from_secs_f64(value).is_ok_and(|limit| limit < MAX_WAIT)) {
                return Err(Error::Invalid(format!("`{name}` is {value}: it has to be from 0 to a year")));
            }
        }
        let deadline = Instant::now() + Duration::from_secs_f64(self.deadline_seconds);
        let (generation, nonce) = commit::enter(&*store, &*coordinator, self.generation, deadline)?;
        let shared = Arc::new(Shared::default());
        let (jobs, queue) = mpsc::channel();
        let worker = Worker {
            store: store.clone(),
            coordinator: coordinator.clone(),
            retention: self.retention.clone(),
            shared: shared.clone(),
        };
        std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || worker.run(&queue))
            .map_err(Error::io("start", "the writing thread"))?;
        Ok(Saver {
            config: self,
            store,
            coordinator,
            allocator,
            shared,
            jobs,
            generation,
            nonce,
            count: 0,
            parent: None,
        })
    }
}

const MAX_WAIT: Duration = Duration::from_secs(366 * 24 * 3600);

/// What to save, on this rank.
#[derive(Debug, Clone)]
pub struct Save<'a> {
    step: u64,
    tensors: &'a [Tensor<'a>],
    state: serde_json::Value,
    state_version: u32,
    metrics: BTreeMap<String, f64>,
}

impl<'a> Save<'a> {
    /// A save of these tensors.
    pub fn new(step: u64, tensors: &'a [Tensor<'a>]) -> Self {
        Save { step, tensors, state: serde_json::Value::Null, state_version: 0, metrics: BTreeMap::new() }
    }

    /// Adds this rank's own state (epoch, random generators, position in the data) and the version of its form.
    /// Floating-point numbers come back bit for bit; NaN and infinities do not exist in JSON and come back as null.
    pub fn state(mut self, version: u32, state: &impl Serialize) -> Result<Self> {
        self.state = serde_json::to_value(state)
            .map_err(|error| Error::Invalid(format!("the state cannot be written as JSON: {error}")))?;
        self.state_version = version;
        Ok(self)
    }

    /// Adds a metric; rank 0's are kept.
    pub fn metric(mut self, name: impl Into<String>, value: f64) -> Self {
        self.metrics.insert(name.into(), value);
        self
    }
}

/// What a save cost and made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaveReport {
    /// The checkpoint's name.
    pub name: String,
    /// The step.
    pub step: u64,
    /// Seconds the caller was stopped for the staging copy.
    pub blocked_seconds: f64,
    /// Seconds the caller was stopped before that, by the save under way and by growing the buffer.
    pub waited_seconds: f64,
    /// Bytes this rank staged.
    pub staged_bytes: u64,
    /// Bytes this rank wrote.
    pub written_bytes: u64,
    /// Bytes of all ranks, as rank 0 knows them; on the others, their own.
    pub all_bytes: u64,
    /// Seconds this rank wrote and synced.
    pub write_seconds: f64,
    /// Gigabytes a second of that.
    pub write_gb_s: f64,
    /// Seconds from the caller's request to the commit.
    pub total_seconds: f64,
    /// Seconds between the requests of this checkpoint and of the one before; what a crash just before this commit
    /// would have cost.
    pub interval_seconds: Option<f64>,
}

/// What became of a call to [`Saver::save`].
#[derive(Debug)]
pub enum Saved {
    /// It is under way.
    Started(Ticket),
    /// It was skipped, because the save of this step was still under way.
    Skipped {
        /// The step.
        busy_with: Option<u64>,
    },
}

impl Saved {
    /// Waits for the outcome; a skipped save is none.
    pub fn wait(self, limit: Duration) -> Result<Option<SaveReport>> {
        match self {
            Saved::Started(ticket) => ticket.wait(limit).map(Some),
            Saved::Skipped { .. } => Ok(None),
        }
    }
}

/// A save under way.
#[derive(Debug)]
pub struct Ticket {
    step: u64,
    slot: Arc<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    outcome: Mutex<Option<Result<SaveReport>>>,
    changed: Condvar,
}

impl Ticket {
    /// Whether the outcome is there.
    pub fn is_done(&self) -> bool {
        lock(&self.slot.outcome).is_some()
    }

    /// Waits for the outcome. Success means that the checkpoint is committed and survives a power cut.
    pub fn wait(self, limit: Duration) -> Result<SaveReport> {
        let outcome = lock(&self.slot.outcome);
        let (mut outcome, _) = self
            .slot
            .changed
            .wait_timeout_while(outcome, limit, |outcome| outcome.is_none())
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        outcome.take().unwrap_or_else(|| {
            Err(Error::Timeout {
                what: format!("the save of step {}", self.step),
                seconds: limit.as_secs_f64(),
            })
        })
    }
}

/// Totals since the saver was built.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SaverStats {
    /// Saves that were committed.
    pub committed: u64,
    /// Saves that were skipped.
    pub skipped: u64,
    /// Saves that failed.
    pub failed: u64,
    /// The last failure.
    pub last_failure: Option<String>,
    /// Seconds since the newest committed state was handed over: what a crash now would cost.
    pub age_seconds: Option<f64>,
    /// The step being saved.
    pub in_flight: Option<u64>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    stats: SaverStats,
    flight: Option<Flight>,
    committed_at: Option<Instant>,
    last_name: Option<String>,
    /// Checkpoints that were collected and not asked about yet.
    removed: Vec<String>,
    /// The buffer, when no save uses it.
    staging: Option<Staging>,
}

struct Flight {
    step: u64,
    deadline: Instant,
    since: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Job {
    head: Head,
    key: String,
    deadline: Instant,
    begun: Instant,
    blocked: Duration,
    waited: Duration,
    slot: Arc<Slot>,
    /// What to write, or why this rank has nothing to.
    rank_job: std::result::Result<RankJob, String>,
}

/// Saves checkpoints, one at a time. Every rank has one, and all call [`Saver::save`] for the same steps.
pub struct Saver {
    config: SaverConfig,
    store: Arc<dyn Store>,
    coordinator: Arc<dyn Coordinator>,
    allocator: Arc<dyn StagingAllocator>,
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    generation: u64,
    nonce: String,
    count: u64,
    parent: Option<String>,
}

impl Saver {
    /// Starts a save. When this returns, the tensors may change again; the rest happens in the background, and its
    /// outcome is the ticket's. A collective: an error on one rank makes the save fail on all, and the run may go on.
    pub fn save(&mut self, save: &Save<'_>) -> Result<Saved> {
        let begun = Instant::now();
        self.count += 1;
        let key = format!("save/{}/{}", self.nonce, self.count);
        if self.config.when_busy == WhenBusy::Skip && self.agree_to_skip(&key)? {
            let mut state = lock(&self.shared.state);
            state.stats.skipped += 1;
            return Ok(Saved::Skipped { busy_with: state.flight.as_ref().map(|flight| flight.step) });
        }
        let mut staging = self.claim(save.step, begun)?;
        let (slot, head) = (Arc::new(Slot::default()), self.head(save));
        let name = head.name.clone();
        let staged = self.stage(save, &name, &mut staging);
        let (rank_job, error, blocked, waited) = match staged {
            Ok((mut job, copied_from)) => {
                job.staging = staging;
                (Ok(job), None, copied_from.elapsed(), copied_from - begun)
            }
            Err(error) => {
                lock(&self.shared.state).staging = Some(staging);
                (Err(error.to_string()), Some(error), Duration::ZERO, Duration::ZERO)
            }
        };
        let deadline = begun + Duration::from_secs_f64(self.config.deadline_seconds);
        let job = Job { head, key, deadline, begun, blocked, waited, slot: slot.clone(), rank_job };
        // The peers have to hear of a failure too, or they would wait.
        self.jobs.send(job).map_err(|_| Error::NotAvailable("the writing thread has died".to_owned()))?;
        match error {
            Some(error) => Err(error),
            None => Ok(Saved::Started(Ticket { step: save.step, slot })),
        }
    }

    /// Makes the staging buffer now, so that the first save does not have to: faulting in fresh memory takes several
    /// times as long as the copy. For tensors such as these; no collective.
    pub fn prepare(&self, tensors: &[Tensor<'_>]) -> Result<()> {
        let (rank, world) = (self.coordinator.rank(), self.coordinator.world_size());
        let plan = plan(tensors, Split { rank, world, min_bytes: self.config.min_split_bytes })?;
        let mut state = lock(&self.shared.state);
        if state.flight.is_some() {
            return Ok(());
        }
        state.staging.get_or_insert_default().reserve(plan.total, &*self.allocator)
    }

    /// Says which checkpoint the run was resumed from; the next one names it as its parent.
    pub fn resumed_from(&mut self, name: &CheckpointName) {
        self.parent = Some(name.to_string());
    }

    /// The generation this saver writes.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Totals so far.
    pub fn stats(&self) -> SaverStats {
        let state = lock(&self.shared.state);
        let mut stats = state.stats.clone();
        stats.in_flight = state.flight.as_ref().map(|flight| flight.step);
        stats.age_seconds = state.committed_at.map(|at| at.elapsed().as_secs_f64());
        stats
    }

    /// The checkpoints that were collected after this saver's commits since the last call.
    pub fn take_removed(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.state).removed)
    }

    /// Waits until nothing is under way, old checkpoints collected included.
    pub fn finish(&self, limit: Duration) -> Result<()> {
        let state = lock(&self.shared.state);
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, limit, |state| state.flight.is_some())
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match &state.flight {
            None => Ok(()),
            Some(flight) => {
                let what = format!("the save of step {}", flight.step);
                Err(Error::Timeout { what, seconds: limit.as_secs_f64() })
            }
        }
    }

    /// Whether any rank is busy, as all ranks then agree.
    fn agree_to_skip(&self, key: &str) -> Result<bool> {
        let deadline = Instant::now() + Duration::from_secs_f64(self.config.wait_seconds);
        let busy = u8::from(lock(&self.shared.state).flight.is_some());
        let key = format!("{key}/busy");
        let all = self.coordinator.gather(&key, vec![busy], deadline)?;
        let any = u8::from(all.iter().any(|busy| busy != &[0]));
        Ok(self.coordinator.broadcast(&key, vec![any], deadline)? != [0])
    }

    /// Waits until the save before is over, and takes the buffer.
    fn claim(&self, step: u64, begun: Instant) -> Result<Staging> {
        let limit = begun + Duration::from_secs_f64(self.config.wait_seconds);
        let mut state = lock(&self.shared.state);
        loop {
            let Some(flight) = &state.flight else {
                let deadline = begun + Duration::from_secs_f64(self.config.deadline_seconds);
                state.flight = Some(Flight { step, deadline, since: begun });
                return Ok(state.staging.take().unwrap_or_default());
            };
            let now = Instant::now();
            if now >= flight.deadline {
                let seconds = (now - flight.since).as_secs_f64();
                return Err(Error::Hung { step: flight.step, seconds, store: self.store.location() });
            }
            let until = limit.min(flight.deadline);
            if now >= limit {
                let what =
                    format!("the save of step {}, which the save of step {step} waited for,", flight.step);
                return Err(Error::Timeout { what, seconds: self.config.wait_seconds });
            }
            state = match self.shared.changed.wait_timeout(state, until - now) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn head(&self, save: &Save<'_>) -> Head {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let parent = lock(&self.shared.state).last_name.clone();
        Head {
            name: CheckpointName {
                step: save.step,
                generation: self.generation,
                id: format!("{:04x}{}", self.count, self.nonce),
            },
            parent: parent.or_else(|| self.parent.clone()),
            created_ms: since.as_millis() as u64,
            state_version: save.state_version,
        }
    }

    /// The copy, and when it began: the first save also has to fault the buffer in.
    fn stage(
        &self,
        save: &Save<'_>,
        name: &CheckpointName,
        staging: &mut Staging,
    ) -> Result<(RankJob, Instant)> {
        let (rank, world) = (self.coordinator.rank(), self.coordinator.world_size());
        let plan = plan(save.tensors, Split { rank, world, min_bytes: self.config.min_split_bytes })?;
        let mut state = serde_json::to_vec(&save.state).map_err(|error| Error::Invalid(error.to_string()))?;
        state.push(b'\n');
        staging.reserve(plan.total, &*self.allocator)?;
        let from = Instant::now();
        staging.fill(&plan, save.tensors, self.threads())?;
        let job = RankJob {
            rank,
            world,
            folder: name.folder(),
            encoding: self.config.encoding,
            level: self.config.zstd_level,
            staging: Staging::default(),
            head: plan.head.len(),
            pieces: infos(&plan, save.tensors),
            replicated: plan.replicated,
            state,
            metrics: save.metrics.clone(),
        };
        Ok((job, from))
    }

    fn threads(&self) -> usize {
        match self.config.copy_threads {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(8)),
            threads => threads,
        }
    }
}

impl Drop for Saver {
    /// Waits for the save under way, within limits: a program that ends should not lose its last checkpoint by that.
    fn drop(&mut self) {
        let limit = Duration::from_secs_f64(self.config.wait_seconds);
        if let Err(error) = self.finish(limit) {
            tracing::error!(%error, "the last save was left behind");
        }
    }
}

impl std::fmt::Debug for Saver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saver")
            .field("store", &self.store)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

fn infos(plan: &Plan, tensors: &[Tensor<'_>]) -> Vec<PieceInfo> {
    let info = |piece: &crate::plan::Planned| {
        let tensor = &tensors[piece.tensor];
        PieceInfo {
            tensor: tensor.name.to_owned(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
            region: piece.region.clone(),
            start: piece.start,
            bytes: piece.bytes,
        }
    };
    plan.pieces.iter().map(info).collect()
}

/// The thread behind a saver.
struct Worker {
    store: Arc<dyn Store>,
    coordinator: Arc<dyn Coordinator>,
    retention: Retention,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(&self, queue: &Receiver<Job>) {
        let mut before: Option<Instant> = None;
        while let Ok(mut job) = queue.recv() {
            let outcome = self.save(&job, before);
            if let Ok(rank_job) = &mut job.rank_job {
                lock(&self.shared.state).staging = Some(std::mem::take(&mut rank_job.staging));
            }
            let committed = outcome.is_ok();
            if committed {
                before = Some(job.begun);
            }
            self.publish(&job, outcome);
            if committed && self.coordinator.rank() == 0 {
                self.tidy(&job.head.name);
            }
            lock(&self.shared.state).flight = None;
            self.shared.changed.notify_all();
        }
    }

    fn save(&self, job: &Job, before: Option<Instant>) -> Result<SaveReport> {
        let started = Instant::now();
        let written = match &job.rank_job {
            Ok(rank_job) => {
                commit::write_rank(&*self.store, &job.head.name, rank_job).map_err(|e| e.to_string())
            }
            Err(reason) => Err(reason.clone()),
        };
        let wrote = started.elapsed().as_secs_f64();
        let (staged_bytes, written_bytes) = match (&job.rank_job, &written) {
            (Ok(job), Ok(report)) => {
                (job.staging.bytes().len() as u64, report.shard.size + report.state.size)
            }
            _ => (0, 0),
        };
        let finish = Finish { head: &job.head, key: &job.key, deadline: job.deadline };
        let all_bytes = commit::finish(&*self.store, &*self.coordinator, &finish, written)?;
        Ok(SaveReport {
            name: job.head.name.to_string(),
            step: job.head.name.step,
            blocked_seconds: job.blocked.as_secs_f64(),
            waited_seconds: job.waited.as_secs_f64(),
            staged_bytes,
            written_bytes,
            all_bytes: all_bytes.unwrap_or(written_bytes),
            write_seconds: wrote,
            write_gb_s: written_bytes as f64 / 1e9 / wrote.max(1e-9),
            total_seconds: job.begun.elapsed().as_secs_f64(),
            interval_seconds: before.map(|before| (job.begun - before).as_secs_f64()),
        })
    }

    fn publish(&self, job: &Job, outcome: Result<SaveReport>) {
        let mut state = lock(&self.shared.state);
        match &outcome {
            Ok(report) => {
                tracing::info!(name = report.name, seconds = report.total_seconds, "checkpoint committed");
                state.stats.committed += 1;
                state.committed_at = Some(job.begun);
                state.last_name = Some(report.name.clone());
            }
            Err(error) => {
                tracing::error!(step = job.head.name.step, %error, "checkpoint not saved");
                state.stats.failed += 1;
                state.stats.last_failure = Some(error.to_string());
            }
        }
        drop(state);
        *lock(&job.slot.outcome) = Some(outcome);
        job.slot.changed.notify_all();
    }

    /// The hint and the collection: their failure costs space, not data.
    fn tidy(&self, name: &CheckpointName) {
        if let Err(error) = self.store.replace(names::LATEST, format!("{FOLDER}/{name}\n").as_bytes()) {
            tracing::warn!(%error, "could not write {}", names::LATEST);
        }
        let policy =
            collect::Policy { retention: &self.retention, torn: collect::Torn::Fenced, live: Some(name) };
        match collect::plan(&*self.store, &policy) {
            Ok(plan) => {
                let collected = collect::carry_out(&*self.store, &plan);
                for failure in collected.failures {
                    tracing::warn!(%failure, "could not collect a checkpoint");
                }
                lock(&self.shared.state).removed.extend(collected.removed);
            }
            Err(error) => tracing::warn!(%error, "could not look for checkpoints to collect"),
        }
    }
}
