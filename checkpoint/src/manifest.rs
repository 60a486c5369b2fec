//! What is in a checkpoint (`MANIFEST.json`) and what makes it one (`COMMIT`), with the checks that make a parsed one
//! safe to act upon: every number in it is bounded by the sizes of the files before anything is allocated.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::names::{self, CheckpointName};
use crate::region::{Region, volume};
use crate::tensor::Dtype;

/// The newest layout this release writes and reads.
pub const SCHEMA: u32 = 1;

/// How a file's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Encoding {
    /// As they are.
    #[default]
    Plain,
    /// One zstd frame.
    Zstd,
}

/// What a file of the checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FileKind {
    /// Tensors, in the safetensors format.
    Shard,
    /// A rank's own state.
    State,
}

/// A file of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name in the folder.
    pub name: String,
    /// What it holds.
    pub kind: FileKind,
    /// The rank that wrote it.
    pub rank: u32,
    /// Its size in bytes.
    pub size: u64,
    /// The BLAKE3 hash of the file.
    pub blake3: String,
    /// How its bytes are stored.
    pub encoding: Encoding,
    /// Its size once decoded. Offsets count decoded bytes.
    pub decoded: u64,
    /// Of a shard, how long the head in front of the tensors is.
    pub head: u64,
    /// The CRC32C of that head. Together with the pieces' it covers every decoded byte.
    pub head_crc32c: u32,
}

/// A part of a tensor in a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// The index of the shard in the manifest's files.
    pub file: usize,
    /// Where its bytes start, counted in decoded bytes.
    pub start: u64,
    /// Which part of the tensor it is.
    pub region: Region,
    /// The CRC32C of its bytes.
    pub crc32c: u32,
}

/// A tensor of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Its element type.
    pub dtype: Dtype,
    /// Its global shape.
    pub shape: Vec<u64>,
    /// The parts that make it up. They cover it, and do not overlap.
    pub pieces: Vec<Piece>,
}

impl TensorEntry {
    /// The bytes of the whole tensor.
    pub fn bytes(&self) -> u64 {
        volume(&self.shape).unwrap_or(0) * self.dtype.size()
    }
}

/// What is in a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The layout's version.
    pub schema: u32,
    /// The training step.
    pub step: u64,
    /// The generation of the run that wrote it.
    pub generation: u64,
    /// The folder's own name, so that a copied folder cannot pass for another.
    pub name: String,
    /// How many ranks wrote it.
    pub world_size: u32,
    /// The checkpoint that this run last saved or loaded before.
    pub parent: Option<String>,
    /// When it was begun, in milliseconds since 1970.
    pub created_ms: u64,
    /// The metrics given with it, by which the best ones are kept.
    #[serde(with = "metrics")]
    pub metrics: BTreeMap<String, f64>,
    /// The version of the ranks' own states.
    pub state_version: u32,
    /// The files.
    pub files: Vec<FileEntry>,
    /// The tensors.
    pub tensors: BTreeMap<String, TensorEntry>,
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

/// Why a manifest or a COMMIT cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unreadable {
    /// Its bytes are not what was written.
    Damaged(String),
    /// A newer release wrote it, with this schema.
    Newer(u32),
}

impl Manifest {
    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a manifest has only string keys and finite numbers");
        bytes.push(b'\n');
        bytes
    }

    /// Reads and checks a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, Unreadable> {
        let SchemaOnly { schema } = serde_json::from_slice(bytes).map_err(damaged)?;
        if schema > SCHEMA {
            return Err(Unreadable::Newer(schema));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(damaged)?;
        manifest.check().map_err(Unreadable::Damaged)?;
        Ok(manifest)
    }

    /// The bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The name as parsed.
    pub fn checkpoint(&self) -> CheckpointName {
        self.name.parse().expect("checked when the manifest was parsed or made")
    }

    /// The index of a rank's state among the files.
    pub(crate) fn state_file(&self, rank: u32) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.kind == FileKind::State && file.rank == rank)
    }

    /// Whether it is consistent in itself: names plain, numbers within their files, tensors covered exactly.
    pub fn check(&self) -> Result<(), String> {
        let name: CheckpointName =
            self.name.parse().map_err(|()| format!("`{}` is no checkpoint's name", self.name))?;
        if (name.step, name.generation) != (self.step, self.generation) {
            return Err(format!(
                "step {} and generation {} do not fit its name {name}",
                self.step, self.generation
            ));
        }
        let mut names = HashSet::new();
        for file in &self.files {
            if !names::is_plain(&file.name) || !names.insert(&file.name) {
                return Err(format!("the file name `{}` is not plain or not unique", file.name));
            }
            if file.encoding == Encoding::Plain && file.decoded != file.size {
                return Err(format!("`{}` is stored plain but its sizes differ", file.name));
            }
            if file.head > file.decoded || file.rank >= self.world_size {
                return Err(format!("`{}` has an impossible head or rank", file.name));
            }
        }
        for (name, tensor) in &self.tensors {
            self.check_tensor(tensor).map_err(|reason| format!("tensor `{name}`: {reason}"))?;
        }
        Ok(())
    }

    fn check_tensor(&self, tensor: &TensorEntry) -> Result<(), String> {
        let bytes = |shape: &[u64]| volume(shape).and_then(|volume| volume.checked_mul(tensor.dtype.size()));
        let total = bytes(&tensor.shape).ok_or_else(|| format!("the shape {:?} overflows", tensor.shape))?;
        let mut covered = 0u64;
        for piece in &tensor.pieces {
            let file = self
                .files
                .get(piece.file)
                .filter(|file| file.kind == FileKind::Shard)
                .ok_or_else(|| format!("there is no shard {}", piece.file))?;
            if !piece.region.fits(&tensor.shape) {
                return Err(format!("the piece {:?} lies outside of shape {:?}", piece.region, tensor.shape));
            }
            let size = bytes(&piece.region.shape).expect("a part of what does not overflow");
            if piece.start < file.head || piece.start.checked_add(size).is_none_or(|end| end > file.decoded) {
                return Err(format!("a piece lies outside of {}", file.name));
            }
            covered = covered.saturating_add(size);
        }
        if covered != total {
            return Err(format!(
                "its pieces have {covered} bytes of {total}: did every rank give its part, and only its own?"
            ));
        }
        check_disjoint(&tensor.pieces)
    }
}

/// Pieces that differ along one dimension only are the rule, and sorting suffices for them.
fn check_disjoint(pieces: &[Piece]) -> Result<(), String> {
    let mut regions: Vec<&Region> =
        pieces.iter().map(|piece| &piece.region).filter(|r| r.volume() != Some(0)).collect();
    if regions.len() < 2 {
        return Ok(());
    }
    regions.sort();
    let overlap = |a: &Region, b: &Region| match a.intersect(b) {
        Some(both) => Err(format!("two pieces overlap at {both:?}")),
        None => Ok(()),
    };
    let first = regions[0];
    let differing = (0..first.shape.len())
        .filter(|&d| regions.iter().any(|r| (r.offset[d], r.shape[d]) != (first.offset[d], first.shape[d])))
        .count();
    if differing <= 1 {
        return regions.windows(2).try_for_each(|pair| overlap(pair[0], pair[1]));
    }
    for (i, a) in regions.iter().enumerate() {
        for b in &regions[i + 1..] {
            overlap(a, b)?;
        }
    }
    Ok(())
}

/// What makes a folder a checkpoint: it names the manifest by its hash. A folder with an aborted one never becomes a
/// checkpoint any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// The layout's version.
    pub schema: u32,
    /// The BLAKE3 hash of the manifest; nothing where the folder was given up.
    pub manifest_blake3: Option<String>,
    /// The generation that wrote it.
    pub generation: u64,
}

impl Commit {
    /// The commit of a manifest.
    pub fn of(manifest: &[u8], generation: u64) -> Commit {
        Commit {
            schema: SCHEMA,
            manifest_blake3: Some(blake3::hash(manifest).to_hex().to_string()),
            generation,
        }
    }

    /// What takes the place of a COMMIT that must not come any more.
    pub fn aborted(generation: u64) -> Commit {
        Commit { schema: SCHEMA, manifest_blake3: None, generation }
    }

    /// The bytes of the file: a line of JSON, and a line with that line's hash, whatever the schema. So a flipped
    /// schema number is damage, and a newer schema is not.
    pub fn to_bytes(&self) -> Vec<u8> {
        let line = serde_json::to_string(self).expect("a plain struct");
        format!("{line}\n{}\n", blake3::hash(line.as_bytes()).to_hex()).into_bytes()
    }

    /// Reads and checks a COMMIT.
    pub fn parse(bytes: &[u8]) -> Result<Commit, Unreadable> {
        let text = std::str::from_utf8(bytes).map_err(damaged)?;
        let (line, hash) = text
            .strip_suffix('\n')
            .and_then(|text| text.split_once('\n'))
            .ok_or_else(|| damaged("it does not have two lines"))?;
        if blake3::hash(line.as_bytes()).to_hex().as_str() != hash {
            return Err(damaged("its own hash does not match"));
        }
        let SchemaOnly { schema } = serde_json::from_str(line).map_err(damaged)?;
        if schema > SCHEMA {
            return Err(Unreadable::Newer(schema));
        }
        serde_json::from_str(line).map_err(damaged)
    }
}

fn damaged(error: impl std::fmt::Display) -> Unreadable {
    Unreadable::Damaged(error.to_string())
}

/// JSON has no NaN and no infinities, metrics do: those are written as strings.
pub(crate) mod metrics {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Number {
        Finite(f64),
        Other(String),
    }

    pub(crate) fn serialize<S: Serializer>(
        metrics: &BTreeMap<String, f64>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(metrics.iter().map(|(name, &value)| {
            let value =
                if value.is_finite() { Number::Finite(value) } else { Number::Other(value.to_string()) };
            (name, value)
        }))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
        BTreeMap::<String, Number>::deserialize(from)?
            .into_iter()
            .map(|(name, value)| match value {
                Number::Finite(value) => Ok((name, value)),
                Number::Other(text) => Ok((name, text.parse().map_err(serde::de::Error::custom)?)),
            })
            .collect()
    }
}
