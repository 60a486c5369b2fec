//! The collective half of a save: entering a generation, and ending a save with the same verdict on every rank. What
//! to do next is `committer`'s to say; here it is done.

use std::collections::HashMap;
use std::time::Instant;

use crate::committer::{Action, Committer, Head, Input, Outcome, RankReport, Verdict};
use crate::coordinator::Coordinator;
use crate::error::{Error, Result};
use crate::manifest::Commit;
use crate::names::{self, CheckpointName, FENCE, FOLDER};
use crate::shard::{self, RankJob};
use crate::store::{Created, Store};
use crate::{catalog, collect};

/// Takes a generation, the one given or the next one, on all ranks together. Returns it, and what makes this saver's
/// names unique.
///
/// The fence is written before the earlier generations' open folders are looked for, and a committer reads the fence
/// after it made its folder and before it commits. So a predecessor that still lives either had its folder closed here
/// or sees the fence: it cannot commit any more.
pub(crate) fn enter(
    store: &dyn Store,
    coordinator: &dyn Coordinator,
    generation: Option<u64>,
    deadline: Instant,
) -> Result<(u64, String)> {
    let key = "enter".to_owned();
    let mut error = None;
    let message = if coordinator.rank() == 0 {
        let entered = fence(store, generation).map(|generation| (generation, nonce()));
        serialize(&entered.map_err(|failed| error.insert(failed).to_string()))
    } else {
        Vec::new()
    };
    let entered: std::result::Result<(u64, String), String> =
        deserialize(&coordinator.broadcast(&key, message, deadline)?)?;
    let (generation, nonce) =
        entered.map_err(|reason| error.unwrap_or(Error::Peer { rank: 0, operation: key.clone(), reason }))?;

    // Every rank tries to write: one whose disk is full or read-only should say so now, not at the first save.
    let mut error = None;
    let path = format!("{FOLDER}/.probe-{nonce}-{}", coordinator.rank());
    let probed = store.write(&path, b"probe").and_then(|()| store.remove(&path));
    let mine = probed.map_err(|failed| error.insert(failed).to_string());
    let all = coordinator.gather(&key, serialize(&mine), deadline)?;
    let mut verdict: std::result::Result<(), (u32, String)> = Ok(());
    for (rank, bytes) in (0..).zip(&all) {
        let outcome: std::result::Result<(), String> = deserialize(bytes)?;
        verdict = verdict.and(outcome.map_err(|reason| (rank, reason)));
    }
    let probed = coordinator.broadcast(&format!("{key}/probed"), serialize(&verdict), deadline)?;
    let probed: std::result::Result<(), (u32, String)> = deserialize(&probed)?;
    match (probed, error) {
        (Ok(()), _) => Ok((generation, nonce)),
        (Err(_), Some(error)) => Err(error),
        (Err((rank, reason)), None) => Err(Error::Peer { rank, operation: key, reason }),
    }
}

fn fence(store: &dyn Store, wanted: Option<u64>) -> Result<u64> {
    store.make_folder(FOLDER)?;
    store.seal(FOLDER)?;
    let newest = catalog::newest_generation(store)?;
    let mut generation = wanted.unwrap_or(newest + 1);
    if newest > generation {
        return Err(Error::Fenced { ours: generation, current: newest, store: store.location() });
    }
    // Two that start at the same time without a given generation must not take the same one.
    let mine = serialize(&nonce());
    while matches!(store.create(&format!("{FOLDER}/{FENCE}{generation}"), &mine)?, Created::Exists(there) if there != mine)
        && wanted.is_none()
    {
        generation += 1;
    }
    collect::close_older(store, generation)?;
    Ok(generation)
}

/// Eight hexadecimal digits that no other saver has.
fn nonce() -> String {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:08x}", hasher.finish() as u32)
}

/// Writes what this rank has to write.
pub(crate) fn write_rank(store: &dyn Store, name: &CheckpointName, job: &RankJob) -> Result<RankReport> {
    store.make_folder(&name.folder())?;
    shard::write(store, job)
}

/// What the end of a save needs to know.
pub(crate) struct Finish<'a> {
    pub(crate) head: &'a Head,
    pub(crate) key: &'a str,
    pub(crate) deadline: Instant,
}

/// Ends a save: every rank gets the same verdict, or an error. Returns how many bytes all ranks wrote, where that is known.
pub(crate) fn finish(
    store: &dyn Store,
    coordinator: &dyn Coordinator,
    finish: &Finish<'_>,
    mine: Outcome,
) -> Result<Option<u64>> {
    let name = &finish.head.name;
    let own_failure = mine.as_ref().err().cloned();
    let gathered = coordinator.gather(finish.key, serialize(&mine), finish.deadline);
    let (mut message, mut bytes_of_all) = (Vec::new(), None);
    if coordinator.rank() == 0 {
        let outcomes: Result<Vec<Outcome>> =
            gathered.and_then(|all| all.iter().map(|bytes| deserialize(bytes)).collect());
        let size =
            |outcome: &Outcome| outcome.as_ref().map_or(0, |report| report.shard.size + report.state.size);
        bytes_of_all = outcomes.as_ref().ok().map(|outcomes| outcomes.iter().map(size).sum());
        let verdict = match outcomes {
            Ok(outcomes) => commit(store, finish.head, outcomes),
            Err(error) => {
                // A rank that did not answer may still be writing: its COMMIT can never come, its files go.
                give_up(store, name);
                let rank = if let Error::Peer { rank, .. } = &error { *rank } else { 0 };
                Verdict::Failed { rank, reason: error.to_string() }
            }
        };
        message = serialize(&verdict);
    } else if let Err(error) = gathered {
        return Err(failed(name, coordinator.rank(), own_failure.unwrap_or(error.to_string())));
    }
    // Rank 0 knows its verdict whether or not the others can still be told.
    let told = coordinator.broadcast(finish.key, message.clone(), finish.deadline);
    let bytes = if coordinator.rank() == 0 { message } else { told? };
    match deserialize(&bytes)? {
        Verdict::Committed => Ok(bytes_of_all),
        Verdict::Fenced(current) => {
            Err(Error::Fenced { ours: name.generation, current, store: store.location() })
        }
        Verdict::Failed { rank, reason } => Err(failed(name, rank, reason)),
    }
}

fn failed(name: &CheckpointName, rank: u32, reason: String) -> Error {
    Error::SaveFailed { step: name.step, rank, reason }
}

/// Performs what the committer asks for until it is over.
pub(crate) fn commit(store: &dyn Store, head: &Head, outcomes: Vec<Outcome>) -> Verdict {
    let name = &head.name;
    let created = |file: &str, bytes: &[u8]| match store.create(&name.path(file), bytes) {
        Ok(Created::New) => Input::Done,
        Ok(Created::Exists(bytes)) => Input::Exists(bytes),
        Err(error) => Input::Failed(error.to_string()),
    };
    let done =
        |result: Result<()>| result.map_or_else(|error| Input::Failed(error.to_string()), |()| Input::Done);
    let (mut committer, mut action) = Committer::start(head, outcomes);
    loop {
        let input = match action {
            Action::WriteManifest(bytes) => match created(names::MANIFEST, &bytes) {
                // A lost reply again: the same bytes are ours.
                Input::Exists(there) if there == bytes => Input::Done,
                Input::Exists(_) => Input::Failed("another manifest is in the folder already".to_owned()),
                other => other,
            },
            Action::ReadFence => match catalog::newest_generation(store) {
                Ok(newest) => Input::Fence(newest),
                Err(error) => Input::Failed(error.to_string()),
            },
            Action::WriteCommit(bytes) => created(names::COMMIT, &bytes),
            Action::Seal => done(store.seal(&name.folder())),
            Action::Check(files) => done(check(store, name, &files)),
            Action::GiveUp => {
                give_up(store, name);
                Input::Done
            }
            Action::Finish(verdict) => return verdict,
        };
        action = committer.next(input);
    }
}

fn check(store: &dyn Store, name: &CheckpointName, files: &[(String, u64)]) -> Result<()> {
    let there: HashMap<String, u64> =
        store.list(&name.folder())?.into_iter().map(|entry| (entry.name, entry.size)).collect();
    match files.iter().find(|(file, size)| there.get(file) != Some(size)) {
        None => Ok(()),
        Some((file, size)) => {
            let detail = format!("{:?} bytes are there of {size}: was it collected?", there.get(file));
            Err(Error::damaged(&name.to_string(), file, detail))
        }
    }
}

/// Makes sure that no COMMIT comes any more, and removes what is there. What cannot be removed now is collected by a
/// later generation, which is why failing here is not another failure of the save.
fn give_up(store: &dyn Store, name: &CheckpointName) {
    let closed = store.create(&name.path(names::COMMIT), &Commit::aborted(name.generation).to_bytes());
    let removed = closed.and_then(|_| collect::remove(store, name));
    if let Err(error) = removed {
        tracing::warn!(%name, %error, "could not remove an unfinished checkpoint");
    }
}

fn serialize(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("reports and verdicts are plain data")
}

fn deserialize<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::Invalid(format!(
            "a peer's message cannot be read ({error}): do all ranks run the same release?"
        ))
    })
}
