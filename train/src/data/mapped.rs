//! A file of records of one size, mapped into memory. The module's only `unsafe` is the mapping.

use std::fs::File;
use std::path::Path;

use super::dataset::Dataset;
use super::error::{Error, Result, SampleError};
use crate::BoxError;

/// A dataset of the fixed-size records of a file, which the system reads as they are needed and shares between processes.
///
/// A batch is the records' bytes one after another; [`Dataset::map`] makes values of them.
///
/// ```
/// use regatta_train::data::{Dataset, Records};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("points.bin");
/// std::fs::write(&path, [1u32, 2, 3].map(u32::to_le_bytes).concat())?;
///
/// let points = Records::open(&path, 0, 4)?.map(|bytes| {
///     Ok(bytes.chunks_exact(4).map(|record| u32::from_le_bytes(record.try_into().unwrap())).collect::<Vec<_>>())
/// });
/// assert_eq!((points.len(), points.get_batch(&[2, 0])?), (3, vec![3, 1]));
/// # Ok::<(), regatta_train::data::BoxError>(())
/// ```
#[derive(Debug)]
pub struct Records {
    path: String,
    file: File,
    map: memmap2::Mmap,
    header: usize,
    size: usize,
    count: usize,
}

impl Records {
    /// Maps a file that holds, after `header` bytes, nothing but records of `size` bytes.
    ///
    /// The file must not be changed while it is in use: what a batch then holds is not defined. One that has become shorter
    /// is noticed before each batch; a process that reads a part of a file in the moment it is cut off ends by SIGBUS.
    ///
    /// # Errors
    /// When the file cannot be read, holds no record, or ends within one.
    pub fn open(path: impl AsRef<Path>, header: usize, size: usize) -> Result<Self> {
        let path = path.as_ref().display().to_string();
        let fail = |why: String| Error::File { path: path.clone(), why };
        if size == 0 {
            return Err(fail("a record cannot have 0 bytes".into()));
        }
        let file = File::open(&path).map_err(|error| fail(format!("cannot be opened: {error}")))?;
        let length = file.metadata().map_err(|error| fail(format!("cannot be examined: {error}")))?.len();
        let length = usize::try_from(length).map_err(|_| fail(format!("{length} bytes cannot be mapped")))?;
        let Some(body) = length.checked_sub(header).filter(|&body| body > 0) else {
            return Err(fail(format!(
                "holds no record: it has {length} bytes, of which the first {header} are its header"
            )));
        };
        if body % size != 0 {
            return Err(fail(format!(
                "is cut off, or has records of another size: {} bytes follow the last of its {} records of {size} bytes",
                body % size,
                body / size
            )));
        }
        // SAFETY: the bytes must not change while they are borrowed. They are borrowed only while a batch is copied out, and
        // only as bytes, of which every value is valid; that nobody writes to the file meanwhile is what `open` asks for.
        let map = unsafe { memmap2::Mmap::map(&file) };
        let map = map.map_err(|error| fail(format!("cannot be mapped: {error}")))?;
        // A hint: shuffled reading gains nothing from what lies behind a record.
        let _ = map.advise(memmap2::Advice::Random);
        Ok(Records { path, file, map, header, size, count: body / size })
    }

    /// The bytes of a record.
    pub fn record_size(&self) -> usize {
        self.size
    }

    /// Reading what is no longer there would end the process.
    fn check_length(&self) -> Result<()> {
        let fail = |why: String| Error::File { path: self.path.clone(), why };
        let length =
            self.file.metadata().map_err(|error| fail(format!("cannot be examined: {error}")))?.len();
        match length < self.map.len() as u64 {
            true => Err(fail(format!(
                "has become shorter, from {} bytes to {length}, while in use",
                self.map.len()
            ))),
            false => Ok(()),
        }
    }
}

impl Dataset for Records {
    type Batch = Vec<u8>;

    fn len(&self) -> usize {
        self.count
    }

    fn get_batch(&self, indices: &[usize]) -> Result<Vec<u8>, BoxError> {
        self.check_length()?;
        let mut batch = Vec::with_capacity(indices.len() * self.size);
        for &index in indices {
            let from = self.header + index.saturating_mul(self.size);
            let record = self.map.get(from..from.saturating_add(self.size)).ok_or_else(|| {
                SampleError::new(index, format!("{} has {} records", self.path, self.count))
            })?;
            batch.extend_from_slice(record);
        }
        Ok(batch)
    }
}
