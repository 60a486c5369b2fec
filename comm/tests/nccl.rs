//! GPU groups over a fake NCCL, and what comes of having none.

use regatta_comm::nccl::{self, DataType, DeviceGroup, DeviceSliceMut, Nccl, ReduceOp, Stream};
use regatta_comm::store::MemoryStore;
use regatta_comm::{Error, Rendezvous, Result};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A library that answers as NCCL does and computes nothing, shared with the tests of the bindings.
const FAKE: &str = include_str!("../../nccl-rs/tests/fake.c");

fn fake() -> (tempfile::TempDir, Nccl) {
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("fake.c"), dir.path().join("libnccl.so.2"));
    std::fs::write(&source, FAKE).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-w", "-DFAKE_VERSION=22809", "-o"])
        .args([&library, &source])
        .status()
        .expect("a C compiler named cc, which linking Rust needs anyway");
    assert!(built.success());
    let nccl = Nccl::open(&library).unwrap();
    (dir, nccl)
}

fn pair(nccl: &Nccl) -> Vec<Result<DeviceGroup>> {
    let store = Arc::new(MemoryStore::new());
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..2)
            .map(|rank| {
                let who = Rendezvous::new(store.clone(), rank, 2).within(Duration::from_secs(20));
                scope.spawn(move || DeviceGroup::join(nccl, &who))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn ranks_meet_in_the_store_and_an_abort_reaches_the_others() {
    let (_dir, nccl) = fake();
    let mut groups: Vec<_> = pair(&nccl).into_iter().map(Result::unwrap).collect();
    let mut memory = [0f32; 8];
    // SAFETY: the fake never touches it.
    let data = unsafe { DeviceSliceMut::from_raw(memory.as_mut_ptr().cast(), 8, DataType::F32) };
    for (rank, group) in groups.iter().enumerate() {
        assert_eq!((group.rank(), group.world_size(), group.generation()), (rank, 2, 0));
        group.all_reduce(data, ReduceOp::Mean, Stream::DEFAULT).unwrap();
        group.check().unwrap();
    }
    let error = groups[0].broadcast(data, 7, Stream::DEFAULT).unwrap_err();
    assert!(error.leaves_group_usable(), "{error}");
    groups.pop().unwrap().abort("a kernel hangs").unwrap();
    let error = groups[0].check().unwrap_err();
    assert!(matches!(&error, Error::Aborted { by: 1, reason, .. } if reason == "a kernel hangs"), "{error}");
    groups.pop().unwrap().abort("so do I").unwrap();
}

#[test]
fn a_rank_that_waits_for_an_id_has_a_deadline() {
    let (_dir, nccl) = fake();
    let started = Instant::now();
    let store = Arc::new(MemoryStore::new());
    let who = Rendezvous::new(store, 1, 2).within(Duration::from_millis(100));
    DeviceGroup::join(&nccl, &who).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn without_nccl_there_is_a_typed_error() {
    let error = Nccl::open("/nowhere/libnccl.so.2").unwrap_err();
    let error = nccl::error(0, 0, &error);
    assert!(matches!(error, Error::NotAvailable { .. }), "{error}");
    assert!(error.to_string().contains("/nowhere/libnccl.so.2"), "{error}");
}
