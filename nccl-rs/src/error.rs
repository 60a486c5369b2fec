//! What can go wrong, told so that the caller knows what to do next.

use std::{fmt, path::PathBuf, time::Duration};

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A version of NCCL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version {
    /// Major, 2 since 2017.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch.
    pub patch: u32,
}

impl Version {
    /// A version from its three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Reads the integer that `ncclGetVersion` gives: thousands up to 2.8, ten-thousands since.
    pub const fn from_code(code: u32) -> Self {
        if code < 10_000 {
            Self::new(code / 1000, code / 100 % 10, code % 100)
        } else {
            Self::new(code / 10_000, code / 100 % 100, code % 100)
        }
    }

    /// The integer that NCCL's headers call `NCCL_VERSION_CODE`.
    pub const fn code(self) -> u32 {
        if self.major <= 2 && self.minor <= 8 {
            self.major * 1000 + self.minor * 100 + self.patch
        } else {
            self.major * 10_000 + self.minor * 100 + self.patch
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// NCCL's own result code, kept as it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Code(pub i32);

impl Code {
    /// A call to CUDA failed.
    pub const UNHANDLED_CUDA: Self = Self(1);
    /// A call to the operating system failed.
    pub const SYSTEM: Self = Self(2);
    /// NCCL found itself inconsistent.
    pub const INTERNAL: Self = Self(3);
    /// An argument has an invalid value.
    pub const INVALID_ARGUMENT: Self = Self(4);
    /// The call is not allowed here.
    pub const INVALID_USAGE: Self = Self(5);
    /// A peer or the network failed.
    pub const REMOTE: Self = Self(6);
    /// NCCL's own timeout.
    pub const TIMEOUT: Self = Self(8);

    /// The name in NCCL's header.
    pub const fn name(self) -> &'static str {
        match self.0 {
            0 => "ncclSuccess",
            1 => "ncclUnhandledCudaError",
            2 => "ncclSystemError",
            3 => "ncclInternalError",
            4 => "ncclInvalidArgument",
            5 => "ncclInvalidUsage",
            6 => "ncclRemoteError",
            7 => "ncclInProgress",
            8 => "ncclTimeout",
            _ => "an unknown ncclResult_t",
        }
    }

    /// Whether the other ranks are the likely cause, so that abort and shrink are the way on.
    pub const fn is_remote(self) -> bool {
        matches!(self, Self::REMOTE | Self::TIMEOUT)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

/// Everything this crate can answer instead of a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No NCCL on this machine, or not where it was looked for. Install it, or go on without a GPU.
    #[error(
        "NCCL is not available: {}; install it (for example the nvidia-nccl-cu13 wheel) or point NCCL_LIB at libnccl.so.2",
        .tried.iter().map(|t| t.to_string()).collect::<Vec<_>>().join("; ")
    )]
    NotAvailable {
        /// Each place that was tried, in order, and what the loader said.
        tried: Vec<Attempt>,
    },
    /// A library was found, but it lacks a function that every supported NCCL has. Point at another one.
    #[error("{} is not a usable NCCL: it has no {symbol}; this crate needs NCCL 2.19 or newer", .path.display())]
    MissingSymbol {
        /// The function that is missing.
        symbol: &'static str,
        /// The library.
        path: PathBuf,
    },
    /// The loaded NCCL is older than the oldest one supported. Install a newer one.
    #[error("{} is NCCL {found}, but at least {needs} is needed", .path.display())]
    TooOld {
        /// What was found.
        found: Version,
        /// The oldest one supported.
        needs: Version,
        /// The library.
        path: PathBuf,
    },
    /// The loaded NCCL works, but this came later. Do without, or install a newer one.
    #[error("{feature} needs NCCL {needs}, but {found} is loaded")]
    NotSupported {
        /// The function, setting or type asked for.
        feature: &'static str,
        /// The first version that has it.
        needs: Version,
        /// The version loaded.
        found: Version,
    },
    /// NCCL said no. If [`Code::is_remote`], abort the communicator on every survivor and shrink or build anew.
    #[error("{function} failed{}: {code}: {message}", rank_suffix(*.rank))]
    Nccl {
        /// The C function that failed, or whose work was found failed later.
        function: &'static str,
        /// NCCL's code.
        code: Code,
        /// NCCL's own words.
        message: String,
        /// The rank in its communicator, where there is one.
        rank: Option<u32>,
    },
    /// A deadline passed. The communicator is still there: wait again, or abort it on every rank.
    #[error(
        "{operation} on rank {rank} was not done after {waited:?}; a peer is late, stopped or dead: wait on, or abort on every rank"
    )]
    Timeout {
        /// What was waited for.
        operation: &'static str,
        /// The rank that waited.
        rank: u32,
        /// How long.
        waited: Duration,
    },
    /// The communicator was aborted, destroyed or dropped before this call.
    #[error("{operation} on rank {rank}: the communicator is closed: {reason}")]
    Closed {
        /// What was attempted.
        operation: &'static str,
        /// The rank in the communicator.
        rank: u32,
        /// Who closed it and why.
        reason: String,
    },
    /// The arguments contradict each other; NCCL was not asked.
    #[error("{operation}: {what}")]
    InvalidArgument {
        /// What was attempted.
        operation: &'static str,
        /// What is wrong and what would be right.
        what: String,
    },
}

/// One place where the library was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The name or path handed to the loader.
    pub name: PathBuf,
    /// What the loader said.
    pub error: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name.display(), self.error)
    }
}

fn rank_suffix(rank: Option<u32>) -> String {
    rank.map(|r| format!(" on rank {r}")).unwrap_or_default()
}
