//! Whether all workers share the run's storage, found out before anything runs: a node that writes its checkpoints to a folder
//! of its own loses them, and the run learns it at its first restart.
//!
//! The driver lays a word down before the workers start. A worker that cannot read it, or cannot write beside it, ends the
//! run with what to do about it; no restart would help.

use std::path::Path;
use std::time::{Duration, Instant};

use regatta_checkpoint::store::{self, Store};
use regatta_cluster::engine::EngineConfig;
use regatta_cluster::{Launch, Lease, Reason, Spawner, WorkerCommand, WorkerEvent};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the message of a worker begins with that does not share the run's storage.
pub(crate) const NOT_SHARED: &str = "the run's storage is not shared";
/// The file with the word, and what those of the ranks begin with.
const FILE: &str = ".preflight";
const LIMIT: u64 = 256;
/// How long a network's file system may take until one node sees what another wrote.
const SETTLED: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);
/// How long all seats may take.
const SEATS: Duration = Duration::from_secs(60);

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
pub(crate) fn check(probe: &Probe, storage: &str, rank: u32) -> Result<()> {
    let node = std::env::var(regatta_cluster::env::NODE).unwrap_or_else(|_| "its node".into());
    look(probe, storage, rank, SETTLED).map_err(|why| refused(storage, rank, &node, &why))
}

fn look(Probe(word): &Probe, storage: &str, rank: u32, settled: Duration) -> Result<(), String> {
    let since = Instant::now();
    let failed = |what: &str, error| format!("cannot {what} {storage} ({})", crate::rank::chain(&error));
    let why = loop {
        // Opened anew each time: the folder itself may come late.
        let store = store::open_existing(storage).map_err(|error| failed("open", error));
        let read = store.map(|store| (store.read_small(FILE, LIMIT), store));
        let why = match read {
            Ok((Ok(Some(read)), store)) if read == word.as_bytes() => {
                return write(&*store, &format!("{FILE}.{rank}")).map_err(|error| failed("write to", error));
            }
            Ok((Ok(Some(_)), _)) => format!("sees another {storage} than the driver"),
            Ok((Ok(None), _)) => format!("does not see in {storage} what the driver put there"),
            Ok((Err(error), _)) => break failed("read", error),
            Err(why) => why,
        };
        if since.elapsed() >= settled {
            break why;
        }
        std::thread::sleep(LOOK);
    };
    Err(why)
}

/// The error that a node does not share the storage, with what to do.
fn refused(storage: &str, rank: u32, node: &str, why: &str) -> Error {
    let remedy = match Path::new(storage).is_absolute() {
        true => {
            "set run.storage to a folder on a file system that all nodes mount, or to an object store's URL"
        }
        false => {
            "see to it that the nodes may use it: credentials come from the variables the run was submitted with"
        }
    };
    Error::config("run.storage", format!("{NOT_SHARED}: rank {rank} on node `{node}` {why}; {remedy}"))
}

/// What a shell on each seat does, for programs that are not ours: its arguments are the folder and the word.
const SHELL: &str = r#"for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ "$(cat "$0/.preflight" 2>/dev/null)" = "$1" ] && break; sleep 0.3
done
[ "$(cat "$0/.preflight" 2>/dev/null)" = "$1" ] || { echo "does not see in $0 what the driver put there"; exit 1; }
: > "$0/.preflight.$REGATTA_SLOT" && rm "$0/.preflight.$REGATTA_SLOT" || { echo "cannot write to $0"; exit 1; }
"#;

/// Has every seat of a lease look, where the ranks will be programs that are not ours. Object stores they do not use.
pub(crate) async fn check_seats(spawner: &dyn Spawner, lease: &Lease, storage: &str) -> Result<()> {
    if spawner.engine() == EngineConfig::Local.name() || !Path::new(storage).is_absolute() {
        return Ok(());
    }
    let Probe(word) = lay(storage)?;
    let command = WorkerCommand::new("/bin/sh").arg("-c").arg(SHELL).arg(storage).arg(word);
    let mut events = spawner.launch(lease.id, Launch::new(command)).await?;
    let mut wrong = None;
    let all = async {
        while let Some(event) = events.next().await {
            let (slot, why) = match event {
                WorkerEvent::Exited { slot, exit } if exit.reason != Reason::Succeeded => {
                    (slot, exit.tail.last().cloned().unwrap_or_else(|| exit.to_string()))
                }
                WorkerEvent::Lost { slot, cause } => (slot, cause),
                _ => continue,
            };
            wrong.get_or_insert((slot, why));
        }
    };
    if tokio::time::timeout(SEATS, all).await.is_err() {
        let why = format!(
            "one of its nodes did not answer within {SEATS:?}: is {storage} a file system that hangs?"
        );
        return Err(Error::NotAvailable { what: "the run's storage", why });
    }
    clear(storage);
    match wrong {
        None => Ok(()),
        Some((slot, why)) => {
            let node = lease.seats.get(slot).map_or("", |seat| seat.node.as_str());
            Err(refused(storage, slot as u32, node, &why))
        }
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
        let refused = |folder: &Path| {
            let storage = folder.to_str().unwrap();
            let why = look(&probe, storage, 3, Duration::ZERO).unwrap_err();
            refused(storage, 3, "n2", &why).to_string()
        };
        let error = refused(other.path());
        assert!(error.contains(NOT_SHARED) && error.contains("rank 3 on node `n2` does not see"), "{error}");
        assert!(error.contains("set run.storage to a folder"), "{error}");
        lay(other.path().to_str().unwrap()).unwrap();
        assert!(refused(other.path()).contains("sees another"));
        assert!(refused(&other.path().join("nowhere")).contains("cannot open"));
    }
}
