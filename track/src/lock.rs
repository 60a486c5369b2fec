//! One writer a run. The kernel holds the lock, so a dead holder frees it whatever killed it; the file's text only tells
//! others whom to look for.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Held from opening a store until its writer is gone.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the store at `path`, or says who has it.
    pub(crate) fn take(path: &Path) -> Result<Lock> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let name = PathBuf::from(name);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&name)
            .map_err(Error::io("open the lock", &name))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _unreadable_is_unnamed = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process (it has not named itself yet)",
                    holder => holder,
                };
                return Err(Error::Held { path: path.into(), holder: holder.into() });
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &name)(e)),
        }
        let text = format!("process {} on {}\n", std::process::id(), host());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(Error::io("write the lock", &name))?;
        Ok(Lock { _file: file })
    }
}

/// This machine's name.
pub(crate) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
