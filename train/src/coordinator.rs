//! How the ranks of a save or a restore talk: small messages over the store in which they met, off the process group, so that a
//! background save and the training loop's collectives never meet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_checkpoint::{Coordinator, Error, Result};
use regatta_comm::store::Store;

/// The longest value put under one key; longer messages are cut.
const PART: usize = 512 << 10;
/// How long a wait may go on without a look at whether it still makes sense.
const SLICE: Duration = Duration::from_millis(100);
/// What a call that waits for nothing may take.
const CALL: Duration = Duration::from_secs(10);

/// Says who was lost and why, once nobody will answer any more.
pub(crate) type Over = Arc<dyn Fn() -> Option<(u32, String)> + Send + Sync>;

/// The coordinator of one rank. Keys are deleted once all have read them.
pub(crate) struct StoreCoordinator {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) rank: u32,
    pub(crate) world: u32,
    pub(crate) over: Over,
}

impl StoreCoordinator {
    fn peer(&self, operation: &str) -> impl Fn(regatta_comm::Error) -> Error {
        let (rank, operation, over) = (self.rank, operation.to_owned(), self.over.clone());
        move |error| {
            let (rank, reason) = over().unwrap_or_else(|| (rank, error.to_string()));
            Error::Peer { rank, operation: operation.clone(), reason }
        }
    }

    /// Puts a message under a key: the key comes last, when all of it is there.
    fn put(&self, key: &str, message: &[u8]) -> regatta_comm::Result<()> {
        let mut parts = message.chunks(PART);
        let first = parts.next().unwrap_or_default();
        let mut count = 0u32;
        for part in parts {
            count += 1;
            self.store.set(&format!("{key}/{count}"), part, CALL)?;
        }
        let mut head = count.to_le_bytes().to_vec();
        head.extend_from_slice(first);
        self.store.set(key, &head, CALL)
    }

    /// Waits for a message; `from` is who owes it.
    fn take(&self, key: &str, from: u32, deadline: Instant) -> Result<Vec<u8>> {
        let began = Instant::now();
        let failed = self.peer(key);
        let head = loop {
            if let Some((rank, reason)) = (self.over)() {
                return Err(Error::Peer { rank, operation: key.to_owned(), reason });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let slice = Instant::now();
            match self.store.wait(key, left.min(SLICE)) {
                Ok(head) => break head,
                // The store knows no difference between waiting in vain and failing but the time it took.
                Err(_) if slice.elapsed() >= left.min(SLICE) && !left.is_zero() => {}
                Err(_) if left.is_zero() => {
                    let what = format!("`{key}` waiting for rank {from}");
                    return Err(Error::Timeout { what, seconds: began.elapsed().as_secs_f64() });
                }
                Err(error) => return Err(failed(error)),
            }
        };
        let Some((count, first)) = head.split_first_chunk::<4>() else {
            return Err(Error::Invalid(format!("the message `{key}` of rank {from} is cut short")));
        };
        let mut message = first.to_vec();
        for part in 1..=u32::from_le_bytes(*count) {
            message.extend(self.store.wait(&format!("{key}/{part}"), CALL).map_err(&failed)?);
        }
        Ok(message)
    }

    /// Deletes a message. What is left behind by a failure goes with the generation.
    fn delete(&self, key: &str, bytes: usize) {
        for part in 1..bytes.div_ceil(PART) {
            self.store.delete(&format!("{key}/{part}"), CALL).ok();
        }
        self.store.delete(key, CALL).ok();
    }
}

impl Coordinator for StoreCoordinator {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn world_size(&self) -> u32 {
        self.world
    }

    fn gather(&self, key: &str, message: Vec<u8>, deadline: Instant) -> Result<Vec<Vec<u8>>> {
        if self.rank != 0 {
            let key = format!("gather/{key}/{}", self.rank);
            self.put(&key, &message).map_err(self.peer(&key))?;
            return Ok(Vec::new());
        }
        let mut all = vec![message];
        for rank in 1..self.world {
            let key = format!("gather/{key}/{rank}");
            let message = self.take(&key, rank, deadline)?;
            self.delete(&key, message.len());
            all.push(message);
        }
        Ok(all)
    }

    fn broadcast(&self, key: &str, message: Vec<u8>, deadline: Instant) -> Result<Vec<u8>> {
        let key = format!("broadcast/{key}");
        if self.rank == 0 {
            if self.world > 1 {
                self.put(&key, &message).map_err(self.peer(&key))?;
            }
            return Ok(message);
        }
        let message = self.take(&key, 0, deadline)?;
        // The last to have read it takes it away. That nobody could count must not undo what was read.
        let read = format!("{key}/read");
        if self.store.add(&read, 1, CALL).is_ok_and(|count| count == i64::from(self.world) - 1) {
            self.delete(&key, message.len());
            self.store.delete(&read, CALL).ok();
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regatta_comm::store::MemoryStore;
    use std::sync::Mutex;

    const SOON: Duration = Duration::from_secs(20);

    type Lost = Arc<Mutex<Option<(u32, String)>>>;

    fn ranks(world: u32) -> (Vec<StoreCoordinator>, Arc<MemoryStore>, Lost) {
        let (store, lost) = (Arc::new(MemoryStore::new()), Lost::default());
        let rank = |rank| {
            let lost = lost.clone();
            let over: Over = Arc::new(move || lost.lock().unwrap().clone());
            StoreCoordinator { store: store.clone(), rank, world, over }
        };
        ((0..world).map(rank).collect(), store.clone(), lost)
    }

    #[test]
    fn messages_of_any_size_come_to_all_and_leave_nothing_behind() {
        let (ranks, store, _) = ranks(3);
        let message = |rank: u32| vec![rank as u8; [0, 7, PART, 3 * PART + 5][rank as usize % 4]];
        std::thread::scope(|scope| {
            for rank in &ranks {
                scope.spawn(move || {
                    for round in 0..4 {
                        let deadline = Instant::now() + SOON;
                        let all = rank.gather("g", message(rank.rank + round), deadline).unwrap();
                        if rank.rank == 0 {
                            assert_eq!(all, (0..3).map(|rank| message(rank + round)).collect::<Vec<_>>());
                        }
                        let key = format!("b{round}");
                        let got = rank.broadcast(&key, message(rank.rank + round), deadline).unwrap();
                        assert!(got == message(round));
                    }
                });
            }
        });
        // It prints what it holds.
        assert!(format!("{store:?}").contains("values: Mutex { data: {}"), "{store:?}");
    }

    #[test]
    fn a_wait_ends_at_its_deadline_and_names_who_owes() {
        let (ranks, ..) = ranks(2);
        let error = ranks[0].gather("g", Vec::new(), Instant::now() + 2 * SLICE).unwrap_err();
        assert!(matches!(&error, Error::Timeout { what, .. } if what.contains("rank 1")), "{error}");
    }

    #[test]
    fn a_wait_ends_at_once_when_a_peer_is_lost() {
        let (ranks, _, lost) = ranks(2);
        let began = Instant::now();
        let error = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ranks[1].broadcast("b", Vec::new(), Instant::now() + 10 * SOON));
            *lost.lock().unwrap() = Some((0, "it is gone".into()));
            waiting.join().unwrap().unwrap_err()
        });
        assert!(matches!(error, Error::Peer { rank: 0, .. }), "{error}");
        assert!(began.elapsed() < SOON);
    }
}
