//! How a group ends: the cause that every rank must learn, and its way to them.
//!
//! Causes travel on connections of their own, so that one gets through in the middle of a frame, from any thread.

use super::frame::checksum;
use crate::{Error, Signature};
use std::time::Duration;

/// Bytes of an encoded note; every note has this length.
pub(super) const BYTES: usize = 512;
const MAGIC: [u8; 4] = *b"rgn1";
const TEXT_AT: usize = 64;

/// What ranks tell each other about the group itself.
#[derive(Debug, Clone)]
pub(super) enum Note {
    /// The sender leaves in good order.
    Bye,
    /// The group is over. The sender had finished so many collectives, so every rank can still finish those.
    Over { cause: Cause, finished: u64 },
}

/// Why a group is over, as it travels. Ranks are the group's.
#[derive(Debug, Clone)]
pub(super) enum Cause {
    Lost { rank: usize, why: String },
    Mismatch { rank: usize, mine: Signature, peer: usize, theirs: Signature },
    Aborted { by: usize, reason: String },
    Corrupt { by: usize, why: String },
}

impl Cause {
    /// The error for this rank's callers.
    pub(super) fn error(&self, generation: u64) -> Error {
        match self.clone() {
            Cause::Lost { rank, why } => Error::PeerLost { rank, generation, cause: why },
            Cause::Mismatch { rank, mine, peer, theirs } => Error::Mismatch { rank, mine, peer, theirs },
            Cause::Aborted { by, reason } => Error::Aborted { by, generation, reason },
            Cause::Corrupt { by, why } => Error::Corrupt { peer: format!("rank {by}"), what: "a frame", why },
        }
    }

    /// What the others are told when a call's time was up here.
    pub(super) fn late(by: usize, op: &str, waited: Duration, missing: &[usize]) -> Cause {
        let reason = format!("{op} did not finish within {waited:?}; still waiting for ranks {missing:?}");
        Cause::Aborted { by, reason }
    }
}

impl Note {
    /// As it travels.
    pub(super) fn encode(&self, generation: u64) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        let (code, numbers, text): (u8, [u64; 4], &str) = match self {
            Note::Bye => (0, [0; 4], ""),
            Note::Over { cause, .. } => match cause {
                Cause::Lost { rank, why } => (1, [*rank as u64, 0, 0, 0], why),
                Cause::Mismatch { rank, mine, peer, theirs } => {
                    (2, [*rank as u64, mine.to_word(), *peer as u64, theirs.to_word()], "")
                }
                Cause::Aborted { by, reason } => (3, [*by as u64, 0, 0, 0], reason),
                Cause::Corrupt { by, why } => (4, [*by as u64, 0, 0, 0], why),
            },
        };
        if let Note::Over { finished, .. } = self {
            bytes[52..60].copy_from_slice(&finished.to_le_bytes());
        }
        bytes[4] = code;
        bytes[8..16].copy_from_slice(&generation.to_le_bytes());
        for (i, number) in numbers.into_iter().enumerate() {
            bytes[16 + i * 8..24 + i * 8].copy_from_slice(&number.to_le_bytes());
        }
        let mut length = text.len().min(BYTES - TEXT_AT - 4);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        bytes[48..52].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[TEXT_AT..TEXT_AT + length].copy_from_slice(&text.as_bytes()[..length]);
        let sum = checksum(&bytes[..BYTES - 4]);
        bytes[BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads what travelled, which may be anything.
    pub(super) fn decode(bytes: &[u8; BYTES], generation: u64, world: usize) -> Result<Note, &'static str> {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if bytes[0..4] != MAGIC || checksum(&bytes[..BYTES - 4]).to_le_bytes() != bytes[BYTES - 4..] {
            return Err("a note's checksum is wrong");
        }
        if long(8) != generation {
            return Err("a note of another generation");
        }
        let rank = |at: usize| {
            let rank = usize::try_from(long(at)).unwrap_or(usize::MAX);
            if rank < world { Ok(rank) } else { Err("a note about a rank that does not exist") }
        };
        let length = u32::from_le_bytes(bytes[48..52].try_into().expect("four bytes")) as usize;
        let text = bytes[TEXT_AT..BYTES - 4].get(..length).ok_or("a note longer than itself")?;
        let text = String::from_utf8_lossy(text).into_owned();
        let cause = match bytes[4] {
            0 => return Ok(Note::Bye),
            1 => Cause::Lost { rank: rank(16)?, why: text },
            2 => Cause::Mismatch {
                rank: rank(16)?,
                mine: Signature::from_word(long(24)),
                peer: rank(32)?,
                theirs: Signature::from_word(long(40)),
            },
            3 => Cause::Aborted { by: rank(16)?, reason: text },
            4 => Cause::Corrupt { by: rank(16)?, why: text },
            _ => return Err("there is no such note"),
        };
        Ok(Note::Over { cause, finished: long(52) })
    }
}
