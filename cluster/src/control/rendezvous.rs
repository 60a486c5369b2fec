//! The rendezvous store: small values by which the members of a generation find each other.
//!
//! A namespace is a run and a generation. It exists from the moment the gang is assigned to the generation until the next
//! one, or until the gang is over; then everyone who still waits in it is woken with an error.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::proto::rendezvous as pb;
use crate::proto::rendezvous::rendezvous_server::Rendezvous;

/// The longest key, in bytes.
const KEY_LIMIT: usize = 1 << 10;
/// What one namespace may hold, keys and values, in bytes.
const SPACE_LIMIT: usize = 64 << 20;

#[derive(Default)]
struct Space {
    values: HashMap<String, Held>,
    bytes: usize,
}

struct Held {
    value: Vec<u8>,
    /// When it vanishes, if it is a lease.
    expires: Option<Instant>,
}

impl Space {
    /// The value of a key, unless its lease is over.
    fn value(&self, key: &str) -> Option<&Vec<u8>> {
        let entry = self.values.get(key)?;
        let over = entry.expires.is_some_and(|end| end <= Instant::now());
        (!over).then_some(&entry.value)
    }

    fn remove(&mut self, key: &str) -> bool {
        let live = self.value(key).is_some();
        if let Some(entry) = self.values.remove(key) {
            self.bytes -= key.len() + entry.value.len();
        }
        live
    }

    fn put(&mut self, key: String, value: Vec<u8>, lease: Option<Duration>) -> Result<(), Status> {
        if key.len() > KEY_LIMIT {
            let why = format!("a key may have {KEY_LIMIT} bytes, not {}", key.len());
            return Err(Status::invalid_argument(why));
        }
        let replaced = self.values.get(&key).map_or(0, |old| key.len() + old.value.len());
        let bytes = self.bytes - replaced + key.len() + value.len();
        if bytes > SPACE_LIMIT {
            return Err(Status::resource_exhausted(format!(
                "the namespace may hold {SPACE_LIMIT} bytes; send large things over the process group"
            )));
        }
        self.bytes = bytes;
        // A lease too long to be added to the clock never ends.
        let expires = lease.and_then(|lease| Instant::now().checked_add(lease));
        self.values.insert(key, Held { value, expires });
        Ok(())
    }
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
        let deadline = Instant::now() + Duration::from_millis(u64::from(deadline_ms));
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
}

/// The store as a service.
pub(crate) struct RendezvousService(pub(crate) std::sync::Arc<RendezvousStore>);

#[tonic::async_trait]
impl Rendezvous for RendezvousService {
    async fn set(&self, request: Request<pb::SetRequest>) -> Result<Response<pb::SetReply>, Status> {
        let pb::SetRequest { namespace, key, value, lease_ms } = request.into_inner();
        let lease = lease_ms.map(Duration::from_millis);
        self.0.with(namespace.as_ref(), |space| space.put(key, value, lease))?;
        self.0.changed();
        Ok(Response::new(pb::SetReply {}))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetReply>, Status> {
        let pb::GetRequest { namespace, key, deadline_ms } = request.into_inner();
        let found = |space: &Space| space.value(&key).cloned().ok_or_else(|| key.clone());
        let value = self.0.until(namespace.as_ref(), deadline_ms, found).await?;
        Ok(Response::new(pb::GetReply { value }))
    }

    async fn look(&self, request: Request<pb::LookRequest>) -> Result<Response<pb::LookReply>, Status> {
        let pb::LookRequest { namespace, key } = request.into_inner();
        let value = self.0.with(namespace.as_ref(), |space| Ok(space.value(&key).cloned()))?;
        Ok(Response::new(pb::LookReply { value }))
    }

    async fn wait(&self, request: Request<pb::WaitRequest>) -> Result<Response<pb::WaitReply>, Status> {
        let pb::WaitRequest { namespace, keys, deadline_ms } = request.into_inner();
        let all = |space: &Space| match keys.iter().find(|key| space.value(key).is_none()) {
            Some(missing) => Err(missing.clone()),
            None => Ok(()),
        };
        self.0.until(namespace.as_ref(), deadline_ms, all).await?;
        Ok(Response::new(pb::WaitReply {}))
    }

    async fn add(&self, request: Request<pb::AddRequest>) -> Result<Response<pb::AddReply>, Status> {
        let pb::AddRequest { namespace, key, amount } = request.into_inner();
        let sum = self.0.with(namespace.as_ref(), |space| {
            let number = match space.value(&key) {
                None => 0,
                Some(value) => value.as_slice().try_into().map(i64::from_le_bytes).map_err(|_| {
                    Status::failed_precondition(format!("key {key:?} does not hold a number"))
                })?,
            };
            let sum = number.checked_add(amount).ok_or_else(|| {
                Status::out_of_range(format!("key {key:?} holds {number}; adding {amount} overflows"))
            })?;
            space.put(key, sum.to_le_bytes().to_vec(), None)?;
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
            let current = space.value(&key).cloned();
            if current != expected {
                return Ok(pb::CompareSetReply { swapped: false, current });
            }
            space.put(key, desired.clone(), None)?;
            Ok(pb::CompareSetReply { swapped: true, current: Some(desired) })
        })?;
        self.0.changed();
        Ok(Response::new(reply))
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteReply>, Status> {
        let pb::DeleteRequest { namespace, key } = request.into_inner();
        let removed = self.0.with(namespace.as_ref(), |space| Ok(space.remove(&key)))?;
        Ok(Response::new(pb::DeleteReply { removed }))
    }
}
