//! A crew of threads of this process: for tests, debuggers and trainables that are closures. The same contexts, reports, checkpoints
//! and failures as with processes; but a thread cannot be ended by force, and a crash is everybody's.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use regatta_cluster::gang::failure::Failure;
use regatta_cluster::{Cause, CauseKind};
use regatta_comm::store::MemoryStore;
use regatta_comm::{ProcessGroup, Rendezvous, Transport};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::context::Parts;
use crate::crew::{Crew, CrewEvent, Saying};
use crate::link::{Link, Orders};
use crate::rank::{self, Outcome};
use crate::wire::{Committed, Decision, FromRank, Start};
use crate::{BoxError, Error, Result, TrainContext};

/// A trainable, with its configuration in JSON.
pub type Body = Arc<dyn Fn(&mut TrainContext, Value) -> Result<Value, BoxError> + Send + Sync>;

/// The stack of a rank's thread: that of most systems' main thread.
const STACK: usize = 8 << 20;

/// Ranks that are threads.
pub struct ThreadCrew {
    body: Body,
    world: usize,
    attempt: Option<Attempt>,
}

/// The attempt at work.
struct Attempt {
    ranks: Vec<Arc<ThreadLink>>,
    heard: UnboundedReceiver<Heard>,
    /// Kept so that the channel outlives the ranks.
    _ear: UnboundedSender<Heard>,
    number: u32,
    generation: u64,
    ended: usize,
    causes: Vec<Cause>,
    told: bool,
}

enum Heard {
    Event(CrewEvent),
    Ended(u32, Outcome),
}

impl ThreadCrew {
    /// So many ranks that run this.
    pub fn new(world: usize, body: Body) -> Self {
        ThreadCrew { body, world, attempt: None }
    }
}

/// The line from a thread to its controller.
struct ThreadLink {
    rank: u32,
    said: AtomicU64,
    orders: Orders,
    over: AtomicBool,
    ear: UnboundedSender<Heard>,
    group: Mutex<Option<ProcessGroup>>,
}

impl ThreadLink {
    fn say(&self, saying: Saying) -> Result<()> {
        let sequence = self.said.fetch_add(1, Ordering::Relaxed) + 1;
        let said = CrewEvent::Said { rank: self.rank, sequence, saying };
        self.ear.send(Heard::Event(said)).map_err(|_| Error::NotAvailable {
            what: "reporting",
            why: "the controller has let this attempt go".into(),
        })
    }

    fn end(&self, reason: &str) {
        self.over.store(true, Ordering::Release);
        let group = self.group.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(group) = group {
            group.abort(reason);
        }
    }
}

impl Link for ThreadLink {
    fn tell(&self, _: u64, message: FromRank) -> Result<()> {
        self.say(Saying::Told(message))
    }

    fn committed(&self, committed: Committed) -> Result<()> {
        self.say(Saying::Committed(committed))
    }

    fn orders(&self) -> &Orders {
        &self.orders
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// The life of a rank.
fn live(link: &Arc<ThreadLink>, rendezvous: Rendezvous, start: &Arc<Start>, body: &Body) -> Outcome {
    let (local_rank, store) = (rendezvous.rank, rendezvous.store.clone());
    let group = match rendezvous.join() {
        Ok(group) => group,
        Err(error) => return Outcome::Failed { message: rank::chain(&error), peer: None },
    };
    *link.group.lock().unwrap_or_else(PoisonError::into_inner) = Some(group.clone());
    let parts = Parts { group: group.clone(), local_rank, start: start.clone(), link: link.clone(), store };
    let mut context = TrainContext::new(parts);
    let config = start.config.clone();
    let outcome = rank::run(&mut context, |context| body(context, config));
    if let Outcome::Failed { message, .. } = &outcome {
        group.abort(message);
    }
    drop(context);
    *link.group.lock().unwrap_or_else(PoisonError::into_inner) = None;
    outcome
}

#[async_trait]
impl Crew for ThreadCrew {
    async fn launch(&mut self, start: Start) -> Result<()> {
        if self.attempt.as_ref().is_some_and(|attempt| attempt.ended < self.world) {
            let why = "threads of the attempt before still run; stop the crew first".into();
            return Err(Error::NotAvailable { what: "another attempt", why });
        }
        let (ear, heard) = unbounded_channel();
        let (store, start) = (Arc::new(MemoryStore::new()), Arc::new(start));
        let transport = Transport::Thread(Arc::default());
        let started = CrewEvent::Started {
            world_size: self.world as u32,
            about: format!("{} threads of this process", self.world),
        };
        ear.send(Heard::Event(started)).ok();
        let mut ranks = Vec::with_capacity(self.world);
        for rank in 0..self.world {
            let link = Arc::new(ThreadLink {
                rank: rank as u32,
                said: AtomicU64::new(0),
                orders: Orders::default(),
                over: AtomicBool::new(false),
                ear: ear.clone(),
                group: Mutex::default(),
            });
            ranks.push(link.clone());
            let mut rendezvous =
                Rendezvous::new(store.clone(), rank, self.world).transport(transport.clone());
            rendezvous.generation = start.generation;
            let (start, body, ear) = (start.clone(), self.body.clone(), ear.clone());
            let run = move || {
                let outcome = live(&link, rendezvous, &start, &body);
                ear.send(Heard::Ended(rank as u32, outcome)).ok();
            };
            std::thread::Builder::new()
                .name(format!("rank-{rank}"))
                .stack_size(STACK)
                .spawn(run)
                .map_err(|error| Error::io(format!("start the thread of rank {rank}"), error))?;
        }
        let (number, generation) = (start.attempt, start.generation);
        self.attempt = Some(Attempt {
            ranks,
            heard,
            _ear: ear,
            number,
            generation,
            ended: 0,
            causes: Vec::new(),
            told: false,
        });
        Ok(())
    }

    async fn next(&mut self) -> Option<CrewEvent> {
        let world = self.world;
        let attempt = self.attempt.as_mut()?;
        loop {
            if attempt.ended == world {
                return attempt.verdict();
            }
            match attempt.heard.recv().await? {
                Heard::Event(event) => return Some(event),
                Heard::Ended(rank, outcome) => {
                    if let Some(done) = attempt.ended(rank, outcome) {
                        return Some(done);
                    }
                }
            }
        }
    }

    fn acknowledge(&mut self, _: u32, _: u64) {}

    fn decide(&mut self, decision: &Decision) {
        for link in self.attempt.iter().flat_map(|attempt| &attempt.ranks) {
            match decision {
                Decision::Stop(reason) => link.orders.stop(reason.clone()),
                Decision::Save => link.orders.save(),
                Decision::GoOn(report) => link.orders.grant(*report),
            }
        }
    }

    async fn stop(&mut self, grace: Duration) -> Result<()> {
        let Some(mut attempt) = self.attempt.take() else { return Ok(()) };
        attempt.ranks.iter().for_each(|link| link.end("the crew was stopped"));
        let all_ended = async {
            while attempt.ended < self.world {
                match attempt.heard.recv().await {
                    Some(Heard::Ended(..)) => attempt.ended += 1,
                    Some(Heard::Event(_)) => {}
                    None => break,
                }
            }
        };
        let grace = grace.max(Duration::from_secs(1));
        if tokio::time::timeout(grace, all_ended).await.is_ok() {
            return Ok(());
        }
        let why = format!("{} of {} ranks still run after {grace:?}", self.world - attempt.ended, self.world);
        self.attempt = Some(attempt);
        Err(Error::NotAvailable { what: "ending threads by force", why })
    }
}

impl Attempt {
    /// A rank has ended.
    fn ended(&mut self, rank: u32, outcome: Outcome) -> Option<CrewEvent> {
        self.ended += 1;
        match outcome {
            Outcome::Done(done) => {
                let sequence = self.ranks[rank as usize].said.fetch_add(1, Ordering::Relaxed) + 1;
                Some(CrewEvent::Said { rank, sequence, saying: Saying::Done(done) })
            }
            Outcome::Failed { message, peer } => {
                let kind = peer.map_or(CauseKind::Error, |peer| CauseKind::PeerLost { peer });
                let (attempt, generation) = (self.number, self.generation);
                self.causes.push(Cause { rank, slot: rank, attempt, generation, kind, message });
                self.ranks.iter().for_each(|link| link.end("another rank failed"));
                None
            }
        }
    }

    /// How the attempt ended, said once.
    fn verdict(&mut self) -> Option<CrewEvent> {
        if std::mem::replace(&mut self.told, true) {
            return None;
        }
        if self.causes.is_empty() {
            return Some(CrewEvent::Finished);
        }
        let root = self.causes.iter().position(|cause| !cause.kind.is_consequence()).unwrap_or(0);
        let root = self.causes.remove(root);
        Some(CrewEvent::Failed(Box::new(Failure::new(root, std::mem::take(&mut self.causes)))))
    }
}
