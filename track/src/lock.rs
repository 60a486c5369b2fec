//! One writer a run. The kernel holds the lock, so a dead holder frees it whatever killed it; the file's text only tells
//! others whom to look for.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long a lock is waited for that nobody can have for long: who took it is gone, or is this process and may have let go of
/// it. A child on its way into another program still has the file, until it is there.
const PASSING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);

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
        let since = Instant::now();
        while let Err(error) = file.try_lock() {
            if let TryLockError::Error(error) = error {
                return Err(Error::io("lock", &name)(error));
            }
            let mut holder = String::new();
            let _unreadable_is_unnamed = file.rewind().and_then(|()| file.read_to_string(&mut holder));
            if !is_passing(holder.trim()) || since.elapsed() > PASSING {
                let holder = match holder.trim() {
                    "" => "another process (it has not named itself yet)",
                    holder => holder,
                };
                return Err(Error::Held { path: path.into(), holder: holder.into() });
            }
            std::thread::sleep(LOOK);
        }
        let text = format!("process {} on {}\n", std::process::id(), host());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(Error::io("write the lock", &name))?;
        Ok(Lock { _file: file })
    }
}

/// Whether a holder of this name cannot have the lock for long.
fn is_passing(holder: &str) -> bool {
    let pid = holder.strip_prefix("process ").and_then(|rest| rest.strip_suffix(&format!(" on {}", host())));
    let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else { return false };
    // The third word of its state, after its name in brackets; one that was killed is there until somebody has asked.
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = state.rsplit(')').next().unwrap_or_default().trim_start();
    pid == std::process::id() || state.is_empty() || state.starts_with(['Z', 'X'])
}

/// This machine's name.
pub(crate) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a child of a dead holder's has it.
    fn held(store: &Path, holder: &str) -> File {
        let mut file = File::create(store.with_file_name("run.db.lock")).unwrap();
        file.write_all(format!("{holder}\n").as_bytes()).unwrap();
        file.lock().unwrap();
        file
    }

    #[test]
    fn a_lock_that_a_dead_holders_child_still_has_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("run.db");
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let file = held(&store, &format!("process {} on {}", dead.id(), host()));
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(file);
        });
        assert!(Lock::take(&store).is_ok());
        later.join().unwrap();
    }

    #[test]
    fn a_lock_that_somebody_has_is_refused_at_once_and_ones_own_soon() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("run.db");
        let since = Instant::now();
        for holder in [format!("process 1 on {}", host()), "process 7 on elsewhere".into(), String::new()] {
            let _held = held(&store, &holder);
            assert!(matches!(Lock::take(&store), Err(Error::Held { .. })), "{holder}");
        }
        assert!(since.elapsed() < PASSING);
        let _mine = Lock::take(&store).unwrap();
        assert!(matches!(Lock::take(&store), Err(Error::Held { .. })));
    }
}
