//! The back end of shared memory, its ranks in one process; `faults.rs` has separate ones.

use regatta_comm::conformance::join_all;
use regatta_comm::store::MemoryStore;
use regatta_comm::{ProcessGroup, Rendezvous, Transport};
use std::sync::Arc;

fn make(world: usize) -> Vec<ProcessGroup> {
    let store = Arc::new(MemoryStore::new());
    join_all(world, |rank| Rendezvous::new(store.clone(), rank, world).transport(Transport::Shm).join())
}

regatta_comm::conformance_tests!(make);
