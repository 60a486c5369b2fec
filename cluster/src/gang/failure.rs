//! Why a gang failed: the root cause, kept apart from what it brought about, and named last.

use std::fmt;
use std::time::Duration;

/// What happened to a member of a gang.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CauseKind {
    /// The worker reported an error of its own.
    Error,
    /// The worker reported an error that it knows to be the consequence of losing a peer.
    PeerLost {
        /// The rank it lost.
        peer: u32,
    },
    /// The process could not be made.
    NotLaunched,
    /// The process ended without having finished.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// The process was ended by a signal.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// The spawner lost the process, or ended it for a reason of its own, such as its memory limit.
    Lost,
    /// The engine took the process's place back, or the node under it went away: nobody's fault.
    Preempted,
    /// The process was launched but never called the controller.
    NeverCalledHome {
        /// How long the controller waited.
        after: Duration,
    },
    /// The worker called, but did not become ready in time.
    NeverReady {
        /// How long the controller waited.
        after: Duration,
    },
    /// The worker was not heard any more.
    Silent {
        /// For how long.
        silence: Duration,
    },
}

impl CauseKind {
    /// Whether this is known to be only a consequence of another member's failure.
    pub fn is_consequence(&self) -> bool {
        matches!(self, Self::PeerLost { .. })
    }
}

/// One member's failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The member's rank.
    pub rank: u32,
    /// Its slot.
    pub slot: u32,
    /// The attempt it belonged to.
    pub attempt: u32,
    /// The generation it worked in.
    pub generation: u64,
    /// What happened.
    pub kind: CauseKind,
    /// What the worker or the spawner said about it; may be empty.
    pub message: String,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} (slot {}, attempt {}) ", self.rank, self.slot, self.attempt)?;
        match &self.kind {
            CauseKind::Error => write!(f, "failed")?,
            CauseKind::PeerLost { peer } => write!(f, "lost its peer, rank {peer}")?,
            CauseKind::NotLaunched => write!(f, "could not be launched")?,
            CauseKind::Exited { code } => write!(f, "exited with code {code} before it finished")?,
            CauseKind::Killed { signal } => write!(f, "was killed by signal {signal}{}", named(*signal))?,
            CauseKind::Lost => write!(f, "was lost")?,
            CauseKind::Preempted => write!(f, "had its place taken away")?,
            CauseKind::NeverCalledHome { after } => {
                write!(f, "was launched but did not call the controller within {after:?}")?;
            }
            CauseKind::NeverReady { after } => write!(f, "did not become ready within {after:?}")?,
            CauseKind::Silent { silence } => write!(f, "was not heard for {silence:?}")?,
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// The failure of a gang, and of what it was part of.
///
/// A failure is handled by its owner, or becomes the owner's own: [`Failure::of`] adds one owner after another, and the
/// root cause stays what it was. Printed, the outermost owner comes first and the root cause last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What began it.
    pub root: Cause,
    /// The failures of other members, most of which will have followed from it; in the order they became known.
    pub others: Vec<Cause>,
    /// The last lines of the log of the member the root cause is about.
    pub log_tail: Vec<String>,
    owners: Vec<String>,
}

impl Failure {
    /// A failure with the root cause `root`.
    pub fn new(root: Cause, others: Vec<Cause>) -> Self {
        Self { root, others, log_tail: Vec::new(), owners: Vec::new() }
    }

    /// The failure as that of `owner`, which could not handle it.
    pub fn of(mut self, owner: impl Into<String>) -> Self {
        self.owners.push(owner.into());
        self
    }

    /// Who could not handle it, from the innermost outwards.
    pub fn owners(&self) -> &[String] {
        &self.owners
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for owner in self.owners.iter().rev() {
            writeln!(f, "{owner} failed, because:")?;
        }
        if !self.others.is_empty() {
            writeln!(f, "{} more failed after it:", self.others.len())?;
            for other in &self.others {
                writeln!(f, "  {other}")?;
            }
        }
        if !self.log_tail.is_empty() {
            writeln!(f, "the log of rank {} ended with:", self.root.rank)?;
            for line in &self.log_tail {
                writeln!(f, "  | {line}")?;
            }
        }
        write!(f, "root cause: {}", self.root)
    }
}

impl std::error::Error for Failure {}

/// The signals that end workers, by name.
fn named(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        4 => " (SIGILL: an instruction this processor does not have)",
        6 => " (SIGABRT: it gave itself up, as C++ exceptions and failed allocations do)",
        7 => " (SIGBUS: a mapped file or shared memory was not there any more)",
        8 => " (SIGFPE: an integer division by zero)",
        9 => " (SIGKILL: the system's out-of-memory killer, or somebody's `kill -9`)",
        11 => " (SIGSEGV: it used memory that is not its own)",
        13 => " (SIGPIPE)",
        15 => " (SIGTERM)",
        24 => " (SIGXCPU: its allowance of processor time is used up)",
        25 => " (SIGXFSZ: a file grew beyond its limit)",
        31 => " (SIGSYS: a system call that it may not make)",
        _ => "",
    }
}

/// Picks the root cause: the first that is not known to be a consequence, else the first.
pub(crate) fn root_of(causes: &[Cause]) -> Option<Failure> {
    let index = causes.iter().position(|cause| !cause.kind.is_consequence()).unwrap_or(0);
    let root = causes.get(index)?.clone();
    let others = causes.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, c)| c.clone()).collect();
    Some(Failure::new(root, others))
}
