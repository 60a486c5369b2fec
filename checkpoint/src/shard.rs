//! Writing a staged shard: the hashes are taken by one thread while another one writes, both from the staging buffer.

use std::collections::BTreeMap;

use crate::committer::{RankReport, WrittenPiece};
use crate::error::{Error, Result};
use crate::manifest::{Encoding, FileEntry, FileKind};
use crate::names;
use crate::region::Region;
use crate::staging::Staging;
use crate::store::Store;
use crate::tensor::Dtype;

/// Hashed in steps that stay in the cache between the two hashes.
const STEP: usize = 256 << 10;

/// What is known of a piece before its checksum.
#[derive(Debug, Clone)]
pub(crate) struct PieceInfo {
    pub(crate) tensor: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    pub(crate) region: Region,
    pub(crate) start: usize,
    pub(crate) bytes: usize,
}

/// All that a rank writes for a save.
pub(crate) struct RankJob {
    pub(crate) rank: u32,
    pub(crate) world: u32,
    pub(crate) folder: String,
    pub(crate) encoding: Encoding,
    pub(crate) level: i32,
    pub(crate) staging: Staging,
    pub(crate) head: usize,
    pub(crate) pieces: Vec<PieceInfo>,
    pub(crate) replicated: String,
    pub(crate) state: Vec<u8>,
    pub(crate) metrics: BTreeMap<String, f64>,
}

struct Sums {
    head: u32,
    pieces: Vec<u32>,
    blake3: Option<String>,
}

/// Writes the rank's two files.
pub(crate) fn write(store: &dyn Store, job: &RankJob) -> Result<RankReport> {
    let bytes = job.staging.bytes();
    let compressed = compress(bytes, job.encoding, job.level)?;
    let file = compressed.as_deref().unwrap_or(bytes);
    check_space(store, (file.len() + job.state.len()) as u64)?;

    let shard = names::shard(job.rank, job.world, job.encoding == Encoding::Zstd);
    let path = format!("{}/{shard}", job.folder);
    let (written, sums) = std::thread::scope(|scope| {
        let sums = scope.spawn(|| sum(bytes, job, compressed.is_none()));
        let written = store.write(&path, file);
        (written, sums.join())
    });
    written?;
    let sums = sums.map_err(|_| Error::Invalid("hashing the shard panicked".to_owned()))?;
    let blake3 = sums.blake3.unwrap_or_else(|| blake3::hash(file).to_hex().to_string());

    let state = names::rank_state(job.rank);
    store.write(&format!("{}/{state}", job.folder), &job.state)?;

    let pieces = job.pieces.iter().zip(&sums.pieces).map(|(piece, &crc32c)| WrittenPiece {
        tensor: piece.tensor.clone(),
        dtype: piece.dtype,
        shape: piece.shape.clone(),
        region: piece.region.clone(),
        start: piece.start as u64,
        crc32c,
    });
    Ok(RankReport {
        pieces: pieces.collect(),
        shard: FileEntry {
            name: shard,
            kind: FileKind::Shard,
            rank: job.rank,
            size: file.len() as u64,
            blake3,
            encoding: job.encoding,
            decoded: bytes.len() as u64,
            head: job.head as u64,
            head_crc32c: sums.head,
        },
        state: FileEntry {
            name: state,
            kind: FileKind::State,
            rank: job.rank,
            size: job.state.len() as u64,
            blake3: blake3::hash(&job.state).to_hex().to_string(),
            encoding: Encoding::Plain,
            decoded: job.state.len() as u64,
            head: 0,
            head_crc32c: 0,
        },
        replicated: job.replicated.clone(),
        metrics: job.metrics.clone(),
    })
}

fn check_space(store: &dyn Store, need: u64) -> Result<()> {
    match store.free_space()? {
        Some(free) if free < need => Err(Error::NoSpace { store: store.location(), need, free }),
        _ => Ok(()),
    }
}

/// One pass over the shard: every piece's CRC32C and, if asked, the BLAKE3 hash of it all. BLAKE3 wants long inputs to
/// be fast, however short the pieces are.
fn sum(bytes: &[u8], job: &RankJob, hash: bool) -> Sums {
    let mut hasher = hash.then(blake3::Hasher::new);
    // Head and pieces lie end to end.
    let ends: Vec<usize> =
        std::iter::once(job.head).chain(job.pieces.iter().map(|piece| piece.start + piece.bytes)).collect();
    let mut sums = vec![0u32; ends.len()];
    let (mut at, mut current) = (0, 0);
    for mut step in bytes.chunks(STEP) {
        if let Some(hasher) = &mut hasher {
            hasher.update(step);
        }
        while !step.is_empty() {
            let count = step.len().min(ends[current] - at);
            let (now, rest) = step.split_at(count);
            sums[current] = crc32c::crc32c_append(sums[current], now);
            (step, at) = (rest, at + count);
            while current + 1 < ends.len() && at == ends[current] {
                current += 1;
            }
        }
    }
    let head = sums.remove(0);
    Sums { head, pieces: sums, blake3: hasher.map(|hasher| hasher.finalize().to_hex().to_string()) }
}

#[cfg(feature = "zstd")]
fn compress(bytes: &[u8], encoding: Encoding, level: i32) -> Result<Option<Vec<u8>>> {
    match encoding {
        Encoding::Plain => Ok(None),
        Encoding::Zstd => {
            zstd::bulk::compress(bytes, level).map(Some).map_err(Error::io("compress", "the staged shard"))
        }
    }
}

#[cfg(not(feature = "zstd"))]
fn compress(_: &[u8], encoding: Encoding, _: i32) -> Result<Option<Vec<u8>>> {
    match encoding {
        Encoding::Plain => Ok(None),
        Encoding::Zstd => Err(no_zstd()),
    }
}

/// The decoded bytes of a compressed file, if it has exactly as many as promised.
#[cfg(feature = "zstd")]
pub(crate) fn decompress(bytes: &[u8], decoded: u64) -> std::result::Result<Vec<u8>, String> {
    use std::io::Read;
    // Read on demand rather than allocated ahead: the promised length may be anything.
    let decoder = zstd::stream::Decoder::with_buffer(bytes).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    decoder.take(decoded.saturating_add(1)).read_to_end(&mut out).map_err(|error| error.to_string())?;
    if out.len() as u64 != decoded {
        return Err(format!("it does not decode to {decoded} bytes"));
    }
    Ok(out)
}

#[cfg(not(feature = "zstd"))]
pub(crate) fn decompress(_: &[u8], _: u64) -> std::result::Result<Vec<u8>, String> {
    Err(no_zstd().to_string())
}

#[cfg(not(feature = "zstd"))]
fn no_zstd() -> Error {
    Error::NotAvailable("this build has no zstd: build with the feature `zstd`".to_owned())
}
