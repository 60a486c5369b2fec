//! The one error of the crate: each variant tells the caller what can be done next.

use std::io;

/// A checkpoint that was passed over, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// The checkpoint's folder name.
    pub checkpoint: String,
    /// The file in it that is damaged or missing.
    pub file: String,
    /// What is wrong with it, the tensor named where one is.
    pub detail: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}: {}", self.checkpoint, self.file, self.detail)
    }
}

/// What can go wrong while saving, loading or collecting checkpoints.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The storage refused an operation. Free space, fix permissions, or point the run elsewhere, then save again.
    #[error("{operation} `{path}` failed: {source}{}", hint(.source))]
    Io {
        /// The operation, such as `write` or `sync`.
        operation: &'static str,
        /// The path, relative to the store's root unless it is the root itself.
        path: String,
        /// The system's own error, its code included.
        source: io::Error,
    },
    /// Nothing was written, because what is to be written would not fit.
    #[error(
        "not enough space in {store}: {need} bytes are needed, {free} are free; free some or keep fewer checkpoints"
    )]
    NoSpace {
        /// The store.
        store: String,
        /// Bytes the save needs.
        need: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// One checkpoint is damaged. An older one can be taken.
    #[error("checkpoint is damaged: {0}")]
    Damaged(Damage),
    /// No checkpoint in the store verifies. Start afresh, or restore the store from a copy.
    #[error("no usable checkpoint in {store}{}", list(.damaged))]
    NoCheckpoint {
        /// The store that was looked through.
        store: String,
        /// The ones that were passed over.
        damaged: Vec<Damage>,
    },
    /// The checkpoint was written by a newer release. Upgrade; nothing is wrong with the files.
    #[error(
        "{checkpoint} has schema {found}, this release reads up to {supported}: use the release that wrote it or a newer one"
    )]
    NewerSchema {
        /// The checkpoint.
        checkpoint: String,
        /// Its schema.
        found: u32,
        /// The newest this release reads.
        supported: u32,
    },
    /// A successor has taken over this run. This process must stop saving.
    #[error(
        "generation {ours} was superseded by generation {current}: this process must stop saving into {store}"
    )]
    Fenced {
        /// This process's generation.
        ours: u64,
        /// The newest generation seen.
        current: u64,
        /// The store.
        store: String,
    },
    /// The save failed; the older checkpoints are untouched and the next save may succeed.
    #[error("saving step {step} failed on rank {rank}: {reason}; the earlier checkpoints are untouched")]
    SaveFailed {
        /// The step.
        step: u64,
        /// The rank on which it failed first.
        rank: u32,
        /// Why.
        reason: String,
    },
    /// The deadline passed. Raise it, or look at why the storage or a peer is slow.
    #[error("{what} was not done within {seconds:.1} s")]
    Timeout {
        /// What was waited for, and for whom.
        what: String,
        /// The wait's limit.
        seconds: f64,
    },
    /// An earlier save hangs in the storage, past its deadline. Training can go on; no save can start until it returns.
    #[error(
        "the save of step {step} has hung for {seconds:.1} s in {store}: look at the storage; no new save can start"
    )]
    Hung {
        /// The step whose save hangs.
        step: u64,
        /// For how long.
        seconds: f64,
        /// The store.
        store: String,
    },
    /// What the caller gave does not make sense. Nothing was written.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The tensors wanted and those saved differ. All differences are listed.
    #[error("{} tensors do not match the checkpoint:{}", .0.len(), lines(.0))]
    Mismatch(Vec<crate::select::Mismatch>),
    /// A peer is gone or answered nonsense; the group has to be formed anew.
    #[error("rank {rank} lost during `{operation}`: {reason}")]
    Peer {
        /// The peer.
        rank: u32,
        /// The exchange that was under way.
        operation: String,
        /// Why.
        reason: String,
    },
    /// This build or this store lacks what is asked for.
    #[error("{0}")]
    NotAvailable(String),
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(operation: &'static str, path: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { operation, path, source }
    }

    pub(crate) fn damaged(checkpoint: &str, file: &str, detail: impl Into<String>) -> Error {
        Error::Damaged(Damage {
            checkpoint: checkpoint.to_owned(),
            file: file.to_owned(),
            detail: detail.into(),
        })
    }
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (free some space or keep fewer checkpoints)"
        }
        io::ErrorKind::ReadOnlyFilesystem => " (the file system is mounted read-only)",
        io::ErrorKind::PermissionDenied => " (check the folder's owner and mode)",
        io::ErrorKind::NotFound => " (was the folder removed, or taken over by a newer generation?)",
        _ => "",
    }
}

fn list(damaged: &[Damage]) -> String {
    if damaged.is_empty() {
        return String::new();
    }
    format!("; passed over:{}", lines(damaged))
}

fn lines<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(|item| format!("\n  {item}")).collect()
}
