//! The client's side: a driver as a pod, under a service that is the job's record.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::log::PodLog;
use super::pod::{self, Owner};
use super::status::{Seen, read};
use super::{ENGINE, KubernetesConfig, api, nodes, render};
use crate::allocator::Allocator;
use crate::engine::{Caps, Engine, JobId, JobSpec, JobState, JobStatus, LogPart, Submitted};
use crate::error::{Error, Result};
use crate::spawner::Reason;

/// How often a pod is asked after while something of it is awaited.
const ASK: Duration = Duration::from_millis(250);
/// How long after the end of its grace a cancelled driver may take to be gone.
const ENDED: Duration = Duration::from_secs(60);

/// Drivers as pods of a cluster.
#[derive(Debug)]
pub struct KubernetesEngine {
    config: KubernetesConfig,
    client: OnceCell<Cluster>,
    /// Readers that go on where they stopped: each call of a follower would otherwise read the log from its beginning.
    logs: Mutex<HashMap<JobId, PodLog>>,
}

/// The cluster once it was reached.
struct Cluster {
    client: Client,
    namespace: String,
    pods: Api<Pod>,
    services: Api<Service>,
    secrets: Api<Secret>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    fn new(client: Client, config: &KubernetesConfig) -> Self {
        let namespace = config.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        Self {
            pods: Api::namespaced(client.clone(), &namespace),
            services: Api::namespaced(client.clone(), &namespace),
            secrets: Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
        }
    }

    fn engine_id(&self, id: &JobId) -> String {
        format!("{}/{id}", self.namespace)
    }
}

/// A job as the cluster has it.
struct Found {
    service: Service,
    /// Its driver's pod; none before it was made, and after it was deleted.
    pod: Option<Pod>,
}

impl Found {
    fn annotation(&self, name: &str) -> Option<&String> {
        self.service.metadata.annotations.as_ref()?.get(name)
    }

    fn cancelled(&self) -> bool {
        self.annotation(pod::CANCELLED).is_some()
    }

    fn labels(&self) -> BTreeMap<String, String> {
        self.annotation(pod::LABELS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    fn seen(&self) -> Option<Seen> {
        self.pod.as_ref().map(read)
    }

    fn state(&self) -> (JobState, String) {
        let placed = self.annotation(pod::PLACED).is_some();
        match self.seen() {
            Some(seen) => (seen.state(self.cancelled()), seen.word()),
            None if self.cancelled() => (JobState::Ended(Reason::Cancelled), "its pod is deleted".into()),
            None if placed => (JobState::Forgotten, "its pod was deleted".into()),
            None => (JobState::Queued("its pod is not made yet".into()), "no pod".into()),
        }
    }
}

impl KubernetesEngine {
    /// An engine for the cluster that the kubeconfig, or this pod, is of. It is not asked before something is to be done.
    #[must_use]
    pub fn new(config: KubernetesConfig) -> Self {
        Self { config, client: OnceCell::new(), logs: Mutex::default() }
    }

    /// An engine that asks through this client.
    #[must_use]
    pub fn with_client(config: KubernetesConfig, client: Client) -> Self {
        let cluster = Cluster::new(client, &config);
        Self { config, client: OnceCell::new_with(Some(cluster)), logs: Mutex::default() }
    }

    async fn cluster(&self) -> Result<&Cluster> {
        let connect = async { Ok(Cluster::new(api::connect(&self.config).await?, &self.config)) };
        self.client.get_or_try_init(|| connect).await
    }

    fn patience(&self) -> Duration {
        super::seconds(self.config.api_seconds)
    }

    /// Refuses what no node could ever hold, where the nodes may be looked at and are all there will be.
    async fn check_room(&self, cluster: &Cluster, spec: &JobSpec) -> Result<()> {
        super::quantity::quantities(&self.config, &spec.room.per_worker)?;
        let Some(nodes) = nodes::list(&cluster.client, &self.config, self.patience()).await? else {
            return Ok(());
        };
        let mut all = Allocator::new(nodes.iter().map(|node| (node.name.clone(), node.total.clone())))?;
        for node in nodes.iter().filter(|node| !node.up) {
            all.set_up(&node.name, false);
        }
        all.request(spec.room.clone()).map(|_| ())
    }

    /// Makes the job's objects, each if it is not there; says whether the pod is of this call.
    async fn make(&self, cluster: &Cluster, spec: &JobSpec) -> Result<bool> {
        let (id, patience) = (spec.id.as_str(), self.patience());
        // Before anything is made: what cannot be made whole is not begun.
        pod::driver(&self.config, spec, None)?;
        let variables = pod::variables(spec)?;
        let what = format!("creating the service `{id}`");
        let made: Option<Service> =
            api::create(&cluster.services, &what, patience, pod::service(spec)?).await?;
        let what = format!("the service `{id}`");
        let service = match made {
            Some(service) => service,
            None => api::ask(&what, patience, cluster.services.get(id)).await?,
        };
        let found = Found { service, pod: None };
        if found.annotation(pod::PLACED).is_some() || found.cancelled() {
            return Ok(false);
        }
        if found.service.metadata.labels.as_ref().and_then(|labels| labels.get(pod::JOB)).map(String::as_str)
            != Some(id)
        {
            return Err(Error::Engine {
                engine: ENGINE,
                what: format!("the job `{id}`"),
                reason: format!(
                    "namespace `{}` has a service of that name, which is no job's",
                    cluster.namespace
                ),
                advice: ": choose another name for the job, or another namespace".into(),
            });
        }
        let uid = found.service.metadata.uid.clone().unwrap_or_default();
        let owner = Owner { kind: "Service", name: id.to_owned(), uid };
        let secret = pod::secret(id, id, Some(&owner), &variables);
        api::create(&cluster.secrets, &format!("creating the secret `{id}`"), patience, secret).await?;
        let driver = pod::driver(&self.config, spec, Some(&owner))?;
        let made: Option<Pod> =
            api::create(&cluster.pods, &format!("creating the pod `{id}`"), patience, driver).await?;
        if made.is_some() {
            self.annotate(cluster, &spec.id, pod::PLACED).await?;
        }
        Ok(made.is_some())
    }

    async fn annotate(&self, cluster: &Cluster, id: &JobId, name: &str) -> Result<()> {
        let patch = json!({ "metadata": { "annotations": { name: "true" } } });
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let patched = cluster.services.patch(id.as_str(), &params, &patch);
        api::ask(&format!("annotating the service `{id}`"), self.patience(), patched).await.map(|_| ())
    }

    /// Services and drivers' pods by these selectors.
    async fn find(&self, cluster: &Cluster, services: &str, pods: &str) -> Result<Vec<Found>> {
        let (services, pods) = (ListParams::default().labels(services), ListParams::default().labels(pods));
        // Records first: a pod without one is a job that was deleted meanwhile.
        let services =
            api::ask("the list of jobs", self.patience(), cluster.services.list(&services)).await?;
        let pods = api::ask("the list of drivers", self.patience(), cluster.pods.list(&pods)).await?;
        let mut pods: HashMap<_, _> =
            pods.items.into_iter().map(|pod| (pod.metadata.name.clone(), pod)).collect();
        let found = |service: Service| Found { pod: pods.remove(&service.metadata.name), service };
        Ok(services.items.into_iter().map(found).collect())
    }

    async fn one(&self, cluster: &Cluster, id: &JobId) -> Result<Found> {
        let ids = std::slice::from_ref(id);
        let mut found = self.find(cluster, &pod::among(ids, "job"), &pod::among(ids, "driver")).await?;
        found.pop().ok_or_else(|| self.unknown(cluster, id))
    }

    fn unknown(&self, cluster: &Cluster, id: &JobId) -> Error {
        let folder = format!("the namespace {}", cluster.namespace).into();
        Error::UnknownJob { engine: ENGINE, job: id.clone(), folder }
    }

    fn status(&self, cluster: &Cluster, id: &JobId, found: &Found) -> JobStatus {
        let (state, word) = found.state();
        let nodes = found.seen().and_then(|seen| seen.node).unwrap_or_default();
        let (engine_id, labels) = (cluster.engine_id(id), found.labels());
        JobStatus { id: id.clone(), engine_id, state, word, nodes, labels }
    }

    /// Deletes what drivers that are over left running: programs that do not notice their end.
    async fn sweep(&self, cluster: &Cluster, statuses: &[JobStatus]) {
        let over = statuses.iter().filter(|status| status.state.is_over());
        let over: Vec<JobId> = over.map(|status| status.id.clone()).collect();
        if over.is_empty() {
            return;
        }
        let workers = ListParams::default().labels(&pod::among(&over, "worker"));
        let params = DeleteParams { grace_period_seconds: Some(5), ..DeleteParams::background() };
        let swept = async {
            let left = api::ask("the list of workers", self.patience(), cluster.pods.list(&workers)).await?;
            for pod in left.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
                let name = pod.metadata.name.unwrap_or_default();
                let deleted = cluster.pods.delete(&name, &params);
                api::ask_for(&format!("deleting `{name}`"), self.patience(), deleted).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = swept.await {
            tracing::warn!(?over, %error, "workers of drivers that are over are left behind");
        }
    }

    async fn ended(&self, cluster: &Cluster, id: &JobId, within: Duration) -> Result<Option<JobStatus>> {
        let since = Instant::now();
        loop {
            let found = self.one(cluster, id).await?;
            if found.state().0.is_over() {
                let status = self.status(cluster, id, &found);
                self.sweep(cluster, std::slice::from_ref(&status)).await;
                return Ok(Some(status));
            }
            let left = within.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            tokio::time::sleep(left.min(ASK)).await;
        }
    }

    /// Tells the driver to leave. A deadline does what no deletion would: the pod stays, with its log and its exit code.
    async fn tell_to_leave(&self, cluster: &Cluster, id: &JobId) -> Result<()> {
        let patch = json!({ "spec": { "activeDeadlineSeconds": 1 } });
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let patched = cluster.pods.patch(id.as_str(), &params, &patch);
        api::ask_for(&format!("the end of the pod `{id}`"), self.patience(), patched).await.map(|_| ())
    }

    fn reader(&self, cluster: &Cluster, id: &JobId, from: u64) -> PodLog {
        let kept = self.logs.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        let kept = kept.filter(|log| log.at() == from);
        kept.unwrap_or_else(|| PodLog::new(cluster.pods.clone(), id.as_str(), from, self.patience()))
    }

    fn keep(&self, id: &JobId, log: PodLog) {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), log);
    }

    /// The next piece of a driver's log, and whether the driver was over before it was looked for.
    async fn piece(
        &self,
        cluster: &Cluster,
        id: &JobId,
        log: &mut PodLog,
        wait: Duration,
    ) -> Result<(Vec<u8>, bool)> {
        let since = Instant::now();
        loop {
            let found = self.one(cluster, id).await?;
            let over = found.state().0.is_over();
            let begun = found.seen().is_some_and(|seen| seen.running || seen.end.is_some());
            let left = wait.saturating_sub(since.elapsed());
            let mut bytes = Vec::new();
            if begun {
                // What is over, or is not to be waited for, is read to its end as it is.
                let follow = !over && !left.is_zero();
                if !follow {
                    log.reopen();
                }
                let within = if follow { left } else { self.patience() };
                let read = tokio::time::timeout(within, log.next(follow)).await;
                if !follow {
                    log.reopen();
                }
                match read {
                    Ok(Ok(read)) => bytes = read,
                    // A pod that is being deleted has no log any more, and one that just began has none yet.
                    Ok(Err(error)) if over && found.pod.is_some() => return Err(error),
                    Ok(Err(error)) => tracing::debug!(%error, "the log cannot be read just now"),
                    Err(_) => {}
                }
            }
            if !bytes.is_empty() || over || since.elapsed() >= wait {
                return Ok((bytes, over));
            }
            tokio::time::sleep(wait.saturating_sub(since.elapsed()).min(ASK)).await;
        }
    }
}

#[async_trait]
impl Engine for KubernetesEngine {
    fn name(&self) -> &'static str {
        ENGINE
    }

    fn caps(&self) -> Caps {
        Caps { queues: true, preempts: true, many_hosts: true, time_limits: true }
    }

    fn render(&self, spec: &JobSpec) -> Result<String> {
        render::render(&self.config, spec, self.config.manifest)
    }

    async fn submit(&self, spec: &JobSpec) -> Result<Submitted> {
        self.config.check()?;
        let cluster = self.cluster().await?;
        self.check_room(cluster, spec).await?;
        let new = self.make(cluster, spec).await?;
        Ok(Submitted { engine_id: cluster.engine_id(&spec.id), new })
    }

    async fn describe(&self, ids: &[JobId]) -> Result<Vec<JobStatus>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let cluster = self.cluster().await?;
        let found = self.find(cluster, &pod::among(ids, "job"), &pod::among(ids, "driver")).await?;
        let mut statuses = Vec::new();
        for id in ids {
            let of_id = |found: &&Found| found.service.metadata.name.as_deref() == Some(id.as_str());
            let found = found.iter().find(of_id).ok_or_else(|| self.unknown(cluster, id))?;
            statuses.push(self.status(cluster, id, found));
        }
        self.sweep(cluster, &statuses).await;
        Ok(statuses)
    }

    async fn logs(&self, id: &JobId, from: u64, wait: Duration) -> Result<LogPart> {
        let cluster = self.cluster().await?;
        let mut log = self.reader(cluster, id, from);
        let (bytes, over) = self.piece(cluster, id, &mut log, wait).await?;
        let next = log.at();
        let end = over && bytes.is_empty();
        if !end {
            self.keep(id, log);
        }
        Ok(LogPart { bytes, next, end })
    }

    async fn cancel(&self, id: &JobId, grace: Duration) -> Result<JobStatus> {
        let cluster = self.cluster().await?;
        let found = self.one(cluster, id).await?;
        if found.state().0.is_over() {
            return Ok(self.status(cluster, id, &found));
        }
        self.annotate(cluster, id, pod::CANCELLED).await?;
        let mut seconds = 0;
        if found.seen().is_some_and(|seen| seen.running) {
            self.tell_to_leave(cluster, id).await?;
            if let Some(status) = self.ended(cluster, id, grace).await? {
                return Ok(status);
            }
            seconds = 1;
        }
        api::delete(&cluster.pods, id.as_str(), self.patience(), seconds).await?;
        if let Some(status) = self.ended(cluster, id, ENDED).await? {
            return Ok(status);
        }
        // Its node does not answer: what the cluster knows of it ends here.
        tracing::warn!(%id, "the driver's node does not end it; it is taken out of the cluster without its word");
        api::delete(&cluster.pods, id.as_str(), self.patience(), 0).await?;
        let ended = self.ended(cluster, id, ENDED).await?;
        ended.ok_or(Error::Timeout {
            operation: "the end of a cancelled driver",
            waited: grace + ENDED,
            detail: format!(": `kubectl get pod {id}` shows it"),
        })
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<JobStatus>> {
        let cluster = self.cluster().await?;
        let of_role = |role| pod::selector(&[pod::MANAGED, (pod::ROLE, role)]);
        let mut all = self.find(cluster, &of_role("job"), &of_role("driver")).await?;
        all.retain(|found| {
            let has = found.labels();
            labels.iter().all(|(name, value)| has.get(name) == Some(value))
        });
        let key = |found: &Found| {
            (
                found.service.metadata.creation_timestamp.clone().map(|at| at.0),
                found.service.metadata.name.clone(),
            )
        };
        all.sort_by_key(key);
        let mut statuses = Vec::new();
        for found in &all {
            let Ok(id) = JobId::new(found.service.metadata.name.clone().unwrap_or_default()) else {
                continue;
            };
            statuses.push(self.status(cluster, &id, found));
        }
        Ok(statuses)
    }
}

/// The same as the API server would be sent, for what is only shown.
pub(super) fn objects(config: &KubernetesConfig, spec: &JobSpec) -> Result<Vec<Value>> {
    let hidden = spec.command.env.keys().map(|name| (name.clone(), render::HIDDEN.to_owned())).collect();
    let id = spec.id.as_str();
    Ok(vec![pod::service(spec)?, pod::secret(id, id, None, &hidden), pod::driver(config, spec, None)?])
}
