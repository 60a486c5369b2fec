//! What every rendezvous store must do.

use crate::Error;
use crate::store::{ScopedStore, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// The test of every [`Store`]: values, counters, leases, waits and scopes. Give it a fresh one.
///
/// # Panics
/// Where the store breaks a promise.
pub fn store_keeps_its_promises(store: Arc<dyn Store>) {
    assert_eq!(store.get("a", SOON).unwrap(), None);
    store.set("a", b"one", SOON).unwrap();
    assert_eq!(store.get("a", SOON).unwrap().as_deref(), Some(&b"one"[..]));
    assert_eq!(store.wait("a", SOON).unwrap(), b"one");
    assert_eq!(store.compare_set("a", Some(b"two"), b"three", SOON).unwrap(), b"one");
    assert_eq!(store.compare_set("a", Some(b"one"), b"two", SOON).unwrap(), b"two");
    assert_eq!(store.compare_set("b", None, b"new", SOON).unwrap(), b"new");
    assert_eq!(store.compare_set("b", None, b"newer", SOON).unwrap(), b"new");
    assert!(store.delete("b", SOON).unwrap() && !store.delete("b", SOON).unwrap());
    assert_eq!(store.add("n", 5, SOON).unwrap(), 5);
    assert_eq!(store.add("n", -7, SOON).unwrap(), -2);
    assert!(matches!(store.add("a", 1, SOON), Err(Error::Store { .. })));
    // A value that is set while somebody waits wakes them.
    let waiting = store.clone();
    let waiter = std::thread::spawn(move || waiting.wait("later", SOON));
    store.set("later", b"now", SOON).unwrap();
    assert_eq!(waiter.join().unwrap().unwrap(), b"now");
    // Waiting in vain ends.
    let started = Instant::now();
    assert!(matches!(store.wait("never", Duration::from_millis(150)), Err(Error::Store { .. })));
    assert!(started.elapsed() >= Duration::from_millis(150) && started.elapsed() < SOON);
    // A lease ends, unless renewed.
    store.lease("alive", b"yes", Duration::from_secs(3600), SOON).unwrap();
    assert_eq!(store.get("alive", SOON).unwrap().as_deref(), Some(&b"yes"[..]));
    store.lease("alive", b"yes", Duration::from_millis(1), SOON).unwrap();
    let started = Instant::now();
    while store.get("alive", SOON).unwrap().is_some() {
        assert!(started.elapsed() < SOON, "the lease does not end");
    }
    // Scopes do not meet.
    let (x, y) = (ScopedStore::new(store.clone(), "x"), ScopedStore::new(store.clone(), "y"));
    x.set("k", b"x", SOON).unwrap();
    assert_eq!(y.get("k", SOON).unwrap(), None);
    assert_eq!(store.get("x/k", SOON).unwrap().as_deref(), Some(&b"x"[..]));
    // Counting from many threads loses nothing.
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| (0..25).for_each(|_| assert!(store.add("many", 1, SOON).unwrap() > 0)));
        }
    });
    assert_eq!(store.add("many", 0, SOON).unwrap(), 100);
}
