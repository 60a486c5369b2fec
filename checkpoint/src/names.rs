//! The names in a run's folder. A folder's name carries the step, the generation that may write it and an id, so that
//! a step's folder is never reused and a successor can tell its own from its predecessor's.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The folder under the store's root that holds the checkpoints.
pub const FOLDER: &str = "checkpoints";
/// The hint to the newest checkpoint, at the store's root. Recovery does not rely on it.
pub const LATEST: &str = "LATEST";
/// The file that makes a folder a checkpoint.
pub const COMMIT: &str = "COMMIT";
/// The file that says what is in the folder.
pub const MANIFEST: &str = "MANIFEST.json";
/// What the name of a pin starts with; the rest names its owner.
pub const PIN: &str = "pin.";
/// What the name of a fence starts with; the rest is the generation.
pub const FENCE: &str = "fence.g";

/// A checkpoint's name, `step-000123.g7.0001a2b3c4`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CheckpointName {
    /// The training step.
    pub step: u64,
    /// The generation of the run that wrote it.
    pub generation: u64,
    /// Unique within the generation, growing with every save.
    pub id: String,
}

impl CheckpointName {
    /// Its folder, relative to the store's root.
    pub fn folder(&self) -> String {
        format!("{FOLDER}/{self}")
    }

    /// The path of one of its files, relative to the store's root.
    pub fn path(&self, file: &str) -> String {
        format!("{FOLDER}/{self}/{file}")
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step-{:06}.g{}.{}", self.step, self.generation, self.id)
    }
}

impl FromStr for CheckpointName {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let mut parts = name.strip_prefix("step-").ok_or(())?.split('.');
        let (Some(step), Some(generation), Some(id), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(());
        };
        let generation = generation.strip_prefix('g').ok_or(())?;
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            return Err(());
        }
        let parsed = CheckpointName {
            step: step.parse().map_err(drop)?,
            generation: generation.parse().map_err(drop)?,
            id: id.to_owned(),
        };
        // One spelling a name: `step-7` and `step-000007` must not be two folders.
        if parsed.to_string() == name { Ok(parsed) } else { Err(()) }
    }
}

/// The later one is the one to resume from: a newer generation may have gone back to an earlier step on purpose.
impl Ord for CheckpointName {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.generation, self.step, &self.id).cmp(&(other.generation, other.step, &other.id))
    }
}

impl PartialOrd for CheckpointName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The name of a rank's shard.
pub(crate) fn shard(rank: u32, world: u32, compressed: bool) -> String {
    let end = if compressed { ".zst" } else { "" };
    format!("shard-{rank:05}-of-{world:05}.safetensors{end}")
}

/// The name of a rank's own state.
pub(crate) fn rank_state(rank: u32) -> String {
    format!("rank-{rank:05}.json")
}

/// Whether a name can only be a file in the folder it is used in.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        let name: CheckpointName = "step-000123.g7.00ab".parse().unwrap();
        assert_eq!((name.step, name.generation, name.id.as_str()), (123, 7, "00ab"));
        assert_eq!("step-12345678.g0.1".parse::<CheckpointName>().unwrap().step, 12345678);
        for wrong in [
            "step-123.g7.ab",
            "step-000123.g07.ab",
            "step-000123.g7",
            "step-000123.g7.",
            "step-000123.g7.AB",
            "x",
        ] {
            assert!(wrong.parse::<CheckpointName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_newer_generation_wins_over_a_later_step() {
        let old: CheckpointName = "step-000200.g7.01".parse().unwrap();
        let new: CheckpointName = "step-000110.g8.01".parse().unwrap();
        assert!(new > old);
    }
}
