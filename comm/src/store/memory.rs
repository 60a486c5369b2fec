//! The store inside one process; the TCP server keeps its values in one, too.

use super::Store;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// A [`Store`] in this process's memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    /// Held for the length of a map operation, never across a wait.
    values: Mutex<BTreeMap<String, Entry>>,
    /// Rung at every change.
    changed: Condvar,
}

#[derive(Debug, Clone)]
struct Entry {
    value: Vec<u8>,
    expires: Option<Instant>,
}

impl MemoryStore {
    /// An empty one.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    fn locked<R>(&self, f: impl FnOnce(&mut BTreeMap<String, Entry>) -> R) -> R {
        f(&mut self.values.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn change<R>(&self, f: impl FnOnce(&mut BTreeMap<String, Entry>) -> R) -> R {
        let r = self.locked(f);
        self.changed.notify_all();
        r
    }
}

/// The live value of a key; an expired lease is dropped on the way.
fn live<'a>(values: &'a mut BTreeMap<String, Entry>, key: &str) -> Option<&'a Entry> {
    if values.get(key).is_some_and(|e| e.expires.is_some_and(|t| t <= Instant::now())) {
        values.remove(key);
    }
    values.get(key)
}

impl Store for MemoryStore {
    fn get(&self, key: &str, _: Duration) -> Result<Option<Vec<u8>>> {
        Ok(self.locked(|v| live(v, key).map(|e| e.value.clone())))
    }

    fn set(&self, key: &str, value: &[u8], _: Duration) -> Result<()> {
        self.change(|v| v.insert(key.into(), Entry { value: value.into(), expires: None }));
        Ok(())
    }

    fn lease(&self, key: &str, value: &[u8], ttl: Duration, _: Duration) -> Result<()> {
        let expires = Instant::now().checked_add(ttl);
        self.change(|v| v.insert(key.into(), Entry { value: value.into(), expires }));
        Ok(())
    }

    fn wait(&self, key: &str, within: Duration) -> Result<Vec<u8>> {
        let start = Instant::now();
        let mut values = self.values.lock().unwrap_or_else(|p| p.into_inner());
        loop {
            if let Some(e) = live(&mut values, key) {
                return Ok(e.value.clone());
            }
            let Some(left) = within.checked_sub(start.elapsed()) else {
                let why = format!("nobody set it within {within:?}");
                return Err(Error::Store { what: "wait for", key: key.into(), why });
            };
            values = self.changed.wait_timeout(values, left).unwrap_or_else(|p| p.into_inner()).0;
        }
    }

    fn add(&self, key: &str, delta: i64, _: Duration) -> Result<i64> {
        self.change(|v| {
            let old = match live(v, key) {
                None => 0,
                Some(e) => match e.value.as_slice().try_into() {
                    Ok(bytes) => i64::from_le_bytes(bytes),
                    Err(_) => {
                        let why = format!("it holds {} bytes, not a counter", e.value.len());
                        return Err(Error::Store { what: "add to", key: key.into(), why });
                    }
                },
            };
            let sum = old.wrapping_add(delta);
            v.insert(key.into(), Entry { value: sum.to_le_bytes().into(), expires: None });
            Ok(sum)
        })
    }

    fn compare_set(&self, key: &str, expected: Option<&[u8]>, new: &[u8], _: Duration) -> Result<Vec<u8>> {
        self.change(|v| {
            let current = live(v, key).map(|e| e.value.clone());
            if current.as_deref() == expected {
                v.insert(key.into(), Entry { value: new.into(), expires: None });
                return Ok(new.into());
            }
            Ok(current.unwrap_or_default())
        })
    }

    fn delete(&self, key: &str, _: Duration) -> Result<bool> {
        Ok(self.change(|v| live(v, key).is_some() && v.remove(key).is_some()))
    }
}
