//! Ranks on different hosts: every rank is connected with every other over TCP.
//!
//! # How it works
//! Two ranks share a few connections: *lanes* for the pieces of collectives, one for sends and receives between the two, one for
//! notes about the group. A collective is at most two streams each way: what a rank has for the other, and what it has made
//! of all it got. Streams travel in pieces of 256 KB, so that combining and sending on overlap with receiving. Up to 64 KB everything
//! goes to everybody at once, in one step.
//!
//! Each piece has a checksum, the group's generation, and the call's signature. Offsets and lengths are the receiver's own.
//!
//! All-reduces of f32 can travel as bf16; see [`Wire`].
//!
//! There is no thread: whoever calls moves the bytes, and while it waits it sleeps until a socket is ready.
//!
//! # What it promises
//! - **TCP-1** A peer that dies ends every call that needs it, on every rank, as soon as the kernel closes its connections.
//! - **TCP-2** A peer that stops answering ends a call at its deadline, with the peer's rank.
//! - **TCP-3** What is corrupt, of another generation or of another call is never combined with anything.
//! - **TCP-4** Who does not hold the token gets no further than the challenge, and holds up nobody.
//! - **TCP-5** A result has the same bits on every rank, and the same as over any other back end.

mod control;
mod direct;
mod engine;
mod exchange;
mod frame;
mod link;
mod memory;
mod mesh;
mod plan;
mod wire;

#[cfg(test)]
mod fuzz;

pub use frame::{Header, Stage};
pub use wire::Wire;

use crate::backend::{Backend, Health, SharedMemory, Ticket};
use crate::rendezvous::Rendezvous;
use crate::{Call, Error, Kind, Result};
use control::{Cause, Note};
use engine::{Engine, Interest, Sockets};
use exchange::{Place, Task};
pub(crate) use memory::Pages;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use std::io::Write;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Connections for collectives between two ranks.
const LANES: usize = 4;
/// How long a waiting call looks again and again before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// The longest sleep; every wake-up has its event, so this is only for the unforeseen.
const NAP: Duration = Duration::from_millis(100);
/// The longest sleep while it is being found out why a connection ended.
const SHORT_NAP: Duration = Duration::from_millis(5);
/// The queue of collectives. A peer's sends and receives have two more.
const COLLECTIVES: u32 = 0;

/// Joins a group over TCP.
pub(crate) fn connect(who: &Rendezvous) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(open(who)?))
}

/// The same, for a back end that builds on this one.
pub(crate) fn open(who: &Rendezvous) -> Result<Tcp> {
    let lanes = if who.world_size > 8 { LANES / 2 } else { LANES };
    let place = Place { rank: who.rank, world: who.world_size, generation: who.generation, lanes };
    let sockets = mesh::connect(who, lanes)?;
    let engine = Engine::new(place, who.wire, &sockets, who.probe.clone());
    let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
        .map_err(|e| Error::io("make an eventfd", e))?;
    Ok(Tcp {
        place,
        sockets,
        finished: engine.finished_counter(),
        engine: Mutex::new(engine),
        over: OnceLock::new(),
        wake,
        sleeping: AtomicUsize::new(0),
        buckets: AtomicU32::new(0),
    })
}

/// A member of a group over TCP.
#[derive(Debug)]
pub(crate) struct Tcp {
    place: Place,
    /// For notes, which are written from any thread.
    sockets: Vec<Option<Sockets>>,
    engine: Mutex<Engine>,
    /// Collectives that are finished here.
    finished: Arc<AtomicU64>,
    /// The first failure, which every later call returns.
    over: OnceLock<Error>,
    /// Wakes threads that sleep in a call.
    wake: OwnedFd,
    sleeping: AtomicUsize,
    buckets: AtomicU32,
}

impl Tcp {
    fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error that ended the group, once no memory is touched any more.
    fn check(&self, engine: &mut Engine) -> Result<()> {
        match self.over.get() {
            None => Ok(()),
            Some(error) => {
                engine.clear();
                Err(error.clone())
            }
        }
    }

    /// Moves what can be moved, and ends the group if that fails.
    fn pump(&self, engine: &mut Engine, notes: bool) -> Result<()> {
        self.check(engine)?;
        let Err(cause) = engine.pump(notes) else { return Ok(()) };
        self.end(&cause, cause.error(self.place.generation));
        self.check(engine)
    }

    /// Ends the group: the first cause counts here, and is told to all.
    fn end(&self, cause: &Cause, error: Error) {
        if self.over.set(error).is_err() {
            return;
        }
        tracing::debug!(rank = self.place.rank, ?cause, "the group is over");
        let finished = self.finished.load(Ordering::Relaxed);
        self.tell(&Note::Over { cause: cause.clone(), finished });
        self.wake();
    }

    /// A peer whose buffer is full of notes has heard enough; one that is gone hears nothing.
    fn tell(&self, note: &Note) {
        let bytes = note.encode(self.place.generation);
        for peer in self.sockets.iter().flatten() {
            let _ = (&*peer.control).write(&bytes);
        }
    }

    fn wake(&self) {
        // It only fails if it is full, and then everybody wakes anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Begins to make sure that all ranks make the same call, whose data moves elsewhere.
    pub(crate) fn agree(&self, call: Call) -> Result<Ticket> {
        let mut engine = self.lock();
        self.check(&mut engine)?;
        let number = engine.submit(Task { call, moves: None });
        self.pump(&mut engine, false)?;
        Ok(Ticket { lane: COLLECTIVES, number })
    }

    /// Ends the group because a call's time is up; the error for its caller.
    pub(crate) fn give_up(&self, ticket: Ticket, waited: Duration) -> Error {
        self.late(&mut self.lock(), ticket, waited)
    }

    /// The error that ended the group, if it is over.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.over.get().cloned()
    }

    fn is_finished(&self, engine: &Engine, ticket: Ticket) -> bool {
        let done = match ticket.lane {
            COLLECTIVES => engine.finished(),
            lane => {
                let (sends, receives) = engine.finished_direct((lane as usize - 1) / 2);
                if lane % 2 == 1 { sends } else { receives }
            }
        };
        done > ticket.number
    }

    /// The time of a call is up.
    fn late(&self, engine: &mut Engine, ticket: Ticket, waited: Duration) -> Error {
        let (op, missing) = match ticket.lane {
            COLLECTIVES => engine.under_way(),
            lane if lane % 2 == 1 => ("send".into(), vec![(lane as usize - 1) / 2]),
            lane => ("recv".into(), vec![(lane as usize - 1) / 2]),
        };
        let rank = self.place.rank;
        let cause = Cause::late(rank, &op, waited, &missing);
        self.end(&cause, Error::Deadline { rank, op, waited, missing });
        engine.clear();
        self.over.get().cloned().expect("the group has just ended")
    }

    /// Sleeps until something of interest happens, or the time is up.
    fn sleep(&self, interest: &Interest, within: Duration) {
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        for (socket, reads, writes) in &interest.sockets {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, *reads);
            flags.set(PollFlags::OUT, *writes);
            fds.push(PollFd::new(&**socket, flags));
        }
        let nap = if interest.soon { SHORT_NAP } else { NAP }.min(within);
        let timeout = Timespec { tv_sec: nap.as_secs() as i64, tv_nsec: i64::from(nap.subsec_nanos()) };
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        // An error or a signal only means to look again.
        let _ = poll(&mut fds, Some(&timeout));
        let woken = fds[0].revents().contains(PollFlags::IN);
        let last = self.sleeping.fetch_sub(1, Ordering::SeqCst) == 1;
        if woken && last && self.over.get().is_none() {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
    }
}

impl Backend for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn rank(&self) -> usize {
        self.place.rank
    }

    fn world_size(&self) -> usize {
        self.place.world
    }

    fn generation(&self) -> u64 {
        self.place.generation
    }

    fn submit(&self, call: Call, _within: Duration) -> Result<Ticket> {
        let mut engine = self.lock();
        self.check(&mut engine)?;
        call.validate(self.place.rank, self.place.world)?;
        let ticket = match call.kind {
            Kind::Send => Ticket { lane: 1 + 2 * call.root as u32, number: engine.submit_direct(call) },
            Kind::Recv => Ticket { lane: 2 + 2 * call.root as u32, number: engine.submit_direct(call) },
            _ => Ticket { lane: COLLECTIVES, number: engine.submit(Task { call, moves: Some(call) }) },
        };
        self.pump(&mut engine, false)?;
        drop(engine);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
        Ok(ticket)
    }

    fn poll(&self, ticket: Ticket) -> Result<bool> {
        let mut engine = self.lock();
        if self.is_finished(&engine, ticket) {
            return Ok(true);
        }
        let pumped = self.pump(&mut engine, true);
        if self.is_finished(&engine, ticket) {
            return Ok(true);
        }
        pumped.map(|()| false)
    }

    fn wait(&self, ticket: Ticket, within: Duration) -> Result<()> {
        let started = Instant::now();
        let mut sleepy = false;
        loop {
            let interest = {
                let mut engine = self.lock();
                if self.is_finished(&engine, ticket) {
                    return Ok(());
                }
                let pumped = self.pump(&mut engine, sleepy);
                if self.is_finished(&engine, ticket) {
                    return Ok(());
                }
                pumped?;
                let waited = started.elapsed();
                if waited >= within {
                    return Err(self.late(&mut engine, ticket, waited));
                }
                let spinning = !sleepy && waited < SPIN;
                if spinning { None } else { Some(engine.interest()) }
            };
            match interest {
                None => std::thread::yield_now(),
                Some(interest) => {
                    sleepy = true;
                    self.sleep(&interest, within.saturating_sub(started.elapsed()));
                }
            }
        }
    }

    fn alloc(&self, bytes: usize, within: Duration) -> Result<SharedMemory> {
        self.run(Call::new(Kind::AllocBucket, crate::DType::U8, bytes), within)?;
        let pages = Arc::new(Pages::new(bytes));
        let id = self.buckets.fetch_add(1, Ordering::Relaxed);
        Ok(SharedMemory { local: pages.region(), id, keeper: pages })
    }

    fn abort(&self, reason: &str) {
        let cause = Cause::Aborted { by: self.place.rank, reason: reason.into() };
        self.end(&cause, cause.error(self.place.generation));
    }

    fn health(&self) -> Health {
        if let Ok(mut engine) = self.engine.try_lock() {
            let _ = self.pump(&mut engine, true);
        }
        let over = self.over.get();
        let mut lost = self.engine.try_lock().map(|engine| engine.lost()).unwrap_or_default();
        if let Some(Error::PeerLost { rank, .. }) = over
            && !lost.contains(rank)
        {
            lost.push(*rank);
        }
        Health { lost, over: over.map(ToString::to_string) }
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if self.over.get().is_none() {
            self.tell(&Note::Bye);
        }
    }
}
