//! One attempt of foreign programs: their lines and ends become what a crew tells.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use regatta_cluster::{
    Cause, CauseKind, Events, Exit, Failure, Lease, LeaseId, Reason, Spawner, Stream, WorkerEvent,
};
use regatta_track::Metrics;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::files::{self, Files, Order, Restored};
use super::line::{self, Said};
use crate::crew::{CrewEvent, Saying};
use crate::metrics::Merge;
use crate::wire::{Committed, Done, FromRank, Progress, RankReport, Start, StopReason};

/// How long the others get to end once one has failed: they may wait for it for ever.
const AFTER_FAILURE: Duration = Duration::from_secs(3);

pub(super) struct Attempt {
    start: Start,
    spawner: Arc<dyn Spawner>,
    lease: LeaseId,
    about: String,
    files: Arc<Mutex<Files>>,
    told: VecDeque<CrewEvent>,
    ended: Vec<bool>,
    causes: Vec<(Cause, Vec<String>)>,
    stopping: Option<StopReason>,
    ending: Option<JoinHandle<()>>,
    orders: VecDeque<Order>,
    saving: Option<JoinHandle<Committed>>,
    checkpoint: Option<String>,
    said: Reported,
    sequence: u64,
    over: bool,
}

/// What rank 0 said last.
#[derive(Default)]
struct Reported {
    index: u64,
    step: u64,
    epoch: u64,
    metrics: Metrics,
    first: Option<Instant>,
    last: Option<(Instant, u64)>,
}

impl Attempt {
    pub(super) fn new(start: Start, lease: &Lease, spawner: Arc<dyn Spawner>) -> Self {
        let device = if lease.seats.iter().any(|seat| !seat.gpus.is_empty()) { "gpu" } else { "cpu" };
        Attempt {
            files: Arc::new(Mutex::new(Files::new(start.clone()))),
            start,
            spawner,
            lease: lease.id,
            about: format!("{} x {device}, torchrun", lease.workers()),
            told: VecDeque::new(),
            ended: vec![false; lease.workers()],
            causes: Vec::new(),
            stopping: None,
            ending: None,
            orders: VecDeque::new(),
            saving: None,
            checkpoint: None,
            said: Reported::default(),
            sequence: 0,
            over: false,
        }
    }

    pub(super) fn started(&mut self, restored: Option<Restored>) {
        let (world_size, about) = (self.ended.len() as u32, self.about.clone());
        self.told.push_back(CrewEvent::Started { world_size, about });
        let (checkpoint, step, damaged) = match restored {
            Some(Restored { name, step, damaged, .. }) => (Some(name), step, damaged),
            None => (None, 0, Vec::new()),
        };
        (self.checkpoint, self.said.step) = (checkpoint.clone(), step);
        self.tell(0, Saying::Told(FromRank::Restored { checkpoint, step, reports: None, damaged }));
    }

    /// The next thing to tell. Whatever is under way is kept here, so that the call may be given up.
    pub(super) async fn next(&mut self, events: &mut Events) -> Option<CrewEvent> {
        loop {
            if let Some(event) = self.told.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            if self.saving.is_none()
                && let Some(order) = self.orders.pop_front()
            {
                let files = self.files.clone();
                self.saving = Some(tokio::task::spawn_blocking(move || {
                    files.lock().unwrap_or_else(PoisonError::into_inner).save(&order)
                }));
            }
            let all_ended = self.ended.iter().all(|ended| *ended);
            match &mut self.saving {
                None if all_ended => self.finish(),
                Some(saving) => tokio::select! {
                    saved = saving => self.saved(saved.unwrap_or_else(|error| Committed {
                        error: Some(format!("the thread that saves has ended: {error}")), ..Committed::default()
                    })),
                    event = events.next(), if !all_ended => self.happened(event),
                },
                None => {
                    let event = events.next().await;
                    self.happened(event);
                }
            }
        }
    }

    /// Passes the wish on, as SIGTERM; what still runs after the grace is ended.
    pub(super) fn ask_to_stop(&mut self, reason: StopReason) {
        if self.stopping.is_none() {
            let grace = Duration::try_from_secs_f64(self.start.failure.grace_seconds)
                .unwrap_or(Duration::from_secs(30));
            self.stopping = Some(reason);
            self.end_all(grace);
        }
    }

    fn end_all(&mut self, grace: Duration) {
        if self.ending.is_some() {
            return;
        }
        let (spawner, lease) = (self.spawner.clone(), self.lease);
        self.ending = Some(tokio::spawn(async move {
            if let Err(error) = spawner.kill(lease, grace).await {
                tracing::error!(%error, "a command could not be ended");
            }
        }));
    }

    /// Lets what is under way come to its end.
    pub(super) async fn close(mut self) {
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
        if let Some(ending) = self.ending.take() {
            let _ = ending.await;
        }
        let folder = self.start.folder.clone();
        let cleared = tokio::task::spawn_blocking(move || files::clear(&folder)).await;
        if let Ok(Err(error)) = cleared {
            tracing::warn!(%error, "the folders of a command could not be removed");
        }
    }

    fn tell(&mut self, rank: u32, saying: Saying) {
        self.sequence += 1;
        self.told.push_back(CrewEvent::Said { rank, sequence: self.sequence, saying });
    }

    fn saved(&mut self, committed: Committed) {
        self.saving = None;
        if committed.error.is_none() {
            self.checkpoint = Some(committed.name.clone());
        }
        self.tell(0, Saying::Committed(committed));
    }

    fn happened(&mut self, event: Option<WorkerEvent>) {
        match event {
            Some(WorkerEvent::Started { .. }) => {}
            Some(WorkerEvent::Line { slot, stream, text, dropped }) => {
                if dropped > 0 {
                    tracing::warn!(dropped, "lines of a command were left out, reports perhaps among them");
                }
                self.line(slot as u32, stream, text);
            }
            Some(WorkerEvent::Exited { slot, exit }) => self.exited(slot, exit),
            Some(WorkerEvent::Lost { slot, cause }) => self.failed(slot, CauseKind::Lost, cause, Vec::new()),
            None => {
                let missing: Vec<usize> = (0..self.ended.len()).filter(|slot| !self.ended[*slot]).collect();
                for slot in missing {
                    self.failed(slot, CauseKind::Lost, "its engine fell silent".into(), Vec::new());
                }
            }
        }
    }

    fn line(&mut self, rank: u32, stream: Stream, text: String) {
        let said = if stream == Stream::Stdout { line::read(&text) } else { None };
        match said {
            // All ranks run the same program: only one of them is asked.
            Some(Ok(said)) if rank == 0 => self.report(said),
            Some(Ok(_)) => {}
            Some(Err(why)) => {
                let text = format!("{text}   (not understood: {why})");
                self.told.push_back(CrewEvent::Line { rank, text });
            }
            None => self.told.push_back(CrewEvent::Line { rank, text }),
        }
    }

    fn report(&mut self, said: Said) {
        let Said { step, epoch, metrics, checkpoint } = said;
        let now = Instant::now();
        let last = &mut self.said;
        last.epoch = epoch.unwrap_or(last.epoch);
        if !metrics.is_empty() {
            // Who does not count steps counts reports.
            last.step = step.unwrap_or(last.step + 1);
            last.index += 1;
            last.metrics = metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            let first = *last.first.get_or_insert(now);
            let metrics =
                last.metrics.iter().map(|(name, value)| (name.clone(), value, Merge::Rank0)).collect();
            let seconds = now.duration_since(first).as_secs_f64();
            let whole =
                RankReport { index: last.index, step: last.step, epoch: last.epoch, metrics, seconds };
            let progress = last.progress(now);
            for rank in 0..self.ended.len() as u32 {
                let metrics = if rank == 0 { whole.metrics.clone() } else { Vec::new() };
                self.tell(rank, Saying::Told(FromRank::Report(RankReport { metrics, ..whole.clone() })));
            }
            self.tell(0, Saying::Told(FromRank::Progress(progress)));
        } else if let Some(step) = step {
            last.step = step;
        }
        if let Some(folder) = checkpoint {
            let (step, metrics) = (self.said.step, self.said.metrics.clone());
            self.orders.push_back(Order { folder: folder.into(), step, metrics });
        }
    }

    fn exited(&mut self, slot: usize, exit: Exit) {
        let stopped = self.stopping.clone();
        match (&exit.reason, stopped) {
            (Reason::Succeeded, _) | (_, Some(_)) => {
                self.ended[slot] = true;
                // Said once all have ended: a checkpoint may still be on its way.
            }
            // Ended by us, after another had failed.
            (Reason::Cancelled, None) if !self.causes.is_empty() => self.ended[slot] = true,
            (reason, None) => {
                let kind = match (exit.code, exit.signal) {
                    _ if matches!(reason, Reason::OutOfMemory { .. }) => CauseKind::Lost,
                    (_, Some(signal)) => CauseKind::Killed { signal },
                    (Some(code), None) => CauseKind::Exited { code },
                    (None, None) => CauseKind::Lost,
                };
                let message = match reason {
                    Reason::UserError { .. } => String::new(),
                    other => other.to_string(),
                };
                self.failed(slot, kind, message, exit.tail);
            }
        }
    }

    fn failed(&mut self, slot: usize, kind: CauseKind, message: String, tail: Vec<String>) {
        self.ended[slot] = true;
        let (attempt, generation) = (self.start.attempt, self.start.generation);
        let cause = Cause { rank: slot as u32, slot: slot as u32, attempt, generation, kind, message };
        self.causes.push((cause, tail));
        self.end_all(AFTER_FAILURE);
    }

    /// All have ended, and nothing is being saved.
    fn finish(&mut self) {
        self.over = true;
        let mut causes = std::mem::take(&mut self.causes).into_iter();
        if let Some((root, tail)) = causes.next() {
            let mut failure = Failure::new(root, causes.map(|(cause, _)| cause).collect());
            failure.log_tail = tail;
            self.told.push_back(CrewEvent::Failed(Box::new(failure)));
            return;
        }
        let (step, stopped, checkpoint) = (self.said.step, self.stopping.clone(), self.checkpoint.clone());
        for rank in 0..self.ended.len() as u32 {
            let done =
                Done { value: Value::Null, step, stopped: stopped.clone(), checkpoint: checkpoint.clone() };
            self.tell(rank, Saying::Done(done));
        }
        self.told.push_back(CrewEvent::Finished);
    }
}

impl Reported {
    fn progress(&mut self, now: Instant) -> Progress {
        let steps_per_second = match self.last.replace((now, self.step)) {
            Some((then, step)) if now > then => {
                self.step.saturating_sub(step) as f64 / now.duration_since(then).as_secs_f64()
            }
            _ => 0.0,
        };
        Progress {
            step: self.step,
            epoch: self.epoch,
            steps_per_second,
            loss: self.metrics.get("loss"),
            ..Progress::default()
        }
    }
}
