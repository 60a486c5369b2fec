//! The errors of this crate. Each says what failed, where, why, and what can be done about it.

use std::time::Duration;

use crate::gang::failure::Failure;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The control port could not be opened. Choose another address, or port 0.
    #[error("cannot listen on {address} for workers: {source}; choose another address, or port 0 for any free one")]
    Listen {
        /// The address.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The TLS configuration cannot be used.
    #[error("the TLS configuration of {side} cannot be used: {reason}")]
    Tls {
        /// Whose: the controller's or the worker's.
        side: &'static str,
        /// Why.
        reason: String,
    },
    /// This process was not launched as a worker, or its environment is damaged.
    #[error("the worker's environment is not usable: {variable} {problem}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The controller does not want this worker: its token is wrong, its slot taken or its attempt over. End the process.
    #[error("the controller at {address} refused slot {slot}, attempt {attempt}: {reason}")]
    Refused {
        /// The controller's address.
        address: String,
        /// The slot asked for.
        slot: u64,
        /// The attempt it was asked for.
        attempt: u32,
        /// The controller's reason.
        reason: String,
    },
    /// The controller was not heard within the lease. End the process; nothing it does counts any more.
    #[error(
        "slot {slot} did not hear the controller at {address} for {silence:?}: {reason}; its lease is over, and whatever \
         it does now is not counted"
    )]
    ControllerLost {
        /// The controller's address.
        address: String,
        /// This worker's slot.
        slot: u64,
        /// For how long.
        silence: Duration,
        /// What was last seen of it.
        reason: String,
    },
    /// The controller does not take over what this worker reports. Report less often, or wait with `flush`.
    #[error("{frames} messages ({bytes} bytes) wait for the controller to take them over; this one was not accepted")]
    OutboxFull {
        /// Messages that wait.
        frames: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// A message is larger than the control stream carries. Large things belong into checkpoints or artefacts.
    #[error("{what} of {bytes} bytes is larger than the {limit} bytes that the control stream carries")]
    TooLarge {
        /// What it was.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A wait reached its deadline.
    #[error("{operation} did not happen within {waited:?}{detail}")]
    Timeout {
        /// What was waited for.
        operation: &'static str,
        /// How long.
        waited: Duration,
        /// More about it, with its own punctuation; may be empty.
        detail: String,
    },
    /// The rendezvous store refused a call.
    #[error("rendezvous {operation} of {key:?} in {run} generation {generation} failed: {reason}")]
    Rendezvous {
        /// The operation.
        operation: &'static str,
        /// The key, or the first of them.
        key: String,
        /// The run.
        run: String,
        /// The generation.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// The gang failed. Handle it, by launching the gang again perhaps, or make it your own with [`Failure::of`].
    #[error("{0}")]
    Gang(Box<Failure>),
    /// The gang, or the worker's session, is over, so that the call has no effect.
    #[error("{what} is over")]
    Over {
        /// What is over.
        what: &'static str,
    },
    /// The system refused a thread.
    #[error("cannot start the thread {name}: {source}")]
    Thread {
        /// The thread's name.
        name: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error and what it came from, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
