//! What can go wrong, each with what failed, where, why, and what to do about it.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

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
}
