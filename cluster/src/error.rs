//! What can go wrong, each with what failed, where, why, and what to do about it.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::gang::failure::Failure;
use crate::placement::Infeasible;
use crate::request::LeaseId;

/// What the crate's fallible functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the cluster runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Resources that cannot be meant. Fix the text.
    #[error("cannot read resources `{text}`: {problem}. Write for example `cpu: 2, gpu: 0.5, memory: 4GiB`")]
    BadResources {
        /// What was written.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A request or a cluster that contradicts itself. Fix it.
    #[error("{what} makes no sense: {problem}")]
    BadRequest {
        /// Which.
        what: String,
        /// How it contradicts itself.
        problem: String,
    },
    /// No state of the cluster could ever seat the gang. Ask for what it says would fit.
    #[error(transparent)]
    Infeasible(#[from] Box<Infeasible>),
    /// The gang stood in line to the end of its patience. Wait longer, ask for less, or end something.
    #[error("gang `{gang}` found no room within {waited:?}: {blocked}")]
    NoCapacity {
        /// The gang's name.
        gang: String,
        /// How long it waited.
        waited: Duration,
        /// What stood in its way.
        blocked: String,
    },
    /// The lease is not held: released, or of another spawner. Acquire anew.
    #[error("{lease} is not held (any more): acquire seats before {operation}")]
    UnknownLease {
        /// The lease.
        lease: LeaseId,
        /// What was to be done with it.
        operation: &'static str,
    },
    /// The lease's workers still run. Kill them first.
    #[error(
        "{lease} still has {running} workers running: kill it, or wait for their ends, before launching again"
    )]
    StillRunning {
        /// The lease.
        lease: LeaseId,
        /// How many.
        running: usize,
    },
    /// A worker could not be started; none of its gang runs. Usually the program's path or its permissions.
    #[error("worker {slot} on node `{node}` could not start {program:?}: {source}")]
    Launch {
        /// Its slot.
        slot: usize,
        /// Its node.
        node: String,
        /// The program.
        program: OsString,
        /// What the system said.
        source: io::Error,
    },
    /// Killed with SIGKILL and still there: stuck in the kernel, in a dead file system or driver.
    #[error(
        "worker {slot} (pid {pid}) is still there {waited:?} after SIGKILL: it hangs in the kernel (dead file system, \
         GPU driver); its seat stays taken, exclude node `{node}`"
    )]
    KillTimeout {
        /// Its slot.
        slot: usize,
        /// Its process id.
        pid: u32,
        /// Its node.
        node: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The spawner has ended and took its workers with it. Make a new one.
    #[error("the {engine} spawner has ended: {cause}; its workers ended with it, make a new one")]
    SpawnerGone {
        /// Which engine.
        engine: &'static str,
        /// Why.
        cause: String,
    },
    /// A file could not be used.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// What was to be done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something the runtime cannot do without.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was to be done.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The control port could not be opened. Choose another address, or port 0.
    #[error(
        "cannot listen on {address} for workers: {source}; choose another address, or port 0 for any free one"
    )]
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
        slot: u32,
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
        slot: u32,
        /// For how long.
        silence: Duration,
        /// What was last seen of it.
        reason: String,
    },
    /// The controller does not take over what this worker reports. Report less often, or wait with `flush`.
    #[error(
        "{frames} messages ({bytes} bytes) wait for the controller to take them over; this one was not accepted"
    )]
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
    /// The engine would not do what was asked of it. What it said stands in the error, with what to do.
    #[error("{engine} refused {what}: {reason}{advice}")]
    Engine {
        /// The engine.
        engine: &'static str,
        /// What was asked.
        what: String,
        /// What it said.
        reason: String,
        /// What to do about it, with its own punctuation; may be empty.
        advice: String,
    },
    /// The program was built without this engine.
    #[error("this program was built without the {engine} engine: build it with the cargo feature `{engine}`")]
    NotBuilt {
        /// The engine.
        engine: &'static str,
    },
    /// No job of this name was submitted to the engine from this folder. Look at the name, and at the folder.
    #[error("{engine} has no job `{job}` in {}: it was not submitted from this folder", folder.display())]
    UnknownJob {
        /// The engine.
        engine: &'static str,
        /// The name.
        job: crate::engine::JobId,
        /// Where jobs are remembered.
        folder: PathBuf,
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
}

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
