//! The writing side of a run's store: events go in, tickets come out, and a ticket is good once its event survives a power
//! cut. One thread writes; what arrives while it waits for the disk is its next group, so the cost of a sync is shared.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::codec::Interner;
use crate::error::{Error, Result};
use crate::event::{Draft, Event, Timestamp};
use crate::lock::Lock;
use crate::metrics;
use crate::reader::Reader;
use crate::state::Scope;
use crate::writer::{self, Writer};

/// The store's file in a run's folder.
pub(crate) const FILE: &str = "run.db";

/// How many metric names a run may have: beyond, somebody is putting numbers into names.
const MAX_NAMES: usize = 65_536;

/// The largest body an event may have.
const MAX_BODY: usize = 16 << 20;

/// How a store is opened. The defaults suit every run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// How many events may wait for the disk.
    pub queue_events: usize,
    /// How many bytes of events may wait for the disk.
    pub queue_bytes: usize,
    /// How long `append` waits for room in the queue before it gives up.
    pub append_deadline: Duration,
    /// How long closing waits for what is in the queue.
    pub close_deadline: Duration,
    /// The size the file may grow to; `None` is as far as the disk goes. The write-ahead log comes on top.
    pub max_bytes: Option<u64>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            queue_events: 16_384,
            queue_bytes: 16 << 20,
            append_deadline: Duration::from_secs(30),
            close_deadline: Duration::from_secs(30),
            max_bytes: None,
        }
    }
}

/// A run's store, open for writing. There is one at a time for a run; it may be shared among threads.
pub struct Store {
    shared: Arc<Shared>,
    path: PathBuf,
    folder: PathBuf,
    config: StoreConfig,
    epoch: u64,
    run_id: String,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Store {
    /// Makes a new run in a folder, which is created if need be.
    pub fn create(folder: impl AsRef<Path>, config: StoreConfig) -> Result<Store> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        Self::start(folder, config, true)
    }

    /// Opens a run to go on with it. An older file is brought to this version's schema.
    pub fn open(folder: impl AsRef<Path>, config: StoreConfig) -> Result<Store> {
        Self::start(folder.as_ref(), config, false)
    }

    fn start(folder: &Path, config: StoreConfig, create: bool) -> Result<Store> {
        let path = folder.join(FILE);
        if !create && !path.exists() {
            return Err(Error::NotFound { path });
        }
        let lock = Lock::take(&path)?;
        let (db, opened) = writer::open(&path, config.max_bytes, create)?;
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                pending: VecDeque::new(),
                bytes: 0,
                last: opened.applied,
                committed: opened.applied,
                sources: opened.sources,
                wakers: Vec::new(),
                closing: false,
                failed: None,
            }),
            work: Condvar::new(),
            done: Condvar::new(),
            words: RwLock::new(opened.words),
        });
        let writer = Writer::new(db, lock, shared.clone(), path.clone(), config.max_bytes);
        let thread = std::thread::Builder::new()
            .name("regatta-track".into())
            .spawn(move || writer.run())
            .map_err(Error::io("start the writer of", &path))?;
        let (epoch, run_id) = (opened.epoch, opened.run_id);
        let folder = folder.to_owned();
        Ok(Store { shared, path, folder, config, epoch, run_id, thread: Mutex::new(Some(thread)) })
    }

    /// Puts an event into the queue, waiting for room in it up to `append_deadline`. The ticket tells when it is durable.
    pub fn append(&self, draft: impl Into<Draft>) -> Result<Ticket> {
        self.enqueue(draft.into(), Some(Instant::now() + self.config.append_deadline))
    }

    /// As `append`, but answers `Busy` at once when the queue is full.
    pub fn try_append(&self, draft: impl Into<Draft>) -> Result<Ticket> {
        self.enqueue(draft.into(), None)
    }

    fn enqueue(&self, mut draft: Draft, deadline: Option<Instant>) -> Result<Ticket> {
        let at = *draft.at.get_or_insert_with(Timestamp::now);
        let (kind, body) = self.shared.encode(&draft)?;
        let key = draft.sequence.map(|n| ((draft.trial, draft.attempt, draft.rank), n));
        let bytes = body.len() + std::mem::size_of::<Pending>();
        let mut queue = self.shared.lock();
        loop {
            queue.usable()?;
            if let Some((source, n)) = key
                && queue.sources.get(&source).is_some_and(|taken| n <= *taken)
            {
                return Ok(Ticket { shared: self.shared.clone(), until: queue.last, seq: None });
            }
            let room = queue.pending.len() < self.config.queue_events
                && (queue.bytes + bytes <= self.config.queue_bytes || queue.pending.is_empty());
            if room {
                break;
            }
            let Some(deadline) = deadline else {
                return Err(Error::Busy { events: queue.pending.len(), bytes: queue.bytes });
            };
            queue = self.shared.wait(queue, deadline).map_err(|()| Error::Deadline {
                what: format!("an append to {}", self.path.display()),
                after: self.config.append_deadline,
            })?;
        }
        if let Some((source, n)) = key {
            queue.sources.insert(source, n);
        }
        queue.last += 1;
        queue.bytes += bytes;
        let seq = queue.last;
        queue.pending.push_back(Pending { seq, at, kind, body, bytes, draft });
        if queue.pending.len() == 1 {
            self.shared.work.notify_one();
        }
        Ok(Ticket { shared: self.shared.clone(), until: seq, seq: Some(seq) })
    }

    /// Waits until everything appended so far is durable, and says up to where that is.
    pub fn flush(&self, timeout: Duration) -> Result<u64> {
        let last = self.shared.lock().last;
        Ticket { shared: self.shared.clone(), until: last, seq: None }.wait(timeout)?;
        Ok(last)
    }

    /// The last event that is durable; 0 before the first.
    pub fn committed(&self) -> u64 {
        self.shared.lock().committed
    }

    /// What stopped the writer, if something did.
    pub fn failure(&self) -> Option<Error> {
        self.shared.lock().failed.clone()
    }

    /// A connection of its own to read what is committed.
    pub fn reader(&self) -> Result<Reader> {
        Reader::open(&self.folder)
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How often the run was opened for writing, by which a later controller's copies outrank an earlier one's.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Which run this is: the same in every copy of it.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    pub(crate) fn feed(&self) -> Feed {
        Feed { shared: self.shared.clone(), folder: self.folder.clone() }
    }

    /// Writes what is in the queue, and closes the file. The error, if any, is what stopped the writer.
    pub fn close(&self) -> Result<()> {
        {
            let mut queue = self.shared.lock();
            queue.closing = true;
            self.shared.work.notify_one();
        }
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let deadline = Instant::now() + self.config.close_deadline;
        while !thread.is_finished() {
            let queue = self.shared.lock();
            let step = Instant::now() + Duration::from_millis(20);
            drop(self.shared.wait(queue, step.min(deadline)));
            if Instant::now() >= deadline {
                let what = format!("closing {}", self.path.display());
                return Err(Error::Deadline { what, after: self.config.close_deadline });
            }
        }
        drop(thread.join());
        match self.shared.lock().failed.clone() {
            None | Some(Error::Closed) => Ok(()),
            Some(error) => Err(error),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(path = %self.path.display(), %error, "the run's store did not close cleanly");
        }
    }
}

/// An event in the queue.
pub(crate) struct Pending {
    pub(crate) seq: u64,
    pub(crate) at: Timestamp,
    pub(crate) kind: u32,
    pub(crate) body: Vec<u8>,
    pub(crate) bytes: usize,
    pub(crate) draft: Draft,
}

pub(crate) type SourceKey = (Scope, u32, Option<u32>);

/// What appenders and the writer share, under one lock that is never held across a file operation.
pub(crate) struct Queue {
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) bytes: usize,
    /// The last place given out.
    last: u64,
    /// The last place that is durable.
    pub(crate) committed: u64,
    /// The highest number taken of each sender.
    sources: HashMap<SourceKey, u64>,
    wakers: Vec<(u64, Waker)>,
    pub(crate) closing: bool,
    failed: Option<Error>,
}

impl Queue {
    fn usable(&self) -> Result<()> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.closing => Err(Error::Closed),
            None => Ok(()),
        }
    }

    /// Whether a wait for this place is over.
    fn settled(&self, until: u64) -> Option<Result<()>> {
        if self.committed >= until {
            return Some(Ok(()));
        }
        self.failed.clone().map(Err)
    }
}

pub(crate) struct Shared {
    queue: Mutex<Queue>,
    /// The writer waits here for events.
    pub(crate) work: Condvar,
    /// Everybody else waits here, for room, for places to become durable, or for the end.
    done: Condvar,
    /// The words of the file, in the order of their numbers: kinds, then metric names.
    pub(crate) words: RwLock<(Interner, Interner)>,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for news; an error is that the deadline passed.
    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>, deadline: Instant) -> Result<MutexGuard<'a, Queue>, ()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(());
        }
        Ok(self.done.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Tells everybody how far the log is durable.
    pub(crate) fn commit(&self, committed: u64) {
        let mut queue = self.lock();
        queue.committed = committed;
        self.wake(queue);
    }

    /// Tells everybody that no more will become durable.
    pub(crate) fn fail(&self, error: Error) {
        let mut queue = self.lock();
        queue.failed.get_or_insert(error);
        queue.pending = VecDeque::new();
        self.wake(queue);
    }

    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        let mut ready = Vec::new();
        if !queue.wakers.is_empty() {
            let (committed, failed) = (queue.committed, queue.failed.is_some());
            let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut queue.wakers)
                .into_iter()
                .partition(|(until, _)| failed || *until <= committed);
            (ready, queue.wakers) = (now, later);
        }
        self.done.notify_all();
        drop(queue);
        ready.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// The kind's number and the body, made on the caller's thread.
    fn encode(&self, draft: &Draft) -> Result<(u32, Vec<u8>)> {
        let event = &draft.event;
        let refuse = |why: String| Err(Error::Refused { kind: event.kind().into(), why });
        if draft.sequence.is_some_and(|n| n > i64::MAX as u64) {
            return refuse("its sequence is above 2^63 - 1".into());
        }
        let kind = self.kind(event)?;
        let body = match event {
            Event::Report(report) => {
                let figures: Option<Vec<(u32, f64)>> = {
                    let words = self.words.read().unwrap_or_else(PoisonError::into_inner);
                    report.metrics.iter().map(|(name, value)| Some((words.1.id(name)?, value))).collect()
                };
                let figures = match figures {
                    Some(figures) => figures,
                    None => {
                        let mut words = self.words.write().unwrap_or_else(PoisonError::into_inner);
                        if words.1.len() + report.metrics.len() > MAX_NAMES {
                            return refuse(format!(
                                "the run has {MAX_NAMES} metric names already: keep numbers out of names"
                            ));
                        }
                        report
                            .metrics
                            .iter()
                            .map(|(name, value)| (words.1.add(name.clone()), value))
                            .collect()
                    }
                };
                metrics::pack(report.step, &figures)
            }
            event => event.json_bytes()?,
        };
        if body.len() > MAX_BODY {
            return refuse(format!(
                "its body has {} bytes and the limit is {MAX_BODY}: store it as a file",
                body.len()
            ));
        }
        Ok((kind, body))
    }

    fn kind(&self, event: &Event) -> Result<u32> {
        let known = |(kind, version): &(&str, u16)| *kind == event.kind() && event.version() <= *version;
        if matches!(event, Event::Unknown(_)) && Event::KINDS.iter().any(known) {
            let why = "it is a known kind and goes by its own variant".into();
            return Err(Error::Refused { kind: event.kind().into(), why });
        }
        let word = format!("{}/{}", event.kind(), event.version());
        if let Some(id) = self.words.read().unwrap_or_else(PoisonError::into_inner).0.id(&word) {
            return Ok(id);
        }
        Ok(self.words.write().unwrap_or_else(PoisonError::into_inner).0.add(word.into()))
    }
}

/// An event's claim to durability: wait for it or await it.
#[must_use = "an event is acknowledged only when its ticket is"]
pub struct Ticket {
    shared: Arc<Shared>,
    until: u64,
    seq: Option<u64>,
}

impl Ticket {
    /// The event's place in the log; `None` if it was a repetition, and not stored again.
    pub fn seq(&self) -> Option<u64> {
        self.seq
    }

    /// Lets the event go its way without waiting for it. Should the store fail, the next append says so.
    pub fn detach(self) {}

    /// Waits until the event (or, of a repetition, its original) survives a power cut.
    pub fn wait(&self, timeout: Duration) -> Result<Option<u64>> {
        let deadline = Instant::now() + timeout;
        let mut queue = self.shared.lock();
        loop {
            if let Some(settled) = queue.settled(self.until) {
                return settled.map(|()| self.seq);
            }
            queue = self.shared.wait(queue, deadline).map_err(|()| Error::Deadline {
                what: format!("the commit of event {}", self.until),
                after: timeout,
            })?;
        }
    }
}

/// Ready when the event is durable. It has no deadline of its own: put one around it.
impl Future for Ticket {
    type Output = Result<Option<u64>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut queue = self.shared.lock();
        if let Some(settled) = queue.settled(self.until) {
            return Poll::Ready(settled.map(|()| self.seq));
        }
        let waker = context.waker();
        if !queue.wakers.iter().any(|(until, known)| *until == self.until && known.will_wake(waker)) {
            queue.wakers.push((self.until, waker.clone()));
        }
        Poll::Pending
    }
}

/// What followers of the log (sinks, copies) hold on to: news of commits, without keeping the store open.
#[derive(Clone)]
pub(crate) struct Feed {
    shared: Arc<Shared>,
    pub(crate) folder: PathBuf,
}

impl Feed {
    pub(crate) fn committed(&self) -> u64 {
        self.shared.lock().committed
    }

    /// Whether nothing will come after this place: the writer is gone.
    pub(crate) fn ended(&self, after: u64) -> bool {
        let queue = self.shared.lock();
        queue.failed.is_some() && queue.committed <= after
    }
}
