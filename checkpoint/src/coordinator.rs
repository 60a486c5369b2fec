//! How the ranks of a save or a restore talk: two small collectives behind a trait, so that one process, threads, or a
//! controller's connections can carry them. Here are the first two.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::error::{Error, Result};

/// Carries small messages between the ranks. Every rank calls the same methods with the same keys in the same order,
/// from one thread at a time; a key is used once.
///
/// If a peer is lost, every waiting call must return [`Error::Peer`] rather than wait for the deadline.
pub trait Coordinator: Send + Sync {
    /// This rank.
    fn rank(&self) -> u32;

    /// How many there are.
    fn world_size(&self) -> u32;

    /// Brings every rank's message to rank 0, which gets them in the order of ranks; the others get nothing.
    fn gather(&self, key: &str, message: Vec<u8>, deadline: Instant) -> Result<Vec<Vec<u8>>>;

    /// Brings rank 0's message to every rank; the others' own are ignored.
    fn broadcast(&self, key: &str, message: Vec<u8>, deadline: Instant) -> Result<Vec<u8>>;
}

/// One process on its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

impl Coordinator for Solo {
    fn rank(&self) -> u32 {
        0
    }

    fn world_size(&self) -> u32 {
        1
    }

    fn gather(&self, _: &str, message: Vec<u8>, _: Instant) -> Result<Vec<Vec<u8>>> {
        Ok(vec![message])
    }

    fn broadcast(&self, _: &str, message: Vec<u8>, _: Instant) -> Result<Vec<u8>> {
        Ok(message)
    }
}

/// A rank among threads of one process.
#[derive(Debug, Clone)]
pub struct LocalGroup {
    rank: u32,
    world: u32,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    board: Mutex<Board>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Board {
    messages: HashMap<(String, u32), Vec<u8>>,
    taken: HashMap<String, u32>,
    lost: Option<(u32, String)>,
}

impl LocalGroup {
    /// All the ranks of a group.
    pub fn new(world: u32) -> Vec<LocalGroup> {
        let shared = Arc::new(Shared::default());
        (0..world).map(|rank| LocalGroup { rank, world, shared: shared.clone() }).collect()
    }

    /// Tells all ranks that this one is gone.
    pub fn leave(&self, reason: &str) {
        self.lock().lost.get_or_insert((self.rank, reason.to_owned()));
        self.shared.changed.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Board> {
        self.shared.board.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn post(&self, key: &str, message: Vec<u8>) {
        self.lock().messages.insert((key.to_owned(), self.rank), message);
        self.shared.changed.notify_all();
    }

    fn wait<T>(
        &self,
        key: &str,
        deadline: Instant,
        mut ready: impl FnMut(&mut Board) -> std::result::Result<T, u32>,
    ) -> Result<T> {
        let start = Instant::now();
        let mut board = self.lock();
        loop {
            let missing = match ready(&mut board) {
                Ok(value) => return Ok(value),
                Err(missing) => missing,
            };
            if let Some((rank, reason)) = board.lost.clone() {
                return Err(Error::Peer { rank, operation: key.to_owned(), reason });
            }
            let now = Instant::now();
            let Some(left) = deadline.checked_duration_since(now).filter(|left| !left.is_zero()) else {
                let what = format!("`{key}` waiting for rank {missing}");
                return Err(Error::Timeout { what, seconds: (now - start).as_secs_f64() });
            };
            board = match self.shared.changed.wait_timeout(board, left) {
                Ok((board, _)) => board,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl Coordinator for LocalGroup {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn world_size(&self) -> u32 {
        self.world
    }

    fn gather(&self, key: &str, message: Vec<u8>, deadline: Instant) -> Result<Vec<Vec<u8>>> {
        let key = format!("gather {key}");
        self.post(&key, message);
        if self.rank != 0 {
            return Ok(Vec::new());
        }
        self.wait(&key, deadline, |board| {
            let missing = (0..self.world).find(|&rank| !board.messages.contains_key(&(key.clone(), rank)));
            match missing {
                Some(rank) => Err(rank),
                None => Ok((0..self.world)
                    .map(|rank| board.messages.remove(&(key.clone(), rank)).unwrap_or_default())
                    .collect()),
            }
        })
    }

    fn broadcast(&self, key: &str, message: Vec<u8>, deadline: Instant) -> Result<Vec<u8>> {
        let key = format!("broadcast {key}");
        if self.rank == 0 {
            self.post(&key, message.clone());
        }
        self.wait(&key, deadline, |board| {
            let found = board.messages.get(&(key.clone(), 0)).cloned().ok_or(0u32)?;
            let taken = board.taken.entry(key.clone()).or_default();
            *taken += 1;
            if *taken == self.world {
                board.taken.remove(&key);
                board.messages.remove(&(key.clone(), 0));
            }
            Ok(found)
        })
    }
}
