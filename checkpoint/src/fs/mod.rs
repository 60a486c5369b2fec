//! The few file operations that a save is made of, so that the same code runs on the operating system and on a
//! simulated disk that loses power (`sim`). Paths are relative to the root and separated by `/`.

mod map;
mod os;
pub mod sim;

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

pub use os::OsFs;

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the folder.
    pub name: String,
    /// Whether it is a folder itself.
    pub folder: bool,
    /// Of a file, its size.
    pub size: u64,
    /// When it was last written, if that is known.
    pub modified: Option<SystemTime>,
}

/// A file being written.
pub trait File: Send {
    /// Appends some of the bytes and says how many, as `write(2)` does.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Makes everything written survive a power cut. After an error the file must be given up: its pages may be
    /// marked clean though they never reached the disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// Bytes of a file, mapped or held.
pub trait Bytes: Send + Sync {
    /// All of them.
    fn bytes(&self) -> &[u8];
}

impl Bytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A file system below some root.
///
/// What a power cut may do: lose or tear what was written to a file since its last `sync`; lose, or keep out of order,
/// what was done to a folder's entries since its last `sync_folder`. Creating, renaming and removing an entry are
/// each atomic.
pub trait Fs: Send + Sync + std::fmt::Debug {
    /// Creates a folder, whose parent exists. It is fine if it is there.
    fn create_folder(&self, path: &str) -> io::Result<()>;

    /// Creates a file that must not be there yet, and reserves room for `size` bytes.
    fn create(&self, path: &str, size: u64) -> io::Result<Box<dyn File>>;

    /// Moves a file over whatever is there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Moves a file to where nothing may be yet; `AlreadyExists` otherwise.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes what was done to the folder's entries survive a power cut. `""` is the root.
    fn sync_folder(&self, path: &str) -> io::Result<()>;

    /// What is in a folder, in no particular order.
    fn list(&self, path: &str) -> io::Result<Vec<Entry>>;

    /// The bytes of a file, without copying them where that is possible.
    fn open(&self, path: &str) -> io::Result<Arc<dyn Bytes>>;

    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Removes an empty folder.
    fn remove_folder(&self, path: &str) -> io::Result<()>;

    /// Bytes this user may still write, if that is known.
    fn free_space(&self) -> io::Result<Option<u64>>;

    /// The root, for messages.
    fn root(&self) -> String;
}
