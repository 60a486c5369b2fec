//! The rendezvous store: how ranks find each other before they can speak, and agree after one has failed.

mod auth;
mod client;
mod memory;
mod server;
pub mod wire;

pub use auth::Token;
pub use client::TcpStore;
pub use memory::MemoryStore;
pub use server::StoreServer;

pub(crate) use auth::{Sealed, accept_peer, connect_peer, random_name};

use crate::Result;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A small map that all ranks share. Keys are paths, values are bytes; each call has a deadline.
///
/// Every operation is atomic, and all ranks see them in one order.
pub trait Store: Send + Sync + fmt::Debug {
    /// The value now, if there is one.
    fn get(&self, key: &str, within: Duration) -> Result<Option<Vec<u8>>>;
    /// Sets a value that stays.
    fn set(&self, key: &str, value: &[u8], within: Duration) -> Result<()>;
    /// Sets a value that vanishes after `ttl` unless set again: a sign of life.
    fn lease(&self, key: &str, value: &[u8], ttl: Duration, within: Duration) -> Result<()>;
    /// Waits until the key has a value.
    fn wait(&self, key: &str, within: Duration) -> Result<Vec<u8>>;
    /// Adds to a counter, which starts at 0, and returns the sum. Counters are 8 little-endian bytes to [`Store::get`].
    fn add(&self, key: &str, delta: i64, within: Duration) -> Result<i64>;
    /// Sets `new` if the value is `expected` (`None`: absent). Returns the value that is there afterwards.
    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>>;
    /// Removes a value; true if there was one.
    fn delete(&self, key: &str, within: Duration) -> Result<bool>;
}

/// A store seen through a prefix: how runs, groups and generations share one without meeting.
#[derive(Debug, Clone)]
pub struct ScopedStore {
    inner: Arc<dyn Store>,
    prefix: String,
}

impl ScopedStore {
    /// The part of `inner` under `prefix/`.
    pub fn new(inner: Arc<dyn Store>, prefix: impl Into<String>) -> ScopedStore {
        ScopedStore { inner, prefix: prefix.into() }
    }

    fn key(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }
}

impl Store for ScopedStore {
    fn get(&self, key: &str, within: Duration) -> Result<Option<Vec<u8>>> {
        self.inner.get(&self.key(key), within)
    }
    fn set(&self, key: &str, value: &[u8], within: Duration) -> Result<()> {
        self.inner.set(&self.key(key), value, within)
    }
    fn lease(&self, key: &str, value: &[u8], ttl: Duration, within: Duration) -> Result<()> {
        self.inner.lease(&self.key(key), value, ttl, within)
    }
    fn wait(&self, key: &str, within: Duration) -> Result<Vec<u8>> {
        self.inner.wait(&self.key(key), within)
    }
    fn add(&self, key: &str, delta: i64, within: Duration) -> Result<i64> {
        self.inner.add(&self.key(key), delta, within)
    }
    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>> {
        self.inner.compare_set(&self.key(key), expected, new, within)
    }
    fn delete(&self, key: &str, within: Duration) -> Result<bool> {
        self.inner.delete(&self.key(key), within)
    }
}
