//! The engine that the `thread` and `shm` back ends share: collectives over shared memory, moved along by their callers.
//!
//! There is no communication thread. A call is a small state machine ([`Op`](ops::Op)) that is advanced as far as the other ranks' flags
//! allow; blocking calls advance and wait in turn, started calls are advanced by any call of the group. What the back ends bring along is
//! the [`Fabric`]: how memory comes to be shared, and how a death is noticed.

pub(crate) mod flags;
mod layout;
mod mail;
pub(crate) mod memory;
#[cfg(test)]
mod model;
mod ops;
mod phase;
mod wait;

pub use phase::{Phase, Probe};

pub(crate) use layout::Layout;
pub(crate) use memory::Mapping;

use crate::backend::{Backend, Health, SharedMemory, Ticket};
use crate::call::{Call, Kind, Signature};
use crate::{DType, Error, Region, Result};
use mail::Lane;
use ops::{Counters, Op};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError, Weak};
use std::time::Duration;
use wait::Patience;

/// How memory comes to be shared between the ranks of one engine.
pub(crate) trait Fabric: Send + Sync + fmt::Debug {
    /// All ranks get the same fresh `bytes`, zeroed. `check` says when to give up, and is called again and again.
    fn share(&self, id: u32, bytes: usize, check: &mut dyn FnMut() -> Result<()>) -> Result<Arc<Mapping>>;
    /// Whether a rank is known to have died by other means than the flags.
    fn lost(&self) -> Vec<usize> {
        Vec::new()
    }
}

/// Who an engine is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) name: &'static str,
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) generation: u64,
    pub(crate) probe: Option<Probe>,
}

/// A back end over shared memory.
#[derive(Debug)]
pub(crate) struct Engine {
    me: Identity,
    view: View,
    fabric: Box<dyn Fabric>,
    /// Held while a call is moved along; `abort` and `health` do without.
    core: Mutex<Core>,
    /// The first failure, which every later call returns.
    over: OnceLock<Error>,
}

/// What the state machines see of the group.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) layout: Layout,
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) probe: Option<Probe>,
    /// More ranks than cores: whoever spins keeps another from running.
    pub(crate) crowded: bool,
}

impl View {
    #[inline]
    fn tell(&self, phase: Phase) {
        if let Some(probe) = &self.probe {
            probe.tell(phase);
        }
    }
}

#[derive(Debug)]
struct Core {
    /// Collectives in flight, in order. Only the first is advanced.
    queue: VecDeque<Op>,
    /// Collectives submitted, and finished.
    submitted: u64,
    finished: u64,
    counters: Counters,
    /// Messages in flight to and from each rank: lane `2 * peer` and `2 * peer + 1`.
    lanes: Vec<Lane>,
    /// Messages in flight in all lanes.
    messages: usize,
    /// Buckets by number, as long as somebody holds them.
    buckets: Vec<(Weak<Mapping>, usize)>,
    /// Room for the list of sources of a combination, kept so that no call allocates.
    scratch: Vec<Region>,
}

/// The abort word: what happened, to whom, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum End {
    Lost = 1,
    Mismatch = 2,
    Aborted = 3,
}

impl End {
    fn word(self, subject: usize, author: usize) -> u64 {
        (self as u64) << 56 | (subject as u64) << 24 | author as u64
    }
}

/// Tells the group, from outside a call, that a rank is gone.
pub(crate) fn declare_lost(layout: &Layout, lost: usize, author: usize) {
    layout.shared().set_abort(End::Lost.word(lost, author));
}

impl Engine {
    /// A member of the group that lives in `mapping`, which all members have zeroed and mapped.
    pub(crate) fn new(
        me: Identity,
        layout: Layout,
        fabric: Box<dyn Fabric>,
        within: Duration,
    ) -> Result<Engine> {
        layout.set_cores(me.rank, &wait::own_cores());
        let (rank, world, probe) = (me.rank, me.world, me.probe.clone());
        let core = Core {
            queue: VecDeque::new(),
            submitted: 0,
            finished: 0,
            counters: Counters::default(),
            lanes: (0..2 * world).map(|i| Lane::new(i / 2, i % 2 == 0)).collect(),
            messages: 0,
            buckets: Vec::new(),
            scratch: Vec::with_capacity(world),
        };
        let view = View { layout, rank, world, probe, crowded: true };
        let mut engine = Engine { me, view, fabric, core: Mutex::new(core), over: OnceLock::new() };
        engine.run(Call::new(Kind::Barrier, DType::U8, 0), within)?;
        engine.view.crowded = engine.view.layout.cores() < world as u32;
        Ok(engine)
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic in a call (a probe's, say) leaves the group unusable for the others anyway; here it must not hide their errors.
        self.core.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The error that ended the group, if it is over.
    fn check(&self) -> Result<()> {
        if self.view.layout.shared().abort() == 0 { Ok(()) } else { Err(self.ended()) }
    }

    /// What the abort word says, as an error; the first one stays.
    #[cold]
    fn ended(&self) -> Error {
        self.over.get_or_init(|| self.decode(self.view.layout.shared().abort())).clone()
    }

    fn decode(&self, word: u64) -> Error {
        let (kind, subject, author) = (word >> 56, (word >> 24) as u32 as usize, (word & 0xff_ffff) as usize);
        let (reason, peer, signatures) = self.view.layout.reason(author);
        let [mine, theirs] = signatures.map(Signature::from_word);
        if kind == End::Lost as u64 {
            let cause = format!("rank {author} saw its process or its membership end");
            return Error::PeerLost { rank: subject, generation: self.me.generation, cause };
        }
        if kind == End::Mismatch as u64 {
            return Error::Mismatch { rank: author, mine, peer, theirs };
        }
        Error::Aborted { by: author, generation: self.me.generation, reason }
    }

    /// Ends the group with an error of this rank's own, and returns what stands: an earlier end, or this one.
    fn fail(&self, core: &mut Core, error: Error) -> Error {
        core.clear();
        let (rank, layout) = (self.me.rank, &self.view.layout);
        if layout.shared().abort() != 0 {
            return self.ended();
        }
        let word = match &error {
            Error::PeerLost { rank: lost, .. } => End::Lost.word(*lost, rank),
            Error::Mismatch { mine, peer, theirs, .. } => {
                layout.set_reason(rank, "", *peer, [mine.to_word(), theirs.to_word()]);
                End::Mismatch.word(*peer, rank)
            }
            other => {
                layout.set_reason(rank, &other.to_string(), rank, [0; 2]);
                End::Aborted.word(rank, rank)
            }
        };
        if layout.shared().set_abort(word) == word {
            tracing::debug!(rank, "ending the group: {error}");
            return self.over.get_or_init(|| error).clone();
        }
        self.ended()
    }

    /// Moves along whatever is in flight.
    fn progress(&self, core: &mut Core) -> Result<()> {
        while let Some(op) = core.queue.front_mut() {
            if !op.advance(&self.view, &mut core.counters, &mut core.scratch)? {
                break;
            }
            core.queue.pop_front();
            core.finished += 1;
            self.view.tell(Phase::Finished);
        }
        self.announce_ahead(core);
        if core.messages > 0 {
            for lane in &mut core.lanes {
                core.messages -= lane.advance(&self.view)?;
            }
        }
        Ok(())
    }

    /// Bucket calls are announced before their turn, as long as only bucket calls stand before them.
    fn announce_ahead(&self, core: &mut Core) {
        for op in &mut core.queue {
            if !op.announce(&self.view, &mut core.counters) {
                break;
            }
        }
    }

    /// Advances and waits until `done`.
    fn drive(&self, core: &mut Core, within: Duration, done: impl Fn(&Core) -> bool) -> Result<()> {
        let mut patience = Patience::new(within);
        let mut stamp = core.stamp();
        loop {
            if let Err(e) = self.progress(core) {
                return Err(self.fail(core, e));
            }
            if done(core) {
                return Ok(());
            }
            let now = core.stamp();
            if now != stamp {
                stamp = now;
                patience.moved();
            }
            if patience.pause(self.view.crowded)
                && let Err(e) = self.look_around(core, &patience)
            {
                return Err(self.fail(core, e));
            }
        }
    }

    /// What a waiting rank checks now and then: is the group over, is somebody gone, do we all mean the same call, is the time up?
    fn look_around(&self, core: &Core, patience: &Patience) -> Result<()> {
        self.check()?;
        if let Some(op) = core.queue.front() {
            op.suspect(&self.view, &core.counters)?;
        }
        let gone = |r: usize| self.view.layout.rank(r).has_left();
        let lost = |rank: usize| {
            let cause = "it left the group while it was needed".to_string();
            Err(Error::PeerLost { rank, generation: self.me.generation, cause })
        };
        // Whoever has left may have done its part before: ask whether it is missing after it was seen to be gone.
        for rank in (0..self.me.world).filter(|r| gone(*r)) {
            if core.missing(&self.view).contains(&rank) {
                return lost(rank);
            }
        }
        if let Some(waited) = patience.expired() {
            let missing = core.missing(&self.view);
            let op = core.queue.front().map(|o| o.signature().to_string());
            let op = op.or_else(|| core.lanes.iter().find_map(Lane::describe)).unwrap_or_default();
            return Err(Error::Deadline { rank: self.me.rank, op, waited, missing });
        }
        Ok(())
    }

    fn enqueue(&self, core: &mut Core, call: Call, within: Duration) -> Result<Ticket> {
        self.view.tell(Phase::Submitted);
        if matches!(call.kind, Kind::Send | Kind::Recv) {
            let lane = 2 * call.root + usize::from(call.kind == Kind::Recv);
            core.messages += 1;
            return Ok(Ticket { lane: lane as u32 + 1, number: core.lanes[lane].push(call) });
        }
        let bucket = match call.place {
            Some(place) => Some(core.bucket(place.bucket)?),
            None => None,
        };
        if core.queue.len() as u64 >= flags::WINDOW {
            self.drive(core, within, |c| (c.queue.len() as u64) < flags::WINDOW)?;
        }
        core.submitted += 1;
        core.queue.push_back(Op::new(call, bucket, &self.view, &mut core.counters));
        Ok(Ticket { lane: 0, number: core.submitted })
    }
}

impl Core {
    /// Forgets everything in flight: its memory is touched no more.
    fn clear(&mut self) {
        self.queue.clear();
        self.lanes.iter_mut().for_each(Lane::clear);
        self.messages = 0;
    }

    fn is_done(&self, ticket: Ticket) -> bool {
        match ticket.lane.checked_sub(1) {
            None => self.finished >= ticket.number,
            Some(lane) => self.lanes.get(lane as usize).is_none_or(|l| l.is_done(ticket.number)),
        }
    }

    fn bucket(&self, id: u32) -> Result<(Arc<Mapping>, usize)> {
        let found = self.buckets.get(id as usize).and_then(|(weak, stride)| Some((weak.upgrade()?, *stride)));
        found.ok_or_else(|| Error::invalid(Kind::BucketAllReduce.name(), format!("there is no bucket {id}")))
    }

    /// Changes whenever something in flight has moved.
    #[inline]
    fn stamp(&self) -> u64 {
        let mail = if self.messages == 0 { 0 } else { self.lanes.iter().map(Lane::steps).sum() };
        self.finished + self.queue.front().map_or(0, Op::stamp) + mail
    }

    /// Which ranks the calls in flight are waiting for.
    fn missing(&self, view: &View) -> Vec<usize> {
        let mut all = self.queue.front().map(|op| op.missing(view)).unwrap_or_default();
        all.extend(self.lanes.iter().filter_map(|l| l.missing(view)));
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Backend for Engine {
    fn name(&self) -> &'static str {
        self.me.name
    }
    fn rank(&self) -> usize {
        self.me.rank
    }
    fn world_size(&self) -> usize {
        self.me.world
    }
    fn generation(&self) -> u64 {
        self.me.generation
    }

    fn submit(&self, call: Call, within: Duration) -> Result<Ticket> {
        self.check()?;
        call.validate(self.me.rank, self.me.world)?;
        let mut core = self.lock();
        let ticket = self.enqueue(&mut core, call, within)?;
        if let Err(e) = self.progress(&mut core) {
            return Err(self.fail(&mut core, e));
        }
        Ok(ticket)
    }

    fn poll(&self, ticket: Ticket) -> Result<bool> {
        let mut core = match self.core.try_lock() {
            Ok(core) => core,
            Err(TryLockError::Poisoned(p)) => p.into_inner(),
            // Another thread of this rank is moving things along.
            Err(TryLockError::WouldBlock) => return self.check().map(|()| false),
        };
        if core.is_done(ticket) {
            return Ok(true);
        }
        if let Err(e) = self.check() {
            core.clear();
            return Err(e);
        }
        if let Err(e) = self.progress(&mut core) {
            return Err(self.fail(&mut core, e));
        }
        Ok(core.is_done(ticket))
    }

    fn wait(&self, ticket: Ticket, within: Duration) -> Result<()> {
        let mut core = self.lock();
        if !core.is_done(ticket) && self.over.get().is_some() {
            return Err(self.ended());
        }
        self.drive(&mut core, within, |c| c.is_done(ticket))
    }

    #[inline]
    fn run(&self, call: Call, within: Duration) -> Result<()> {
        self.check()?;
        call.validate(self.me.rank, self.me.world)?;
        let mut core = self.lock();
        let ticket = self.enqueue(&mut core, call, within)?;
        self.drive(&mut core, within, |c| c.is_done(ticket))
    }

    fn alloc(&self, bytes: usize, within: Duration) -> Result<SharedMemory> {
        self.run(Call::new(Kind::AllocBucket, DType::U8, bytes), within)?;
        let stride = bytes.next_multiple_of(4096).max(4096);
        let mut core = self.lock();
        let id = core.buckets.len() as u32;
        let mut patience = Patience::new(within);
        let shared = self.fabric.share(id + 1, stride * self.me.world, &mut || {
            patience.pause(true);
            self.check()?;
            match patience.expired() {
                Some(waited) => {
                    let op = format!("alloc_bucket({bytes} bytes)");
                    Err(Error::Deadline { rank: self.me.rank, op, waited, missing: vec![0] })
                }
                None => Ok(()),
            }
        });
        let mapping = match shared {
            Ok(mapping) => mapping,
            Err(e) => return Err(self.fail(&mut core, e)),
        };
        core.buckets.push((Arc::downgrade(&mapping), stride));
        drop(core);
        // Nobody goes on before all have it.
        self.run(Call::new(Kind::AllocBucket, DType::U8, bytes), within)?;
        let local = mapping.region().part(self.me.rank * stride, bytes);
        Ok(SharedMemory { local, id, keeper: mapping })
    }

    fn abort(&self, reason: &str) {
        let layout = &self.view.layout;
        layout.set_reason(self.me.rank, reason, self.me.rank, [0; 2]);
        layout.shared().set_abort(End::Aborted.word(self.me.rank, self.me.rank));
    }

    fn health(&self) -> Health {
        let word = self.view.layout.shared().abort();
        let mut lost = self.fabric.lost();
        lost.extend((0..self.me.world).filter(|r| self.view.layout.rank(*r).has_left()));
        let over = (word != 0).then(|| self.ended());
        if let Some(Error::PeerLost { rank, .. }) = &over {
            lost.push(*rank);
        }
        lost.sort_unstable();
        lost.dedup();
        Health { lost, over: over.map(|e| e.to_string()) }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.view.layout.rank(self.me.rank).leave();
    }
}
