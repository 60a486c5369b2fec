//! Copies in a folder: a file beside, synced and moved into place. A lock file makes compare-and-swap of it, also between
//! machines where the file system's locks reach that far.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Upload, Version};
use crate::error::{Error, Result};

/// How long to wait for another controller's swap.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// A folder that copies go to.
pub struct FolderUpload {
    folder: PathBuf,
}

impl FolderUpload {
    /// This folder, which is created when it is first written to.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        FolderUpload { folder: folder.as_ref().into() }
    }

    fn put(&self, name: &str, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
        let path = self.folder.join(name);
        let temporary = self.folder.join(format!(".{name}.{}", std::process::id()));
        let run = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            write(&mut file)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        run().map_err(|e| {
            let _not_there = std::fs::remove_file(&temporary);
            Error::io("write", &path)(e)
        })
    }

    fn lock(&self) -> Result<File> {
        std::fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        let path = self.folder.join(".lock");
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        let deadline = Instant::now() + LOCK_WAIT;
        while file.try_lock().is_err() {
            if Instant::now() > deadline {
                return Err(Error::Deadline {
                    what: format!("the lock {}", path.display()),
                    after: LOCK_WAIT,
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(file)
    }
}

impl Upload for FolderUpload {
    fn place(&self) -> String {
        self.folder.display().to_string()
    }

    fn read(&self, name: &str) -> Result<Option<(Vec<u8>, Version)>> {
        let path = self.folder.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let version = Version(format!("{}-{:08x}", bytes.len(), crc32c::crc32c(&bytes)));
                Ok(Some((bytes, version)))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    fn swap(&self, name: &str, bytes: &[u8], expected: Option<&Version>) -> Result<Option<Version>> {
        let _lock = self.lock()?;
        if self.read(name)?.map(|(_, version)| version).as_ref() != expected {
            return Ok(None);
        }
        self.put(name, |file| std::io::Write::write_all(file, bytes))?;
        Ok(self.read(name)?.map(|(_, version)| version))
    }

    fn upload(&self, name: &str, file: &Path) -> Result<()> {
        std::fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        let mut from = File::open(file).map_err(Error::io("read", file))?;
        self.put(name, |to| std::io::copy(&mut from, to).map(drop))
    }

    fn download(&self, name: &str, file: &Path) -> Result<()> {
        let path = self.folder.join(name);
        std::fs::copy(&path, file).map(drop).map_err(Error::io("copy", &path))
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.folder.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}
