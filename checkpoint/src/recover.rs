//! Finding the checkpoint to resume from: the newest that verifies, the same one on every rank, with the damaged ones
//! that were passed over named.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog;
use crate::coordinator::{Coordinator, Solo};
use crate::error::{Damage, Error, Result};
use crate::load::{Checkpoint, Verify};
use crate::names::CheckpointName;
use crate::store::Store;

/// What was found.
#[derive(Debug)]
pub struct Recovered {
    /// The checkpoint to resume from.
    pub checkpoint: Checkpoint,
    /// Newer ones that are damaged.
    pub damaged: Vec<Damage>,
}

/// Finds the newest checkpoint that verifies, in one process on its own.
pub fn newest(store: Arc<dyn Store>, verify: Verify) -> Result<Recovered> {
    newest_among(store, &Solo, verify, Duration::from_secs(3600))
}

/// Finds the newest checkpoint that verifies, on all ranks together; they share the work of verifying.
///
/// A checkpoint of a newer schema is an error, not something to pass over: it is no damage, and an older one would
/// silently lose work. Without any checkpoint the error is [`Error::NoCheckpoint`]; if it names no damaged one, the
/// run simply is new.
pub fn newest_among(
    store: Arc<dyn Store>,
    coordinator: &dyn Coordinator,
    verify: Verify,
    limit: Duration,
) -> Result<Recovered> {
    let deadline = Instant::now() + limit;
    let names = candidates(&*store, coordinator, deadline)?;
    let mut damaged = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let found = match try_one(&store, coordinator, name, verify) {
            Ok(found) => found,
            // Said by every rank that sees it, at the same place; the others learn it from the exchange below.
            Err(error) => Err(vec![as_damage(name, &error)]),
        };
        let newer = match &found {
            Err(damage) if damage.iter().any(|damage| damage.file == NEWER) => Some(name),
            _ => None,
        };
        let mine = found.as_ref().err().cloned().unwrap_or_default();
        let all = exchange(coordinator, &format!("verify/{index}"), &mine, deadline)?;
        if newer.is_some() || all.iter().any(|damage| damage.file == NEWER) {
            let found = all.iter().find_map(|damage| damage.detail.parse().ok()).unwrap_or(0);
            let supported = crate::manifest::SCHEMA;
            return Err(Error::NewerSchema { checkpoint: name.to_string(), found, supported });
        }
        match found {
            Ok(Some(checkpoint)) if all.is_empty() => return Ok(Recovered { checkpoint, damaged }),
            _ => damaged.extend(all),
        }
    }
    Err(Error::NoCheckpoint { store: store.location(), damaged })
}

/// Opens this checkpoint on all ranks together, which share the work of verifying it; a damaged one is refused by all of them.
pub fn named_among(
    store: Arc<dyn Store>,
    coordinator: &dyn Coordinator,
    name: &CheckpointName,
    verify: Verify,
    limit: Duration,
) -> Result<Checkpoint> {
    let deadline = Instant::now() + limit;
    let opened = Checkpoint::open(store, name, verify);
    let mine = match &opened {
        Ok(checkpoint) if verify == Verify::Full => share(checkpoint, coordinator),
        Ok(_) => Vec::new(),
        Err(error) => vec![as_damage(name, error)],
    };
    // The others must hear of what this rank found before it gives up.
    let all = exchange(coordinator, &format!("verify/{name}"), &mine, deadline)?;
    let checkpoint = opened?;
    match all.into_iter().next() {
        None => Ok(checkpoint),
        Some(damage) => Err(Error::Damaged(damage)),
    }
}

/// The damage in this rank's share of a checkpoint.
fn share(checkpoint: &Checkpoint, coordinator: &dyn Coordinator) -> Vec<Damage> {
    checkpoint.verify(coordinator.rank() as usize, coordinator.world_size() as usize)
}

/// Stands in for the file's name in what the ranks tell each other.
const NEWER: &str = "?newer-schema";

fn as_damage(name: &CheckpointName, error: &Error) -> Damage {
    let checkpoint = name.to_string();
    match error {
        Error::Damaged(damage) => damage.clone(),
        Error::NewerSchema { found, .. } => {
            Damage { checkpoint, file: NEWER.to_owned(), detail: found.to_string() }
        }
        other => Damage { checkpoint, file: String::new(), detail: other.to_string() },
    }
}

/// The folders that were committed, as rank 0 sees them, the newest first.
fn candidates(
    store: &dyn Store,
    coordinator: &dyn Coordinator,
    deadline: Instant,
) -> Result<Vec<CheckpointName>> {
    let mut failure = None;
    let mut message = Vec::new();
    if coordinator.rank() == 0 {
        let listed: std::result::Result<Vec<String>, String> = committed(store)
            .map(|names| names.iter().map(ToString::to_string).collect())
            .map_err(|error| failure.insert(error).to_string());
        message = to_json(&listed);
    }
    let bytes = coordinator.broadcast("candidates", message, deadline)?;
    let listed: std::result::Result<Vec<String>, String> = from_json(&bytes)?;
    let operation = "list checkpoints".to_owned();
    let names = listed.map_err(|reason| failure.unwrap_or(Error::Peer { rank: 0, operation, reason }))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

fn committed(store: &dyn Store) -> Result<Vec<CheckpointName>> {
    let mut names = Vec::new();
    for name in catalog::names(store)? {
        let torn = matches!(catalog::read(store, &name), Ok(None));
        if torn {
            tracing::info!(%name, "passed over: its save never ended");
        } else {
            names.push(name);
        }
    }
    Ok(names)
}

type Tried = std::result::Result<Option<Checkpoint>, Vec<Damage>>;

fn try_one(
    store: &Arc<dyn Store>,
    coordinator: &dyn Coordinator,
    name: &CheckpointName,
    verify: Verify,
) -> Result<Tried> {
    let checkpoint = Checkpoint::open(store.clone(), name, verify)?;
    if verify == Verify::Full {
        let damage = share(&checkpoint, coordinator);
        if !damage.is_empty() {
            return Ok(Err(damage));
        }
    }
    Ok(Ok(Some(checkpoint)))
}

/// Brings all ranks' findings to all ranks.
fn exchange(
    coordinator: &dyn Coordinator,
    key: &str,
    mine: &[Damage],
    deadline: Instant,
) -> Result<Vec<Damage>> {
    let parts: Vec<Vec<Wire>> = coordinator
        .gather(key, to_json(&mine.iter().map(Wire::from).collect::<Vec<_>>()), deadline)?
        .iter()
        .map(|bytes| from_json(bytes))
        .collect::<Result<_>>()?;
    let mut all: Vec<Wire> = parts.into_iter().flatten().collect();
    all.sort();
    all.dedup();
    let all: Vec<Wire> = from_json(&coordinator.broadcast(key, to_json(&all), deadline)?)?;
    Ok(all.into_iter().map(|Wire(checkpoint, file, detail)| Damage { checkpoint, file, detail }).collect())
}

#[derive(PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
struct Wire(String, String, String);

impl From<&Damage> for Wire {
    fn from(damage: &Damage) -> Self {
        Wire(damage.checkpoint.clone(), damage.file.clone(), damage.detail.clone())
    }
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("names and damage are plain data")
}

fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::Invalid(format!("a peer's message cannot be read: {error}")))
}
