//! Reading a checkpoint. What is handed out is mapped where that is possible, and checked before it is handed out.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use serde::de::DeserializeOwned;

use crate::catalog;
use crate::error::{Damage, Error, Result};
use crate::manifest::{Encoding, FileEntry, FileKind, Manifest, Piece, TensorEntry};
use crate::names::CheckpointName;
use crate::region::{Region, copy_part};
use crate::shard;
use crate::store::{Blob, Store};

/// Copied and hashed in steps that stay in the cache between the two.
const STEP: usize = 128 << 10;

/// When the bytes of the shards are checked against their CRC32C. COMMIT, manifest, and the presence and size of every
/// file are always checked when a checkpoint is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Every byte of the checkpoint is checked before any is used, shared among the ranks; what another rank checked,
    /// this one checks again when it reads it. So a damaged checkpoint is passed over, not found out half-way.
    #[default]
    Full,
    /// Every piece is checked when it is first read. For stores where reading everything twice is too dear.
    OnRead,
    /// Nothing is checked.
    Off,
}

/// An opened checkpoint.
pub struct Checkpoint {
    store: Arc<dyn Store>,
    name: CheckpointName,
    manifest: Manifest,
    blobs: Vec<OnceLock<Arc<dyn Blob>>>,
    /// One mark a piece, the tensors' one after the other.
    checked: Vec<AtomicBool>,
    first_mark: HashMap<String, usize>,
    verify: Verify,
}

/// A tensor, or a part of one, to read, and where to.
#[derive(Debug)]
pub struct Target<'a> {
    /// The tensor's name in the checkpoint.
    pub name: &'a str,
    /// The part of it; all of it if there is none.
    pub region: Option<Region>,
    /// Where its bytes go; exactly as many as it has.
    pub to: &'a mut [u8],
}

struct Held(Vec<u8>);

impl Blob for Held {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, range: std::ops::Range<u64>) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(&self.0[range.start as usize..range.end as usize]))
    }
}

impl Checkpoint {
    /// Opens a checkpoint by name. Shards are checked as they are read, or when [`Checkpoint::verify`] is called; to
    /// find the newest good one, use [`crate::recover::newest`].
    pub fn open(store: Arc<dyn Store>, name: &CheckpointName, verify: Verify) -> Result<Checkpoint> {
        let manifest = catalog::read(&*store, name)?.ok_or_else(|| {
            Error::damaged(&name.to_string(), crate::names::COMMIT, "it is missing: the save never ended")
        })?;
        let mut pieces = 0;
        let first_mark = manifest
            .tensors
            .iter()
            .map(|(tensor, entry)| {
                let first = pieces;
                pieces += entry.pieces.len();
                (tensor.clone(), first)
            })
            .collect();
        Ok(Checkpoint {
            store,
            name: name.clone(),
            blobs: manifest.files.iter().map(|_| OnceLock::new()).collect(),
            checked: (0..pieces).map(|_| AtomicBool::new(false)).collect(),
            first_mark,
            manifest,
            verify,
        })
    }

    /// Its name.
    pub fn name(&self) -> &CheckpointName {
        &self.name
    }

    /// What is in it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// A tensor's element type, shape and pieces.
    pub fn entry(&self, tensor: &str) -> Result<&TensorEntry> {
        self.manifest
            .tensors
            .get(tensor)
            .ok_or_else(|| Error::Invalid(format!("{} has no tensor `{tensor}`", self.name)))
    }

    /// A tensor's bytes, borrowed from the mapped file if they lie there in one run.
    pub fn tensor(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        let whole = Region::whole(&self.entry(tensor)?.shape);
        self.region(tensor, &whole)
    }

    /// The bytes of a part of a tensor, whatever the parts it was saved in.
    pub fn region(&self, tensor: &str, region: &Region) -> Result<Cow<'_, [u8]>> {
        let bytes = self.bytes_of(tensor, region)?;
        let entry = self.entry(tensor)?;
        for (index, piece) in entry.pieces.iter().enumerate() {
            let Some(run) = inside(&piece.region, region).then(|| piece.region.run_of(region)).flatten()
            else {
                continue;
            };
            let all = self.piece(tensor, index, piece, entry.dtype.size())?;
            let from = run * entry.dtype.size();
            return Ok(match all {
                Cow::Borrowed(all) => Cow::Borrowed(&all[from as usize..(from + bytes) as usize]),
                Cow::Owned(mut all) => {
                    all.drain(..from as usize);
                    all.truncate(bytes as usize);
                    Cow::Owned(all)
                }
            });
        }
        let mut gathered = vec![0; bytes as usize];
        self.read_one(&mut Target { name: tensor, region: Some(region.clone()), to: &mut gathered })?;
        Ok(Cow::Owned(gathered))
    }

    /// Reads many tensors into the caller's memory, with this many threads (0 for one a core).
    pub fn read_into(&self, targets: &mut [Target<'_>], threads: usize) -> Result<()> {
        let mut order: Vec<&mut Target<'_>> = targets.iter_mut().collect();
        // Taken from the end: the largest first.
        order.sort_by_key(|target| target.to.len());
        let threads = worker_count(threads).min(order.len()).max(1);
        let queue = Mutex::new(order);
        let next = || queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
        in_parallel(threads, || {
            while let Some(target) = next() {
                self.read_one(target)?;
            }
            Ok(())
        })
    }

    /// The state that a rank saved, if it has this version; an older one goes through `migrate` first.
    pub fn state<T: DeserializeOwned>(
        &self,
        rank: u32,
        version: u32,
        migrate: impl FnOnce(u32, serde_json::Value) -> Result<serde_json::Value, String>,
    ) -> Result<T> {
        let file = self.manifest.state_file(rank).ok_or_else(|| {
            Error::Invalid(format!(
                "{} was saved by {} ranks, there is no rank {rank}",
                self.name, self.manifest.world_size
            ))
        })?;
        let damaged = |detail: String| Error::damaged(&self.name.to_string(), &file.name, detail);
        let blob = self.raw(file)?;
        let bytes = blob.read(0..blob.len())?;
        if self.verify != Verify::Off && blake3::hash(&bytes).to_hex().as_str() != file.blake3 {
            return Err(damaged("its BLAKE3 hash differs".to_owned()));
        }
        let mut state = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let saved = self.manifest.state_version;
        if saved > version {
            return Err(Error::NewerSchema {
                checkpoint: format!("the state of {}", self.name),
                found: saved,
                supported: version,
            });
        }
        let wrong = |reason: String| {
            Error::Invalid(format!("the state of rank {rank} in {} (version {saved}): {reason}", self.name))
        };
        if saved < version {
            state = migrate(saved, state).map_err(wrong)?;
        }
        serde_json::from_value(state).map_err(|error| wrong(error.to_string()))
    }

    /// Checks every `of`-th file or piece from the `share`-th on, with all cores; returns all damage found.
    pub fn verify(&self, share: usize, of: usize) -> Vec<Damage> {
        let mut units: Vec<Unit<'_>> = Vec::new();
        units.extend(self.manifest.files.iter().map(Unit::File));
        for (tensor, entry) in &self.manifest.tensors {
            units.extend(
                entry
                    .pieces
                    .iter()
                    .enumerate()
                    .map(|(index, piece)| Unit::Piece(tensor, entry, index, piece)),
            );
        }
        let mine: Vec<Unit<'_>> = units.into_iter().skip(share).step_by(of.max(1)).collect();
        let (next, damage) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let checked = in_parallel(worker_count(0).min(mine.len()).max(1), || {
            while let Some(unit) = mine.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.check(unit) {
                    damage
                        .lock()
                        .unwrap_or_else(|poisoned| poisoned.into_inner())
                        .push(self.as_damage(unit, error));
                }
            }
            Ok(())
        });
        let mut damage = damage.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Err(error) = checked {
            damage.push(Damage {
                checkpoint: self.name.to_string(),
                file: String::new(),
                detail: error.to_string(),
            });
        }
        damage.sort_by(|a, b| (&a.file, &a.detail).cmp(&(&b.file, &b.detail)));
        damage.dedup();
        damage
    }

    /// Checks every file's BLAKE3 hash: slower than [`Checkpoint::verify`] and proof against more than accidents.
    pub fn verify_hashes(&self) -> Vec<Damage> {
        let mut damage = Vec::new();
        for file in &self.manifest.files {
            if let Err(error) = self.check_hash(file) {
                damage.push(self.as_damage(&Unit::File(file), error));
            }
        }
        damage
    }

    fn check_hash(&self, file: &FileEntry) -> Result<()> {
        let blob = self.raw(file)?;
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < blob.len() {
            let end = (at + (16 << 20)).min(blob.len());
            hasher.update(&blob.read(at..end)?);
            at = end;
        }
        if hasher.finalize().to_hex().as_str() != file.blake3 {
            return Err(Error::damaged(&self.name.to_string(), &file.name, "its BLAKE3 hash differs"));
        }
        Ok(())
    }

    fn as_damage(&self, unit: &Unit<'_>, error: Error) -> Damage {
        let file = match unit {
            Unit::File(file) => file,
            Unit::Piece(_, _, _, piece) => &self.manifest.files[piece.file],
        };
        match error {
            Error::Damaged(damage) => damage,
            other => Damage {
                checkpoint: self.name.to_string(),
                file: file.name.clone(),
                detail: other.to_string(),
            },
        }
    }

    fn check(&self, unit: &Unit<'_>) -> Result<()> {
        match unit {
            Unit::File(file) if file.kind == FileKind::State => self.check_hash(file),
            Unit::File(file) => {
                // The pieces' sums cover a compressed file's content, but not every bit of its frame.
                if file.encoding != Encoding::Plain {
                    self.check_hash(file)?;
                }
                let index = self.manifest.files.iter().position(|other| other.name == file.name).unwrap_or(0);
                let head = self.blob(index)?.read(0..file.head)?;
                if crc32c::crc32c(&head) != file.head_crc32c {
                    return Err(Error::damaged(
                        &self.name.to_string(),
                        &file.name,
                        "its head's CRC32C differs",
                    ));
                }
                Ok(())
            }
            Unit::Piece(tensor, entry, index, piece) => {
                self.piece(tensor, *index, piece, entry.dtype.size()).map(drop)
            }
        }
    }

    /// The bytes of a file as it is stored.
    fn raw(&self, file: &FileEntry) -> Result<Arc<dyn Blob>> {
        let damaged = |detail: String| Error::damaged(&self.name.to_string(), &file.name, detail);
        let blob = self
            .store
            .open(&self.name.path(&file.name))?
            .ok_or_else(|| damaged("it is missing".to_owned()))?;
        if blob.len() != file.size {
            return Err(damaged(format!("it has {} bytes, {} were written", blob.len(), file.size)));
        }
        Ok(blob)
    }

    /// A file's decoded bytes.
    fn blob(&self, index: usize) -> Result<&Arc<dyn Blob>> {
        if let Some(blob) = self.blobs[index].get() {
            return Ok(blob);
        }
        let file = &self.manifest.files[index];
        let mut blob = self.raw(file)?;
        if file.encoding == Encoding::Zstd {
            let bytes = blob.read(0..blob.len())?;
            let decoded = shard::decompress(&bytes, file.decoded)
                .map_err(|reason| Error::damaged(&self.name.to_string(), &file.name, reason))?;
            drop(bytes);
            blob = Arc::new(Held(decoded));
        }
        Ok(self.blobs[index].get_or_init(|| blob))
    }

    /// A piece's bytes, checked if that was not done.
    fn piece(&self, tensor: &str, index: usize, piece: &Piece, element: u64) -> Result<Cow<'_, [u8]>> {
        let bytes = piece.region.volume().unwrap_or(0) * element;
        let data = self.blob(piece.file)?.read(piece.start..piece.start + bytes)?;
        if self.has_to_check(tensor, index) {
            self.compare(tensor, index, piece, crc32c::crc32c(&data))?;
        }
        Ok(data)
    }

    fn has_to_check(&self, tensor: &str, index: usize) -> bool {
        self.verify != Verify::Off && !self.mark(tensor, index).load(Ordering::Acquire)
    }

    fn mark(&self, tensor: &str, index: usize) -> &AtomicBool {
        &self.checked[self.first_mark[tensor] + index]
    }

    fn compare(&self, tensor: &str, index: usize, piece: &Piece, found: u32) -> Result<()> {
        if found != piece.crc32c {
            let file = &self.manifest.files[piece.file].name;
            let detail = format!("the CRC32C of tensor `{tensor}` differs");
            return Err(Error::damaged(&self.name.to_string(), file, detail));
        }
        self.mark(tensor, index).store(true, Ordering::Release);
        Ok(())
    }

    fn bytes_of(&self, tensor: &str, region: &Region) -> Result<u64> {
        let entry = self.entry(tensor)?;
        if !region.fits(&entry.shape) {
            return Err(Error::Invalid(format!(
                "{region:?} does not lie in `{tensor}`, whose shape is {:?}",
                entry.shape
            )));
        }
        Ok(region.volume().unwrap_or(0) * entry.dtype.size())
    }

    fn read_one(&self, target: &mut Target<'_>) -> Result<()> {
        let entry = self.entry(target.name)?;
        let wanted = target.region.clone().unwrap_or_else(|| Region::whole(&entry.shape));
        let bytes = self.bytes_of(target.name, &wanted)?;
        if bytes != target.to.len() as u64 {
            let reason =
                format!("{} bytes were given for `{}`, which has {bytes}", target.to.len(), target.name);
            return Err(Error::Invalid(reason));
        }
        let element = entry.dtype.size();
        for (index, piece) in entry.pieces.iter().enumerate() {
            let Some(part) = piece.region.intersect(&wanted) else { continue };
            let all = piece.region == part && self.has_to_check(target.name, index);
            let run = wanted.run_of(&part).filter(|_| all);
            if let Some(at) = run {
                // The whole piece, in one run: copied and checked in the same pass.
                let start = (at * element) as usize;
                let data = self
                    .blob(piece.file)?
                    .read(piece.start..piece.start + part.volume().unwrap_or(0) * element)?;
                let found = copy_and_sum(&data, &mut target.to[start..start + data.len()]);
                self.compare(target.name, index, piece, found)?;
            } else {
                let data = self.piece(target.name, index, piece, element)?;
                copy_part(&part, element as usize, (&piece.region, &data), (&wanted, &mut *target.to));
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("store", &self.store)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

enum Unit<'a> {
    File(&'a FileEntry),
    Piece(&'a str, &'a TensorEntry, usize, &'a Piece),
}

fn inside(outer: &Region, inner: &Region) -> bool {
    (0..outer.shape.len()).all(|d| {
        outer.offset[d] <= inner.offset[d]
            && inner.offset[d] + inner.shape[d] <= outer.offset[d] + outer.shape[d]
    })
}

fn copy_and_sum(from: &[u8], to: &mut [u8]) -> u32 {
    from.chunks(STEP).zip(to.chunks_mut(STEP)).fold(0, |crc, (from, to)| {
        to.copy_from_slice(from);
        // Of what was copied, not of what was mapped: the sum is of the very bytes that are handed out.
        crc32c::crc32c_append(crc, to)
    })
}

fn worker_count(asked: usize) -> usize {
    if asked > 0 {
        asked
    } else {
        std::thread::available_parallelism().map_or(1, |cores| cores.get().min(16))
    }
}

/// Runs the same work on several threads, this one included; the first error is the one returned.
fn in_parallel(threads: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let mut outcome = work();
        for other in others {
            outcome = outcome.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        outcome
    })
}
