//! The driver's side: gangs as placement groups of the cluster that the driver is a job of.
//!
//! Ray knows what is free, for others may use the cluster too; so where a gang goes is Ray's to say, and whose turn it is is
//! said here: one gang at a time asks, and those behind it wait in line. A node that does not end a worker within
//! [`RayConfig::kill_seconds`] is closed until the job ends: what still runs there cannot be known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::http::shorten;
use super::node::{self, Node};
use super::package::HOME;
use super::shim::{Event, GUARD, Heard, Shim, gone};
use super::worker::{Seen, Worker};
use super::{DRIVER_NODE, ENGINE, RayConfig};
use crate::env;
use crate::error::{Error, Result};
use crate::events::{EventSender, Events, queue};
use crate::local::output::{Log, Record};
use crate::request::{GangRequest, Lease, LeaseId, Seat};
use crate::resource::Resources;
use crate::spawner::{Launch, NodeStatus, Spawner, Stream, WorkerId};
use crate::token::Token;

/// How long the connection to the cluster may take: the first import of Ray on a cold disk is slow.
const CONNECTED: Duration = Duration::from_secs(120);
/// Longer than anybody waits: what is added to the clock must not overflow it.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long a gang that could do with fewer workers waits for as many as seem to be free.
const AS_MANY: Duration = Duration::from_secs(2);

/// Which bundle each seat has, and on which node.
type Places = Vec<(usize, String)>;

/// Gangs as placement groups of the cluster this process is a job of. Dropping it ends every worker, without waiting.
#[derive(Debug)]
pub struct RaySpawner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: RayConfig,
    shim: Shim,
    /// Held by the gang whose turn it is.
    turn: tokio::sync::Mutex<()>,
    mark: String,
    heard: Arc<Listener>,
}

/// What is known of the cluster and of what runs in it; the listening thread writes here.
#[derive(Debug)]
struct Listener {
    /// Sent whenever something of it changed that somebody may wait for.
    changed: watch::Sender<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    nodes: Vec<Node>,
    /// The driver's address, as the cluster knows it.
    host: Option<String>,
    /// Nodes that did not end a worker, by their lasting names.
    closed: BTreeSet<String>,
    /// Why nothing is possible any more.
    gone: Option<String>,
    /// Placement groups that are asked for, and what became of them: the nodes of their bundles, or why there are none.
    asked: HashMap<LeaseId, Option<Result<Vec<String>, String>>>,
    held: BTreeMap<LeaseId, Held>,
    workers: HashMap<u64, Arc<Worker>>,
    issued: u64,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    /// For each seat the place of its bundle in the placement group, and its node's lasting name.
    places: Places,
    workers: Vec<Arc<Worker>>,
    launching: bool,
}

impl Listener {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, heard: Heard) {
        match heard {
            // What workers say changes nothing that anybody waits for here.
            Heard::Event(event @ (Event::Stdout { .. } | Event::Stderr { .. })) => return self.event(event),
            Heard::Event(event) => self.event(event),
            Heard::Gone(cause) => {
                let workers: Vec<_> = {
                    let mut state = self.state();
                    state.gone = Some(cause.clone());
                    state.workers.drain().map(|(_, worker)| worker).collect()
                };
                workers.iter().for_each(|worker| worker.lost(&cause));
            }
        }
        self.changed.send_replace(());
    }

    fn event(&self, event: Event) {
        let worker = |number: u64| self.state().workers.get(&number).cloned();
        let ended = |number: u64| self.state().workers.remove(&number);
        match event {
            Event::Nodes { nodes, host } => {
                let mut state = self.state();
                (state.nodes, state.host) = (nodes, Some(host));
            }
            Event::Acquired { gang, nodes } => self.state().answer(LeaseId(gang), Ok(nodes)),
            Event::Started { worker: number, value } => {
                worker(number).iter().for_each(|one| one.started(value))
            }
            Event::Stdout { worker: number, value } => {
                worker(number).iter().for_each(|one| one.wrote(Stream::Stdout, &value));
            }
            Event::Stderr { worker: number, value } => {
                worker(number).iter().for_each(|one| one.wrote(Stream::Stderr, &value));
            }
            Event::Exited { worker: number, value } => ended(number).iter().for_each(|one| one.exited(value)),
            Event::Refused { worker: number, value } => {
                ended(number).iter().for_each(|one| one.refused(value.clone()))
            }
            Event::Failed { value, worker: Some(number), .. } => {
                ended(number).iter().for_each(|one| one.lost(&sentence(&value)));
            }
            Event::Failed { value, gang: Some(gang), op, .. } if op == "acquire" => {
                self.state().answer(LeaseId(gang), Err(sentence(&value)));
            }
            Event::Failed { op, value, .. } => tracing::warn!(op, error = sentence(&value), "Ray refused"),
        }
    }
}

/// What a person needs of one of Ray's errors: what is indented in it is of use to nobody.
fn sentence(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(char::is_whitespace)).collect();
    shorten(&lines.join(" "))
}

impl State {
    /// Nobody waits for an answer any more where it is not asked for.
    fn answer(&mut self, id: LeaseId, answer: Result<Vec<String>, String>) {
        if let Some(asked) = self.asked.get_mut(&id) {
            *asked = Some(answer);
        }
    }

    /// The nodes that are up, by name, and whether gangs may go there.
    fn open(&self) -> Vec<(String, &Node, bool)> {
        let named = node::named(&self.nodes);
        named.into_iter().map(|(name, node)| (name, node, !self.closed.contains(&node.id))).collect()
    }

    /// What gangs hold on the node.
    fn held_on(&self, id: &str) -> impl Iterator<Item = &Resources> {
        let seats = self.held.values().flat_map(|held| held.places.iter().zip(&held.lease.seats));
        seats.filter(move |((_, node), _)| node == id).map(|(_, seat)| &seat.resources)
    }
}

impl RaySpawner {
    /// A spawner over the cluster that this process is a job of.
    pub async fn from_env(config: RayConfig) -> Result<Self> {
        config.check()?;
        let heard = Arc::new(Listener { changed: watch::Sender::new(()), state: Mutex::default() });
        // Weak: the thread that listens must not keep alive what ends the process it listens to.
        let listener: Weak<Listener> = Arc::downgrade(&heard);
        let hear = move |heard| {
            if let Some(listener) = listener.upgrade() {
                listener.hear(heard);
            }
        };
        let shim = Shim::start(&config, hear)?;
        let mark = format!("ray-{}-", &Token::random().expose()[..12]);
        let inner = Inner { config, shim, turn: tokio::sync::Mutex::new(()), mark, heard };
        let connected = inner.until(CONNECTED, |state| state.host.is_some().then_some(())).await?;
        connected.ok_or_else(|| gone(&format!("the cluster did not answer within {CONNECTED:?}")))?;
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.heard.state()
    }

    fn unknown(lease: LeaseId, operation: &'static str) -> Error {
        Error::UnknownLease { lease, operation }
    }

    /// Waits until something is so; `None` when the time is up.
    async fn until<T>(
        &self,
        within: Duration,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut changed = self.heard.changed.subscribe();
        let deadline = Instant::now() + within.min(FOREVER);
        loop {
            changed.borrow_and_update();
            {
                let mut state = self.state();
                if let Some(found) = look(&mut state) {
                    return Ok(Some(found));
                }
                if let Some(cause) = &state.gone {
                    return Err(gone(cause));
                }
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Ok(None);
            }
        }
    }

    /// An error where the cluster as it is could never seat the gang.
    fn feasible(&self, state: &State, request: &GangRequest) -> Result<()> {
        let open = state.open();
        let nodes = open.iter().map(|(name, node, open)| (name.clone(), node.total(), *open));
        match node::feasible(nodes, request) {
            Err(Error::Infeasible(_)) if self.config.autoscaling => Ok(()),
            other => other,
        }
    }

    /// How many workers to ask for at first: as many as fit into what other gangs of ours leave.
    fn as_many(&self, request: &GangRequest) -> usize {
        let state = self.state();
        let fits = |workers: usize| {
            let one = GangRequest { min_workers: workers, max_workers: workers, ..request.clone() };
            let nodes = state.open().into_iter().filter(|(.., open)| *open).map(|(name, node, _)| {
                let free = free(&node.total(), state.held_on(&node.id));
                (name, free, true)
            });
            node::feasible(nodes, &one).is_ok()
        };
        let more = (request.min_workers + 1..=request.max_workers).take_while(|workers| fits(*workers));
        more.last().unwrap_or(request.min_workers)
    }

    async fn acquire(&self, request: &GangRequest) -> Result<Lease> {
        self.feasible(&self.state(), request)?;
        let since = Instant::now();
        let left = || request.patience.saturating_sub(since.elapsed());
        let no_room = || {
            let (gang, waited) = (request.name.clone(), request.patience);
            Error::NoCapacity { gang, waited, blocked: self.blocked(request) }
        };
        let _turn = timeout(request.patience, self.turn.lock()).await.map_err(|_| no_room())?;
        let as_many = self.as_many(request);
        if as_many > request.min_workers
            && let Some(lease) = self.ask(request, as_many, left().min(AS_MANY)).await?
        {
            return Ok(lease);
        }
        self.ask(request, request.min_workers, left()).await?.ok_or_else(no_room)
    }

    /// Asks for a placement group of so many bundles and waits for it; whatever comes otherwise is given back.
    async fn ask(&self, request: &GangRequest, workers: usize, within: Duration) -> Result<Option<Lease>> {
        let (id, avoid) = {
            let mut state = self.state();
            state.issued += 1;
            let shut = |name: &str, open: bool| !open || request.excluded.contains(name);
            let open = state.open();
            let avoid: Vec<String> = open
                .iter()
                .filter(|(name, _, open)| shut(name, *open))
                .map(|(_, node, _)| node.id.clone())
                .collect();
            let id = LeaseId(state.issued);
            state.asked.insert(id, None);
            (id, avoid)
        };
        let mut asked = Asked { inner: self, id, granted: false };
        self.shim.order(&json!({
            "op": "acquire",
            "gang": id.0,
            "bundles": vec![node::bundle(&request.per_worker); workers],
            "strategy": node::strategy(request.placement),
            "avoid": avoid,
            "guard": GUARD,
        }));
        let answer = self.until(within, |state| match state.asked.get_mut(&id).and_then(Option::take) {
            Some(answer) => Some(answer.map_err(|reason| refused(request, reason))),
            // A node that went may have taken the last hope with it.
            None => self.feasible(state, request).err().map(Err),
        });
        let Some(nodes) = answer.await? else { return Ok(None) };
        let lease = self.seat(id, request, nodes?);
        asked.granted = true;
        Ok(Some(lease))
    }

    /// Seats on the nodes of the bundles, those on one node together.
    fn seat(&self, id: LeaseId, request: &GangRequest, nodes: Vec<String>) -> Lease {
        let mut state = self.state();
        let names: HashMap<String, String> =
            state.open().into_iter().map(|(name, node, _)| (node.id.clone(), name)).collect();
        let first = |node: &String| nodes.iter().position(|other| other == node);
        let mut places: Places = nodes.iter().cloned().enumerate().collect();
        places.sort_by_key(|(bundle, node)| (first(node), *bundle));
        let seat = |(slot, (_, node)): (usize, &(usize, String))| Seat {
            slot,
            node: names.get(node).unwrap_or(node).clone(),
            local_slot: places[..slot].iter().filter(|(_, other)| other == node).count(),
            resources: request.per_worker.clone(),
            cpus: Vec::new(),
            gpus: Vec::new(),
        };
        let seats = places.iter().enumerate().map(seat).collect();
        let lease = Lease { id, seats };
        let held = Held { lease: lease.clone(), places, workers: Vec::new(), launching: false };
        state.held.insert(id, held);
        lease
    }

    fn blocked(&self, request: &GangRequest) -> String {
        let state = self.state();
        let of_node = |(name, node, open): &(String, &Node, bool)| {
            let free = free(&node.total(), state.held_on(&node.id));
            match (open, request.excluded.contains(name)) {
                (false, _) => format!("`{name}` is closed, since it did not end a worker"),
                (_, true) => format!("`{name}` is excluded"),
                _ => format!("`{name}` has {{{free}}} that this run leaves, and others may use it"),
            }
        };
        let nodes: Vec<String> = state.open().iter().take(8).map(of_node).collect();
        format!(
            "Ray found no place for {} workers of {{{}}} ({}); {}",
            request.min_workers,
            request.per_worker,
            request.placement,
            nodes.join(", ")
        )
    }

    /// The lease, its places, and the driver's host as workers reach it.
    fn begin_launch(&self, id: LeaseId) -> Result<(Lease, Places, String)> {
        let mut state = self.state();
        if let Some(cause) = &state.gone {
            return Err(gone(cause));
        }
        let host = state.host.clone().unwrap_or_default();
        let held = state.held.get_mut(&id).ok_or_else(|| Self::unknown(id, "launching"))?;
        let running = held.workers.iter().filter(|worker| !worker.look().ended).count();
        if running > 0 || held.launching {
            return Err(Error::StillRunning { lease: id, running });
        }
        (held.launching, held.workers) = (true, Vec::new());
        Ok((held.lease.clone(), held.places.clone(), host))
    }

    async fn launch(self: Arc<Self>, id: LeaseId, launch: Launch) -> Result<Events> {
        let (lease, places, host) = self.begin_launch(id)?;
        let (sender, events) = queue();
        let mut workers = Vec::new();
        let started = self.start_all(&lease, &places, &host, &launch, &sender, &mut workers).await;
        let released = match self.state().held.get_mut(&id) {
            Some(held) => {
                held.launching = false;
                false
            }
            None => true,
        };
        let outcome = if released { Err(Self::unknown(id, "launching")) } else { started };
        if outcome.is_err() {
            self.end_all(id, &workers, Duration::ZERO).await;
        }
        outcome.map(|()| events)
    }

    /// Starts a worker on every seat and waits until each runs, or it is known that one never will.
    async fn start_all(
        &self,
        lease: &Lease,
        places: &[(usize, String)],
        host: &str,
        launch: &Launch,
        events: &EventSender,
        workers: &mut Vec<Arc<Worker>>,
    ) -> Result<()> {
        for (seat, (bundle, _)) in lease.seats.iter().zip(places) {
            let log = launch
                .logs
                .as_ref()
                .map(|folder| Log::open(folder, launch.attempt, seat.slot))
                .transpose()?;
            let record = Record { log, ..Record::default() };
            let mut state = self.state();
            state.issued += 1;
            let number = state.issued;
            let id = WorkerId(format!("{}{number}", self.mark));
            let order = order(lease, seat, launch, (number, &id, *bundle), host)?;
            let program = launch.command.program.clone();
            let worker =
                Arc::new(Worker::new((seat.slot, &seat.node, *bundle), program, id, record, events.clone()));
            workers.push(worker.clone());
            state.workers.insert(number, worker);
            if let Some(held) = state.held.get_mut(&lease.id) {
                held.workers.clone_from(workers);
            }
            drop(state);
            self.shim.order(&order);
        }
        let deadline = Instant::now() + self.config.start_patience();
        for worker in workers.iter() {
            worker.wait(deadline.saturating_duration_since(Instant::now()), Seen::decided).await;
        }
        let late = || format!("no answer within {:?}", self.config.start_patience());
        match workers.iter().map(|worker| (worker, worker.look())).find(|(_, seen)| !seen.started) {
            None => Ok(()),
            Some((worker, seen)) => Err(Error::Launch {
                slot: worker.slot,
                node: worker.node.clone(),
                program: worker.program.clone(),
                source: std::io::Error::other(seen.refused.unwrap_or_else(late)),
            }),
        }
    }

    fn signal(&self, lease: LeaseId, workers: &[Arc<Worker>], number: i32) {
        for worker in workers {
            let seen = worker.look();
            // Of one that has not begun its actor is all there is.
            let number = if seen.started { number } else { 0 };
            if !seen.ended {
                let order =
                    json!({ "op": "send", "gang": lease.0, "index": worker.bundle, "number": number });
                self.shim.order(&order);
            }
        }
    }

    async fn all_ended(workers: &[Arc<Worker>], within: Duration) -> bool {
        let deadline = Instant::now() + within;
        for worker in workers {
            if !worker.wait(deadline.saturating_duration_since(Instant::now()), |seen| seen.ended).await {
                return false;
            }
        }
        true
    }

    /// Ends the workers; afterwards each has told its end, and nodes that did not obey are closed.
    async fn end_all(&self, lease: LeaseId, workers: &[Arc<Worker>], grace: Duration) {
        let running: Vec<_> = workers.iter().filter(|worker| !worker.look().ended).cloned().collect();
        if running.is_empty() {
            return;
        }
        running.iter().for_each(|worker| worker.cancelled());
        if !grace.is_zero() {
            self.signal(lease, &running, libc::SIGTERM);
            if Self::all_ended(&running, grace).await {
                return;
            }
        }
        self.signal(lease, &running, libc::SIGKILL);
        if Self::all_ended(&running, self.config.kill_patience()).await {
            return;
        }
        for worker in running.iter().filter(|worker| !worker.look().ended) {
            if worker.look().started {
                let (node, slot) = (&worker.node, worker.slot);
                tracing::warn!(node, slot, "a node does not end a worker; it is not used any more");
                self.close(lease, slot);
            }
            worker.lost(&format!("node `{}` did not end it when told to: it hangs or is gone", worker.node));
        }
    }

    fn close(&self, lease: LeaseId, slot: usize) {
        let mut state = self.state();
        let node =
            state.held.get(&lease).and_then(|held| held.places.get(slot)).map(|(_, node)| node.clone());
        state.closed.extend(node);
    }
}

/// What is left of a node beside these.
fn free<'a>(total: &Resources, held: impl Iterator<Item = &'a Resources>) -> Resources {
    held.fold(total.clone(), |free, used| free.less(used))
}

fn refused(request: &GangRequest, reason: String) -> Error {
    let what = format!("a placement group for gang `{}`", request.name);
    Error::Engine { engine: ENGINE, what, reason, advice: String::new() }
}

/// A placement group that was asked for; given back unless it became a lease.
struct Asked<'a> {
    inner: &'a Inner,
    id: LeaseId,
    granted: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.inner.state().asked.remove(&self.id);
        if !self.granted {
            self.inner.shim.order(&json!({ "op": "release", "gang": self.id.0 }));
        }
    }
}

/// The order that starts one worker.
fn order(
    lease: &Lease,
    seat: &Seat,
    launch: &Launch,
    (number, id, bundle): (u64, &WorkerId, usize),
    host: &str,
) -> Result<serde_json::Value> {
    let command = &launch.command;
    let text = |what: &str, text: &OsString| match text.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::BadRequest {
            what: format!("{what} of a worker, {text:?},"),
            problem: "it is no UTF-8, and Ray carries nothing else".into(),
        }),
    };
    // Ray says which GPUs; where there are to be none, it is said here.
    let devices = seat.resources.gpu.is_zero().then(String::new);
    let mut variables = BTreeMap::new();
    for (name, value) in env::of_worker(lease, seat, launch, devices) {
        let explicit = command.env.contains_key(name.to_string_lossy().as_ref());
        match (name.to_str(), value.to_str()) {
            (Some(name), Some(value)) => drop(variables.insert(name.to_owned(), value.to_owned())),
            _ if explicit => return Err(text("a variable", &value).unwrap_err()),
            _ => {}
        }
    }
    // Those are of the driver's own connection to the cluster, its token among them.
    variables.retain(|name, _| !name.starts_with("RAY_") || command.env.contains_key(name));
    variables.insert(env::WORKER.into(), id.0.clone());
    if let Some(address) = variables.get_mut(env::ADDR) {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        *address = address.replace(DRIVER_NODE, &host);
    }
    let words = std::iter::once(&command.program).chain(&command.args);
    let argv = words.map(|word| text("an argument", word)).collect::<Result<Vec<_>>>()?;
    // Where the driver stands, unless said otherwise.
    let cwd = command.cwd.clone().or_else(|| std::env::current_dir().ok()).unwrap_or_default();
    Ok(json!({
        "op": "launch",
        "gang": lease.id.0,
        "index": bundle,
        "worker": number,
        "argv": argv,
        "env": variables,
        "cwd": text("the folder", &cwd.into_os_string())?,
        "home": std::env::var(HOME).unwrap_or_default(),
    }))
}

#[async_trait]
impl Spawner for RaySpawner {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        let state = self.inner.state();
        let status = |(name, node, up): (String, &Node, bool)| {
            let total = node.total();
            let free = free(&total, state.held_on(&node.id));
            NodeStatus { name, total, free, up }
        };
        state.open().into_iter().map(status).collect()
    }

    async fn acquire(&self, request: GangRequest) -> Result<Lease> {
        self.inner.acquire(&request).await
    }

    async fn launch(&self, lease: LeaseId, launch: Launch) -> Result<Events> {
        // In a task of its own it runs to its end even if nobody waits for it any more.
        let launched = tokio::spawn(self.inner.clone().launch(lease, launch)).await;
        launched.unwrap_or_else(|error| Err(gone(&format!("a launch did not end: {error}"))))
    }

    async fn kill(&self, lease: LeaseId, grace: Duration) -> Result<()> {
        let workers = {
            let state = self.inner.state();
            state.held.get(&lease).ok_or_else(|| Inner::unknown(lease, "killing"))?.workers.clone()
        };
        self.inner.end_all(lease, &workers, grace).await;
        Ok(())
    }

    async fn release(&self, lease: LeaseId) -> Result<()> {
        let Some(workers) = self.inner.state().held.get(&lease).map(|held| held.workers.clone()) else {
            return Ok(());
        };
        self.inner.end_all(lease, &workers, Duration::ZERO).await;
        if self.inner.state().held.remove(&lease).is_some() {
            self.inner.shim.order(&json!({ "op": "release", "gang": lease.0 }));
        }
        Ok(())
    }
}
