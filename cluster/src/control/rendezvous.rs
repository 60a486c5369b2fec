//! The rendezvous store: small values by which the members of a generation find each other.
//!
//! A namespace is a run and a generation. It exists from the moment the gang is assigned to the generation until the next
//! one, or until the gang is over; then everyone who still waits in it is woken with an error.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::proto::rendezvous as pb;
use crate::proto::rendezvous::rendezvous_server::Rendezvous;

/// The longest key, in bytes.
const KEY_LIMIT: usize = 1 << 10;
/// What one namespace may hold, keys and values, in bytes.
const SPACE_LIMIT: usize = 64 << 20;

#[derive(Default)]
struct Space {
    values: HashMap<String, Vec<u8>>,
    bytes: usize,
}

/// The store. Cloneable handles are had by putting it into an `Arc`.
pub struct RendezvousStore {
    spaces: Mutex<HashMap<String, (u64, Space)>>,
    version: watch::Sender<u64>,
}

impl Default for RendezvousStore {
    fn default() -> Self {
        Self { spaces: Mutex::default(), version: watch::Sender::new(0) }
    }
}

impl RendezvousStore {
    /// Opens the namespace of a generation and closes those of earlier ones.
    pub fn open(&self, run: &str, generation: u64) {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        match spaces.entry(run.to_owned()) {
            Entry::Occupied(mut entry) if entry.get().0 < generation => {
                entry.insert((generation, Space::default()));
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(entry) => {
                entry.insert((generation, Space::default()));
            }
        }
        drop(spaces);
        self.changed();
    }

    /// Closes the run's namespace, if it is still that of this generation or an earlier one.
    pub fn close(&self, run: &str, generation: u64) {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        if spaces.get(run).is_some_and(|(current, _)| *current <= generation) {
            spaces.remove(run);
        }
        drop(spaces);
        self.changed();
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn with<T>(
        &self,
        namespace: Option<&pb::Namespace>,
        act: impl FnOnce(&mut Space) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let namespace = namespace.ok_or_else(|| Status::invalid_argument("no namespace was given"))?;
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        match spaces.get_mut(&namespace.run) {
            Some((generation, space)) if *generation == namespace.generation => act(space),
            Some((generation, _)) => Err(Status::aborted(format!(
                "generation {} is not the present one, which is {generation}",
                namespace.generation
            ))),
            None => Err(Status::aborted(format!("run {:?} has no generation at work", namespace.run))),
        }
    }

    /// Waits until `ready` gives a value, the deadline passes or the namespace is closed.
    async fn until<T>(
        &self,
        namespace: Option<&pb::Namespace>,
        deadline_ms: u32,
        mut ready: impl FnMut(&Space) -> Result<T, String>,
    ) -> Result<T, Status> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(u64::from(deadline_ms));
        let mut version = self.version.subscribe();
        loop {
            version.borrow_and_update();
            let missing = match self.with(namespace, |space| Ok(ready(space)))? {
                Ok(value) => return Ok(value),
                Err(missing) => missing,
            };
            if tokio::time::timeout_at(deadline, version.changed()).await.is_err() {
                return Err(Status::deadline_exceeded(format!(
                    "key {missing:?} was not set within {deadline_ms} ms"
                )));
            }
        }
    }

    fn put(space: &mut Space, key: String, value: Vec<u8>) -> Result<(), Status> {
        if key.len() > KEY_LIMIT {
            return Err(Status::invalid_argument(format!(
                "a key may have {KEY_LIMIT} bytes, not {}",
                key.len()
            )));
        }
        let replaced = space.values.get(&key).map_or(0, |old| key.len() + old.len());
        let bytes = space.bytes - replaced + key.len() + value.len();
        if bytes > SPACE_LIMIT {
            return Err(Status::resource_exhausted(format!(
                "the namespace may hold {SPACE_LIMIT} bytes; send large things over the process group"
            )));
        }
        space.bytes = bytes;
        space.values.insert(key, value);
        Ok(())
    }
}

/// The store as a service.
pub(crate) struct RendezvousService(pub(crate) std::sync::Arc<RendezvousStore>);

#[tonic::async_trait]
impl Rendezvous for RendezvousService {
    async fn set(&self, request: Request<pb::SetRequest>) -> Result<Response<pb::SetReply>, Status> {
        let pb::SetRequest { namespace, key, value } = request.into_inner();
        self.0.with(namespace.as_ref(), |space| RendezvousStore::put(space, key, value))?;
        self.0.changed();
        Ok(Response::new(pb::SetReply {}))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetReply>, Status> {
        let pb::GetRequest { namespace, key, deadline_ms } = request.into_inner();
        let found = |space: &Space| space.values.get(&key).cloned().ok_or_else(|| key.clone());
        let value = self.0.until(namespace.as_ref(), deadline_ms, found).await?;
        Ok(Response::new(pb::GetReply { value }))
    }

    async fn wait(&self, request: Request<pb::WaitRequest>) -> Result<Response<pb::WaitReply>, Status> {
        let pb::WaitRequest { namespace, keys, deadline_ms } = request.into_inner();
        let all = |space: &Space| match keys.iter().find(|key| !space.values.contains_key(*key)) {
            Some(missing) => Err(missing.clone()),
            None => Ok(()),
        };
        self.0.until(namespace.as_ref(), deadline_ms, all).await?;
        Ok(Response::new(pb::WaitReply {}))
    }

    async fn add(&self, request: Request<pb::AddRequest>) -> Result<Response<pb::AddReply>, Status> {
        let pb::AddRequest { namespace, key, amount } = request.into_inner();
        let sum = self.0.with(namespace.as_ref(), |space| {
            let number = match space.values.get(&key) {
                None => 0,
                Some(value) => value.as_slice().try_into().map(i64::from_le_bytes).map_err(|_| {
                    Status::failed_precondition(format!("key {key:?} does not hold a number"))
                })?,
            };
            let sum = number.checked_add(amount).ok_or_else(|| {
                Status::out_of_range(format!("key {key:?} holds {number}; adding {amount} overflows"))
            })?;
            RendezvousStore::put(space, key, sum.to_le_bytes().to_vec())?;
            Ok(sum)
        })?;
        self.0.changed();
        Ok(Response::new(pb::AddReply { sum }))
    }

    async fn compare_set(
        &self,
        request: Request<pb::CompareSetRequest>,
    ) -> Result<Response<pb::CompareSetReply>, Status> {
        let pb::CompareSetRequest { namespace, key, expected, desired } = request.into_inner();
        let reply = self.0.with(namespace.as_ref(), |space| {
            let current = space.values.get(&key).cloned();
            if current != expected {
                return Ok(pb::CompareSetReply { swapped: false, current });
            }
            RendezvousStore::put(space, key, desired.clone())?;
            Ok(pb::CompareSetReply { swapped: true, current: Some(desired) })
        })?;
        self.0.changed();
        Ok(Response::new(reply))
    }
}
