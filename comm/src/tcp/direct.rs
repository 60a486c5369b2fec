//! Sends and receives between two ranks: a connection of their own to each peer, so that they never wait for a collective.

use super::exchange::{Place, Refusal};
use super::frame::{Header, Stage};
use super::link::Link;
use super::plan::{piece, pieces};
use crate::{Call, Kind, Region, Signature};
use std::collections::VecDeque;

/// The sends to and receives from one peer, each in order.
#[derive(Debug, Default)]
pub(super) struct Direct {
    sends: u64,
    pub(super) sends_done: u64,
    /// Which of the link's frames ends each send in flight.
    ends: VecDeque<u64>,
    receives: VecDeque<Call>,
    pub(super) receives_done: u64,
    /// The piece that comes next for the first receive.
    next: usize,
}

impl Direct {
    /// Starts a send; its number.
    pub(super) fn send(&mut self, call: &Call, place: Place, link: &mut Link) -> u64 {
        for index in 0..pieces(call.input.len(), true) {
            let header = Header {
                generation: place.generation,
                number: self.sends,
                signature: call.signature(),
                stage: Stage::Direct,
                piece: index as u32,
                length: 0,
                checksum: 0,
            };
            link.push(header, piece(call.input, index));
        }
        self.ends.push_back(link.frames_pushed());
        self.sends += 1;
        self.sends - 1
    }

    /// Starts a receive; its number.
    pub(super) fn receive(&mut self, call: Call) -> u64 {
        self.receives.push_back(call);
        self.receives_done + self.receives.len() as u64 - 1
    }

    /// Whether anything is to come from the peer.
    pub(super) fn is_expecting(&self) -> bool {
        !self.receives.is_empty()
    }

    /// Counts the sends that are out; true if there were any.
    pub(super) fn note_sent(&mut self, link: &Link) -> bool {
        let before = self.sends_done;
        while self.ends.front().is_some_and(|end| *end <= link.frames_sent()) {
            self.ends.pop_front();
            self.sends_done += 1;
        }
        self.sends_done > before
    }

    /// Where the payload of this frame goes; `None` if nobody wants it yet.
    pub(super) fn admit(&self, rank: usize, header: &Header) -> Result<Option<Region>, Refusal> {
        let Some(call) = self.receives.front() else { return Ok(None) };
        if header.stage != Stage::Direct || header.number != self.receives_done {
            let why = format!("{:?} frame of call {} among direct sends", header.stage, header.number);
            return Err(Refusal::Corrupt(why));
        }
        if header.signature != their_signature(call, rank) {
            return Err(Refusal::Mismatch(header.signature));
        }
        let target = piece(call.output, self.next);
        if header.piece as usize != self.next || header.length as usize != target.len() {
            return Err(Refusal::Corrupt(format!("piece {} where {} is next", header.piece, self.next)));
        }
        Ok(Some(target))
    }

    /// Notes an admitted frame that has arrived whole.
    pub(super) fn arrive(&mut self) {
        self.next += 1;
        let Some(call) = self.receives.front() else { return };
        if self.next == pieces(call.output.len(), true) {
            self.receives.pop_front();
            self.receives_done += 1;
            self.next = 0;
        }
    }

    /// What this rank called, of the receive that is first in line.
    pub(super) fn mine(&self) -> Signature {
        let nothing = Call::new(Kind::Barrier, crate::DType::U8, 0);
        self.receives.front().unwrap_or(&nothing).signature()
    }

    /// Forgets everything: the group is over.
    pub(super) fn clear(&mut self) {
        self.receives.clear();
        self.ends.clear();
    }
}

/// What the other end of a receive must have called.
fn their_signature(receive: &Call, rank: usize) -> Signature {
    Call::new(Kind::Send, receive.dtype, receive.count).root(rank).signature()
}
