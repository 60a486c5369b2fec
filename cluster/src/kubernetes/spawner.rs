//! The driver's side: gangs of pods, which the cluster's own scheduler places.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::oneshot;

use super::pod::{self, Owner, Place};
use super::reserve::{Gathered, Waiting};
use super::script::{Part, step};
use super::watcher::Watcher;
use super::worker::{Known, Order, Sources, Worker};
use super::{ENGINE, KubernetesConfig, api, nodes, seconds};
use crate::allocator::{self, Allocator};
use crate::error::{Error, Result};
use crate::events::{EventSender, Events, queue};
use crate::local::output::{Log, Record};
use crate::request::{GangRequest, Lease, LeaseId};
use crate::spawner::{Launch, NodeStatus, Spawner, WorkerId};
use crate::token::Token;

/// How long what was read of the nodes is taken for true.
const NODES: Duration = Duration::from_secs(30);

/// Gangs of pods. Dropping it deletes every one of them, without waiting.
#[derive(Debug)]
pub struct KubernetesSpawner {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) config: KubernetesConfig,
    pub(super) place: Place,
    pub(super) pods: Api<Pod>,
    pub(super) watcher: Watcher,
    /// Whose gang is gathered.
    pub(super) turn: tokio::sync::Mutex<()>,
    client: Client,
    secrets: Api<Secret>,
    numbers: AtomicU64,
    state: Mutex<State>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        let (held, closed) = (state.held.keys().collect::<Vec<_>>(), &state.closed);
        f.debug_struct("Inner")
            .field("place", &self.place)
            .field("held", &held)
            .field("closed", closed)
            .finish()
    }
}

#[derive(Default)]
struct State {
    held: BTreeMap<LeaseId, Held>,
    /// Nodes that did not end a worker.
    closed: BTreeSet<String>,
    /// The nodes, and when they were read.
    nodes: Option<(Instant, Option<Vec<NodeStatus>>)>,
}

struct Held {
    lease: Lease,
    request: GangRequest,
    /// The pods that wait for what to run, by slot; none once they were told.
    fresh: Vec<String>,
    /// The pods that were told.
    used: Vec<String>,
    workers: Vec<Arc<Worker>>,
    launching: bool,
}

fn variable(name: &'static str) -> Result<String> {
    std::env::var(name).map_err(|_| Error::Environment {
        variable: name,
        problem: "is not set: this process is not the driver of a job; submit it with the Kubernetes engine"
            .into(),
    })
}

impl KubernetesSpawner {
    /// A spawner for the driver that this process is, in the pod that the engine made.
    pub async fn from_env(config: KubernetesConfig) -> Result<Self> {
        let (job, namespace) = (variable(pod::JOB_ID)?, variable(pod::NAMESPACE)?);
        let owner = Owner { kind: "Pod", name: variable(pod::POD)?, uid: variable(pod::POD_UID)? };
        let client = api::connect(&config).await?;
        Self::open(client, config, namespace, job, Some(owner)).await
    }

    /// A spawner outside of any job: its pods are found under this name, and go only when it says so.
    pub async fn outside(client: Client, config: KubernetesConfig, name: &str) -> Result<Self> {
        let namespace = config.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        Self::open(client, config, namespace, name.to_owned(), None).await
    }

    async fn open(
        client: Client,
        config: KubernetesConfig,
        namespace: String,
        job: String,
        owner: Option<Owner>,
    ) -> Result<Self> {
        config.check()?;
        let mark = Token::random().expose()[..8].to_owned();
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let secrets = Api::namespaced(client.clone(), &namespace);
        let watcher = Watcher::start(
            pods.clone(),
            pod::selector(&[(pod::SPAWNER, &mark)]),
            seconds(config.api_seconds),
        );
        let place = Place { job, mark, owner };
        let (turn, numbers, state) = (tokio::sync::Mutex::default(), AtomicU64::new(1), Mutex::default());
        let inner = Inner { config, place, pods, watcher, turn, client, secrets, numbers, state };
        inner.look_at_nodes().await?;
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    /// How long an answer of the API server is waited for.
    pub(super) fn patience(&self) -> Duration {
        seconds(self.config.api_seconds)
    }

    /// How long a worker with a place may take to start.
    pub(super) fn start_patience(&self) -> Duration {
        seconds(self.config.start_seconds)
    }

    /// How long a node may take to end what it was told to.
    fn kill_patience(&self) -> Duration {
        seconds(self.config.kill_seconds)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn closed(&self) -> BTreeSet<String> {
        self.state().closed.clone()
    }

    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A name that no gang has had: the job's, cut where it is long, then the spawner's and a number.
    pub(super) fn name_gang(&self) -> String {
        let job = &self.place.job[..self.place.job.len().min(40)];
        format!("{}-{}-g{}", job.trim_end_matches('-'), self.place.mark, self.number())
    }

    async fn look_at_nodes(&self) -> Result<()> {
        let old = self.state().nodes.as_ref().is_none_or(|(at, _)| at.elapsed() > NODES);
        if old {
            let found = nodes::list(&self.client, &self.config, self.patience()).await?;
            self.state().nodes = Some((Instant::now(), found));
        }
        Ok(())
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        let state = self.state();
        let known = state.nodes.as_ref().and_then(|(_, nodes)| nodes.clone());
        let seats = state.held.values().flat_map(|held| &held.lease.seats);
        let mut all = nodes::without(known.unwrap_or_else(nodes::anywhere), seats);
        for node in &mut all {
            node.up &= !state.closed.contains(&node.name);
        }
        all
    }

    /// Refuses what no state of the cluster could seat, where its nodes are known.
    fn check(&self, request: &GangRequest) -> Result<()> {
        allocator::check(request)?;
        super::quantity::quantities(&self.config, &request.per_worker)?;
        if !self.state().nodes.as_ref().is_some_and(|(_, nodes)| nodes.is_some()) {
            return Ok(());
        }
        let nodes = self.nodes();
        let mut all = Allocator::new(nodes.iter().map(|node| (node.name.clone(), node.total.clone())))?;
        for node in nodes.iter().filter(|node| !node.up) {
            all.set_up(&node.name, false);
        }
        all.request(request.clone()).map(|_| ())
    }

    fn unknown(lease: LeaseId, operation: &'static str) -> Error {
        Error::UnknownLease { lease, operation }
    }

    fn begin_launch(&self, id: LeaseId) -> Result<(Lease, GangRequest, Vec<String>)> {
        let mut state = self.state();
        let held = state.held.get_mut(&id).ok_or_else(|| Self::unknown(id, "launching"))?;
        let running = held.workers.iter().filter(|worker| !worker.look().ended).count();
        if running > 0 || held.launching {
            return Err(Error::StillRunning { lease: id, running });
        }
        (held.launching, held.workers) = (true, Vec::new());
        let fresh = std::mem::take(&mut held.fresh);
        Ok((held.lease.clone(), held.request.clone(), fresh))
    }

    async fn launch(self: Arc<Self>, id: LeaseId, launch: Launch) -> Result<Events> {
        let (lease, request, fresh) = self.begin_launch(id)?;
        let (sender, events) = queue();
        let pods = match fresh.is_empty() {
            true => self.again(&lease, &request, &launch).await,
            false => Ok(fresh),
        };
        let (pods, workers, mut started) = match pods {
            Ok(pods) => {
                let (workers, started) = self.start_all(&lease, &pods, &launch, &sender).await;
                (pods, workers, started)
            }
            Err(error) => (Vec::new(), Vec::new(), Err(error)),
        };
        match self.state().held.get_mut(&id) {
            Some(held) => {
                held.launching = false;
                if started.is_ok() {
                    held.used.extend(pods.iter().cloned());
                }
            }
            None => started = Err(Self::unknown(id, "launching")),
        }
        if let Err(error) = started {
            self.end_all(&workers, Duration::ZERO).await;
            // Those that were not told hold their places still.
            self.give_back(&pods).await;
            return Err(error);
        }
        Ok(events)
    }

    /// Tells every pod what to run and waits until each worker runs, or it is known that one never will.
    async fn start_all(
        &self,
        lease: &Lease,
        pods: &[String],
        launch: &Launch,
        events: &EventSender,
    ) -> (Vec<Arc<Worker>>, Result<()>) {
        let first = pods.first().map_or("", String::as_str);
        let first = format!("{}.{}", pod::hostname(first), self.place.job);
        let told = lease.seats.iter().zip(pods);
        let told = told.map(|(seat, pod)| self.tell(lease, seat.slot, pod, &first, launch, events));
        let (mut workers, mut failed) = (Vec::new(), Ok(()));
        for told in join_all(told).await {
            match told {
                Ok(worker) => workers.push(worker),
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        if let Some(held) = self.state().held.get_mut(&lease.id) {
            held.workers.clone_from(&workers);
        }
        let deadline = tokio::time::Instant::now() + self.start_patience();
        for worker in &workers {
            if failed.is_ok() {
                failed = self.started(worker, deadline).await;
            }
        }
        (workers, failed)
    }

    /// Waits until a worker runs, or says why it never will.
    async fn started(&self, worker: &Worker, deadline: tokio::time::Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let hopeless = self.watcher.wait(left, |watcher| watcher.look(&worker.pod).hopeless());
        let decided = tokio::select! {
            decided = worker.wait(left, Known::decided) => Ok(decided),
            Some(why) = hopeless => Err(why),
        };
        let why = match (decided, worker.look().refused) {
            (Err(why), _) | (_, Some(why)) => why,
            (Ok(false), None) => {
                let stands = self.watcher.look(&worker.pod).word();
                format!("not within {:?}; its pod `{}` is {stands}", self.start_patience(), worker.pod)
            }
            (Ok(true), None) => return Ok(()),
        };
        let source = std::io::Error::other(why);
        let (slot, node, program) = (worker.slot, worker.node.clone(), worker.program.clone());
        Err(Error::Launch { slot, node, program, source })
    }

    /// Makes the secret a pod waits for, and has its node look again.
    async fn tell(
        &self,
        lease: &Lease,
        slot: usize,
        pod: &str,
        first: &str,
        launch: &Launch,
        events: &EventSender,
    ) -> Result<Arc<Worker>> {
        let seat = &lease.seats[slot];
        let id = WorkerId(format!("{pod}-{}", launch.attempt));
        let nonce = Token::random().expose()[..16].to_owned();
        let log = launch.logs.as_ref().map(|folder| Log::open(folder, launch.attempt, slot)).transpose()?;
        let text = step(&Part { lease, seat, launch, id: &id, first }, &nonce)?;
        let owner = Owner { kind: "Pod", name: pod.to_owned(), uid: self.watcher.look(pod).uid };
        let texts = BTreeMap::from([("step".to_owned(), text)]);
        let secret = pod::secret(pod, &self.place.job, Some(&owner), &texts);
        let what = format!("creating the secret `{pod}`");
        api::create(&self.secrets, &what, self.patience(), secret).await?;
        // A node that looked in vain would look again after ten seconds; a change of its pod has it look at once.
        let labels = json!({ "metadata": { "labels": {
            "regatta/slot": slot.to_string(), "regatta/attempt": launch.attempt.to_string(),
        } } });
        let what = format!("labelling the pod `{pod}`");
        let (params, labels) = (PatchParams::default(), Patch::Merge(&labels));
        api::ask_for(&what, self.patience(), self.pods.patch(pod, &params, &labels)).await?;
        let order = Order {
            slot,
            node: seat.node.clone(),
            pod: pod.to_owned(),
            program: launch.command.program.clone(),
            id,
            nonce,
            record: Record { log, ..Record::default() },
            events: events.clone(),
        };
        let (pods, watcher, patience) = (self.pods.clone(), self.watcher.clone(), self.patience());
        Ok(Worker::start(order, Sources { pods, watcher, patience }))
    }

    async fn all_ended(workers: &[Arc<Worker>], within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let waits = workers.iter().map(|worker| {
            worker.wait(deadline.saturating_duration_since(Instant::now()), |known| known.ended)
        });
        join_all(waits).await.into_iter().all(|ended| ended)
    }

    /// Deletes pods with so many seconds of grace, within the patience for nodes that may be gone.
    async fn delete_all(&self, workers: &[Arc<Worker>], seconds: u32) {
        let all = join_all(
            workers.iter().map(|worker| api::delete(&self.pods, &worker.pod, self.patience(), seconds)),
        );
        for (worker, deleted) in workers.iter().zip(all.await) {
            if let Err(error) = deleted {
                tracing::warn!(pod = worker.pod, %error, "a pod could not be deleted");
            }
        }
    }

    /// Ends the workers; afterwards each has told its end, and nodes that did not obey are closed.
    async fn end_all(&self, workers: &[Arc<Worker>], grace: Duration) {
        let running: Vec<Arc<Worker>> =
            workers.iter().filter(|worker| !worker.look().ended).cloned().collect();
        if running.is_empty() {
            return;
        }
        running.iter().for_each(|worker| worker.cancelled());
        // Whole seconds, and at least one: with none the API server would not wait for the node's word.
        let seconds = u32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1);
        self.delete_all(&running, seconds).await;
        if Self::all_ended(&running, Duration::from_secs(seconds.into()) + self.kill_patience()).await {
            return;
        }
        let left: Vec<Arc<Worker>> = running.into_iter().filter(|worker| !worker.look().ended).collect();
        for worker in &left {
            tracing::warn!(worker.node, worker.slot, "a node does not end a worker; it is not used any more");
            self.state().closed.insert(worker.node.clone());
            worker.give_up();
        }
        // What runs there is fenced by its attempt; its place in the namespace is taken from it.
        self.delete_all(&left, 0).await;
        Self::all_ended(&left, self.kill_patience()).await;
    }
}

#[async_trait]
impl Spawner for KubernetesSpawner {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        self.inner.nodes()
    }

    async fn acquire(&self, request: GangRequest) -> Result<Lease> {
        self.inner.look_at_nodes().await?;
        self.inner.check(&request)?;
        let (answer, answered) = oneshot::channel();
        let (inner, waiting) = (self.inner.clone(), Waiting { request: request.clone(), answer });
        // A task of its own gives back what was made for a caller that is gone.
        tokio::spawn(async move { inner.gather(waiting).await });
        let mut asked = Asked { inner: &self.inner, answered };
        let gathered = (&mut asked.answered).await.unwrap_or_else(|_| {
            let cause = "it was dropped while a gang waited".into();
            Err(Error::SpawnerGone { engine: ENGINE, cause })
        })?;
        let Gathered { lease, pods: fresh } = gathered;
        let held = Held {
            lease: lease.clone(),
            request,
            fresh,
            used: Vec::new(),
            workers: Vec::new(),
            launching: false,
        };
        self.inner.state().held.insert(lease.id, held);
        Ok(lease)
    }

    async fn launch(&self, lease: LeaseId, launch: Launch) -> Result<Events> {
        // In a task of its own it runs to its end even if nobody waits for it any more.
        let launched = tokio::spawn(self.inner.clone().launch(lease, launch)).await;
        launched.unwrap_or_else(|error| {
            Err(Error::SpawnerGone { engine: ENGINE, cause: format!("a launch did not end: {error}") })
        })
    }

    async fn kill(&self, lease: LeaseId, grace: Duration) -> Result<()> {
        let workers = {
            let state = self.inner.state();
            state.held.get(&lease).ok_or_else(|| Inner::unknown(lease, "killing"))?.workers.clone()
        };
        self.inner.end_all(&workers, grace).await;
        Ok(())
    }

    async fn release(&self, lease: LeaseId) -> Result<()> {
        let (workers, launching) = match self.inner.state().held.get(&lease) {
            Some(held) => (held.workers.clone(), held.launching),
            None => return Ok(()),
        };
        self.inner.end_all(&workers, Duration::ZERO).await;
        let Some(held) = self.inner.state().held.remove(&lease) else { return Ok(()) };
        // A launch under way finds the lease gone, and gives its pods back itself.
        if !launching {
            self.inner.give_back(&[held.fresh, held.used].concat()).await;
        }
        Ok(())
    }
}

/// An answer that is given back with whatever it holds if its asker goes away.
struct Asked<'a> {
    inner: &'a Arc<Inner>,
    answered: oneshot::Receiver<Result<Gathered>>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.answered.close();
        if let Ok(Ok(gathered)) = self.answered.try_recv() {
            let inner = self.inner.clone();
            tokio::spawn(async move { inner.give_back(&gathered.pods).await });
        }
    }
}

impl Drop for KubernetesSpawner {
    fn drop(&mut self) {
        let held = std::mem::take(&mut self.inner.state().held);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        for held in held.into_values() {
            held.workers.iter().for_each(|worker| worker.cancelled());
            // Started and left: the end of the driver's pod would end them too.
            for pod in [held.fresh, held.used].concat() {
                let (pods, patience) = (self.inner.pods.clone(), self.inner.patience());
                runtime.spawn(async move { api::delete(&pods, &pod, patience, 1).await });
            }
        }
    }
}
