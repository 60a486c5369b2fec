//! What can go wrong, sorted by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure of this crate. Clones are cheap: one failure of the store answers every waiter.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no run in this folder. Check the path, or create the run.
    #[error("no run is stored at {path}: check the path, or create the run there first")]
    NotFound {
        /// The store's file.
        path: PathBuf,
    },
    /// There is a run already. Resume it with `Store::open`, or take another folder.
    #[error("{path} holds a run already: resume it, or choose another folder for a new one")]
    Exists {
        /// The store's file.
        path: PathBuf,
    },
    /// Another controller writes to this run. Stop that one, or watch this run with a `Reader`.
    #[error("{path} is being written by {holder}: stop that controller first, or only watch the run")]
    Held {
        /// The store's file.
        path: PathBuf,
        /// Who holds it: process and host.
        holder: String,
    },
    /// The file was written by a newer version. Upgrade.
    #[error(
        "{path} has schema {found} and this version reads up to {supported}: upgrade to the version that wrote it (or newer)"
    )]
    NewerSchema {
        /// The store's file.
        path: PathBuf,
        /// The file's schema.
        found: u32,
        /// The newest this build reads.
        supported: u32,
    },
    /// The file is of an older schema, which only a writer brings up to date. Open the run once with `Store::open`.
    #[error(
        "{path} has schema {found}, which is brought to {supported} when the run is next opened for writing: open it once"
    )]
    OlderSchema {
        /// The store's file.
        path: PathBuf,
        /// The file's schema.
        found: u32,
        /// The schema of this build.
        supported: u32,
    },
    /// The file is damaged. Restore the last copy, or rebuild the projections if only those differ.
    #[error("{path} is damaged: {what}; restore the run's last copy, or keep the file for salvage")]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The disk is full. Make room and resume: everything acknowledged is kept.
    #[error(
        "no space left for {path}: the disk mounted at {disk} has {free_bytes} bytes free; make room there and resume, nothing \
         acknowledged is lost"
    )]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
        /// Where its disk is mounted.
        disk: PathBuf,
        /// What is free on it.
        free_bytes: u64,
    },
    /// The store reached the size it was allowed. Raise `StoreConfig::max_bytes` and resume.
    #[error(
        "{path} reached its limit of {max_bytes} bytes (max_bytes) on the disk mounted at {disk}: raise the limit and resume, \
         nothing acknowledged is lost"
    )]
    QuotaFull {
        /// The file that may not grow.
        path: PathBuf,
        /// Where its disk is mounted.
        disk: PathBuf,
        /// The limit.
        max_bytes: u64,
    },
    /// The writer is behind and the queue full. Try again, or use the call that waits.
    #[error(
        "the store's queue is full ({events} events, {bytes} bytes waiting for the disk): try again, or append with a wait"
    )]
    Busy {
        /// Events that wait.
        events: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// Something took longer than allowed. The disk or the other side hangs.
    #[error("{what} did not finish within {after:?}: the disk or storage behind it is slow or hangs")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The store was closed. Open the run again.
    #[error("the store is closed: open the run again to append")]
    Closed,
    /// The event cannot be stored as it is.
    #[error("the event {kind} is refused: {why}")]
    Refused {
        /// Its kind.
        kind: String,
        /// What is wrong with it.
        why: String,
    },
    /// The event's body does not serialise.
    #[error("the event {kind} cannot be encoded as JSON: {source}")]
    Encode {
        /// Its kind.
        kind: String,
        /// Why.
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// A copy of this run that is not older than ours is at the destination. Resume from it, or choose another place.
    #[error("{place} holds a copy that must not be replaced: {why}")]
    NewerCopy {
        /// The destination.
        place: String,
        /// What is there, and what to do.
        why: String,
    },
    /// A sink has not taken everything. The run is unharmed; the sink catches up when the run is next opened.
    #[error(
        "the sink {name} is at event {at} of {committed}: {why}; it catches up when the run is next opened"
    )]
    SinkBehind {
        /// Which sink.
        name: String,
        /// The last event it took.
        at: u64,
        /// The last event there is.
        committed: u64,
        /// What holds it up.
        why: String,
    },
    /// A storage did not do what was asked.
    #[error("{what} at {place} failed: {why}")]
    Storage {
        /// The operation.
        what: String,
        /// The storage.
        place: String,
        /// The storage's own words.
        why: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// SQLite failed in a way that none of the above describes.
    #[error("SQLite cannot {what} {path}: {source}")]
    Sqlite {
        /// The operation.
        what: &'static str,
        /// The store's file.
        path: PathBuf,
        /// SQLite's error.
        #[source]
        source: Arc<rusqlite::Error>,
    },
}

impl Error {
    /// For `map_err`: names the file of an io error, and the disk if that is full.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => disk_full(path),
            _ => Error::Io { what, path: path.into(), source: Arc::new(source) },
        }
    }

    /// For `map_err`: sorts an SQLite error by what can be done about it.
    pub(crate) fn sqlite(what: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Error {
        use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
        let wrong_type = |e: &rusqlite::Error| {
            use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
            matches!(e, FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..))
        };
        move |source| match source.sqlite_error_code() {
            None if wrong_type(&source) => Error::Corrupt { path: path.into(), what: source.to_string() },
            Some(DiskFull) => disk_full(path),
            Some(DatabaseCorrupt | NotADatabase) => {
                Error::Corrupt { path: path.into(), what: source.to_string() }
            }
            _ => Error::Sqlite { what, path: path.into(), source: Arc::new(source) },
        }
    }
}

fn disk_full(path: &Path) -> Error {
    let (disk, free_bytes) = disk_of(path);
    Error::DiskFull { path: path.into(), disk, free_bytes }
}

/// Where the disk that holds `path` is mounted, and its free bytes.
pub(crate) fn disk_of(path: &Path) -> (PathBuf, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let existing = absolute.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    let here = device(existing);
    let disk = existing.ancestors().take_while(|p| device(p) == here).last().unwrap_or(existing);
    let free = rustix::fs::statvfs(existing).map(|s| s.f_bavail * s.f_frsize).unwrap_or(0);
    (disk.into(), free)
}
