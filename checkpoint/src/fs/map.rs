//! The crate's only `unsafe`: mapping a committed file into memory.

use std::fs::File;
use std::io;

use super::Bytes;

struct Mapped(memmap2::Mmap);

impl Bytes for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Maps a file. An empty one cannot be mapped and is not.
pub(super) fn map(file: &File) -> io::Result<std::sync::Arc<dyn Bytes>> {
    if file.metadata()?.len() == 0 {
        return Ok(std::sync::Arc::new(Vec::new()));
    }
    // SAFETY: the bytes must not change while they are borrowed. Files of a checkpoint are written once, under a name
    // that is never used again, before COMMIT makes them visible to readers; after that they are only ever unlinked,
    // which leaves a mapping intact. A stranger who truncates one brings SIGBUS, as with every reader of mapped files.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(std::sync::Arc::new(Mapped(map)))
}
