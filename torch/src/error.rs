//! What can go wrong, by what the caller can do next.

use std::fmt;

/// A failure of the caller's own, carried through libtorch unchanged.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// This crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This machine or this libtorch lacks it: take another way.
    #[error("{what} is not available: {why}")]
    NotAvailable {
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be given here.
        why: String,
    },
    /// libtorch refused; the message is its own.
    #[error("libtorch failed in {op}: {message}")]
    Torch {
        /// The operation that was running.
        op: &'static str,
        /// libtorch's message.
        message: String,
    },
    /// A gradient hook or an end-of-backward callback returned an error, which ended the backward pass.
    #[error("a gradient hook failed: {0}")]
    Hook(#[source] BoxError),
    /// A gradient hook or an end-of-backward callback panicked, which ended the backward pass.
    #[error("a gradient hook panicked: {0}")]
    HookPanic(String),
    /// The closure of a training step failed.
    #[error("the training step failed: {0}")]
    Step(#[source] BoxError),
    /// The device did not finish in time; it is hung, or the work is larger than was thought.
    #[error("{what} did not finish within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: std::time::Duration,
    },
    /// What was loaded does not fit what is there. All differences at once; nothing was changed.
    #[error("{what} does not fit: {}", list(differences))]
    Mismatch {
        /// What was being loaded.
        what: &'static str,
        /// Every difference found.
        differences: Vec<Difference>,
    },
    /// The group of ranks failed: the cause says which rank, and whether the group can be used again.
    #[error("the process group failed: {0}")]
    Group(#[from] regatta_comm::Error),
    /// The ranks do not hold the same model. All ranks get the same error.
    #[error("rank {rank} does not have rank 0's model: {parameter}: {why}")]
    Replica {
        /// The first rank that differs from rank 0.
        rank: usize,
        /// The first parameter or buffer of it that differs.
        parameter: String,
        /// How it differs.
        why: String,
    },
    /// The loss or a gradient is infinite or not a number. All ranks get it at the same step; no weight was changed. Lower the
    /// learning rate, clip gradients, or look at the batch.
    #[error("step {step}: {what} is not finite")]
    NotFinite {
        /// The backward pass, counted from 0.
        step: u64,
        /// The rank whose loss it is; none for a gradient, which is the mean over all.
        rank: Option<usize>,
        /// The loss, or the first parameter whose gradient is not finite.
        what: String,
    },
    /// A backward pass did not reach the parameters that it should. All ranks get the same error.
    #[error("rank {rank}: {why}: {}", parameters.join(", "))]
    Unused {
        /// The first rank where it happened.
        rank: usize,
        /// The parameters.
        parameters: Vec<String>,
        /// What was expected, and what to do.
        why: &'static str,
    },
    /// An argument is outside what the function takes.
    #[error("{what}: {why}")]
    Argument {
        /// The function or setting.
        what: &'static str,
        /// What is wrong with the argument, and what would be right.
        why: String,
    },
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Error::Torch { op: "tch", message: error.to_string() }
    }
}

/// One way in which loaded state differs from its target.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The tensor or setting.
    pub name: String,
    /// How it differs.
    pub kind: DifferenceKind,
}

/// How a named thing differs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DifferenceKind {
    /// The target has it, the loaded state does not.
    Missing,
    /// The loaded state has it, the target does not.
    Unexpected,
    /// Both have it, but not alike.
    Unlike {
        /// What the target has.
        expected: String,
        /// What was loaded.
        found: String,
    },
}

impl Difference {
    pub(crate) fn missing(name: impl Into<String>) -> Self {
        Difference { name: name.into(), kind: DifferenceKind::Missing }
    }

    pub(crate) fn unexpected(name: impl Into<String>) -> Self {
        Difference { name: name.into(), kind: DifferenceKind::Unexpected }
    }

    pub(crate) fn unlike(
        name: impl Into<String>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        let kind = DifferenceKind::Unlike { expected: expected.to_string(), found: found.to_string() };
        Difference { name: name.into(), kind }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            DifferenceKind::Missing => write!(f, "{} is missing", self.name),
            DifferenceKind::Unexpected => write!(f, "{} is not known here", self.name),
            DifferenceKind::Unlike { expected, found } => {
                write!(f, "{} should be {expected}, found {found}", self.name)
            }
        }
    }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}
