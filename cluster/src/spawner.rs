//! The trait behind every engine: get seats for a gang, start processes on them, see them end, take them down.
//!
//! Mechanics only. Ranks, retries, budgets, heartbeats and fencing are the controller's and the same on every engine; an
//! engine's events only make them faster. Submitting a *driver* from a laptop is another matter, and not of this trait.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::events::Events;
use crate::request::{GangRequest, Lease, LeaseId};
use crate::resource::{Bytes, Resources};

/// An engine as the driver beside its workers sees it.
///
/// Calls may run at once for different leases. A future that is dropped gives back what it was getting. Every
/// implementation runs [`conformance`](crate::conformance).
#[async_trait]
pub trait Spawner: Send + Sync + fmt::Debug {
    /// The engine's name, for messages and records: `local`, `slurm`, `ray`, `kubernetes`.
    fn engine(&self) -> &'static str;

    /// The nodes, with what they have and what of it is free.
    fn nodes(&self) -> Vec<NodeStatus>;

    /// Waits in line for seats for the whole gang. What no state of the cluster could ever seat is refused at once with
    /// [`Error::Infeasible`](crate::Error::Infeasible); running out of patience is [`Error::NoCapacity`](crate::Error::NoCapacity).
    async fn acquire(&self, request: GangRequest) -> Result<Lease>;

    /// Starts one worker on every seat, or none: where one cannot start, the others are ended before this fails.
    ///
    /// A lease carries one gang of processes at a time; launch again once all of them have ended.
    async fn launch(&self, lease: LeaseId, launch: Launch) -> Result<Events>;

    /// Asks every worker to end (SIGTERM), and after `grace` ends it. Returns when nothing of them runs any more,
    /// grandchildren included; with no worker running it does nothing.
    async fn kill(&self, lease: LeaseId, grace: Duration) -> Result<()>;

    /// Gives the seats back, ending first whatever still runs on them. A lease already released is not an error.
    async fn release(&self, lease: LeaseId) -> Result<()>;

    /// Gives the seats back but lets the workers idle, for the next launch of the same command on the same seats to take
    /// over (its events say `reused`). Returns whether they were kept; an engine that cannot, releases.
    async fn park(&self, lease: LeaseId) -> Result<bool> {
        self.release(lease).await?;
        Ok(false)
    }
}

/// A node as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name, as in [`Seat::node`](crate::Seat::node).
    pub name: String,
    /// What it has in all.
    pub total: Resources,
    /// What no gang holds.
    pub free: Resources,
    /// Whether gangs may be placed there.
    pub up: bool,
}

/// What a worker runs. Nothing of the driver's environment is inherited but what [`WorkerCommand::inherit_env`] says.
#[derive(Clone, PartialEq, Eq)]
pub struct WorkerCommand {
    /// The program.
    pub program: OsString,
    /// Its arguments. Anyone on the machine can read them: secrets belong in the environment.
    pub args: Vec<OsString>,
    /// Variables to set. They win over those that the engine sets from the seat.
    pub env: BTreeMap<String, OsString>,
    /// Whether the driver's own environment comes first (the default).
    pub inherit_env: bool,
    /// Where it runs; the driver's own folder if not said.
    pub cwd: Option<PathBuf>,
}

impl WorkerCommand {
    /// This program without arguments, in the driver's environment and folder.
    #[must_use]
    pub fn new(program: impl Into<OsString>) -> Self {
        Self { program: program.into(), args: Vec::new(), env: BTreeMap::new(), inherit_env: true, cwd: None }
    }

    /// The running program itself: a user's binary is its own worker.
    pub fn myself() -> std::io::Result<Self> {
        std::env::current_exe().map(Self::new)
    }

    /// The same with one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The same with more arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// The same with this variable set.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }
}

impl fmt::Debug for WorkerCommand {
    /// Shows the names of variables only: values hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerCommand")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("inherit_env", &self.inherit_env)
            .field("cwd", &self.cwd)
            .finish()
    }
}

/// One gang's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What each worker runs. Beside its own variables it finds those of [`env`](mod@crate::env).
    pub command: WorkerCommand,
    /// Which try of the run this is, counted from 1.
    pub attempt: u32,
    /// Variables of single workers, by slot (`RANK` and its like, for programs that are not ours); may be shorter than the gang.
    pub slot_env: Vec<BTreeMap<String, OsString>>,
    /// The folder under which each worker's output goes to `attempt_<attempt>/rank_<slot>.log`; none keeps only the tail.
    pub logs: Option<PathBuf>,
}

impl Launch {
    /// The first attempt at this command, without log files.
    #[must_use]
    pub fn new(command: WorkerCommand) -> Self {
        Self { command, attempt: 1, slot_env: Vec::new(), logs: None }
    }

    /// The same as another attempt.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// The same with log files under this folder.
    #[must_use]
    pub fn logs(mut self, folder: impl Into<PathBuf>) -> Self {
        self.logs = Some(folder.into());
        self
    }
}

/// A worker process, from its start to its end: unlike slot and attempt it never means two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub String);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which of its two outputs a worker wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a spawner says about a launched gang. For each slot: `Started`, lines, then one of `Exited` and `Lost`, then nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerEvent {
    /// A process runs on the slot. That it is *ready* only its own call home says.
    Started {
        /// The slot.
        slot: usize,
        /// The process's lasting name, which it finds in `REGATTA_WORKER`.
        worker: WorkerId,
        /// Its process id on its node, where the engine knows it.
        pid: Option<u32>,
        /// Whether it idled in the pool before: its environment is that of its first launch.
        reused: bool,
    },
    /// It wrote a line.
    Line {
        /// The slot.
        slot: usize,
        /// To which output.
        stream: Stream,
        /// The line without its end, cut where it is very long; what is not UTF-8 is replaced.
        text: String,
        /// How many of the gang's lines before this one were left out since the reader was behind. The log file has them all.
        dropped: u64,
    },
    /// It ended, and nothing of it is left.
    Exited {
        /// The slot.
        slot: usize,
        /// How.
        exit: Exit,
    },
    /// It is out of sight and will not come back: its node or the engine failed.
    Lost {
        /// The slot.
        slot: usize,
        /// What is known about why.
        cause: String,
    },
}

impl WorkerEvent {
    /// The slot it is about.
    #[must_use]
    pub fn slot(&self) -> usize {
        match self {
            Self::Started { slot, .. }
            | Self::Line { slot, .. }
            | Self::Exited { slot, .. }
            | Self::Lost { slot, .. } => *slot,
        }
    }

    /// Whether no event of this slot follows.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Exited { .. } | Self::Lost { .. })
    }
}

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// What that means.
    pub reason: Reason,
    /// The last lines it wrote, oldest first.
    pub tail: Vec<String>,
}

/// Why a worker, or a gang, ended: one vocabulary for all engines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// It did what it was for.
    Succeeded,
    /// The user's program failed with this exit code; 128 and the signal where one ended it, as shells count.
    UserError {
        /// The code.
        code: i32,
    },
    /// It used more memory than its seat has.
    OutOfMemory {
        /// What it may use.
        limit: Bytes,
        /// What it was seen to use.
        used: Bytes,
    },
    /// The engine wanted the place back.
    Preempted,
    /// Its node failed.
    NodeLost,
    /// There was no room for it in time.
    NoCapacity,
    /// It did not call home in time.
    StartTimeout,
    /// We ended it.
    Cancelled,
    /// The engine itself failed; its own word for it.
    EngineError(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded => f.write_str("succeeded"),
            Self::UserError { code } => write!(f, "failed with exit code {code}"),
            Self::OutOfMemory { limit, used } => write!(
                f,
                "used {used} of memory where its seat has {limit}: ask for more `memory` per worker, or use less"
            ),
            Self::Preempted => f.write_str("was preempted"),
            Self::NodeLost => f.write_str("was lost with its node"),
            Self::NoCapacity => f.write_str("found no room"),
            Self::StartTimeout => f.write_str("did not call home in time"),
            Self::Cancelled => f.write_str("was cancelled"),
            Self::EngineError(word) => write!(f, "failed in the engine: {word}"),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        match (self.code, self.signal) {
            (_, Some(signal)) => write!(f, " (signal {signal})"),
            _ => Ok(()),
        }
    }
}
