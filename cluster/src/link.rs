//! The exactly-once half of the control stream, as two pure queues: what this side still owes the other, and what it
//! has already had from it.
//!
//! Each side numbers its frames from 1. An [`Outbox`] keeps a frame until the other side acknowledged it and hands all
//! of them out again after a reconnect; an [`Inbox`] lets each number through once. Nothing here knows of sockets; the
//! worker, the controller and the simulations in the tests run the same two types.

use std::collections::VecDeque;

/// How much an [`Outbox`] may hold, and how much of it may be on the wire without an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Frames kept in all.
    pub frames: usize,
    /// Bytes kept in all.
    pub bytes: usize,
    /// Frames under way at once. The receiver never has to hold more than this.
    pub window_frames: usize,
    /// Bytes under way at once; one frame may always go.
    pub window_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { frames: 16_384, bytes: 64 << 20, window_frames: 256, window_bytes: 4 << 20 }
    }
}

/// The queue cannot take the frame without forgetting another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// Frames that wait for an acknowledgement.
    pub frames: usize,
    /// Their bytes.
    pub bytes: usize,
}

struct Entry<M> {
    bytes: usize,
    message: M,
}

/// Frames to the other side that it has not acknowledged yet, in order.
pub struct Outbox<M> {
    limits: Limits,
    /// The first is number `acked + 1`, the next ones follow without a hole.
    queue: VecDeque<Entry<M>>,
    acked: u64,
    /// The last sent on this stream, and on any.
    sent: u64,
    ever_sent: u64,
    bytes: usize,
    bytes_under_way: usize,
}

impl<M> Outbox<M> {
    /// An empty outbox.
    pub fn new(limits: Limits) -> Self {
        Self { limits, queue: VecDeque::new(), acked: 0, sent: 0, ever_sent: 0, bytes: 0, bytes_under_way: 0 }
    }

    /// Takes a frame of `bytes` and returns its number, or says that there is no room.
    pub fn push(&mut self, message: M, bytes: usize) -> Result<u64, Full> {
        let full = self.queue.len() >= self.limits.frames || self.bytes + bytes > self.limits.bytes;
        if full && !self.queue.is_empty() {
            return Err(Full { frames: self.queue.len(), bytes: self.bytes });
        }
        self.queue.push_back(Entry { bytes, message });
        self.bytes += bytes;
        Ok(self.acked + self.queue.len() as u64)
    }

    /// What [`Outbox::send_next`] would send.
    pub fn peek_next(&self) -> Option<&M> {
        let under_way = (self.sent - self.acked) as usize;
        let entry = self.queue.get(under_way)?;
        let in_window = under_way < self.limits.window_frames
            && self.bytes_under_way + entry.bytes <= self.limits.window_bytes;
        (in_window || under_way == 0).then_some(&entry.message)
    }

    /// The next frame to put on the wire, if the window has room; it counts as under way from now on.
    pub fn send_next(&mut self) -> Option<(u64, &M)> {
        self.peek_next()?;
        let entry = self.queue.get((self.sent - self.acked) as usize)?;
        self.sent += 1;
        self.ever_sent = self.ever_sent.max(self.sent);
        self.bytes_under_way += entry.bytes;
        Some((self.sent, &entry.message))
    }

    /// The other side has everything up to `sequence`. Old or repeated acknowledgements change nothing; one of a frame
    /// never sent is a lie and is cut to what was sent.
    pub fn acknowledge(&mut self, sequence: u64) {
        let upto = sequence.min(self.ever_sent);
        while self.acked < upto {
            let Some(entry) = self.queue.pop_front() else { break };
            self.acked += 1;
            self.bytes -= entry.bytes;
            if self.acked <= self.sent {
                self.bytes_under_way -= entry.bytes;
            }
        }
        self.sent = self.sent.max(self.acked);
    }

    /// A new stream: what was under way and not acknowledged goes again.
    pub fn reconnect(&mut self) {
        self.sent = self.acked;
        self.bytes_under_way = 0;
    }

    /// Sets the window the other side granted.
    pub fn set_window(&mut self, frames: usize, bytes: usize) {
        self.limits.window_frames = frames.max(1);
        self.limits.window_bytes = bytes;
    }

    /// The last number acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acked
    }

    /// The last number given out.
    pub fn last(&self) -> u64 {
        self.acked + self.queue.len() as u64
    }

    /// Whether everything pushed was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// What to do with a numbered frame that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// New: hand it on.
    New,
    /// Seen before: drop it.
    Duplicate,
    /// One before it is missing, or the sender ignores its window: the stream cannot be trusted, close it.
    Broken,
}

/// What arrived from the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inbox {
    delivered: u64,
    acked: u64,
}

impl Inbox {
    /// Judges the frame number `sequence`; `window` is how many may arrive without an acknowledgement of ours.
    pub fn arrived(&mut self, sequence: u64, window: usize) -> Arrival {
        if sequence <= self.delivered {
            return Arrival::Duplicate;
        }
        if sequence != self.delivered + 1 || sequence > self.acked + window.max(1) as u64 {
            return Arrival::Broken;
        }
        self.delivered = sequence;
        Arrival::New
    }

    /// The frames up to `sequence` need not come again. Returns whether that is news.
    pub fn acknowledge(&mut self, sequence: u64) -> bool {
        let upto = sequence.min(self.delivered);
        let news = upto > self.acked;
        self.acked = self.acked.max(upto);
        news
    }

    /// The last number handed on.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The last number acknowledged to the other side.
    pub fn acknowledged(&self) -> u64 {
        self.acked
    }
}
