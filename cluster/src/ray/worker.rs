//! One worker as its actor tells of it: whether it runs, what it writes, how it ended.

use std::ffi::OsString;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::events::EventSender;
use crate::local::output::{Lines, Record, text};
use crate::spawner::{Exit, Reason, Stream, WorkerEvent, WorkerId};

/// What is known of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// It runs, or did.
    pub(super) started: bool,
    /// Why it never will.
    pub(super) refused: Option<String>,
    /// Its end was ordered.
    pub(super) cancelled: bool,
    /// Nothing more will be heard of it.
    pub(super) ended: bool,
}

impl Seen {
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
    pub(super) program: OsString,
    /// The place of its actor among those of its gang.
    pub(super) bundle: usize,
    id: WorkerId,
    seen: watch::Sender<Seen>,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    record: Record,
    lines: [Lines; 2],
    /// Gone with the worker: the gang's events end when the last of its workers has.
    events: Option<EventSender>,
}

impl Worker {
    pub(super) fn new(
        (slot, node, bundle): (usize, &str, usize),
        program: OsString,
        id: WorkerId,
        record: Record,
        events: EventSender,
    ) -> Self {
        let written = Written { record, lines: Default::default(), events: Some(events) };
        let (seen, written) = (watch::Sender::new(Seen::default()), Mutex::new(written));
        Self { slot, node: node.to_owned(), program, bundle, id, seen, written }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn look(&self) -> Seen {
        self.seen.borrow().clone()
    }

    pub(super) fn started(&self, pid: u32) {
        let (slot, worker) = (self.slot, self.id.clone());
        if let Some(events) = &self.written().events {
            events.send(WorkerEvent::Started { slot, worker, pid: Some(pid), reused: false });
        }
        self.seen.send_modify(|seen| seen.started = true);
    }

    pub(super) fn refused(&self, why: String) {
        self.written().events = None;
        self.seen.send_modify(|seen| (seen.refused, seen.ended) = (Some(why), true));
    }

    pub(super) fn wrote(&self, stream: Stream, what: &str) {
        let mut written = self.written();
        let Written { record, lines, events } = &mut *written;
        let lines = &mut lines[usize::from(stream == Stream::Stderr)];
        lines.feed(what.as_bytes(), |line| told(record, events.as_ref(), self.slot, stream, line));
    }

    /// It and all it started are gone.
    pub(super) fn exited(&self, code: i32) {
        let (code, signal) = if code < 0 { (None, Some(-code)) } else { (Some(code), None) };
        let reason = match (self.look().cancelled, code, signal) {
            (true, ..) => Reason::Cancelled,
            (_, Some(0), _) => Reason::Succeeded,
            (_, Some(code), _) => Reason::UserError { code },
            (_, None, signal) => Reason::UserError { code: 128 + signal.unwrap_or(0) },
        };
        self.end(|tail| WorkerEvent::Exited { slot: self.slot, exit: Exit { code, signal, reason, tail } });
    }

    /// It is out of sight and will not come back.
    pub(super) fn lost(&self, cause: &str) {
        if !self.look().started {
            return self.refused(cause.to_owned());
        }
        self.end(|_| WorkerEvent::Lost { slot: self.slot, cause: cause.to_owned() });
    }

    fn end(&self, event: impl FnOnce(Vec<String>) -> WorkerEvent) {
        let mut written = self.written();
        let Written { record, lines, events } = &mut *written;
        let Some(events) = events.take() else { return };
        for (lines, stream) in lines.iter_mut().zip([Stream::Stdout, Stream::Stderr]) {
            lines.flush(|line| told(record, Some(&events), self.slot, stream, line));
        }
        events.send(event(record.tail.take()));
        drop(events);
        drop(written);
        // First the event, then the note: who waits for the end finds it told.
        self.seen.send_modify(|seen| seen.ended = true);
    }

    pub(super) fn cancelled(&self) {
        self.seen.send_modify(|seen| seen.cancelled = true);
    }

    /// Waits until this is so; `false` when the time is up.
    pub(super) async fn wait(&self, within: Duration, until: impl FnMut(&Seen) -> bool) -> bool {
        let mut seen = self.seen.subscribe();
        matches!(tokio::time::timeout(within, seen.wait_for(until)).await, Ok(Ok(_)))
    }
}

fn told(record: &mut Record, events: Option<&EventSender>, slot: usize, stream: Stream, line: &[u8]) {
    let said = text(line);
    record.line(stream, line, said.clone());
    if let Some(events) = events {
        events.line(slot, stream, said);
    }
}
