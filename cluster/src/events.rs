//! The queue between a spawner and whoever watches a gang.
//!
//! A chatty worker must neither fill the driver's memory nor wait for its reader, and the end of a worker must never be
//! lost: so lines are bounded and dropped, counted, when the reader is behind, and everything else always passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::spawner::{Stream, WorkerEvent};

/// How many lines wait for a reader before the next are left out.
pub const QUEUED_LINES: usize = 4096;

/// Makes the two ends of a queue.
#[must_use]
pub fn queue() -> (EventSender, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let counts = Arc::new(Counts::default());
    (EventSender { sender, counts: counts.clone() }, Events { receiver, counts })
}

#[derive(Debug, Default)]
struct Counts {
    queued_lines: AtomicUsize,
    dropped_lines: AtomicU64,
}

/// The engine's end: cloned for every worker. Sending never waits, and is no error when nobody listens any more.
#[derive(Clone, Debug)]
pub struct EventSender {
    sender: mpsc::UnboundedSender<WorkerEvent>,
    counts: Arc<Counts>,
}

impl EventSender {
    /// Sends a start or an end.
    pub fn send(&self, event: WorkerEvent) {
        let _ = self.sender.send(event);
    }

    /// Sends a line, or counts it as dropped.
    pub fn line(&self, slot: usize, stream: Stream, text: String) {
        if self.counts.queued_lines.fetch_add(1, Ordering::Relaxed) >= QUEUED_LINES {
            self.counts.queued_lines.fetch_sub(1, Ordering::Relaxed);
            self.counts.dropped_lines.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let dropped = self.counts.dropped_lines.swap(0, Ordering::Relaxed);
        let _ = self.sender.send(WorkerEvent::Line { slot, stream, text, dropped });
    }
}

/// The reader's end: one gang's events in order.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::UnboundedReceiver<WorkerEvent>,
    counts: Arc<Counts>,
}

impl Events {
    /// The next event; `None` once every worker has ended and all was read.
    pub async fn next(&mut self) -> Option<WorkerEvent> {
        let event = self.receiver.recv().await?;
        if matches!(event, WorkerEvent::Line { .. }) {
            self.counts.queued_lines.fetch_sub(1, Ordering::Relaxed);
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_nobody_reads_are_counted_and_the_end_still_comes() {
        let (sender, mut events) = queue();
        for i in 0..QUEUED_LINES + 10 {
            sender.line(0, Stream::Stdout, i.to_string());
        }
        sender.send(WorkerEvent::Lost { slot: 0, cause: "test".into() });
        assert!(matches!(events.next().await, Some(WorkerEvent::Line { dropped: 0, .. })));
        sender.line(0, Stream::Stdout, "after".into());
        drop(sender);
        let mut rest = Vec::new();
        while let Some(event) = events.next().await {
            rest.push(event);
        }
        assert_eq!(rest.len(), QUEUED_LINES + 1);
        assert!(rest[QUEUED_LINES - 1].is_end());
        assert!(
            matches!(&rest[QUEUED_LINES], WorkerEvent::Line { dropped: 10, text, .. } if text == "after")
        );
    }
}
