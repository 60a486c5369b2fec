//! Taking a state up again: which checkpoint, the same on all ranks, and what of it goes into which component.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use regatta_checkpoint::{
    Checkpoint, CheckpointName, Coordinator, Damage, Dtype, Error as CheckpointError, Region, Store, Verify,
    recover, store,
};
use serde_json::Value;

use crate::saving::{PartState, RankState, STATE_VERSION, tensor_name};
use crate::state::{MODEL, SavedPart, State};
use crate::wire::Restore;
use crate::{Error, Result};

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The checkpoint's name.
    pub checkpoint: String,
    /// The step it was taken at.
    pub step: u64,
    /// The epoch to go on with, from 0.
    pub epoch: u64,
    /// How many reports led to it; what was saved by hands that do not count them does not say.
    pub reports: Option<u64>,
    /// How many ranks saved it.
    pub world_size: usize,
    /// Newer ones that were passed over since they are damaged, each with why.
    pub damaged: Vec<String>,
}

/// How long all ranks together may look for a checkpoint that verifies.
const LIMIT: Duration = Duration::from_secs(3600);

/// A checkpoint to go on from.
pub(crate) struct Found {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) damaged: Vec<Damage>,
    /// Whether it is of this run's own storage.
    pub(crate) ours: bool,
}

/// Finds what the controller wants restored; nothing is the beginning. All ranks call this together.
pub(crate) fn find(
    wanted: &Restore,
    checkpoints: &Arc<dyn Store>,
    coordinator: &dyn Coordinator,
) -> Result<Option<Found>> {
    let open = |checkpoints: Arc<dyn Store>, name: &str, ours| {
        let name: CheckpointName = name
            .parse()
            .map_err(|()| Error::config("restore", format!("{name:?} is no checkpoint's name")))?;
        let checkpoint = recover::named_among(checkpoints, coordinator, &name, Verify::Full, LIMIT)?;
        Ok(Some(Found { checkpoint, damaged: Vec::new(), ours }))
    };
    match wanted {
        Restore::Nothing | Restore::Beginning => Ok(None),
        Restore::Named(name) => open(checkpoints.clone(), name, true),
        Restore::From { storage, checkpoint, .. } => open(store::open_existing(storage)?, checkpoint, false),
        Restore::Newest => match recover::newest_among(checkpoints.clone(), coordinator, Verify::Full, LIMIT)
        {
            Ok(found) => Ok(Some(Found { checkpoint: found.checkpoint, damaged: found.damaged, ours: true })),
            // All were lost: that is for a person to decide about, and no new run.
            Err(CheckpointError::NoCheckpoint { damaged, .. }) if damaged.is_empty() => Ok(None),
            Err(error) => Err(error.into()),
        },
    }
}

/// Puts a checkpoint into a state. All that does not fit is listed at once.
pub(crate) fn load(state: &mut State, found: Found, rank: usize, world: usize) -> Result<Restored> {
    state.check()?;
    let checkpoint = &found.checkpoint;
    let manifest = checkpoint.manifest();
    let same_world = manifest.world_size as usize == world;
    let from = if same_world { rank as u32 } else { 0 };
    let saved: RankState = checkpoint
        .state(from, STATE_VERSION, |version, _| Err(format!("there never was a version {version}")))?;
    let mut misfits = Vec::new();
    for part in &saved.parts {
        if !state.has(&part.key) {
            misfits.push(format!("it has a component `{}`, and the state has none", part.key));
        }
    }
    let keys: Vec<&str> = saved.parts.iter().map(|part| &*part.key).collect();
    for (key, component) in &mut state.components {
        let Some(values) = saved.parts.iter().find(|part| part.key == *key) else {
            misfits.push(format!("it has no component `{key}`"));
            continue;
        };
        let tensors = names(checkpoint, key, &keys);
        let part = Part { values, tensors, checkpoint, same_world, step: saved.step };
        match component.load(&part) {
            Ok(()) => {}
            Err(Error::Restore { why, .. }) => misfits.push(format!("component `{key}`: {why}")),
            Err(error) => return Err(error),
        }
    }
    if !misfits.is_empty() {
        return Err(misfit(checkpoint, misfits.join("\n  ")));
    }
    use std::sync::atomic::Ordering::Relaxed;
    state.counters.step.store(saved.step, Relaxed);
    state.counters.epoch.store(saved.epoch, Relaxed);
    Ok(Restored {
        checkpoint: checkpoint.name().to_string(),
        step: saved.step,
        epoch: saved.epoch,
        reports: saved.reports,
        world_size: manifest.world_size as usize,
        damaged: found.damaged.iter().map(ToString::to_string).collect(),
    })
}

fn misfit(checkpoint: &Checkpoint, why: String) -> Error {
    Error::Restore { checkpoint: checkpoint.name().to_string(), why }
}

/// The names of a component's tensors, as it knows them.
fn names(checkpoint: &Checkpoint, key: &str, keys: &[&str]) -> Vec<String> {
    let own = |name: &String| -> Option<String> {
        if key != MODEL {
            return name.strip_prefix(key)?.strip_prefix('/').map(str::to_owned);
        }
        let anothers = name.split_once('/').is_some_and(|(first, _)| first != MODEL && keys.contains(&first));
        (!anothers).then(|| name.clone())
    };
    checkpoint.manifest().tensors.keys().filter_map(own).collect()
}

/// What a checkpoint holds of one component.
struct Part<'a> {
    values: &'a PartState,
    tensors: Vec<String>,
    checkpoint: &'a Checkpoint,
    same_world: bool,
    step: u64,
}

impl SavedPart for Part<'_> {
    fn key(&self) -> &str {
        &self.values.key
    }

    fn version(&self) -> u32 {
        self.values.version
    }

    fn values(&self) -> &Value {
        &self.values.values
    }

    fn same_world(&self) -> bool {
        self.same_world
    }

    fn step(&self) -> u64 {
        self.step
    }

    fn list(&self) -> Vec<(String, Dtype, Vec<u64>)> {
        let entries = &self.checkpoint.manifest().tensors;
        let entry = |name: &String| {
            let entry = entries.get(&tensor_name(self.key(), name))?;
            Some((name.clone(), entry.dtype, entry.shape.clone()))
        };
        self.tensors.iter().filter_map(entry).collect()
    }

    fn tensor(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        Ok(self.checkpoint.tensor(&tensor_name(self.key(), name))?)
    }

    fn region(&self, name: &str, region: &Region) -> Result<Cow<'_, [u8]>> {
        Ok(self.checkpoint.region(&tensor_name(self.key(), name), region)?)
    }

    fn misfit(&self, why: String) -> Error {
        misfit(self.checkpoint, why)
    }
}
