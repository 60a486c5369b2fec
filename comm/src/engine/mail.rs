//! Messages between two ranks: a ring of slots in each direction, apart from the collectives.

use super::flags::SLOTS;
use super::layout::MAIL_BYTES;
use super::{Phase, View};
use crate::call::Call;
use crate::{Error, Result};
use std::collections::VecDeque;

/// One direction of the traffic with one peer.
#[derive(Debug)]
pub(super) struct Lane {
    peer: usize,
    sending: bool,
    /// Messages in flight, in order.
    queue: VecDeque<Message>,
    /// Steps of messages finished.
    steps: u64,
    submitted: u64,
    finished: u64,
}

#[derive(Debug)]
struct Message {
    call: Call,
    /// Steps done, of how many.
    done: u64,
    count: u64,
}

impl Lane {
    pub(super) fn new(peer: usize, sending: bool) -> Lane {
        Lane { peer, sending, queue: VecDeque::new(), steps: 0, submitted: 0, finished: 0 }
    }

    /// Takes a message up; returns its number.
    pub(super) fn push(&mut self, call: Call) -> u64 {
        let count = call.bytes().div_ceil(MAIL_BYTES).max(1) as u64;
        self.queue.push_back(Message { call, done: 0, count });
        self.submitted += 1;
        self.submitted
    }

    /// Steps of messages done.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn is_done(&self, number: u64) -> bool {
        self.finished >= number
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    pub(super) fn describe(&self) -> Option<String> {
        self.queue.front().map(|m| m.call.signature().to_string())
    }

    /// Whether the next step can be done: there is room, or there is mail.
    fn ready(&self, view: &View) -> bool {
        let g = self.steps + 1;
        match self.sending {
            true => g <= view.layout.mail(view.rank, self.peer).taken() + SLOTS,
            false => view.layout.mail(self.peer, view.rank).sent.0.published() >= g,
        }
    }

    /// The peer, if a message is waiting for it.
    pub(super) fn missing(&self, view: &View) -> Option<usize> {
        (!self.queue.is_empty() && !self.ready(view)).then_some(self.peer)
    }

    /// Moves messages along; returns how many were finished.
    pub(super) fn advance(&mut self, view: &View) -> Result<usize> {
        let mut finished = 0;
        while !self.queue.is_empty() && self.ready(view) {
            self.step(view)?;
            let Some(message) = self.queue.front_mut() else { break };
            message.done += 1;
            self.steps += 1;
            if message.done == message.count {
                self.queue.pop_front();
                self.finished += 1;
                finished += 1;
                view.tell(Phase::Finished);
            }
        }
        Ok(finished)
    }

    fn step(&mut self, view: &View) -> Result<()> {
        let Some(Message { call, done, .. }) = self.queue.front() else { return Ok(()) };
        let g = self.steps + 1;
        let from = *done as usize * MAIL_BYTES;
        let bytes = MAIL_BYTES.min(call.bytes() - from);
        // What sender and receiver must agree on, seen from the sender.
        let signature = Call { kind: crate::Kind::Send, root: 0, ..*call }.signature().to_word();
        if self.sending {
            view.layout
                .mail_slot(view.rank, self.peer, g)
                .part(0, bytes)
                .copy_from(call.input.part(from, bytes));
            view.layout.mail(view.rank, self.peer).sent.0.publish(g, signature);
            view.tell(Phase::Published);
            return Ok(());
        }
        let mail = view.layout.mail(self.peer, view.rank);
        let theirs = mail.sent.0.signature(g);
        if theirs != signature {
            let (mine, theirs) = (call.signature(), crate::Signature::from_word(theirs));
            return Err(Error::Mismatch { rank: view.rank, mine, peer: self.peer, theirs });
        }
        view.tell(Phase::Working);
        call.output
            .part(from, bytes)
            .copy_from(view.layout.mail_slot(self.peer, view.rank, g).part(0, bytes));
        mail.take(g);
        Ok(())
    }
}
