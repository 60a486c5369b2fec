//! Where checkpoints live. One trait, made of what a commit needs: writing a new file so that it lasts, creating a
//! small one atomically and only once, and reading ranges. Files and object stores differ in how they do that, and
//! nothing above this trait knows which it is.

mod file;
#[cfg(feature = "object-store")]
mod object;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
pub use crate::fs::Entry;

pub use file::FileStore;
#[cfg(feature = "object-store")]
pub use object::{ObjectStore, Retry};

/// What came of creating a file that may be created only once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It is there, with our bytes, and lasts.
    New,
    /// It was there before, with these bytes; it was left alone.
    Exists(Vec<u8>),
}

/// The bytes of one stored file.
pub trait Blob: Send + Sync {
    /// How many there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them: borrowed where they are mapped or held, fetched otherwise. The range lies within the length.
    fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>>;
}

/// A place for checkpoints. Paths are relative to its root and separated by `/`.
///
/// [`conformance`](crate::conformance) tests what is promised here.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// What to call it in messages. Never holds credentials.
    fn location(&self) -> String;

    /// Makes sure that a folder is there, where there are such things. Its parent is.
    fn make_folder(&self, path: &str) -> Result<()>;

    /// Writes a new file and returns once its bytes survive a power cut. What was written of it is removed on an error.
    fn write(&self, path: &str, bytes: &[u8]) -> Result<()>;

    /// Creates a small file, atomically, if nothing is there; returns once it survives a power cut. An ambiguous
    /// answer of the storage is resolved by reading back.
    fn create(&self, path: &str, bytes: &[u8]) -> Result<Created>;

    /// Writes a small file over whatever is there, atomically.
    fn replace(&self, path: &str, bytes: &[u8]) -> Result<()>;

    /// Makes the entries of a folder, and the folder's own entry, survive a power cut.
    fn seal(&self, folder: &str) -> Result<()>;

    /// What is in a folder; nothing if there is none.
    fn list(&self, folder: &str) -> Result<Vec<Entry>>;

    /// Opens a file; nothing if there is none.
    fn open(&self, path: &str) -> Result<Option<Arc<dyn Blob>>>;

    /// Removes a file, if it is there.
    fn remove(&self, path: &str) -> Result<()>;

    /// Removes a folder and the files in it, if it is there.
    fn remove_folder(&self, path: &str) -> Result<()>;

    /// Bytes that may still be written, if that is known.
    fn free_space(&self) -> Result<Option<u64>>;

    /// Reads a small file; nothing if there is none. One larger than `limit` is an error.
    fn read_small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(blob) = self.open(path)? else { return Ok(None) };
        if blob.len() > limit {
            return Err(Error::Invalid(format!(
                "`{path}` has {} bytes, at most {limit} were expected",
                blob.len()
            )));
        }
        Ok(Some(blob.read(0..blob.len())?.into_owned()))
    }
}

/// Opens a store to save into: a folder, or any URL that this build has a back end for (`s3://`, `gs://`, `az://`,
/// `http://`, `memory:`). Credentials come from the usual variables of the environment.
pub fn open(location: &str) -> Result<Arc<dyn Store>> {
    match scheme(location) {
        None => Ok(Arc::new(FileStore::create(location)?)),
        Some("file") => Ok(Arc::new(FileStore::create(location.trim_start_matches("file://"))?)),
        Some(_) => open_url(location),
    }
}

/// Opens a store to read from; a folder has to be there, and nothing is written.
pub fn open_existing(location: &str) -> Result<Arc<dyn Store>> {
    match scheme(location) {
        None => Ok(Arc::new(FileStore::existing(location)?)),
        Some("file") => Ok(Arc::new(FileStore::existing(location.trim_start_matches("file://"))?)),
        Some(_) => open_url(location),
    }
}

fn scheme(location: &str) -> Option<&str> {
    let (scheme, _) = location.split_once(':')?;
    let plain =
        scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    plain.then_some(scheme)
}

#[cfg(feature = "object-store")]
fn open_url(url: &str) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(ObjectStore::from_url(url)?))
}

#[cfg(not(feature = "object-store"))]
fn open_url(_: &str) -> Result<Arc<dyn Store>> {
    Err(Error::NotAvailable(
        "this build has no object stores: build with the feature `cloud`, or give a folder".to_owned(),
    ))
}

/// The folder a path is in.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}
