//! What is in a store, without reading the shards.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::error::{Damage, Error, Result};
use crate::manifest::{Commit, Manifest, Unreadable};
use crate::names::{self, CheckpointName, FENCE, FOLDER, PIN};
use crate::store::Store;

/// No COMMIT is longer.
const COMMIT_LIMIT: u64 = 4 << 10;
/// No manifest is longer.
const MANIFEST_LIMIT: u64 = 1 << 30;

/// What a folder is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Status {
    /// A checkpoint: COMMIT and manifest are sound and all files are there with their sizes.
    Committed(Box<Manifest>),
    /// A save that has not come to its end, or never will.
    Torn,
    /// A save that was given up.
    Aborted,
    /// It was a checkpoint.
    Damaged(Damage),
    /// A newer release wrote it, with this schema.
    Newer(u32),
}

impl Status {
    /// One word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Status::Committed(_) => "committed",
            Status::Torn => "torn",
            Status::Aborted => "aborted",
            Status::Damaged(_) => "damaged",
            Status::Newer(_) => "newer",
        }
    }
}

/// A folder of the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its name.
    pub name: CheckpointName,
    /// What it is.
    pub status: Status,
    /// Who pinned it.
    pub pins: Vec<String>,
    /// The bytes in it.
    pub bytes: u64,
    /// How long ago anything in it was written, if that is known.
    pub idle: Option<Duration>,
}

/// Everything in the store, the one to resume from first.
pub fn list(store: &dyn Store) -> Result<Vec<Listed>> {
    names(store)?.into_iter().map(|name| inspect(store, name)).collect()
}

/// The names of the checkpoints' folders, the newest first.
pub fn names(store: &dyn Store) -> Result<Vec<CheckpointName>> {
    let folders = store.list(FOLDER)?.into_iter().filter(|entry| entry.folder);
    let mut names: Vec<CheckpointName> = folders.filter_map(|entry| entry.name.parse().ok()).collect();
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

/// The newest generation that a saver entered here; 0 if none did. A successor has to take a later one.
pub fn newest_generation(store: &dyn Store) -> Result<u64> {
    let generations = store.list(FOLDER)?.into_iter().filter_map(|entry| {
        let fence = entry.name.strip_prefix(FENCE).and_then(|generation| generation.parse().ok());
        fence.or_else(|| entry.name.parse::<CheckpointName>().ok().map(|name| name.generation))
    });
    Ok(generations.max().unwrap_or(0))
}

/// Looks at one folder.
pub fn inspect(store: &dyn Store, name: CheckpointName) -> Result<Listed> {
    let entries = store.list(&name.folder())?;
    let newest = entries.iter().filter_map(|entry| entry.modified).max();
    Ok(Listed {
        status: status(store, &name)?,
        pins: entries.iter().filter_map(|entry| entry.name.strip_prefix(PIN)).map(str::to_owned).collect(),
        bytes: entries.iter().map(|entry| entry.size).sum(),
        idle: newest.and_then(|at| SystemTime::now().duration_since(at).ok()),
        name,
    })
}

fn status(store: &dyn Store, name: &CheckpointName) -> Result<Status> {
    match read(store, name) {
        Ok(Some(manifest)) => Ok(Status::Committed(Box::new(manifest))),
        Ok(None) => match store.open(&name.path(names::COMMIT))? {
            Some(_) => Ok(Status::Aborted),
            None => Ok(Status::Torn),
        },
        Err(Error::Damaged(damage)) => Ok(Status::Damaged(damage)),
        Err(Error::NewerSchema { found, .. }) => Ok(Status::Newer(found)),
        Err(other) => Err(other),
    }
}

/// Reads and checks COMMIT and manifest, and looks whether all files are there. Nothing if there is no COMMIT, or one
/// that says that the save was given up.
pub(crate) fn read(store: &dyn Store, name: &CheckpointName) -> Result<Option<Manifest>> {
    let folder = name.to_string();
    let unreadable = |file: &'static str, why| match why {
        Unreadable::Damaged(detail) => Error::damaged(&folder, file, detail),
        Unreadable::Newer(found) => {
            Error::NewerSchema { checkpoint: folder.clone(), found, supported: crate::manifest::SCHEMA }
        }
    };
    let small = |file: &'static str, limit| match store.read_small(&name.path(file), limit) {
        Err(Error::Invalid(detail)) => Err(Error::damaged(&folder, file, detail)),
        other => other,
    };
    let Some(bytes) = small(names::COMMIT, COMMIT_LIMIT)? else { return Ok(None) };
    let commit = Commit::parse(&bytes).map_err(|why| unreadable(names::COMMIT, why))?;
    let Some(hash) = commit.manifest_blake3 else { return Ok(None) };
    let bytes = small(names::MANIFEST, MANIFEST_LIMIT)?
        .ok_or_else(|| Error::damaged(&folder, names::MANIFEST, "it is missing"))?;
    if blake3::hash(&bytes).to_hex().as_str() != hash {
        return Err(Error::damaged(
            &folder,
            names::MANIFEST,
            "it is not the one that COMMIT names (BLAKE3 differs)",
        ));
    }
    let manifest = Manifest::parse(&bytes).map_err(|why| unreadable(names::MANIFEST, why))?;
    if manifest.name != folder || manifest.generation != commit.generation {
        let detail = format!("it belongs to {}, generation {}", manifest.name, manifest.generation);
        return Err(Error::damaged(&folder, names::MANIFEST, detail));
    }
    let sizes: HashMap<String, u64> =
        store.list(&name.folder())?.into_iter().map(|entry| (entry.name, entry.size)).collect();
    for file in &manifest.files {
        match sizes.get(&file.name) {
            None => return Err(Error::damaged(&folder, &file.name, "it is missing")),
            Some(&size) if size != file.size => {
                let detail = format!("it has {size} bytes, {} were written", file.size);
                return Err(Error::damaged(&folder, &file.name, detail));
            }
            Some(_) => {}
        }
    }
    Ok(Some(manifest))
}
