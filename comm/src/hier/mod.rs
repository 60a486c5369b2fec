//! Several hosts with several ranks each: shared memory inside a host, TCP between hosts.
//!
//! # How it works
//! Ranks tell each other, through the store, which host they are on: the kernel's boot id and the network namespace, in which
//! descriptors can be passed. If every host has the same number of ranks, in a row, three groups are made: *wide*, all ranks over
//! TCP; *local*, the ranks of this host over shared memory; *column*, the ranks with this place on each host, over TCP. Otherwise
//! wide alone does everything, and if there is one host, local does.
//!
//! If the ranks of a host turn out not to be able to share memory, whatever the reason, all ranks learn it through the store, and
//! wide alone does everything too.
//!
//! A large reduction crosses the network once for a host, not once for a rank: each local rank takes a part of the values of all
//! ranks of the host; the parts travel along the column, each host adding its own in rank order, and the finished part comes
//! back to all. So the sum has the same bits as over any other back end. Small ones, and collectives that cannot save
//! anything, go through wide.
//!
//! Wide is also where all ranks agree on every call, and where the end of a group is told; so errors name ranks of the whole group.

mod steps;

use crate::backend::{Backend, Health, SharedMemory, Ticket};
use crate::rendezvous::Rendezvous;
use crate::tcp::{self, Tcp};
use crate::{Call, Error, Kind, Result};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use steps::{Step, Steps};

/// Up to this many bytes a reduction or broadcast goes through wide.
const SMALL: usize = 64 << 10;
/// How long a waiting call looks again and again before it pauses.
const SPIN: Duration = Duration::from_micros(50);
/// The longest pause.
const NAP: Duration = Duration::from_millis(1);
/// How long the ranks of a host, which are all there, may take to share memory before they do without.
const SHARE: Duration = Duration::from_secs(10);
/// How long the cause may lag behind a failure that was seen in a part of the group.
const GRACE: Duration = Duration::from_secs(1);

/// Tickets of this back end's own calls; those of wide and local are told apart by the rest modulo 3.
const OWN: u32 = 0;
const WIDE: u32 = 1;
const LOCAL: u32 = 2;

/// Where a rank is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    hosts: usize,
    each: usize,
    host: usize,
    index: usize,
}

/// Joins a group of ranks on several hosts.
pub(crate) fn connect(who: &Rendezvous, host: Option<&str>) -> Result<Arc<dyn Backend>> {
    let started = Instant::now();
    let hosts = meet(who, host, started)?;
    let left = || Duration::saturating_sub(who.within, started.elapsed());
    if hosts.iter().all(|h| *h == hosts[0]) {
        return match share(who, who, started)? {
            Some(shared) => Ok(shared),
            None => tcp::connect(&Rendezvous { within: left(), ..who.clone() }),
        };
    }
    let Some(at) = position(&hosts, who.rank) else {
        tracing::debug!("hosts with unequal numbers of ranks, or ranks not in a row: all of it over TCP");
        return tcp::connect(&Rendezvous { within: left(), ..who.clone() });
    };
    let part = |rank: usize, world_size: usize, name: String| Rendezvous {
        rank,
        world_size,
        name,
        within: left(),
        probe: None,
        ..who.clone()
    };
    let host = part(at.index, at.each, format!("{}/host{}", who.name, at.host));
    let Some(local) = share(who, &host, started)? else {
        return tcp::connect(&Rendezvous { within: left(), ..who.clone() });
    };
    // Where memory is shared too, nothing is rounded.
    let wide = tcp::open(&Rendezvous { within: left(), wire: tcp::Wire::Exact, ..who.clone() })?;
    let column = part(at.host, at.hosts, format!("{}/column{}", who.name, at.index));
    Ok(Arc::new(Hier { wide, local, column: tcp::connect(&column)?, at, core: Mutex::default() }))
}

/// Joins the ranks of this host, `host`, in shared memory; `None` if that failed anywhere among all ranks, which then all know.
fn share(who: &Rendezvous, host: &Rendezvous, started: Instant) -> Result<Option<Arc<dyn Backend>>> {
    let left = || Duration::saturating_sub(who.within, started.elapsed());
    let made = crate::shm::connect(&Rendezvous { within: SHARE.min(left() / 2), ..host.clone() });
    let verdict = made.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let store = who.scope();
    store.set(&format!("hier/shared/{}", who.rank), verdict.as_bytes(), left())?;
    let mut all = true;
    for rank in 0..who.world_size {
        let why = store.wait(&format!("hier/shared/{rank}"), left())?;
        if !why.is_empty() {
            let why = String::from_utf8_lossy(&why);
            tracing::warn!(rank, %why, "memory cannot be shared on a host: all of it over TCP");
            all = false;
        }
    }
    Ok(made.ok().filter(|_| all))
}

/// Tells the others this rank's host, and learns theirs.
fn meet(who: &Rendezvous, host: Option<&str>, started: Instant) -> Result<Vec<String>> {
    let mine = match host {
        Some(name) => name.to_owned(),
        None => {
            let path = "/proc/self/ns/net";
            let space = std::fs::read_link(path).map_err(|e| Error::io(format!("read {path}"), e))?;
            format!("{} {}", crate::shm::boot_id()?, space.display())
        }
    };
    let store = who.scope();
    store.set(&format!("hier/{}", who.rank), mine.as_bytes(), who.within)?;
    let other = |rank: usize| {
        let left = who.within.saturating_sub(started.elapsed());
        store.wait(&format!("hier/{rank}"), left).map(|name| String::from_utf8_lossy(&name).into_owned())
    };
    (0..who.world_size).map(other).collect()
}

/// Where a rank is, if the hosts have as many ranks each, and each has them in a row.
fn position(hosts: &[String], rank: usize) -> Option<Position> {
    let rows: Vec<&[String]> = hosts.chunk_by(|a, b| a == b).collect();
    let each = rows[0].len();
    let mut names: Vec<&String> = rows.iter().map(|row| &row[0]).collect();
    names.sort_unstable();
    names.dedup();
    let regular = names.len() == rows.len() && rows.iter().all(|row| row.len() == each);
    (regular && each > 1).then(|| Position { hosts: rows.len(), each, host: rank / each, index: rank % each })
}

/// A member of a group on several hosts.
#[derive(Debug)]
struct Hier {
    wide: Tcp,
    local: Arc<dyn Backend>,
    column: Arc<dyn Backend>,
    at: Position,
    core: Mutex<Core>,
}

/// Collectives in flight that this back end does itself. Only the first moves.
#[derive(Debug, Default)]
struct Core {
    queue: VecDeque<Flight>,
    submitted: u64,
    finished: u64,
    /// Since when a part of the group is known to have failed, and how.
    failed: Option<(Instant, Error)>,
}

#[derive(Debug)]
struct Flight {
    /// All ranks see here that all make this call.
    agreed: Ticket,
    steps: Steps,
    /// The step under way.
    current: Option<(Part, Ticket)>,
    /// Sends that may go on while later steps are done.
    behind: Vec<Ticket>,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Local,
    Column,
}

impl Hier {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part(&self, part: Part) -> &dyn Backend {
        match part {
            Part::Local => &*self.local,
            Part::Column => &*self.column,
        }
    }

    /// Ends the parts when the whole is over, and returns why it is.
    fn check(&self, core: &mut Core) -> Result<()> {
        let Some(error) = self.wide.ended() else { return Ok(()) };
        let reason = error.to_string();
        self.local.abort(&reason);
        self.column.abort(&reason);
        // Their memory is let go of before ours is.
        let nobody = Ticket { lane: 0, number: u64::MAX };
        let _ = (self.local.poll(nobody), self.column.poll(nobody), self.wide.poll(nobody));
        core.queue.clear();
        Err(error)
    }

    /// Moves what can be moved. A failure of a part becomes one of the whole: if nobody knows better in time, this rank tells.
    fn pump(&self, core: &mut Core) -> Result<()> {
        self.check(core)?;
        if let Err(error) = self.advance(core)
            && core.failed.is_none()
        {
            core.failed = Some((Instant::now(), error));
        }
        if let Some((since, error)) = &core.failed {
            // Looking for notes is what polling wide does; which call is of no matter.
            let _ = self.wide.poll(Ticket { lane: 0, number: u64::MAX });
            if since.elapsed() > GRACE {
                self.wide.abort(&format!("a part of the group failed: {error}"));
            }
        }
        self.check(core)
    }

    fn advance(&self, core: &mut Core) -> Result<()> {
        while core.failed.is_none()
            && let Some(flight) = core.queue.front_mut()
        {
            if let Some((part, ticket)) = flight.current {
                if !self.part(part).poll(ticket)? {
                    break;
                }
                flight.current = None;
            }
            // Within a flight a submission never waits: the parts' queues are this flight's alone.
            match flight.steps.next() {
                Some(Step::Do(action)) => action(),
                Some(Step::Local(call)) => {
                    flight.current = Some((Part::Local, self.local.submit(call, GRACE)?));
                }
                Some(Step::Column(call)) => {
                    flight.current = Some((Part::Column, self.column.submit(call, GRACE)?));
                }
                Some(Step::Behind(call)) => flight.behind.push(self.column.submit(call, GRACE)?),
                None => {
                    for ticket in &flight.behind {
                        if !self.column.poll(*ticket)? {
                            return Ok(());
                        }
                    }
                    if !self.wide.poll(flight.agreed)? {
                        return Ok(());
                    }
                    core.queue.pop_front();
                    core.finished += 1;
                }
            }
        }
        // Notes are looked for even while a part is busy.
        match core.queue.front() {
            Some(flight) => self.wide.poll(flight.agreed).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Whether this back end does the call itself, or gives it to wide.
    fn is_own(&self, call: &Call) -> bool {
        match call.kind {
            Kind::AllReduce | Kind::BucketAllReduce | Kind::Broadcast => call.bytes() > SMALL,
            Kind::AllGather => call.bytes() > SMALL / self.at.each,
            _ => false,
        }
    }

    /// The back end that a ticket was given by, and its ticket there.
    fn theirs(&self, ticket: Ticket) -> Option<(&dyn Backend, Ticket)> {
        let inner = Ticket { lane: ticket.lane / 3, number: ticket.number };
        match ticket.lane % 3 {
            WIDE => Some((&self.wide, inner)),
            LOCAL => Some((&*self.local, inner)),
            _ => None,
        }
    }

    fn look(&self, ticket: Ticket) -> Result<bool> {
        let Some((backend, inner)) = self.theirs(ticket) else {
            let mut core = self.lock();
            let moved = self.pump(&mut core);
            if core.finished > ticket.number {
                return Ok(true);
            }
            return moved.map(|()| false);
        };
        let outcome = backend.poll(inner);
        if matches!(outcome, Ok(true)) {
            return outcome;
        }
        let mut core = self.lock();
        if let Err(error) = outcome
            && core.failed.is_none()
        {
            core.failed = Some((Instant::now(), error));
        }
        // A rank that waits for one call moves the others along, and looks whether the group is over.
        let _ = self.wide.poll(Ticket { lane: 0, number: u64::MAX });
        self.pump(&mut core).map(|()| false)
    }
}

impl Backend for Hier {
    fn name(&self) -> &'static str {
        "hier"
    }

    fn rank(&self) -> usize {
        self.wide.rank()
    }

    fn world_size(&self) -> usize {
        self.wide.world_size()
    }

    fn generation(&self) -> u64 {
        self.wide.generation()
    }

    fn submit(&self, call: Call, within: Duration) -> Result<Ticket> {
        let mut core = self.lock();
        self.check(&mut core)?;
        call.validate(self.rank(), self.world_size())?;
        let peer_host = call.root / self.at.each;
        if matches!(call.kind, Kind::Send | Kind::Recv) && peer_host == self.at.host {
            let ticket = self.local.submit(call.root(call.root % self.at.each), within)?;
            return Ok(Ticket { lane: ticket.lane * 3 + LOCAL, number: ticket.number });
        }
        if !self.is_own(&call) {
            let ticket = self.wide.submit(call, within)?;
            return Ok(Ticket { lane: ticket.lane * 3 + WIDE, number: ticket.number });
        }
        let agreed = self.wide.agree(call)?;
        let steps = Steps::new(&call, self.at);
        core.queue.push_back(Flight { agreed, steps, current: None, behind: Vec::new() });
        let ticket = Ticket { lane: OWN, number: core.submitted };
        core.submitted += 1;
        self.pump(&mut core)?;
        Ok(ticket)
    }

    fn poll(&self, ticket: Ticket) -> Result<bool> {
        self.look(ticket)
    }

    fn wait(&self, ticket: Ticket, within: Duration) -> Result<()> {
        let started = Instant::now();
        let mut pause = Duration::from_micros(10);
        while !self.look(ticket)? {
            let waited = started.elapsed();
            if waited >= within {
                let agreed = self.lock().queue.front().map(|flight| flight.agreed);
                let at_wide = match ticket.lane % 3 {
                    WIDE => Ticket { lane: ticket.lane / 3, number: ticket.number },
                    _ => agreed.unwrap_or(ticket),
                };
                let error = self.wide.give_up(at_wide, waited);
                let _ = self.check(&mut self.lock());
                return Err(error);
            }
            if waited < SPIN {
                std::thread::yield_now();
            } else {
                std::thread::sleep(pause.min(within - waited));
                pause = (pause * 2).min(NAP);
            }
        }
        Ok(())
    }

    /// Memory that the ranks of this host share.
    fn alloc(&self, bytes: usize, within: Duration) -> Result<SharedMemory> {
        let started = Instant::now();
        // Calls that were started use the local group too; all ranks finish them first.
        let submitted = self.lock().submitted;
        if let Some(number) = submitted.checked_sub(1) {
            self.wait(Ticket { lane: OWN, number }, within)?;
        }
        self.run(Call::new(Kind::AllocBucket, crate::DType::U8, bytes), within)?;
        // All ranks have come, so what is left is quick.
        self.local.alloc(bytes, within.saturating_sub(started.elapsed()))
    }

    fn abort(&self, reason: &str) {
        self.wide.abort(reason);
        self.local.abort(reason);
        self.column.abort(reason);
    }

    fn health(&self) -> Health {
        self.wide.health()
    }
}
