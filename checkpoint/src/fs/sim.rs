//! A disk in memory that can lose power at any operation and keeps exactly what a real one has to keep: what was
//! synced. Everything else is lost, torn at 512-byte blocks, or kept out of order, as a seed decides. It can also fail
//! single operations. For tests: here of the committer, elsewhere of whatever builds on it.
//!
//! ```
//! use regatta_checkpoint::fs::{Fs, File, sim::{Loss, SimFs}};
//! let disk = SimFs::new();
//! let mut file = disk.create("a", 0).unwrap();
//! file.write(b"never synced").unwrap();
//! let after = disk.after_power_cut(Loss::All);
//! assert!(after.open("a").is_err());
//! ```

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Bytes, Entry, File, Fs};

const BLOCK: usize = 512;

/// What a power cut takes of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Everything.
    All,
    /// Nothing: the operations so far happened to reach the disk.
    Nothing,
    /// Any part of it, blocks and entries apart, as this seed says.
    Some(u64),
}

/// What to do to an operation instead of performing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The power goes: it does not happen, nor does any later one. Of a write, the first half happens.
    PowerCut,
    /// It alone fails with this kind of error.
    Error(ErrorKind),
    /// It and all later ones of the same name fail with this kind of error.
    Errors(ErrorKind),
    /// Of a write, only one byte is taken.
    ShortWrite,
}

/// A simulated disk. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
}

type Change = Vec<(String, Option<usize>)>;

#[derive(Debug, Clone)]
enum Node {
    File { synced: Vec<u8>, now: Vec<u8> },
    Folder { synced: BTreeMap<String, usize>, now: BTreeMap<String, usize>, changes: Vec<Change> },
}

#[derive(Debug, Clone)]
struct Disk {
    nodes: Vec<Node>,
    operations: Vec<String>,
    faults: BTreeMap<usize, Fault>,
    failing: BTreeMap<String, ErrorKind>,
    off: bool,
    free: Option<u64>,
}

impl Default for Disk {
    fn default() -> Self {
        Disk {
            nodes: vec![folder()],
            operations: Vec::new(),
            faults: BTreeMap::new(),
            failing: BTreeMap::new(),
            off: false,
            free: None,
        }
    }
}

fn folder() -> Node {
    Node::Folder { synced: BTreeMap::new(), now: BTreeMap::new(), changes: Vec::new() }
}

/// A small generator, so that a seed gives the same losses everywhere (splitmix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl SimFs {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The operations so far, each as its name and its path.
    pub fn operations(&self) -> Vec<String> {
        self.lock().operations.clone()
    }

    /// Does this to the operation of this index, counted from the first of all.
    pub fn inject(&self, operation: usize, fault: Fault) {
        self.lock().faults.insert(operation, fault);
    }

    /// Ends the faults; power that is off stays off.
    pub fn heal(&self) {
        let mut disk = self.lock();
        disk.faults.clear();
        disk.failing.clear();
    }

    /// Says how many bytes are free.
    pub fn set_free_space(&self, bytes: u64) {
        self.lock().free = Some(bytes);
    }

    /// The disk that is found after a power cut now.
    pub fn after_power_cut(&self, loss: Loss) -> SimFs {
        let mut disk = self.lock().clone();
        let mut seed = match loss {
            Loss::Some(seed) => seed,
            _ => 0,
        };
        let survives = |next_seed: &mut u64| match loss {
            Loss::All => false,
            Loss::Nothing => true,
            Loss::Some(_) => next(next_seed) & 1 == 1,
        };
        for node in &mut disk.nodes {
            match node {
                Node::File { synced, now } => {
                    // A block is kept old or new; the length is that of the last block that was kept new.
                    let mut found = synced.clone();
                    for start in (0..now.len()).step_by(BLOCK) {
                        let end = (start + BLOCK).min(now.len());
                        if found.get(start..end) != Some(&now[start..end]) && survives(&mut seed) {
                            found.resize(found.len().max(end), 0);
                            found[start..end].copy_from_slice(&now[start..end]);
                        }
                    }
                    *synced = found.clone();
                    *now = found;
                }
                Node::Folder { synced, now, changes } => {
                    for change in changes.drain(..) {
                        if survives(&mut seed) {
                            apply(synced, &change);
                        }
                    }
                    *now = synced.clone();
                }
            }
        }
        disk.off = false;
        disk.faults.clear();
        disk.failing.clear();
        disk.operations.clear();
        SimFs { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Flips a bit of a file, where the file is.
    pub fn flip(&self, path: &str, byte: usize, bit: u8) {
        let mut disk = self.lock();
        let node = disk.find(path).expect("the file to damage exists");
        let Node::File { synced, now } = &mut disk.nodes[node] else { panic!("`{path}` is a folder") };
        now[byte] ^= 1 << bit;
        *synced = now.clone();
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn change(
        &self,
        operation: &str,
        path: &str,
        change: impl FnOnce(&mut Disk) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut disk = self.lock();
        disk.step(operation, path)?;
        change(&mut disk)
    }
}

fn apply(entries: &mut BTreeMap<String, usize>, change: &Change) {
    for (name, node) in change {
        match node {
            Some(node) => entries.insert(name.clone(), *node),
            None => entries.remove(name),
        };
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Disk {
    /// Counts an operation and says whether it may happen; `Some` is a fault that a write handles itself.
    fn step(&mut self, operation: &str, path: &str) -> io::Result<Option<Fault>> {
        let power = || io::Error::other("the power is off");
        if self.off {
            return Err(power());
        }
        let index = self.operations.len();
        self.operations.push(format!("{operation} {path}"));
        if let Some(&kind) = self.failing.get(operation) {
            return Err(kind.into());
        }
        match self.faults.get(&index).copied() {
            None => Ok(None),
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::Errors(kind)) => {
                self.failing.insert(operation.to_owned(), kind);
                Err(kind.into())
            }
            Some(Fault::PowerCut) => {
                self.off = true;
                if operation == "write" { Ok(Some(Fault::PowerCut)) } else { Err(power()) }
            }
            Some(Fault::ShortWrite) => Ok(Some(Fault::ShortWrite)),
        }
    }

    fn find(&self, path: &str) -> io::Result<usize> {
        path.split('/').filter(|part| !part.is_empty()).try_fold(0, |node, part| match &self.nodes[node] {
            Node::Folder { now, .. } => now.get(part).copied().ok_or_else(|| ErrorKind::NotFound.into()),
            Node::File { .. } => Err(ErrorKind::NotADirectory.into()),
        })
    }

    fn entries(&self, path: &str) -> io::Result<&BTreeMap<String, usize>> {
        match &self.nodes[self.find(path)?] {
            Node::Folder { now, .. } => Ok(now),
            Node::File { .. } => Err(ErrorKind::NotADirectory.into()),
        }
    }

    /// Changes a folder's entries, atomically and until the next sync only perhaps.
    fn edit(&mut self, path: &str, change: Change) -> io::Result<()> {
        let node = self.find(path)?;
        let Node::Folder { now, changes, .. } = &mut self.nodes[node] else {
            return Err(ErrorKind::NotADirectory.into());
        };
        apply(now, &change);
        changes.push(change);
        Ok(())
    }

    fn add(&mut self, path: &str, node: Node) -> io::Result<usize> {
        let (parent, name) = split(path);
        if self.entries(parent)?.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.nodes.push(node);
        let index = self.nodes.len() - 1;
        self.edit(parent, vec![(name.to_owned(), Some(index))])?;
        Ok(index)
    }

    fn drop_entry(&mut self, path: &str) -> io::Result<()> {
        let (parent, name) = split(path);
        self.edit(parent, vec![(name.to_owned(), None)])
    }

    fn shift(&mut self, from: &str, to: &str) -> io::Result<()> {
        let node = self.find(from)?;
        let ((folder, name), (target, new)) = (split(from), split(to));
        if folder != target {
            return Err(io::Error::new(ErrorKind::Unsupported, "renames between folders are not simulated"));
        }
        self.edit(folder, vec![(name.to_owned(), None), (new.to_owned(), Some(node))])
    }
}

struct SimFile {
    fs: SimFs,
    node: usize,
    path: String,
}

impl File for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = self.fs.lock();
        let fault = disk.step("write", &self.path)?;
        let count = match fault {
            None => bytes.len(),
            Some(Fault::ShortWrite) => bytes.len().min(1),
            Some(_) => bytes.len() / 2,
        };
        let Node::File { now, .. } = &mut disk.nodes[self.node] else { unreachable!("a file stays one") };
        now.extend_from_slice(&bytes[..count]);
        if disk.off { Err(io::Error::other("the power is off")) } else { Ok(count) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.fs.lock();
        disk.step("sync", &self.path)?;
        let Node::File { synced, now } = &mut disk.nodes[self.node] else { unreachable!("a file stays one") };
        *synced = now.clone();
        Ok(())
    }
}

impl Fs for SimFs {
    fn create_folder(&self, path: &str) -> io::Result<()> {
        self.change("create_folder", path, |disk| match disk.add(path, folder()) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        })
    }

    fn create(&self, path: &str, _size: u64) -> io::Result<Box<dyn File>> {
        let mut disk = self.lock();
        disk.step("create", path)?;
        let node = disk.add(path, Node::File { synced: Vec::new(), now: Vec::new() })?;
        Ok(Box::new(SimFile { fs: self.clone(), node, path: path.to_owned() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change("rename", to, |disk| disk.shift(from, to))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.change("rename_new", to, |disk| match disk.find(to) {
            Ok(_) => Err(ErrorKind::AlreadyExists.into()),
            Err(_) => disk.shift(from, to),
        })
    }

    fn sync_folder(&self, path: &str) -> io::Result<()> {
        self.change("sync_folder", path, |disk| {
            let node = disk.find(path)?;
            let Node::Folder { synced, now, changes } = &mut disk.nodes[node] else {
                return Err(ErrorKind::NotADirectory.into());
            };
            *synced = now.clone();
            changes.clear();
            Ok(())
        })
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let disk = self.lock();
        let entries = disk.entries(path)?.iter().map(|(name, &node)| {
            let (folder, size) = match &disk.nodes[node] {
                Node::File { now, .. } => (false, now.len() as u64),
                Node::Folder { .. } => (true, 0),
            };
            Entry { name: name.clone(), folder, size, modified: None }
        });
        Ok(entries.collect())
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn Bytes>> {
        let disk = self.lock();
        match &disk.nodes[disk.find(path)?] {
            Node::File { now, .. } => Ok(Arc::new(now.clone())),
            Node::Folder { .. } => Err(ErrorKind::IsADirectory.into()),
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.change("remove", path, |disk| {
            disk.find(path)?;
            disk.drop_entry(path)
        })
    }

    fn remove_folder(&self, path: &str) -> io::Result<()> {
        self.change("remove_folder", path, |disk| {
            if !disk.entries(path)?.is_empty() {
                return Err(ErrorKind::DirectoryNotEmpty.into());
            }
            disk.drop_entry(path)
        })
    }

    fn free_space(&self) -> io::Result<Option<u64>> {
        Ok(self.lock().free)
    }

    fn root(&self) -> String {
        "simulated disk".to_owned()
    }
}
