//! The controller's rendezvous is as good a store as those of the process groups themselves.

#[path = "../../cluster/tests/support/mod.rs"]
mod cluster;

use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_cluster::worker::Assignment;
use regatta_comm::store::Store;
use regatta_train::store::RendezvousStore;

fn place(generation: u64) -> Assignment {
    Assignment { generation, run: "test".into(), rank: 0, world: 1, local_rank: 0, local_world: 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rendezvous_keeps_a_stores_promises() {
    let crew = cluster::running(1).await;
    let store = Arc::new(RendezvousStore::new(crew.workers[0].rendezvous(&place(1))));
    let tried = tokio::task::spawn_blocking(|| regatta_comm::conformance::store_keeps_its_promises(store));
    tried.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_in_a_generation_that_ends_is_told_at_once() {
    let crew = cluster::running(1).await;
    let store = RendezvousStore::new(crew.workers[0].rendezvous(&place(1)));
    let waiting = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        (store.wait("never", Duration::from_secs(60)).unwrap_err().to_string(), began.elapsed())
    });
    crew.gang.stop(Duration::ZERO).await.unwrap();
    let (error, took) = waiting.await.unwrap();
    assert!(
        error.contains("no generation at work") && took < Duration::from_secs(30),
        "{error} after {took:?}"
    );
}
