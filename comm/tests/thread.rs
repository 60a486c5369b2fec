//! The back end whose ranks are threads.

use regatta_comm::conformance::join_all;
use regatta_comm::store::MemoryStore;
use regatta_comm::thread::Hub;
use regatta_comm::{ProcessGroup, Rendezvous, Transport};
use std::sync::Arc;

fn make(world: usize) -> Vec<ProcessGroup> {
    let (store, hub) = (Arc::new(MemoryStore::new()), Arc::new(Hub::default()));
    join_all(world, |rank| {
        Rendezvous::new(store.clone(), rank, world).transport(Transport::Thread(hub.clone())).join()
    })
}

regatta_comm::conformance_tests!(make);
