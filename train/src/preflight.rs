//! Whether all workers share the run's storage, found out before anything runs: a node that writes its checkpoints to a folder
//! of its own loses them, and the run learns it at its first restart.
//!
//! The driver lays a word down before the workers start. A worker that cannot read it, or cannot write beside it, ends the
//! run with what to do about it; no restart would help.

use std::path::Path;

use regatta_checkpoint::store::{self, Store};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the message of a worker begins with that does not share the run's storage.
pub(crate) const NOT_SHARED: &str = "the run's storage is not shared";
/// The file with the word, and what those of the ranks begin with.
const FILE: &str = ".preflight";
const LIMIT: u64 = 256;

/// The word that was laid down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Probe(String);

/// Lays down a word that has not been there before.
pub(crate) fn lay(storage: &str) -> Result<Probe> {
    let word = format!("{:032x}", rand::random::<u128>());
    let to = store::open(storage)?;
    to.replace(FILE, word.as_bytes())?;
    Ok(Probe(word))
}

/// Takes it away again.
pub(crate) fn clear(storage: &str) {
    if let Err(error) = store::open_existing(storage).and_then(|store| store.remove(FILE)) {
        tracing::debug!(%error, "the word of the preflight stays where it is");
    }
}

/// Reads the word where the driver laid it, and writes beside it.
pub(crate) fn check(Probe(word): &Probe, storage: &str, rank: u32) -> Result<()> {
    let node = std::env::var(regatta_cluster::env::NODE).unwrap_or_else(|_| "its node".into());
    let refused = |why: String| {
        let remedy = match Path::new(storage).is_absolute() {
            true => {
                "set run.storage to a folder on a file system that all nodes mount, or to an object store's URL"
            }
            false => {
                "see to it that the nodes may use it: credentials come from the variables the run was submitted with"
            }
        };
        let what = format!("{NOT_SHARED}: rank {rank} on node `{node}` {why}; {remedy}");
        Err(Error::Config { path: "run.storage".into(), why: what })
    };
    let store = match store::open_existing(storage) {
        Ok(store) => store,
        Err(error) => return refused(format!("cannot open {storage} ({})", crate::rank::chain(&error))),
    };
    match store.read_small(FILE, LIMIT) {
        Ok(Some(read)) if read == word.as_bytes() => {}
        Ok(Some(_)) => return refused(format!("sees another {storage} than the driver")),
        Ok(None) => return refused(format!("does not see in {storage} what the driver put there")),
        Err(error) => return refused(format!("cannot read {storage} ({})", crate::rank::chain(&error))),
    }
    match write(&*store, &format!("{FILE}.{rank}")) {
        Ok(()) => Ok(()),
        Err(error) => refused(format!("cannot write to {storage} ({})", crate::rank::chain(&error))),
    }
}

fn write(store: &dyn Store, file: &str) -> regatta_checkpoint::Result<()> {
    store.replace(file, b"")?;
    store.remove(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_folder_passes_and_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let storage = folder.path().to_str().unwrap();
        let probe = lay(storage).unwrap();
        check(&probe, storage, 1).unwrap();
        clear(storage);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_of_ones_own_is_refused_with_what_to_do() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let probe = lay(one.path().to_str().unwrap()).unwrap();
        let refused = |folder: &Path| check(&probe, folder.to_str().unwrap(), 3).unwrap_err().to_string();
        let error = refused(other.path());
        assert!(
            error.contains(NOT_SHARED) && error.contains("rank 3") && error.contains("does not see"),
            "{error}"
        );
        assert!(error.contains("set run.storage to a folder"), "{error}");
        lay(other.path().to_str().unwrap()).unwrap();
        assert!(refused(other.path()).contains("sees another"));
        assert!(refused(&other.path().join("nowhere")).contains("cannot open"));
    }
}
