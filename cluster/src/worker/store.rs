//! The rendezvous store as a worker uses it. Every call has a deadline.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::{Assignment, WorkerConfig};
use crate::proto::rendezvous as pb;
use crate::proto::rendezvous::rendezvous_client::RendezvousClient as Stub;
use crate::{Error, Result};

/// What a call may take on the wire, beyond the deadline it carries.
const TRANSFER: Duration = Duration::from_secs(5);

/// The store of one generation of a run. The calls are futures; [`RendezvousClient::block_on`] makes them plain ones.
#[derive(Clone)]
pub struct RendezvousClient {
    config: Arc<WorkerConfig>,
    run: String,
    generation: u64,
    channel: Arc<OnceCell<Channel>>,
    runtime: Option<tokio::runtime::Handle>,
}

impl RendezvousClient {
    pub(super) fn new(
        config: WorkerConfig,
        assignment: &Assignment,
        channel: Arc<OnceCell<Channel>>,
        runtime: Option<tokio::runtime::Handle>,
    ) -> Self {
        Self {
            config: Arc::new(config),
            run: assignment.run.clone(),
            generation: assignment.generation,
            channel,
            runtime,
        }
    }

    /// Runs one of the calls on the worker's control thread and waits for it.
    pub fn block_on<T, F>(&self, call: impl FnOnce(Self) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let over = || Error::Over { what: "the worker's session" };
        let runtime = self.runtime.as_ref().ok_or_else(over)?;
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let call = call(self.clone());
        runtime.spawn(async move {
            answer.send(call.await).ok();
        });
        answered.recv().map_err(|_| over())?
    }

    /// Sets a key to a value that stays.
    pub async fn set(&self, key: &str, value: Vec<u8>) -> Result<()> {
        self.set_for(key, value, None).await
    }

    /// Sets a key to a value that vanishes after `lease` unless it is set again: a sign of life.
    pub async fn lease(&self, key: &str, value: Vec<u8>, lease: Duration) -> Result<()> {
        let lease_ms = lease.as_millis().min(u128::from(u64::MAX)) as u64;
        self.set_for(key, value, Some(lease_ms)).await
    }

    async fn set_for(&self, key: &str, value: Vec<u8>, lease_ms: Option<u64>) -> Result<()> {
        let request = pb::SetRequest { namespace: self.namespace(), key: key.into(), value, lease_ms };
        let call = |mut stub: Stub<Channel>, request| async move { stub.set(request).await };
        self.call("set", key, Duration::ZERO, request, call).await.map(drop)
    }

    /// Waits for a key and returns its value.
    pub async fn get(&self, key: &str, deadline: Duration) -> Result<Vec<u8>> {
        let deadline_ms = millis(deadline);
        let request = pb::GetRequest { namespace: self.namespace(), key: key.into(), deadline_ms };
        let call = |mut stub: Stub<Channel>, request| async move { stub.get(request).await };
        self.call("get", key, deadline, request, call).await.map(|reply| reply.value)
    }

    /// The value of a key now, if it has one.
    pub async fn look(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let request = pb::LookRequest { namespace: self.namespace(), key: key.into() };
        let call = |mut stub: Stub<Channel>, request| async move { stub.look(request).await };
        self.call("look", key, Duration::ZERO, request, call).await.map(|reply| reply.value)
    }

    /// Removes a key; true if it had a value.
    pub async fn delete(&self, key: &str) -> Result<bool> {
        let request = pb::DeleteRequest { namespace: self.namespace(), key: key.into() };
        let call = |mut stub: Stub<Channel>, request| async move { stub.delete(request).await };
        self.call("delete", key, Duration::ZERO, request, call).await.map(|reply| reply.removed)
    }

    /// Waits for all the keys.
    pub async fn wait(&self, keys: &[&str], deadline: Duration) -> Result<()> {
        let deadline_ms = millis(deadline);
        let names = keys.iter().map(|key| (*key).to_owned()).collect();
        let request = pb::WaitRequest { namespace: self.namespace(), keys: names, deadline_ms };
        let call = |mut stub: Stub<Channel>, request| async move { stub.wait(request).await };
        let first = keys.first().copied().unwrap_or_default();
        self.call("wait", first, deadline, request, call).await.map(drop)
    }

    /// Adds to a number, which is 0 before, and returns the sum. Not repeated by itself after an error, since it may have
    /// been done.
    pub async fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let request = pb::AddRequest { namespace: self.namespace(), key: key.into(), amount };
        let call = |mut stub: Stub<Channel>, request| async move { stub.add(request).await };
        self.call("add", key, Duration::ZERO, request, call).await.map(|reply| reply.sum)
    }

    /// Sets the key to `desired` if it holds `expected` (nothing: if it is missing). Returns what it held otherwise.
    pub async fn compare_set(
        &self,
        key: &str,
        expected: Option<Vec<u8>>,
        desired: Vec<u8>,
    ) -> Result<Result<(), Option<Vec<u8>>>> {
        let request =
            pb::CompareSetRequest { namespace: self.namespace(), key: key.into(), expected, desired };
        let call = |mut stub: Stub<Channel>, request| async move { stub.compare_set(request).await };
        let reply = self.call("compare_set", key, Duration::ZERO, request, call).await?;
        Ok(if reply.swapped { Ok(()) } else { Err(reply.current) })
    }

    fn namespace(&self) -> Option<pb::Namespace> {
        Some(pb::Namespace { run: self.run.clone(), generation: self.generation })
    }

    async fn call<Q, R, F>(
        &self,
        operation: &'static str,
        key: &str,
        deadline: Duration,
        message: Q,
        call: impl FnOnce(Stub<Channel>, Request<Q>) -> F,
    ) -> Result<R>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let failed = |reason: String| Error::Rendezvous {
            operation,
            key: key.to_owned(),
            run: self.run.clone(),
            generation: self.generation,
            reason,
        };
        let whole = async {
            let channel = self.channel.get_or_try_init(|| self.config.connect()).await.map_err(failed)?;
            let mut request = Request::new(message);
            let bearer = MetadataValue::try_from(format!("Bearer {}", self.config.token.expose()));
            let mut bearer = bearer.map_err(|_| failed("the token is not printable ASCII".into()))?;
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
            let answer = call(Stub::new(channel.clone()), request).await;
            answer.map(Response::into_inner).map_err(|status| failed(status.message().to_owned()))
        };
        let limit = deadline + TRANSFER;
        tokio::time::timeout(limit, whole)
            .await
            .unwrap_or_else(|_| Err(failed(format!("the controller did not answer within {limit:?}"))))
    }
}

fn millis(duration: Duration) -> u32 {
    duration.as_millis().min(u128::from(u32::MAX)) as u32
}
