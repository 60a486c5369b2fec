//! Removing checkpoints that nobody keeps and folders of saves that never ended, without ever racing a live save.
//!
//! Invariants, cited by name in tests:
//! - GC-1: a folder without COMMIT is removed only after an aborted COMMIT was put in its place, exclusively; if the
//!   save came to commit first, the folder stays.
//! - GC-2: a checkpoint's COMMIT goes first, and for good, before anything else of it does: what is left of an
//!   interrupted removal is a torn folder, not a damaged checkpoint.
//! - GC-3: a pin that was acknowledged holds: the collector looks for pins again after it took COMMIT away, and puts
//!   it back.

use std::time::Duration;

use serde::Serialize;

use crate::catalog::{self, Listed, Status};
use crate::error::{Error, Result};
use crate::manifest::Commit;
use crate::names::{self, CheckpointName, FOLDER, PIN};
use crate::retention::{Candidate, Retention, decide};
use crate::store::{Created, Store};

/// Which folders of saves that never ended are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Torn {
    /// Those of generations before the live save's, and those of its own generation that are older than it: a saver saves one
    /// at a time, but while rank 0 collects, the other ranks may have begun the next.
    Fenced,
    /// Those of superseded generations, and any in which nothing was written for so long.
    OlderThan(Duration),
}

/// What to collect.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a> {
    /// Which checkpoints stay.
    pub retention: &'a Retention,
    /// Which torn folders go.
    pub torn: Torn,
    /// The checkpoint just committed, which stays whatever the rules say.
    pub live: Option<&'a CheckpointName>,
}

/// What the collector thinks of a folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// The folder's name.
    pub name: String,
    /// Whether it goes.
    pub remove: bool,
    /// Why it stays or goes.
    pub reason: String,
    /// The bytes in it.
    pub bytes: u64,
}

/// Decides about every folder; changes nothing.
pub fn plan(store: &dyn Store, policy: &Policy<'_>) -> Result<Vec<Decision>> {
    let listed = catalog::list(store)?;
    let newest = catalog::newest_generation(store)?;
    let candidates: Vec<Candidate> = listed.iter().map(candidate).collect();
    let reasons = decide(&candidates, policy.retention);
    let decisions = listed.iter().zip(reasons).map(|(folder, reason)| {
        let (remove, reason) = match &folder.status {
            _ if policy.live == Some(&folder.name) => (false, "just committed".to_owned()),
            Status::Committed(_) => match reason {
                Some(reason) => (false, reason),
                None => (true, "no rule keeps it".to_owned()),
            },
            Status::Torn | Status::Aborted => judge_torn(folder, policy, newest),
            Status::Damaged(damage) => (false, format!("damaged: {}: {}", damage.file, damage.detail)),
            Status::Newer(schema) => (false, format!("written by a newer release, schema {schema}")),
        };
        Decision { name: folder.name.to_string(), remove, reason, bytes: folder.bytes }
    });
    Ok(decisions.collect())
}

fn candidate(listed: &Listed) -> Candidate {
    let metrics = match &listed.status {
        Status::Committed(manifest) => Some(manifest.metrics.clone()),
        _ => None,
    };
    Candidate {
        name: listed.name.clone(),
        good: metrics.is_some(),
        metrics: metrics.unwrap_or_default(),
        pins: listed.pins.clone(),
    }
}

fn judge_torn(folder: &Listed, policy: &Policy<'_>, newest: u64) -> (bool, String) {
    let what = folder.status.word();
    let generation = folder.name.generation;
    if generation < newest {
        return (true, format!("{what}, of a superseded generation"));
    }
    match policy.torn {
        Torn::Fenced
            if policy.live.is_some_and(|live| live.generation == generation && folder.name < *live) =>
        {
            (true, format!("{what}, and its save is over"))
        }
        Torn::OlderThan(limit) if folder.idle.is_some_and(|idle| idle >= limit) => {
            (true, format!("{what}, and nothing was written for {} s", limit.as_secs()))
        }
        _ => (false, format!("{what}, but its save may be under way")),
    }
}

/// What came of carrying decisions out.
#[derive(Debug, Default)]
pub struct Collected {
    /// The folders that are gone.
    pub removed: Vec<String>,
    /// Why others are not, though it was decided.
    pub failures: Vec<Error>,
}

/// Removes what was decided.
pub fn carry_out(store: &dyn Store, decisions: &[Decision]) -> Collected {
    let mut collected = Collected::default();
    for decision in decisions.iter().filter(|decision| decision.remove) {
        let Ok(name) = decision.name.parse::<CheckpointName>() else { continue };
        let removed = match catalog::inspect(store, name.clone()).map(|listed| listed.status) {
            Ok(Status::Torn) => remove_torn(store, &name),
            Ok(_) => remove(store, &name).map(|()| true),
            Err(error) => Err(error),
        };
        match removed {
            Ok(true) => collected.removed.push(decision.name.clone()),
            Ok(false) => {}
            Err(failure) => collected.failures.push(failure),
        }
    }
    collected
}

/// Closes a folder without COMMIT and removes it, unless its save came to commit before; says whether it is gone.
fn remove_torn(store: &dyn Store, name: &CheckpointName) -> Result<bool> {
    let closed = close(store, name, name.generation)?;
    if closed {
        remove(store, name)?;
    }
    Ok(closed)
}

/// Puts an aborted COMMIT in a folder; says whether the folder is closed now.
fn close(store: &dyn Store, name: &CheckpointName, generation: u64) -> Result<bool> {
    match store.create(&name.path(names::COMMIT), &Commit::aborted(generation).to_bytes())? {
        Created::New => Ok(true),
        Created::Exists(there) => {
            Ok(matches!(Commit::parse(&there), Ok(Commit { manifest_blake3: None, .. })))
        }
    }
}

/// Closes the folders of earlier generations that have no COMMIT: their savers, if they still live, cannot commit.
pub(crate) fn close_older(store: &dyn Store, generation: u64) -> Result<()> {
    for name in catalog::names(store)?.into_iter().filter(|name| name.generation < generation) {
        if store.open(&name.path(names::COMMIT))?.is_none() {
            close(store, &name, generation)?;
        }
    }
    Ok(())
}

/// Removes a checkpoint, or what is left of one. Pinned checkpoints are left alone.
pub fn remove(store: &dyn Store, name: &CheckpointName) -> Result<()> {
    let (folder, commit) = (name.folder(), name.path(names::COMMIT));
    let bytes = store.read_small(&commit, 4 << 10)?;
    let aborted = bytes
        .as_ref()
        .is_some_and(|bytes| matches!(Commit::parse(bytes), Ok(Commit { manifest_blake3: None, .. })));
    if let (Some(bytes), false) = (bytes, aborted) {
        store.remove(&commit)?;
        if let Some(pin) = pins(store, name)?.first() {
            store.create(&commit, &bytes)?;
            return Err(Error::Invalid(format!("{name} was pinned by {pin}")));
        }
        store.seal(&folder)?;
    }
    // An aborted COMMIT stays until nothing else is left: it keeps a suspended saver from committing an empty folder.
    for entry in store.list(&folder)? {
        if entry.name != names::COMMIT {
            store.remove(&format!("{folder}/{}", entry.name))?;
        }
    }
    store.remove_folder(&folder)
}

/// Who pinned a checkpoint.
pub fn pins(store: &dyn Store, name: &CheckpointName) -> Result<Vec<String>> {
    let entries = store.list(&name.folder())?;
    Ok(entries.iter().filter_map(|entry| entry.name.strip_prefix(PIN)).map(str::to_owned).collect())
}

/// Keeps a checkpoint from being collected until it is unpinned by the same owner. For whoever will read it later,
/// such as a tuner that clones trials from it.
pub fn pin(store: &dyn Store, name: &CheckpointName, owner: &str) -> Result<()> {
    store.create(&pin_path(name, owner)?, b"")?;
    if store.open(&name.path(names::COMMIT))?.is_none() {
        let gone =
            Error::damaged(&name.to_string(), names::COMMIT, "it is gone: the checkpoint is being collected");
        return unpin(store, name, owner).and(Err(gone));
    }
    Ok(())
}

/// Takes a pin away; it is fine if there is none.
pub fn unpin(store: &dyn Store, name: &CheckpointName, owner: &str) -> Result<()> {
    store.remove(&pin_path(name, owner)?)
}

fn pin_path(name: &CheckpointName, owner: &str) -> Result<String> {
    if !names::is_plain(owner) {
        return Err(Error::Invalid(format!(
            "`{owner}` cannot be a pin's owner: letters, digits, `.`, `-` and `_` only"
        )));
    }
    Ok(format!("{FOLDER}/{name}/{PIN}{owner}"))
}
