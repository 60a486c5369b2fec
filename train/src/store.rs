//! The controller's rendezvous as the store in which ranks find each other: plain calls, each with its deadline.

use std::fmt;
use std::time::Duration;

use regatta_cluster::worker::RendezvousClient;
use regatta_comm::store::Store;
use regatta_comm::{Error, Result};

/// The rendezvous of one generation, as [`regatta_comm`] wants it.
pub struct RendezvousStore(RendezvousClient);

impl RendezvousStore {
    /// Over the client of a worker that lives as long as the store is used.
    pub fn new(client: RendezvousClient) -> Self {
        RendezvousStore(client)
    }

    fn call<T, F>(
        &self,
        what: &'static str,
        key: &str,
        within: Duration,
        call: impl FnOnce(RendezvousClient, String) -> F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = regatta_cluster::Result<T>> + Send + 'static,
    {
        let failed = |why: String| Error::Store { what, key: key.into(), why };
        let answer = self.0.block_on(|client| {
            let call = call(client, key.to_owned());
            async move { Ok(tokio::time::timeout(within, call).await) }
        });
        match answer {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(error))) | Err(error) => Err(failed(error.to_string())),
            Ok(Err(_)) => Err(failed(format!("no answer within {within:?}"))),
        }
    }
}

impl fmt::Debug for RendezvousStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RendezvousStore")
    }
}

impl Store for RendezvousStore {
    fn get(&self, key: &str, within: Duration) -> Result<Option<Vec<u8>>> {
        self.call("get", key, within, |client, key| async move { client.look(&key).await })
    }

    fn set(&self, key: &str, value: &[u8], within: Duration) -> Result<()> {
        let value = value.to_vec();
        self.call("set", key, within, |client, key| async move { client.set(&key, value).await })
    }

    fn lease(&self, key: &str, value: &[u8], ttl: Duration, within: Duration) -> Result<()> {
        let value = value.to_vec();
        self.call(
            "lease",
            key,
            within,
            move |client, key| async move { client.lease(&key, value, ttl).await },
        )
    }

    fn wait(&self, key: &str, within: Duration) -> Result<Vec<u8>> {
        // The server ends the wait, and says what was missing; the answer may take a moment longer.
        let answered = within.saturating_add(Duration::from_secs(5));
        self.call("wait for", key, answered, move |client, key| async move { client.get(&key, within).await })
    }

    fn add(&self, key: &str, delta: i64, within: Duration) -> Result<i64> {
        self.call("add to", key, within, move |client, key| async move { client.add(&key, delta).await })
    }

    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>> {
        let (expected, desired) = (expected.map(<[u8]>::to_vec), new.to_vec());
        let new = desired.clone();
        let swapped = self.call("compare and set", key, within, |client, key| async move {
            client.compare_set(&key, expected, desired).await
        })?;
        Ok(match swapped {
            Ok(()) => new,
            Err(current) => current.unwrap_or_default(),
        })
    }

    fn delete(&self, key: &str, within: Duration) -> Result<bool> {
        self.call("delete", key, within, |client, key| async move { client.delete(&key).await })
    }
}
