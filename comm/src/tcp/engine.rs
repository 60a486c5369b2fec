//! What moves the bytes: one lock's worth of state, and a pump that does what can be done without waiting.
//!
//! Collectives go one after the other: a rank's frames of a call are all out before those of the next, so a frame of a call
//! that has not begun here can wait in its connection and block nothing.

use super::control::{self, Cause, Note};
use super::direct::Direct;
use super::exchange::{Exchange, Frame, Place, Refusal, Task};
use super::frame::Header;
use super::link::{Event, Link};
use super::memory::Pages;
use super::plan::Plan;
use super::wire::{Wire, narrowed};
use crate::{Call, Kind, Phase, Probe, Region, Signature};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the cause may lag behind the end of a connection before the end itself is taken for the cause.
const GRACE: Duration = Duration::from_millis(200);

/// How long calls that others have finished may take to finish here too, once the group is over.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// The connections to one peer, as they come from the mesh. None of them blocks.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) control: Arc<TcpStream>,
    pub(super) direct: Arc<TcpStream>,
    pub(super) lanes: Vec<Arc<TcpStream>>,
}

#[derive(Debug)]
struct Peer {
    control: Control,
    link: Link,
    direct: Direct,
    lanes: Vec<Link>,
    /// Since when, and why, it is thought to be gone.
    suspect: Option<(Instant, String)>,
}

/// The reading end of the connection for notes.
#[derive(Debug)]
struct Control {
    socket: Arc<TcpStream>,
    note: [u8; control::BYTES],
    got: usize,
    said_bye: bool,
    closed: bool,
}

/// What a waiting thread should be woken by.
#[derive(Debug)]
pub(super) struct Interest {
    pub(super) sockets: Vec<(Arc<TcpStream>, bool, bool)>,
    /// Look again after this time in any case.
    pub(super) soon: bool,
}

#[derive(Debug)]
pub(super) struct Engine {
    place: Place,
    peers: Vec<Option<Peer>>,
    waiting: VecDeque<Task>,
    active: Option<Exchange>,
    submitted: u64,
    /// Read by threads that tell the others that the group is over.
    finished: Arc<AtomicU64>,
    /// Why the group is over, to be told when so many collectives are finished, or at some time.
    ending: Option<(Cause, u64, Instant)>,
    scratch: Pages,
    wire: Wire,
    /// The values of the collective under way, as they travel, where that is not as they are.
    narrow: Pages,
    probe: Option<Probe>,
}

impl Engine {
    pub(super) fn new(place: Place, wire: Wire, sockets: &[Option<Sockets>], probe: Option<Probe>) -> Engine {
        let peer = |s: &Sockets| Peer {
            control: Control {
                socket: s.control.clone(),
                note: [0; control::BYTES],
                got: 0,
                said_bye: false,
                closed: false,
            },
            link: Link::new(s.direct.clone()),
            direct: Direct::default(),
            lanes: s.lanes.iter().cloned().map(Link::new).collect(),
            suspect: None,
        };
        Engine {
            place,
            peers: sockets.iter().map(|s| s.as_ref().map(peer)).collect(),
            waiting: VecDeque::new(),
            active: None,
            submitted: 0,
            finished: Arc::default(),
            ending: None,
            scratch: Pages::new(0),
            wire,
            narrow: Pages::new(0),
            probe,
        }
    }

    /// Queues a collective; its number.
    pub(super) fn submit(&mut self, task: Task) -> u64 {
        self.tell(Phase::Submitted);
        self.waiting.push_back(task);
        self.submitted += 1;
        self.submitted - 1
    }

    /// Queues a send or receive; its number.
    pub(super) fn submit_direct(&mut self, call: Call) -> u64 {
        self.tell(Phase::Submitted);
        let place = self.place;
        let Some(peer) = self.peers[call.root].as_mut() else { return 0 };
        if call.kind == Kind::Send {
            peer.direct.send(&call, place, &mut peer.link)
        } else {
            peer.direct.receive(call)
        }
    }

    /// How many collectives are finished.
    pub(super) fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    /// The same, for whom does not hold the engine.
    pub(super) fn finished_counter(&self) -> Arc<AtomicU64> {
        self.finished.clone()
    }

    /// How many sends to and receives from a peer are finished.
    pub(super) fn finished_direct(&self, peer: usize) -> (u64, u64) {
        self.peers[peer].as_ref().map_or((0, 0), |p| (p.direct.sends_done, p.direct.receives_done))
    }

    /// The collective that is under way, and who has not taken part.
    pub(super) fn under_way(&self) -> (String, Vec<usize>) {
        match &self.active {
            None => ("a call".into(), Vec::new()),
            Some(exchange) => {
                let missing = exchange.missing();
                let missing = if missing.is_empty() { exchange.awaited() } else { missing };
                (exchange.call.kind.name().into(), missing)
            }
        }
    }

    /// Ranks whose connections have ended.
    pub(super) fn lost(&self) -> Vec<usize> {
        let gone = |p: &Peer| p.control.closed || p.suspect.is_some();
        (0..self.place.world).filter(|r| self.peers[*r].as_ref().is_some_and(gone)).collect()
    }

    /// Lets go of all memory: the group is over.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.active = None;
        for peer in self.peers.iter_mut().flatten() {
            peer.link.clear();
            peer.direct.clear();
            peer.lanes.iter_mut().for_each(Link::clear);
        }
    }

    /// Does what can be done without waiting. `notes` also looks for what peers say about the group.
    pub(super) fn pump(&mut self, notes: bool) -> Result<(), Cause> {
        loop {
            let mut moved = self.begin();
            for rank in 0..self.place.world {
                moved |= self.exchange_with(rank)?;
                moved |= self.direct_with(rank)?;
            }
            moved |= self.complete();
            if !moved {
                break;
            }
        }
        if notes || self.peers.iter().flatten().any(|p| p.suspect.is_some()) {
            self.read_notes()?;
        }
        match &self.ending {
            Some((cause, calls, since)) if self.finished() >= *calls || since.elapsed() > LAST_CALLS => {
                Err(cause.clone())
            }
            _ => Ok(()),
        }
    }

    /// Begins the next collective, if none is under way.
    fn begin(&mut self) -> bool {
        if self.active.is_some() {
            return false;
        }
        let Some(mut task) = self.waiting.pop_front() else { return false };
        if let Some(call) = &mut task.moves {
            let room = self.wire.room(call);
            if room > 0 {
                make_room(&mut self.narrow, room);
                *call = narrowed(call, self.narrow.region().part(0, room));
            }
            make_room(&mut self.scratch, Plan::scratch(call, self.place.world));
        }
        let scratch = self.scratch.region();
        let mut exchange = Exchange::new(task, self.finished(), self.place, scratch, self.probe.clone());
        let frames = exchange.open();
        self.active = Some(exchange);
        self.push(frames);
        self.tell(Phase::Published);
        true
    }

    fn push(&mut self, frames: Vec<Frame>) {
        for frame in frames {
            if let Some(peer) = self.peers[frame.peer].as_mut() {
                peer.lanes[frame.lane].push(frame.header, frame.body);
            }
        }
    }

    /// Sends and receives what is possible of the collective under way.
    fn exchange_with(&mut self, rank: usize) -> Result<bool, Cause> {
        let mut moved = false;
        for lane in 0..self.place.lanes {
            loop {
                let (Some(peer), Some(exchange)) = (self.peers[rank].as_mut(), self.active.as_mut()) else {
                    return Ok(moved);
                };
                match peer.lanes[lane].flush() {
                    Ok(sent) => moved |= sent,
                    Err(why) => peer.suspected(why),
                }
                if !exchange.expects(rank, lane) || peer.suspect.is_some() {
                    break;
                }
                let place = self.place;
                let mut refusal = None;
                let event = peer.lanes[lane]
                    .receive(|header| admit(exchange, place, rank, lane, header, &mut refusal));
                let frames = match event {
                    Some(Event::Frame(header)) => exchange.arrive(rank, lane, &header),
                    Some(Event::Idle | Event::Held) => break,
                    Some(Event::Closed(why)) => {
                        peer.suspected(why);
                        break;
                    }
                    Some(Event::Corrupt(why)) => return Err(corrupt(rank, why)),
                    None => return Err(self.refused(rank, refusal)),
                };
                moved = true;
                self.push(frames);
            }
        }
        Ok(moved)
    }

    /// Sends and receives what is possible between this rank and another alone.
    fn direct_with(&mut self, rank: usize) -> Result<bool, Cause> {
        let me = self.place.rank;
        let Some(peer) = self.peers[rank].as_mut() else { return Ok(false) };
        let mut moved = false;
        match peer.link.flush() {
            Ok(sent) => moved |= sent,
            Err(why) => peer.suspected(why),
        }
        moved |= peer.direct.note_sent(&peer.link);
        while peer.direct.is_expecting() && peer.suspect.is_none() {
            let (direct, generation) = (&peer.direct, self.place.generation);
            let mut refusal = None;
            let event = peer.link.receive(|header| {
                if header.generation != generation {
                    refusal = Some(other_generation(header));
                    return Err(());
                }
                direct.admit(me, header).map_err(|why| refusal = Some(why))
            });
            match event {
                Some(Event::Frame(_)) => peer.direct.arrive(),
                Some(Event::Idle | Event::Held) => break,
                Some(Event::Closed(why)) => peer.suspected(why),
                Some(Event::Corrupt(why)) => return Err(corrupt(rank, why)),
                None => {
                    let mine = peer.direct.mine();
                    return Err(refused(me, mine, rank, refusal));
                }
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Ends the collective under way if nothing is left to do.
    fn complete(&mut self) -> bool {
        let flushed = self.peers.iter().flatten().all(|p| p.lanes.iter().all(Link::is_flushed));
        let Some(exchange) = self.active.as_mut().filter(|_| flushed) else { return false };
        exchange.sent();
        if !exchange.is_complete() {
            return false;
        }
        if let Some(moved) = exchange.moves.filter(|moved| moved.dtype != exchange.call.dtype) {
            crate::reduce::widen(moved.output, exchange.call.output);
        }
        self.active = None;
        self.finished.fetch_add(1, Ordering::Relaxed);
        self.tell(Phase::Finished);
        true
    }

    /// Reads what peers say about the group, and decides about those who seem to be gone.
    fn read_notes(&mut self) -> Result<(), Cause> {
        let (generation, world) = (self.place.generation, self.place.world);
        for (rank, peer) in self.peers.iter_mut().enumerate() {
            let Some(peer) = peer else { continue };
            while let Some(note) = peer.control.read() {
                match Note::decode(&note, generation, world) {
                    Ok(Note::Bye) => peer.control.said_bye = true,
                    Ok(Note::Over { cause, finished }) => {
                        self.ending.get_or_insert((cause, finished, Instant::now()));
                    }
                    Err(why) => return Err(corrupt(rank, why.into())),
                }
            }
        }
        for (rank, peer) in self.peers.iter().enumerate() {
            let Some(Peer { suspect: Some((since, why)), control, .. }) = peer else { continue };
            if let Some((cause, ..)) = &self.ending {
                return Err(cause.clone());
            }
            if control.closed || since.elapsed() > GRACE {
                let why = if control.said_bye { "it left the group".into() } else { why.clone() };
                return Err(Cause::Lost { rank, why });
            }
        }
        Ok(())
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> Interest {
        let mut interest = Interest { sockets: Vec::new(), soon: self.ending.is_some() };
        for (rank, peer) in self.peers.iter().enumerate() {
            let Some(peer) = peer else { continue };
            if !peer.control.closed {
                interest.sockets.push((peer.control.socket.clone(), true, false));
            }
            if peer.suspect.is_some() {
                interest.soon = true;
                continue;
            }
            for (lane, link) in peer.lanes.iter().enumerate() {
                let reads = self.active.as_ref().is_some_and(|e| e.expects(rank, lane)) && !link.is_held();
                interest.add(link, reads);
            }
            interest.add(&peer.link, peer.direct.is_expecting() && !peer.link.is_held());
        }
        interest
    }

    fn refused(&self, peer: usize, refusal: Option<Refusal>) -> Cause {
        let nothing = Call::new(Kind::Barrier, crate::DType::U8, 0);
        let mine = self.active.as_ref().map_or(nothing, |e| e.call).signature();
        refused(self.place.rank, mine, peer, refusal)
    }

    fn tell(&self, phase: Phase) {
        if let Some(probe) = &self.probe {
            probe.tell(phase);
        }
    }
}

/// Makes memory of this back end's own large enough; what it held is lost.
fn make_room(pages: &mut Pages, bytes: usize) {
    if pages.region().len() < bytes {
        *pages = Pages::new(bytes.next_power_of_two());
    }
}

impl Peer {
    fn suspected(&mut self, why: String) {
        self.suspect.get_or_insert_with(|| (Instant::now(), why));
    }
}

impl Control {
    /// The next whole note, if there is one.
    fn read(&mut self) -> Option<[u8; control::BYTES]> {
        while !self.closed {
            match (&*self.socket).read(&mut self.note[self.got..]) {
                Ok(0) => self.closed = true,
                Ok(n) => self.got += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => self.closed = true,
            }
            if self.got == control::BYTES {
                self.got = 0;
                return Some(self.note);
            }
        }
        None
    }
}

impl Interest {
    fn add(&mut self, link: &Link, reads: bool) {
        let writes = !link.is_flushed();
        if reads || writes {
            self.sockets.push((link.socket().clone(), reads, writes));
        }
    }
}

/// Whether a frame is welcome, and where it goes.
fn admit(
    exchange: &Exchange,
    place: Place,
    rank: usize,
    lane: usize,
    header: &Header,
    refusal: &mut Option<Refusal>,
) -> Result<Option<Region>, ()> {
    if header.generation != place.generation {
        *refusal = Some(other_generation(header));
        return Err(());
    }
    if header.number > exchange.number {
        return Ok(None);
    }
    if header.number < exchange.number {
        *refusal = Some(Refusal::Corrupt(format!("a frame of call {}, which is over", header.number)));
        return Err(());
    }
    exchange.admit(rank, lane, header).map(Some).map_err(|why| *refusal = Some(why))
}

fn other_generation(header: &Header) -> Refusal {
    Refusal::Corrupt(format!("a frame of generation {}", header.generation))
}

fn corrupt(by: usize, why: String) -> Cause {
    Cause::Corrupt { by, why }
}

fn refused(rank: usize, mine: Signature, peer: usize, refusal: Option<Refusal>) -> Cause {
    match refusal {
        Some(Refusal::Mismatch(theirs)) => Cause::Mismatch { rank, mine, peer, theirs },
        Some(Refusal::Corrupt(why)) => corrupt(peer, why),
        None => corrupt(peer, "a frame was refused".into()),
    }
}
