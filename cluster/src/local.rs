//! The local engine: workers are child processes of the driver, on this host or on several pretended ones.
//!
//! Invariants, which the tests cite:
//!
//! - **LO-1** a worker dies with its driver whatever ends that, and with it every process it made: the kernel kills the
//!   worker (PDEATHSIG, from one permanent thread), a sentinel process kills the rest;
//! - **LO-2** an end is told once, after everything of the worker is gone; only then can its seat be another's;
//! - **LO-3** no worker is waited for without a deadline;
//! - **LO-4** seats are free only when nothing runs on them but idlers, which go before a stranger comes.

mod attendant;
mod cgroup;
mod host;
mod launcher;
pub(crate) mod output;
mod pool;
mod procfs;
mod sentinel;
mod start;
mod sys;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::oneshot;

use self::attendant::Office;
use self::cgroup::SpawnerGroup;
pub use self::host::LocalNode;
use self::launcher::Launcher;
use self::pool::Pool;
use self::sentinel::Sentinel;
use self::start::{Start, post};
use self::worker::{FOR_EVER, Fate, Worker};
use crate::allocator::{Allocator, Decision, RequestId};
use crate::error::{Error, Result};
use crate::events::{EventSender, Events, queue};
use crate::request::{GangRequest, Lease, LeaseId, Seat};
use crate::spawner::{Launch, NodeStatus, Spawner, WorkerId};

pub(crate) const ENGINE: &str = "local";

/// Whether workers are bound to the CPUs of their seats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pinning {
    /// Bound while no other driver on this host binds its own: two that know nothing of each other would pick the same CPUs.
    #[default]
    Auto,
    /// Bound in any case.
    Always,
    /// Not bound.
    Never,
}

/// How a local spawner is made.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// The nodes; this host as one node by default.
    pub nodes: Vec<LocalNode>,
    /// Whether workers are bound to their CPUs.
    pub pinning: Pinning,
    /// How many parked workers may idle.
    pub max_idle: usize,
    /// How long one idles before it is ended.
    pub idle_for: Duration,
    /// How often a worker's memory is looked at, where its seat limits it.
    pub memory_check: Duration,
    /// Whether control groups are made where that is possible.
    pub cgroups: bool,
    /// How long a worker may still be there after SIGKILL before that is an error.
    pub kill_patience: Duration,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            nodes: vec![LocalNode::this_host()],
            pinning: Pinning::default(),
            max_idle: 64,
            idle_for: Duration::from_secs(60),
            memory_check: Duration::from_millis(100),
            cgroups: true,
            kill_patience: Duration::from_secs(10),
        }
    }
}

/// The local engine.
///
/// Dropping it ends every worker and waits for their ends.
#[derive(Debug)]
pub struct LocalSpawner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Marks the processes of this spawner: `<pid>-<start>-`.
    mark: String,
    config: LocalConfig,
    pin: bool,
    /// Held for as long as this driver is the one that binds workers.
    _claim: Option<UnixDatagram>,
    office: Office,
    started: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    allocator: Allocator,
    waiting: HashMap<RequestId, oneshot::Sender<Result<Lease>>>,
    held: BTreeMap<LeaseId, Held>,
    pool: Pool,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    workers: Vec<Arc<Worker>>,
    launch: Option<Launch>,
    /// A launch is under way on another thread; it finds out itself if the lease is given up meanwhile.
    launching: bool,
}

/// One gang's launch while it is under way.
struct Order<'a> {
    lease: &'a Lease,
    launch: &'a Launch,
    events: &'a EventSender,
}

impl LocalSpawner {
    /// A spawner over these nodes, with its spawning thread and its sentinel running.
    pub fn new(config: LocalConfig) -> Result<Self> {
        let allocator =
            Allocator::new(config.nodes.iter().map(|node| (node.name.clone(), node.resources.clone())))?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mark = format!("{}-{since:x}-", std::process::id());
        let failed = |operation| move |source| Error::System { operation, source };
        let cgroup = config.cgroups.then(|| SpawnerGroup::make(&mark)).flatten();
        let marker = format!("{}={mark}", crate::env::WORKER);
        let sentinel = Sentinel::start(&marker, cgroup.as_ref().and_then(SpawnerGroup::open))
            .map_err(failed("start the sentinel process"))?;
        let launcher = Launcher::start().map_err(failed("start the spawning thread"))?;
        let (sentinel, cgroup) = (Arc::new(sentinel), cgroup.map(Arc::new));
        let office = Office { sentinel, launcher, cgroup, memory_check: config.memory_check };
        let claim = if config.pinning == Pinning::Auto { claim_binding() } else { None };
        let pin = config.pinning == Pinning::Always || claim.is_some();
        let pool = Pool::new(config.max_idle, config.idle_for);
        let (waiting, held) = (HashMap::new(), BTreeMap::new());
        let state = Mutex::new(State { allocator, waiting, held, pool });
        let started = AtomicU64::new(0);
        Ok(Self { inner: Arc::new(Inner { mark, config, pin, _claim: claim, office, started, state }) })
    }

    /// Ends every worker on a node as its failure would, and closes it; its gangs hear `Lost`. `false` where there is no such
    /// node. For tests of what stands on spawners.
    pub fn fail_node(&self, name: &str) -> bool {
        let mut state = self.inner.state();
        if !state.allocator.set_up(name, false) {
            return false;
        }
        let workers = state.held.values().flat_map(|held| &held.workers);
        for worker in workers.filter(|worker| worker.seat.node == name) {
            worker.end(Fate::Lost(format!("node `{name}` failed")), Duration::ZERO);
        }
        state.pool.evict(|worker| worker.seat.node == name);
        state.pump();
        true
    }

    /// Opens a node again after [`fail_node`](Self::fail_node).
    pub fn restore_node(&self, name: &str) -> bool {
        let mut state = self.inner.state();
        let known = state.allocator.set_up(name, true);
        state.pump();
        known
    }

    /// Ends the spawning thread, as its crash would: every worker dies and nothing can be launched. For tests.
    #[doc(hidden)]
    pub fn end_spawning_thread(&self) {
        self.inner.office.launcher.end();
    }

    /// How many gangs stand in line.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.state().waiting.len()
    }

    /// How many parked workers idle.
    #[must_use]
    pub fn idle_workers(&self) -> usize {
        self.inner.state().pool.len()
    }
}

/// A name that one process of a user can hold and that goes when the process does.
fn claim_binding() -> Option<UnixDatagram> {
    let name = format!("regatta-binds-cpus-{}", rustix::process::getuid().as_raw());
    let claim = SocketAddr::from_abstract_name(name).and_then(|name| UnixDatagram::bind_addr(&name));
    if claim.is_err() {
        tracing::info!(
            "another driver binds its workers to CPUs on this host; those of this one are not bound"
        );
    }
    claim.ok()
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unknown(lease: LeaseId, operation: &'static str) -> Error {
        Error::UnknownLease { lease, operation }
    }

    /// Reserves the lease for a launch.
    fn begin_launch(&self, id: LeaseId) -> Result<Lease> {
        let mut state = self.state();
        let held = state.held.get_mut(&id).ok_or_else(|| Self::unknown(id, "launching"))?;
        let running = held.workers.iter().filter(|worker| !worker.has_ended()).count();
        if running > 0 || held.launching {
            return Err(Error::StillRunning { lease: id, running });
        }
        held.launching = true;
        held.workers.clear();
        Ok(held.lease.clone())
    }

    /// Starts or takes over a worker for every seat. Blocks for as long as the system takes to start them.
    fn launch(&self, id: LeaseId, launch: Launch) -> Result<Events> {
        let lease = self.begin_launch(id)?;
        let (sender, events) = queue();
        let mut workers = Vec::with_capacity(lease.seats.len());
        let order = Order { lease: &lease, launch: &launch, events: &sender };
        let outcome = self.start_all(&order, &mut workers);
        drop(sender);
        let mut state = self.state();
        let given_up = match state.held.get_mut(&id) {
            Some(held) => {
                held.launching = false;
                held.workers.clone_from(&workers);
                held.launch = Some(launch);
                false
            }
            None => true,
        };
        drop(state);
        if outcome.is_ok() && !given_up {
            return Ok(events);
        }
        workers.iter().for_each(|worker| worker.end(Fate::Cancelled, Duration::ZERO));
        let deadline = Instant::now() + self.config.kill_patience;
        let gone = workers.iter().filter(|worker| !worker.wait_end_blocking(deadline)).count() == 0;
        if given_up && gone {
            self.state().free(id);
        }
        outcome.and(Err(Self::unknown(id, "launching")))
    }

    fn start_all(&self, order: &Order<'_>, workers: &mut Vec<Arc<Worker>>) -> Result<()> {
        let (idle, strangers) = self.state().pool.take(&order.lease.seats, order.launch);
        let mut idle = idle.into_iter();
        let outcome = strangers.iter().try_for_each(|stranger| self.wait_gone(stranger)).and_then(|()| {
            order.lease.seats.iter().zip(&mut idle).try_for_each(|(seat, idle)| {
                workers.push(self.start_one(order, seat, idle)?);
                Ok(())
            })
        });
        // Those the gang did not come to are in no pool any more.
        idle.flatten().for_each(|worker| worker.end(Fate::Cancelled, Duration::ZERO));
        outcome
    }

    fn start_one(&self, order: &Order<'_>, seat: &Seat, idle: Option<Arc<Worker>>) -> Result<Arc<Worker>> {
        let &Order { lease, launch, events } = order;
        let mut job = match post(launch, seat.slot, events) {
            Ok(job) => job,
            Err(error) => {
                idle.iter().for_each(|worker| worker.end(Fate::Cancelled, Duration::ZERO));
                return Err(error);
            }
        };
        if let Some(worker) = idle {
            match worker.reuse(job) {
                Ok(()) => return Ok(worker),
                Err(back) => job = back,
            }
            self.wait_gone(&worker)?;
        }
        let Some(node) = self.config.nodes.iter().find(|node| node.name == seat.node) else {
            return Err(Self::unknown(lease.id, "launching on its node"));
        };
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let id = WorkerId(format!("{}{number}", self.mark));
        Start { launch, seat, slots: lease.seats.len(), node, pin: self.pin, id, number }
            .run(&self.office, job)
    }

    /// Waits for the end of a worker that was ordered to end: its seat is another's.
    fn wait_gone(&self, worker: &Worker) -> Result<()> {
        match worker.wait_end_blocking(Instant::now() + self.config.kill_patience) {
            true => Ok(()),
            false => Err(self.stuck(worker)),
        }
    }

    fn stuck(&self, worker: &Worker) -> Error {
        let (slot, pid, node) = (worker.seat.slot, worker.pid, worker.seat.node.clone());
        Error::KillTimeout { slot, pid, node, waited: self.config.kill_patience }
    }

    async fn end_all(&self, workers: &[Arc<Worker>], grace: Duration) -> Result<()> {
        workers.iter().for_each(|worker| worker.end(Fate::Cancelled, grace));
        let deadline = Instant::now() + grace.min(FOR_EVER) + self.config.kill_patience;
        for worker in workers {
            if !worker.wait_end(deadline).await {
                return Err(self.stuck(worker));
            }
        }
        Ok(())
    }
}

impl State {
    /// Hands the allocator's decisions to those who wait for them.
    fn pump(&mut self) {
        loop {
            let mut unclaimed = false;
            for decision in self.allocator.decide() {
                match decision {
                    Decision::Granted { request, lease } => unclaimed |= !self.grant(request, lease),
                    Decision::Refused { request, why } => {
                        if let Some(sender) = self.waiting.remove(&request) {
                            let _ = sender.send(Err(Error::Infeasible(why)));
                        }
                    }
                }
            }
            if !unclaimed {
                return;
            }
        }
    }

    fn grant(&mut self, request: RequestId, lease: Lease) -> bool {
        let id = lease.id;
        let held = Held { lease: lease.clone(), workers: Vec::new(), launch: None, launching: false };
        self.held.insert(id, held);
        let claimed = self.waiting.remove(&request).is_some_and(|sender| sender.send(Ok(lease)).is_ok());
        if !claimed {
            self.held.remove(&id);
            self.allocator.release(id);
        }
        claimed
    }

    fn free(&mut self, lease: LeaseId) {
        self.held.remove(&lease);
        self.allocator.release(lease);
        self.pump();
    }
}

/// A place in line, given back with whatever was granted to it if its holder goes away.
struct InLine<'a> {
    inner: &'a Inner,
    request: RequestId,
    answer: oneshot::Receiver<Result<Lease>>,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.answer.close();
        let granted = self.answer.try_recv();
        let mut state = self.inner.state();
        state.waiting.remove(&self.request);
        state.allocator.withdraw(self.request);
        match granted {
            Ok(Ok(lease)) => state.free(lease.id),
            _ => state.pump(),
        }
    }
}

#[async_trait]
impl Spawner for LocalSpawner {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        self.inner.state().allocator.nodes()
    }

    async fn acquire(&self, request: GangRequest) -> Result<Lease> {
        let (gang, waited) = (request.name.clone(), request.patience);
        let mut place = {
            let mut state = self.inner.state();
            let request = state.allocator.request(request)?;
            let (sender, answer) = oneshot::channel();
            state.waiting.insert(request, sender);
            state.pump();
            InLine { inner: &self.inner, request, answer }
        };
        match tokio::time::timeout(waited, &mut place.answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                Err(Error::SpawnerGone { engine: ENGINE, cause: "it was dropped while a gang waited".into() })
            }
            Err(_) => {
                let blocked = self.inner.state().allocator.blocked(place.request);
                Err(Error::NoCapacity { gang, waited, blocked })
            }
        }
    }

    async fn launch(&self, lease: LeaseId, launch: Launch) -> Result<Events> {
        let inner = self.inner.clone();
        // On a thread of its own it runs to its end even if nobody waits for it any more.
        let launched = tokio::task::spawn_blocking(move || inner.launch(lease, launch)).await;
        launched.unwrap_or_else(|error| {
            Err(Error::SpawnerGone { engine: ENGINE, cause: format!("a launch did not end: {error}") })
        })
    }

    async fn kill(&self, lease: LeaseId, grace: Duration) -> Result<()> {
        let workers = {
            let state = self.inner.state();
            let held = state.held.get(&lease).ok_or_else(|| Inner::unknown(lease, "killing"))?;
            held.workers.clone()
        };
        self.inner.end_all(&workers, grace).await
    }

    async fn release(&self, lease: LeaseId) -> Result<()> {
        let workers = {
            let mut state = self.inner.state();
            match state.held.get_mut(&lease) {
                Some(held) if held.launching => {
                    // The launch finds the lease gone, ends what it started and frees the seats.
                    state.held.remove(&lease);
                    return Ok(());
                }
                Some(held) => held.workers.clone(),
                None => return Ok(()),
            }
        };
        self.inner.end_all(&workers, Duration::ZERO).await?;
        self.inner.state().free(lease);
        Ok(())
    }

    async fn park(&self, lease: LeaseId) -> Result<bool> {
        let kept = {
            let mut state = self.inner.state();
            let State { held, pool, .. } = &mut *state;
            match held.get_mut(&lease) {
                Some(Held { workers, launch: Some(launch), launching: false, lease }) => {
                    pool.park(std::mem::take(workers), &lease.seats, launch)
                }
                _ => Err(Vec::new()),
            }
        };
        match kept {
            Ok(()) => {
                self.inner.state().free(lease);
                Ok(true)
            }
            Err(left) => {
                self.inner.end_all(&left, Duration::ZERO).await?;
                self.release(lease).await?;
                Ok(false)
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let held = state.held.values().flat_map(|held| held.workers.iter().cloned());
        let workers: Vec<Arc<Worker>> = held.chain(state.pool.drain()).collect();
        workers.iter().for_each(|worker| worker.end(Fate::Cancelled, Duration::ZERO));
        let deadline = Instant::now() + self.config.kill_patience;
        for worker in workers.iter().filter(|worker| !worker.wait_end_blocking(deadline)) {
            tracing::error!(worker = %worker.id, pid = worker.pid, "a worker outlives its spawner: it hangs in the kernel");
        }
    }
}
