//! A worker process: it calls home, takes its place, runs trainables on the main thread, and tells how they ended.
//!
//! One thread takes the controller's commands all the time; what concerns the loop under way it acts on at once (an abort ends
//! collectives, a decision is put where the next step finds it), the rest waits for the main thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use regatta_cluster::worker::Assignment;
use regatta_cluster::{Begin, Command, Error as ClusterError, Worker, WorkerConfig};
use regatta_comm::store::{Store, Token};
use regatta_comm::{ProcessGroup, Rendezvous};

use crate::context::Parts;
use crate::gang::Sent;
use crate::link::{Link, Orders};
use crate::rank::{self, Outcome};
use crate::store::RendezvousStore;
use crate::wire::{Committed, Decision, FromRank};
use crate::{Error, Result, TrainContext, preflight, registry};

/// How long the listener waits for a command before it looks again; the session has deadlines of its own.
const LISTEN: Duration = Duration::from_secs(60);
/// How long a worker that ends waits until the controller has everything it said.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a report waits for room when the controller is behind.
const BACK_PRESSURE: Duration = Duration::from_secs(30);

/// Becomes a worker if this process was launched as one, and then never returns: call it first thing in `main`. Otherwise returns at
/// once. The process ends with code 0 when the controller lets it go, and with 1 when it lost its controller.
pub fn enter() {
    if is_worker() {
        let code = match serve() {
            Ok(()) => 0,
            Err(error) => {
                tracing::error!(error = rank::chain(&error), "the worker ends");
                1
            }
        };
        std::process::exit(code);
    }
}

/// Whether this process was launched as a worker.
pub fn is_worker() -> bool {
    WorkerConfig::is_worker()
}

/// What the listener and the main thread share.
struct Shared {
    worker: Worker,
    current: Mutex<Option<Current>>,
    /// The controller wants the process to end.
    stopping: AtomicBool,
}

/// The generation at work.
struct Current {
    generation: u64,
    orders: Arc<Orders>,
    group: Option<ProcessGroup>,
}

/// What waits for the main thread.
enum Task {
    Assign(Assignment, Arc<Orders>),
    Start { generation: u64, begin: Begin },
    Stop,
    Lost(ClusterError),
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the collectives of a generation, or of whichever is at work.
    fn abort(&self, generation: Option<u64>, reason: &str) {
        let group = match &*self.current() {
            Some(current) if generation.is_none_or(|over| over >= current.generation) => {
                current.group.clone()
            }
            _ => None,
        };
        if let Some(group) = group {
            group.abort(reason);
        }
    }

    fn listen(&self, tasks: &Sender<Task>) {
        loop {
            let task = match self.worker.next(LISTEN) {
                Ok(Command::Assign(assignment)) => {
                    let orders = Arc::new(Orders::default());
                    let generation = assignment.generation;
                    *self.current() = Some(Current { generation, orders: orders.clone(), group: None });
                    Task::Assign(assignment, orders)
                }
                Ok(Command::Start { generation, begin }) => Task::Start { generation, begin },
                Ok(Command::Decide { generation, payload }) => {
                    self.decide(generation, &payload);
                    continue;
                }
                Ok(Command::Abort { generation, reason }) => {
                    self.abort(Some(generation), &reason);
                    continue;
                }
                Ok(Command::Stop { reason, .. }) => {
                    self.stopping.store(true, Ordering::Release);
                    self.abort(None, &reason);
                    Task::Stop
                }
                Ok(_) | Err(ClusterError::Timeout { .. }) => continue,
                Err(error) => {
                    self.stopping.store(true, Ordering::Release);
                    self.abort(None, &error.to_string());
                    Task::Lost(error)
                }
            };
            let last = matches!(task, Task::Stop | Task::Lost(_));
            if tasks.send(task).is_err() || last {
                return;
            }
        }
    }

    fn decide(&self, generation: u64, payload: &[u8]) {
        let current = self.current();
        let Some(current) = current.as_ref().filter(|current| current.generation == generation) else {
            return;
        };
        match serde_json::from_slice(payload) {
            Ok(Decision::Stop(reason)) => current.orders.stop(reason),
            Ok(Decision::Save) => current.orders.save(),
            Err(error) => tracing::error!(%error, "the controller's decision cannot be read"),
        }
    }
}

/// The line home of one generation.
struct WorkerLink {
    shared: Arc<Shared>,
    generation: u64,
    orders: Arc<Orders>,
}

impl WorkerLink {
    /// Passes something on, and waits a while if too much waits already.
    fn push(&self, push: impl Fn(&Worker) -> regatta_cluster::Result<u64>) -> Result<()> {
        let began = Instant::now();
        loop {
            match push(&self.shared.worker) {
                Ok(_) => return Ok(()),
                Err(ClusterError::OutboxFull { .. })
                    if began.elapsed() < BACK_PRESSURE && !self.is_over() =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Link for WorkerLink {
    fn tell(&self, step: u64, message: FromRank) -> Result<()> {
        let payload = serde_json::to_vec(&message).map_err(|error| Error::other("write a report", error))?;
        self.push(|worker| worker.report(step, payload.clone()))
    }

    fn committed(&self, committed: Committed) -> Result<()> {
        let payload =
            serde_json::to_vec(&committed).map_err(|error| Error::other("write a commit", error))?;
        self.push(|worker| worker.shard_written(committed.step, payload.clone()))
    }

    fn orders(&self) -> &Orders {
        &self.orders
    }

    fn is_over(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire) || self.shared.worker.is_over(self.generation)
    }
}

/// The place this process has taken.
struct Place {
    assignment: Assignment,
    group: ProcessGroup,
    store: Arc<dyn Store>,
    orders: Arc<Orders>,
}

/// Works until the controller lets the process go.
fn serve() -> Result<()> {
    let config = WorkerConfig::from_env()?;
    let secret = config.token.clone();
    let shared = Arc::new(Shared {
        worker: Worker::connect(config)?,
        current: Mutex::default(),
        stopping: AtomicBool::new(false),
    });
    let (sender, tasks) = mpsc::channel();
    let listener = shared.clone();
    std::thread::Builder::new()
        .name("regatta-listen".into())
        .spawn(move || listener.listen(&sender))
        .map_err(|error| Error::io("start the thread that takes commands", error))?;
    let ended = work(&shared, secret.expose(), &tasks);
    shared.worker.flush(LAST_WORDS).ok();
    ended
}

fn work(shared: &Arc<Shared>, secret: &str, tasks: &Receiver<Task>) -> Result<()> {
    let mut place = None;
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Assign(assignment, orders) => {
                // The old group must be left before its successor is joined.
                drop(place.take());
                match join(shared, secret, assignment, orders) {
                    Ok(joined) => {
                        place = Some(joined);
                        shared.worker.ready()?;
                    }
                    Err(error) => {
                        shared
                            .worker
                            .failed(&format!("could not join the group: {}", rank::chain(&error)), None)?;
                    }
                }
            }
            Task::Start { generation, begin } => match &place {
                Some(place) if place.assignment.generation == generation => train(shared, place, begin)?,
                _ => tracing::warn!(generation, "told to start without a place in that generation"),
            },
            Task::Stop => return Ok(()),
            Task::Lost(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn join(shared: &Shared, secret: &str, assignment: Assignment, orders: Arc<Orders>) -> Result<Place> {
    let store: Arc<dyn Store> = Arc::new(RendezvousStore::new(shared.worker.rendezvous(&assignment)));
    let (rank, world) = (assignment.rank as usize, assignment.world as usize);
    let mut rendezvous = Rendezvous::new(store.clone(), rank, world)
        .token(Token::new(format!("{secret} for the process group of {}", assignment.run)));
    rendezvous.generation = assignment.generation;
    let group = rendezvous.join()?;
    if let Some(current) = &mut *shared.current() {
        current.group = Some(group.clone());
    }
    // An abort may have come while there was no group to end.
    if shared.worker.is_over(assignment.generation) {
        group.abort("the generation was over before it began");
    }
    Ok(Place { assignment, group, store, orders })
}

fn train(shared: &Arc<Shared>, place: &Place, begin: Begin) -> Result<()> {
    let outcome = match prepare(shared, place, &begin) {
        Err(error) => Outcome::Failed { message: rank::chain(&error), peer: None },
        Ok((mut context, entry, config)) => {
            let outcome = rank::run(&mut context, |context| (entry.run)(context, config));
            if let Outcome::Failed { message, peer } = &outcome {
                // Told first, so that it is heard before those whom the abort ends.
                fail(shared, message, *peer)?;
                place.group.abort(message);
                return Ok(());
            }
            outcome
        }
    };
    match outcome {
        Outcome::Done(done) => {
            let payload =
                serde_json::to_vec(&done).map_err(|error| Error::other("write the result", error))?;
            shared.worker.finished(payload)?;
        }
        Outcome::Failed { message, peer } => {
            fail(shared, &message, peer)?;
            place.group.abort(&message);
        }
    }
    Ok(())
}

fn fail(shared: &Shared, message: &str, peer: Option<u32>) -> Result<()> {
    match shared.worker.failed(message, peer) {
        // Nobody is there to hear it any more; the next command says what to do.
        Err(_) if shared.stopping.load(Ordering::Acquire) => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

type Ready = (TrainContext, &'static registry::Registration, serde_json::Value);

fn prepare(shared: &Arc<Shared>, place: &Place, begin: &Begin) -> Result<Ready> {
    let entry = registry::find(&begin.trainable)?;
    let Sent { start, probe } = serde_json::from_slice(&begin.config)
        .map_err(|error| Error::other("read what the controller wants started", error))?;
    if let Some(probe) = &probe {
        preflight::check(probe, &start.storage, place.assignment.rank)?;
    }
    let config = start.config.clone();
    let link = WorkerLink {
        shared: shared.clone(),
        generation: place.assignment.generation,
        orders: place.orders.clone(),
    };
    let context = TrainContext::new(Parts {
        group: place.group.clone(),
        local_rank: place.assignment.local_rank as usize,
        start: Arc::new(start),
        link: Arc::new(link),
        store: place.store.clone(),
    });
    Ok((context, entry, config))
}
