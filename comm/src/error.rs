//! The one error of the crate: each variant says what failed, who caused it, and what the caller can do next.

use crate::call::Signature;
use std::time::Duration;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and with whom.
///
/// After [`PeerLost`](Error::PeerLost), [`Deadline`](Error::Deadline), [`Mismatch`](Error::Mismatch),
/// [`Aborted`](Error::Aborted) or [`Corrupt`](Error::Corrupt) the group is over: each later call returns the same
/// cause. Call [`ProcessGroup::reform`](crate::ProcessGroup::reform) to go on with the survivors.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A rank died or left. Reform the group, or restart the run.
    #[error("rank {rank} of generation {generation} is gone ({cause}); reform the group or restart the run")]
    PeerLost {
        /// The rank that is gone, as numbered in this group.
        rank: usize,
        /// The generation of the group it was a member of.
        generation: u64,
        /// What gave it away.
        cause: String,
    },
    /// A call did not finish in its time; `missing` had not taken part. Raise the deadline, or reform without them.
    #[error("rank {rank}: {op} did not finish within {waited:?}; still waiting for ranks {missing:?}")]
    Deadline {
        /// The rank that waited.
        rank: usize,
        /// The operation it waited in.
        op: String,
        /// How long it waited.
        waited: Duration,
        /// Those who had not taken part when the time was up.
        missing: Vec<usize>,
    },
    /// Ranks called different operations. This is a bug of the program: all ranks must make the same calls in order.
    #[error(
        "ranks disagree: rank {rank} called {mine}, but rank {peer} called {theirs}; all ranks must make the same calls in the same order"
    )]
    Mismatch {
        /// The rank that noticed.
        rank: usize,
        /// What it called itself.
        mine: Signature,
        /// The rank that it differs from.
        peer: usize,
        /// What that rank called.
        theirs: Signature,
    },
    /// A rank ended the group on purpose, or gave up waiting.
    #[error("rank {by} aborted generation {generation}: {reason}")]
    Aborted {
        /// The rank that did.
        by: usize,
        /// The generation it ended.
        generation: u64,
        /// Why, in its own words.
        reason: String,
    },
    /// The other members went on without this rank. It holds old state and must not write; join anew or exit.
    #[error(
        "rank {rank} of generation {generation} was left out: {why}; it must not write, and should exit or join anew"
    )]
    Excluded {
        /// The rank in the old generation.
        rank: usize,
        /// The generation that goes on without it.
        generation: u64,
        /// What decided so.
        why: String,
    },
    /// An argument that can never work. Nothing was sent; the group is still good.
    #[error("{op}: {why}")]
    InvalidArgument {
        /// The operation called.
        op: &'static str,
        /// What is wrong with the argument, and what would be right.
        why: String,
    },
    /// Something this machine or build lacks.
    #[error("{what} is not available: {why}")]
    NotAvailable {
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be had here.
        why: String,
    },
    /// Bytes arrived that fail their checksum or break the protocol. Nothing of them was applied.
    #[error("{what} from {peer} is corrupt: {why}")]
    Corrupt {
        /// Who sent it, as far as that is known.
        peer: String,
        /// What it should have been.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The other end does not hold the run's token, or we do not hold its.
    #[error("{peer} failed the token challenge: {why}; check that both ends have the same token")]
    Denied {
        /// The other end's address.
        peer: String,
        /// Which half of the challenge failed.
        why: String,
    },
    /// The rendezvous store did not answer, or not in time.
    #[error("store: {what} {key:?}: {why}")]
    Store {
        /// What was tried.
        what: &'static str,
        /// The key it was tried on.
        key: String,
        /// What came of it.
        why: String,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: std::sync::Arc<std::io::Error>,
    },
}

impl Error {
    /// Wraps an error of the operating system with what was tried.
    pub fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Error::Io { what: what.into(), source: std::sync::Arc::new(source.into()) }
    }

    pub(crate) fn invalid(op: &'static str, why: impl Into<String>) -> Self {
        Error::InvalidArgument { op, why: why.into() }
    }

    /// True if the group that returned this can still be used: only arguments were wrong.
    pub fn leaves_group_usable(&self) -> bool {
        matches!(self, Error::InvalidArgument { .. } | Error::NotAvailable { .. })
    }
}
