//! The back end of TCP against what every back end must do; `tcp.rs` has its failures.

use regatta_comm::conformance::join_all;
use regatta_comm::store::MemoryStore;
use regatta_comm::{ProcessGroup, Rendezvous, Transport};
use std::sync::Arc;

fn make(world: usize) -> Vec<ProcessGroup> {
    let store = Arc::new(MemoryStore::new());
    join_all(world, |rank| Rendezvous::new(store.clone(), rank, world).transport(Transport::Tcp).join())
}

regatta_comm::conformance_tests!(make);
