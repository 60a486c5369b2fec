//! Checkpoints on a file system. Each method is an order of operations that a power cut at any point cannot break;
//! `tests/crash.rs` cuts at every point.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Blob, Created, Store, parent};
use crate::error::{Error, Result};
use crate::fs::{Bytes, Entry, Fs, OsFs};

/// How much is written in one call. Large enough that the calls cost nothing.
const CHUNK: usize = 8 << 20;

/// A store on a file system.
#[derive(Debug, Clone)]
pub struct FileStore<F = OsFs> {
    fs: F,
    chunk: usize,
}

impl FileStore<OsFs> {
    /// A store in a folder, which is created where it is missing.
    pub fn create(root: impl Into<std::path::PathBuf>) -> Result<Self> {
        let root = root.into();
        let name = root.display().to_string();
        Ok(FileStore::on(OsFs::new(root).map_err(Error::io("create folder", name))?))
    }

    /// A store in a folder that is there.
    pub fn existing(root: impl Into<std::path::PathBuf>) -> Result<Self> {
        let root = root.into();
        let name = root.display().to_string();
        Ok(FileStore::on(OsFs::existing(root).map_err(Error::io("open folder", name))?))
    }
}

impl<F: Fs> FileStore<F> {
    /// A store on any file system, at its root.
    pub fn on(fs: F) -> Self {
        FileStore { fs, chunk: CHUNK }
    }

    /// Writes at most this many bytes in one call; for tests that count operations.
    pub fn with_chunk(mut self, chunk: usize) -> Self {
        self.chunk = chunk.max(1);
        self
    }

    /// The file system.
    pub fn fs(&self) -> &F {
        &self.fs
    }

    fn write_file(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.fs.create(path, bytes.len() as u64).map_err(Error::io("create", path))?;
        let written = (|| {
            let mut rest = bytes;
            while !rest.is_empty() {
                let count = match file.write(&rest[..rest.len().min(self.chunk)]) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    other => other.map_err(Error::io("write", path))?,
                };
                if count == 0 {
                    return Err(Error::io("write", path)(ErrorKind::WriteZero.into()));
                }
                rest = &rest[count..];
            }
            file.sync().map_err(Error::io("sync", path))
        })();
        drop(file);
        written.inspect_err(|_| self.discard(path))
    }

    /// Removes what a failed operation left; the failure itself is what gets reported.
    fn discard(&self, path: &str) {
        if let Err(error) = self.fs.remove(path) {
            tracing::debug!(path, %error, "could not remove what a failed write left");
        }
    }

    /// A complete, synced file under a temporary name beside `path`.
    fn temporary(&self, path: &str, bytes: &[u8]) -> Result<String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let slash = if folder.is_empty() { "" } else { "/" };
        loop {
            let unique = COUNT.fetch_add(1, Ordering::Relaxed);
            let temporary = format!("{folder}{slash}.{name}.{}-{unique}.tmp", std::process::id());
            match self.write_file(&temporary, bytes) {
                // Another host's process of the same number left it, or is at it.
                Err(Error::Io { operation: "create", source, .. })
                    if source.kind() == ErrorKind::AlreadyExists => {}
                other => return other.map(|()| temporary),
            }
        }
    }

    fn sync_folder(&self, path: &str) -> Result<()> {
        self.fs.sync_folder(path).map_err(Error::io("sync folder", path))
    }
}

struct FileBlob(Arc<dyn Bytes>);

impl Blob for FileBlob {
    fn len(&self) -> u64 {
        self.0.bytes().len() as u64
    }

    fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(&self.0.bytes()[range.start as usize..range.end as usize]))
    }
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

impl<F: Fs> Store for FileStore<F> {
    fn location(&self) -> String {
        self.fs.root()
    }

    fn make_folder(&self, path: &str) -> Result<()> {
        self.fs.create_folder(path).map_err(Error::io("create folder", path))
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.write_file(path, bytes)?;
        self.sync_folder(parent(path))
    }

    fn create(&self, path: &str, bytes: &[u8]) -> Result<Created> {
        let temporary = self.temporary(path, bytes)?;
        match self.fs.rename_new(&temporary, path) {
            Ok(()) => {
                self.sync_folder(parent(path))?;
                Ok(Created::New)
            }
            Err(error) => {
                self.discard(&temporary);
                if error.kind() != ErrorKind::AlreadyExists {
                    return Err(Error::io("rename", path)(error));
                }
                let there = self.fs.open(path).map_err(Error::io("read", path))?;
                // Whoever wrote it may not have come to sync it; what we go by has to last.
                self.sync_folder(parent(path))?;
                Ok(Created::Exists(there.bytes().to_vec()))
            }
        }
    }

    fn replace(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let temporary = self.temporary(path, bytes)?;
        if let Err(error) = self.fs.rename(&temporary, path) {
            self.discard(&temporary);
            return Err(Error::io("rename", path)(error));
        }
        self.sync_folder(parent(path))
    }

    fn seal(&self, folder: &str) -> Result<()> {
        self.sync_folder(folder)?;
        self.sync_folder(parent(folder))
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>> {
        Ok(absent(self.fs.list(folder)).map_err(Error::io("list", folder))?.unwrap_or_default())
    }

    fn open(&self, path: &str) -> Result<Option<Arc<dyn Blob>>> {
        let bytes = absent(self.fs.open(path)).map_err(Error::io("open", path))?;
        Ok(bytes.map(|bytes| Arc::new(FileBlob(bytes)) as Arc<dyn Blob>))
    }

    fn remove(&self, path: &str) -> Result<()> {
        absent(self.fs.remove(path)).map_err(Error::io("remove", path)).map(drop)
    }

    fn remove_folder(&self, path: &str) -> Result<()> {
        // A late writer may still add a file between the listing and the removal; once more then.
        for attempt in 0.. {
            for entry in self.list(path)? {
                self.remove(&format!("{path}/{}", entry.name))?;
            }
            match absent(self.fs.remove_folder(path)) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && attempt < 3 => {}
                other => {
                    other.map_err(Error::io("remove folder", path))?;
                    break;
                }
            }
        }
        Ok(())
    }

    fn free_space(&self) -> Result<Option<u64>> {
        self.fs.free_space().map_err(Error::io("ask free space of", self.fs.root()))
    }
}
