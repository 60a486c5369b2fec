//! The back end whose ranks are threads of one process: for tests and tiny jobs. The same engine as `shm`, without the processes.

use crate::backend::Backend;
use crate::engine::{Engine, Fabric, Identity, Layout, Mapping};
use crate::rendezvous::{Rendezvous, Transport};
use crate::store::MemoryStore;
use crate::{Error, ProcessGroup, Result};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Where the ranks of thread groups hand each other memory.
#[derive(Debug, Default)]
pub struct Hub {
    /// What rank 0 has put down, and how many are still to take it.
    shared: Mutex<HashMap<String, (Arc<Mapping>, usize)>>,
    /// Rung when something is put down.
    changed: Condvar,
}

/// A member's way to the hub.
#[derive(Debug)]
struct Member {
    hub: Arc<Hub>,
    /// The group and its generation.
    scope: String,
    rank: usize,
    world: usize,
}

impl Fabric for Member {
    fn share(&self, id: u32, bytes: usize, check: &mut dyn FnMut() -> Result<()>) -> Result<Arc<Mapping>> {
        let key = format!("{}/{id}", self.scope);
        let mut shared = self.hub.shared.lock().unwrap_or_else(|p| p.into_inner());
        if self.rank == 0 {
            let mapping = Arc::new(Mapping::private(bytes)?);
            if self.world > 1 {
                shared.insert(key, (mapping.clone(), self.world - 1));
                self.hub.changed.notify_all();
            }
            return Ok(mapping);
        }
        loop {
            if let Some((mapping, takers)) = shared.get_mut(&key) {
                let mapping = mapping.clone();
                *takers -= 1;
                if *takers == 0 {
                    shared.remove(&key);
                }
                return Ok(mapping);
            }
            check()?;
            let nap = Duration::from_millis(1);
            shared = self.hub.changed.wait_timeout(shared, nap).unwrap_or_else(|p| p.into_inner()).0;
        }
    }
}

/// Joins a group of threads.
pub(crate) fn connect(who: &Rendezvous, hub: &Arc<Hub>) -> Result<Arc<dyn Backend>> {
    let scope = format!("{}/g{}", who.name, who.generation);
    let member = Member { hub: hub.clone(), scope, rank: who.rank, world: who.world_size };
    let started = Instant::now();
    let mapping = member.share(0, Layout::bytes(who.world_size), &mut || match started.elapsed() {
        waited if waited < who.within => Ok(()),
        waited => Err(Error::Deadline { rank: who.rank, op: "join".into(), waited, missing: vec![0] }),
    })?;
    let layout = Layout::new(mapping, who.world_size)?;
    let me = Identity {
        name: "thread",
        rank: who.rank,
        world: who.world_size,
        generation: who.generation,
        probe: who.probe.clone(),
    };
    let left = who.within.saturating_sub(started.elapsed());
    Ok(Arc::new(Engine::new(me, layout, Box::new(member), left)?))
}

/// Runs `body` as each rank of a group of threads, and returns what they return, in rank order. A panic of a rank is passed on after
/// all have ended.
///
/// ```
/// let sums = regatta_comm::thread::run(3, |group| {
///     let mut x = [group.rank() as f32; 4];
///     group.all_reduce(&mut x, regatta_comm::ReduceOp::Sum).map(|()| x[0])
/// });
/// for sum in sums {
///     assert_eq!(sum?, 3.0);
/// }
/// # Ok::<(), regatta_comm::Error>(())
/// ```
pub fn run<R: Send>(world: usize, body: impl Fn(ProcessGroup) -> R + Sync) -> Vec<R> {
    let (store, hub) = (Arc::new(MemoryStore::new()), Arc::new(Hub::default()));
    let rank = |rank: usize| {
        let who = Rendezvous::new(store.clone(), rank, world).transport(Transport::Thread(hub.clone()));
        body(who.join().expect("threads of one process can join"))
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world)
            .map(|r| {
                let rank = &rank;
                scope.spawn(move || rank(r))
            })
            .collect();
        let results: Vec<_> = ranks.into_iter().map(|r| r.join()).collect();
        results.into_iter().map(|r| r.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}
