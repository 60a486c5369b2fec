//! One worker: its pod, what it writes, and how it ends.

use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use tokio::sync::watch;
use tokio::time::Instant;

use super::log::PodLog;
use super::watcher::Watcher;
use crate::events::EventSender;
use crate::local::output::{Lines, Record, text};
use crate::spawner::{Stream, WorkerEvent, WorkerId};

/// How long what a container wrote is still read after it ended.
const DRAIN: Duration = Duration::from_secs(3);
/// How long a running container may keep its log from us before it is taken for started without it.
const SPEECHLESS: Duration = Duration::from_secs(10);
/// How often a log that cannot be read is asked for.
const AGAIN: Duration = Duration::from_millis(100);

/// What is known of a worker beside its pod's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Its program runs, or ran.
    pub(super) started: bool,
    /// Why its program could not be started.
    pub(super) refused: Option<String>,
    /// Its end was ordered.
    pub(super) cancelled: bool,
    /// Its node did not answer when its end was ordered.
    pub(super) given_up: bool,
    /// Nothing more will be heard.
    pub(super) ended: bool,
}

impl Known {
    /// Whether it is decided that it runs, or that it never will.
    pub(super) fn decided(&self) -> bool {
        self.started || self.refused.is_some() || self.ended
    }
}

/// A worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) slot: usize,
    pub(super) node: String,
    pub(super) pod: String,
    pub(super) program: OsString,
    id: WorkerId,
    nonce: String,
    known: watch::Sender<Known>,
    record: Mutex<Record>,
    /// Gone with the worker: the gang's events end when the last of its workers has.
    events: Mutex<Option<EventSender>>,
}

/// What a worker is made of.
pub(super) struct Order {
    pub(super) slot: usize,
    pub(super) node: String,
    pub(super) pod: String,
    pub(super) program: OsString,
    pub(super) id: WorkerId,
    pub(super) nonce: String,
    pub(super) record: Record,
    pub(super) events: EventSender,
}

/// Whom a worker's attendant asks.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) pods: Api<Pod>,
    pub(super) watcher: Watcher,
    pub(super) patience: Duration,
}

impl Worker {
    /// Begins to attend a pod that was told what to run.
    pub(super) fn start(order: Order, sources: Sources) -> Arc<Self> {
        let Order { slot, node, pod, program, id, nonce, record, events } = order;
        let (known, record) = (watch::Sender::new(Known::default()), Mutex::new(record));
        let events = Mutex::new(Some(events));
        let worker = Arc::new(Self { slot, node, pod, program, id, nonce, known, record, events });
        tokio::spawn(worker.clone().attend(sources));
        worker
    }

    /// Reads what it writes to its end and tells of that.
    async fn attend(self: Arc<Self>, sources: Sources) {
        let mut log = PodLog::new(sources.pods.clone(), &self.pod, 0, sources.patience);
        let mut lines = Lines::default();
        self.follow(&sources, &mut log, &mut lines).await;
        if !self.look().given_up {
            let drained = async {
                while let Ok(bytes) = log.next(true).await
                    && !bytes.is_empty()
                {
                    lines.feed(&bytes, |line| self.line(line));
                }
            };
            let _ = tokio::time::timeout(DRAIN, drained).await;
        }
        lines.flush(|line| self.line(line));
        self.end(&sources.watcher);
    }

    /// Until its container is over, or it is given up.
    async fn follow(&self, sources: &Sources, log: &mut PodLog, lines: &mut Lines) {
        let mut running_since: Option<Instant> = None;
        loop {
            let runs = running_since.is_some();
            let over = sources.watcher.wait(Duration::from_secs(3600), move |watcher| {
                let seen = watcher.look(&self.pod);
                (seen.over() || (seen.running && !runs)).then_some(seen)
            });
            let mut known = self.known.subscribe();
            let given_up = async move {
                let _ = known.wait_for(|known| known.given_up).await;
            };
            tokio::select! {
                seen = over => match seen {
                    Some(seen) if seen.over() => return,
                    Some(_) => running_since = Some(Instant::now()),
                    None => {}
                },
                () = given_up => return,
                said = log.next(true), if runs => match said {
                    Ok(bytes) if !bytes.is_empty() => lines.feed(&bytes, |line| self.line(line)),
                    // Its end, which the status will tell of; or a connection that broke.
                    _ => {
                        if running_since.is_some_and(|since| since.elapsed() > SPEECHLESS) {
                            self.started();
                        }
                        tokio::time::sleep(AGAIN).await;
                    }
                },
            }
        }
    }

    /// A line of the worker, or of its shell.
    fn line(&self, line: &[u8]) {
        let mark = format!("\u{1e}{} ", self.nonce).into_bytes();
        match line.windows(mark.len()).position(|window| window == mark) {
            Some(at) => self.told(&text(&line[at + mark.len()..])),
            None => {
                let said = text(line);
                let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
                record.line(Stream::Stdout, line, said.clone());
                drop(record);
                if let Some(events) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
                    events.line(self.slot, Stream::Stdout, said);
                }
            }
        }
    }

    /// What its shell says.
    fn told(&self, said: &str) {
        match said.split_once(' ').unwrap_or((said, "")) {
            ("started", _) => self.started(),
            ("refused", why) => self.known.send_modify(|known| known.refused = Some(why.to_owned())),
            _ => {}
        }
    }

    fn started(&self) {
        if self.look().started {
            return;
        }
        if let Some(events) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
            let (slot, worker) = (self.slot, self.id.clone());
            events.send(WorkerEvent::Started { slot, worker, pid: None, reused: false });
        }
        self.known.send_modify(|known| known.started = true);
    }

    fn end(&self, watcher: &Watcher) {
        let seen = watcher.look(&self.pod);
        let known = self.look();
        let end = seen.end.clone().unwrap_or_default();
        // The log may be gone with the pod, and what the shell said in it: the status repeats the last of it.
        let refused =
            end.message.lines().find_map(|line| line.split_once(&format!("{} refused ", self.nonce)));
        match refused {
            Some((_, why)) => self.known.send_modify(|known| known.refused = Some(why.to_owned())),
            None if known.refused.is_some() || known.started => {}
            None if end.code.is_some() && !matches!(&*end.word, "StartError" | "ContainerCannotRun") => {
                self.started()
            }
            None => self.known.send_modify(|known| known.refused = Some(seen.word())),
        }
        let tail = self.record.lock().unwrap_or_else(PoisonError::into_inner).tail.take();
        let event = seen.worker_end(self.slot, known.cancelled, known.given_up, tail);
        // First the event, then the note: who waits for the end finds it told.
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(events) = events.filter(|_| self.look().started) {
            events.send(event);
        }
        self.known.send_modify(|known| known.ended = true);
    }

    pub(super) fn look(&self) -> Known {
        self.known.borrow().clone()
    }

    pub(super) fn cancelled(&self) {
        self.known.send_modify(|known| known.cancelled = true);
    }

    /// Stops listening: its node does not answer. Its end is told as a loss.
    pub(super) fn give_up(&self) {
        self.known.send_modify(|known| known.given_up = true);
    }

    /// Waits until this is so; `false` when the time is up.
    pub(super) async fn wait(&self, within: Duration, until: impl FnMut(&Known) -> bool) -> bool {
        let mut known = self.known.subscribe();
        matches!(tokio::time::timeout(within, known.wait_for(until)).await, Ok(Ok(_)))
    }
}
