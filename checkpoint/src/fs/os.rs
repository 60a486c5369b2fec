//! The operating system's files.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, RenameFlags};

use super::{Bytes, Entry, File, Fs};

/// Files below a folder of the operating system.
#[derive(Debug, Clone)]
pub struct OsFs {
    root: PathBuf,
}

impl OsFs {
    /// Files below `root`, which is created, durably, where it is missing.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = std::path::absolute(root.into())?;
        create_durably(&root)?;
        Ok(OsFs { root })
    }

    /// Files below `root`, which has to be there. Nothing is written.
    pub fn existing(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        if !std::fs::metadata(&root)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(OsFs { root })
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }
}

fn create_durably(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_durably(parent)?;
    }
    ignore(std::fs::create_dir(folder), io::ErrorKind::AlreadyExists)?;
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn ignore(result: io::Result<()>, kind: io::ErrorKind) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        other => other,
    }
}

/// Files from this size on are written past the page cache: a shard would only push out what training keeps there, and
/// copying it once more costs about as much as hashing it.
const DIRECT_FROM: u64 = 4 << 20;
/// What the addresses, offsets and lengths of such writes are multiples of.
const BLOCK: usize = 4096;

struct OsFile {
    file: std::fs::File,
    direct: bool,
    written: u64,
    reserved: u64,
}

impl OsFile {
    /// Turns writing past the page cache on, where the file system knows it, or off.
    fn set_direct(&mut self, on: bool) -> io::Result<()> {
        use rustix::fs::OFlags;
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        let flags = if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
        self.direct = rustix::fs::fcntl_setfl(&self.file, flags).is_ok() && on;
        Ok(())
    }
}

impl File for OsFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.direct {
            let whole = bytes.len() - bytes.len() % BLOCK;
            let aligned =
                bytes.as_ptr().addr().is_multiple_of(BLOCK) && self.written.is_multiple_of(BLOCK as u64);
            if aligned && whole > 0 {
                match self.file.write(&bytes[..whole]) {
                    // It was allowed, but not for this device.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                    other => return other.inspect(|&count| self.written += count as u64),
                }
            }
            self.set_direct(false)?;
        }
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.written < self.reserved {
            self.file.set_len(self.written)?;
        }
        self.file.sync_all()
    }
}

impl Fs for OsFs {
    fn create_folder(&self, path: &str) -> io::Result<()> {
        ignore(std::fs::create_dir(self.at(path)), io::ErrorKind::AlreadyExists)
    }

    fn create(&self, path: &str, size: u64) -> io::Result<Box<dyn File>> {
        let file = OpenOptions::new().write(true).create_new(true).open(self.at(path))?;
        let mut reserved = 0;
        if size > 0 {
            // A full disk is found out here, before any time is spent; not every file system can reserve.
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
                Ok(()) => reserved = size,
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut file = OsFile { file, direct: false, written: 0, reserved };
        if size >= DIRECT_FROM {
            file.set_direct(true)?;
        }
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.at(from), self.at(to))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        use rustix::fs::CWD;
        use rustix::io::Errno;
        let (from, to) = (self.at(from), self.at(to));
        match rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
            // Network file systems often cannot; a hard link is as exclusive.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                std::fs::hard_link(&from, &to)?;
                std::fs::remove_file(&from)
            }
            other => Ok(other?),
        }
    }

    fn sync_folder(&self, path: &str) -> io::Result<()> {
        std::fs::File::open(self.at(path))?.sync_all()
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(self.at(path))? {
            let entry = entry?;
            // What vanishes while it is listed, a collector removed.
            let Ok(metadata) = entry.metadata() else { continue };
            let Ok(name) = entry.file_name().into_string() else { continue };
            entries.push(Entry {
                name,
                folder: metadata.is_dir(),
                size: metadata.len(),
                modified: metadata.modified().ok(),
            });
        }
        Ok(entries)
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn Bytes>> {
        super::map::map(&std::fs::File::open(self.at(path))?)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(self.at(path))
    }

    fn remove_folder(&self, path: &str) -> io::Result<()> {
        std::fs::remove_dir(self.at(path))
    }

    fn free_space(&self) -> io::Result<Option<u64>> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn root(&self) -> String {
        self.root.display().to_string()
    }
}
