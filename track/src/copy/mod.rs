//! Copies of a run's store elsewhere, from which alone the run can be resumed.
//!
//! A copy is an immutable object `run.db.<epoch>-<seq>-<writer>` and, written last, a small pointer `run.db.latest` that
//! names it, its checksum and its place in the run's history. Only the pointer is replaced, on the condition that it is
//! still the one that was read: of two controllers only the later one (the higher epoch) gets its copies in, and a crash
//! at any point leaves the copy before.

mod folder;
mod mirror;
#[cfg(feature = "object-store")]
mod object;

pub mod conformance;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::backup::Backup;
use serde::{Deserialize, Serialize};

pub use folder::FolderUpload;
pub use mirror::{Mirror, MirrorStatus};
#[cfg(feature = "object-store")]
pub use object::ObjectUpload;

use crate::error::{Error, Result};
use crate::lock::{Lock, host};
use crate::reader::Reader;
use crate::schema;
use crate::store::FILE;

/// The pointer's name.
const LATEST: &str = "run.db.latest";

/// Which state of a small object a storage holds, as that storage tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(pub String);

/// A place that copies go to. Calls block, with deadlines of the implementation.
pub trait Upload: Send + Sync {
    /// The place, for messages.
    fn place(&self) -> String;

    /// Reads a small object, with its version.
    fn read(&self, name: &str) -> Result<Option<(Vec<u8>, Version)>>;

    /// Replaces a small object in one step if it still is of this version (`None`: if it is not there), and returns the
    /// new version; `None` is that it is of another.
    fn swap(&self, name: &str, bytes: &[u8], expected: Option<&Version>) -> Result<Option<Version>>;

    /// Stores a file under a name that is not in use. Nothing is seen under the name before all of it is there.
    fn upload(&self, name: &str, file: &Path) -> Result<()>;

    /// Fetches an object into a file.
    fn download(&self, name: &str, file: &Path) -> Result<()>;

    /// Removes an object; one that is not there is removed already.
    fn delete(&self, name: &str) -> Result<()>;
}

/// Opens the place a URL or path names: a path or `file:` URL is a folder; `s3:`, `gs:`, `az:`, `http(s):` and `memory:`
/// need the feature `object-store` and take their credentials from the environment.
pub fn open(place: &str) -> Result<Box<dyn Upload>> {
    if let Some(path) = place.strip_prefix("file://") {
        return Ok(Box::new(FolderUpload::new(path)));
    }
    if !place.contains("://") {
        return Ok(Box::new(FolderUpload::new(place)));
    }
    #[cfg(feature = "object-store")]
    return Ok(Box::new(ObjectUpload::open(place)?));
    #[cfg(not(feature = "object-store"))]
    Err(Error::Storage {
        what: "opening it".into(),
        place: place.into(),
        why: "this build has no object stores: enable the feature object-store".into(),
    })
}

/// The pointer: which copy is the latest, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyInfo {
    /// The run.
    pub run: String,
    /// Which opening of the run wrote it.
    pub epoch: u64,
    /// The last event in it.
    pub seq: u64,
    /// The object that holds it.
    pub object: String,
    /// Its length.
    pub bytes: u64,
    /// Its CRC-32C.
    pub crc32c: u32,
    /// The host and process that wrote it.
    pub writer: String,
    /// The copy before it, which is kept until the next.
    #[serde(default)]
    pub previous: Option<String>,
}

/// The latest copy at a place, if there is one.
pub fn latest(upload: &dyn Upload) -> Result<Option<CopyInfo>> {
    Ok(read_latest(upload)?.map(|(info, _)| info))
}

fn read_latest(upload: &dyn Upload) -> Result<Option<(CopyInfo, Version)>> {
    let Some((text, version)) = upload.read(LATEST)? else { return Ok(None) };
    let info = serde_json::from_slice(&text).map_err(|e| Error::Storage {
        what: format!("reading {LATEST}"),
        place: upload.place(),
        why: format!("it is not a pointer to a copy ({e})"),
    })?;
    Ok(Some((info, version)))
}

/// One controller's copies at one place.
struct Copier {
    upload: Box<dyn Upload>,
    /// The pointer as this controller last wrote it.
    ours: Option<(CopyInfo, Version)>,
}

impl Copier {
    /// Copies what the reader sees now, and returns the last event in the copy.
    fn copy(&mut self, reader: &Reader, epoch: u64) -> Result<u64> {
        let path = reader.path();
        let run = schema::run_id(reader.connection()).map_err(Error::sqlite("copy", path))?;
        self.check(&run, epoch)?;
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = Temporary(path.with_file_name(format!(".copy-{}-{count}.db", std::process::id())));
        let seq = backup(reader, &temporary.0)?;
        if self.ours.as_ref().is_some_and(|(ours, _)| (ours.epoch, ours.seq) == (epoch, seq)) {
            return Ok(seq);
        }
        let (bytes, crc32c) = sum(&temporary.0)?;
        let writer = format!("process {} on {}", std::process::id(), host());
        let object = format!(
            "run.db.{epoch:06}-{seq:012}-{:08x}",
            crc32c::crc32c(format!("{writer} {crc32c}").as_bytes())
        );
        self.upload.upload(&object, &temporary.0)?;
        let before = self.ours.as_ref().map(|(info, _)| info.clone());
        let previous = before.as_ref().map(|info| info.object.clone());
        let info = CopyInfo { run, epoch, seq, object, bytes, crc32c, writer, previous };
        let text = serde_json::to_vec_pretty(&info)
            .map_err(|e| Error::Encode { kind: LATEST.into(), source: e.into() })?;
        match self.upload.swap(LATEST, &text, self.ours.as_ref().map(|(_, version)| version))? {
            Some(version) => self.ours = Some((info, version)),
            None => {
                self.upload.delete(&info.object)?;
                return Err(self.lost("another controller wrote a copy meanwhile"));
            }
        }
        // The copy before the one before: nobody can be about to read that any more.
        if let Some(old) = before.and_then(|info| info.previous) {
            self.upload.delete(&old)?;
        }
        Ok(seq)
    }

    /// Reads what is there, and refuses if it outranks us.
    fn check(&mut self, run: &str, epoch: u64) -> Result<()> {
        let there = read_latest(&*self.upload)?;
        match (&there, &self.ours) {
            (Some((info, _)), _) if info.run != run => {
                Err(self.lost(&format!("it is of another run ({}); choose another place", info.run)))
            }
            (Some((info, _)), None) if info.epoch >= epoch => Err(self.lost(&format!(
                "it was written by {} in opening {} of the run, and this is opening {epoch}; resume from the copy",
                info.writer, info.epoch
            ))),
            (Some((info, version)), Some((_, ours))) if version != ours => {
                Err(self.lost(&format!("{} took over the run; stop this controller", info.writer)))
            }
            _ => {
                self.ours = there;
                Ok(())
            }
        }
    }

    fn lost(&self, why: &str) -> Error {
        Error::NewerCopy { place: self.upload.place(), why: why.into() }
    }
}

/// A consistent copy of what a reader sees, while the run is written; the last event in it.
fn backup(reader: &Reader, to: &Path) -> Result<u64> {
    let failed = || Error::sqlite("copy", to);
    let _stale = std::fs::remove_file(to);
    let mut copy = rusqlite::Connection::open(to).map_err(failed())?;
    copy.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY").map_err(failed())?;
    {
        let backup = Backup::new(reader.connection(), &mut copy).map_err(failed())?;
        // All in one step is one read transaction: in WAL mode the writer goes on meanwhile.
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while backup.step(-1).map_err(failed())? != rusqlite::backup::StepResult::Done {
            if std::time::Instant::now() > deadline {
                return Err(Error::Deadline {
                    what: "a copy of the store".into(),
                    after: Duration::from_secs(60),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let seq = schema::meta(&copy, "applied").map_err(failed())? as u64;
    copy.close().map_err(|(_, e)| failed()(e))?;
    Ok(seq)
}

/// A file's length and CRC-32C.
fn sum(path: &Path) -> Result<(u64, u32)> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let (mut buffer, mut length, mut crc) = (vec![0; 1 << 20], 0, 0);
    loop {
        let count = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if count == 0 {
            return Ok((length, crc));
        }
        length += count as u64;
        crc = crc32c::crc32c_append(crc, &buffer[..count]);
    }
}

/// A file that goes with its guard.
struct Temporary(std::path::PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// Brings the latest copy into a run's folder, so that `Store::open` goes on from it. A store that is there already is
/// replaced only if it is of the same run and behind the copy.
pub fn restore(upload: &dyn Upload, folder: impl AsRef<Path>) -> Result<CopyInfo> {
    let folder = folder.as_ref();
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let path = folder.join(FILE);
    let storage = |what: &str, why: String| Error::Storage { what: what.into(), place: upload.place(), why };
    let info =
        latest(upload)?.ok_or_else(|| storage("restoring the run", "there is no copy of a run".into()))?;
    let _lock = Lock::take(&path)?;
    if path.exists() {
        let reader = Reader::open(folder)?;
        let failed = || Error::sqlite("read", &path);
        let run = schema::run_id(reader.connection()).map_err(failed())?;
        let here = (
            schema::meta(reader.connection(), "epoch").map_err(failed())? as u64,
            schema::meta(reader.connection(), "applied").map_err(failed())? as u64,
        );
        if run != info.run {
            let why = format!("it is of another run than {}; move that away first", path.display());
            return Err(Error::NewerCopy { place: upload.place(), why });
        }
        if here > (info.epoch, info.seq) {
            return Err(Error::Exists { path });
        }
        if here == (info.epoch, info.seq) {
            return Ok(info);
        }
    }
    let temporary = Temporary(path.with_file_name(format!(".restore-{}.db", std::process::id())));
    upload.download(&info.object, &temporary.0)?;
    if sum(&temporary.0)? != (info.bytes, info.crc32c) {
        return Err(storage(
            &format!("fetching {}", info.object),
            "what came does not fit its checksum".into(),
        ));
    }
    let io = |what| Error::io(what, &path);
    File::open(&temporary.0).and_then(|f| f.sync_all()).map_err(io("restore"))?;
    for left in ["-wal", "-shm"] {
        let mut name = path.clone().into_os_string();
        name.push(left);
        let _not_there = std::fs::remove_file(name);
    }
    std::fs::rename(&temporary.0, &path).map_err(io("restore"))?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(io("restore"))?;
    Ok(info)
}
