//! The back end between processes of one host: the engine over nameless shared memory.
//!
//! Rank 0 makes the memory and listens on an abstract socket, whose name the store tells the others; they prove that they hold the run's
//! token and hand over a descriptor of their own process; rank 0 hands out the memory's descriptor and everyone's process. So nothing has
//! a name in a file system, and a death is seen by everyone, even in another PID namespace. That ranks share a host is
//! proved by the boot id and by these descriptors arriving.

mod monitor;
mod passing;

use crate::backend::Backend;
use crate::engine::{Engine, Fabric, Identity, Layout, Mapping, memory};
use crate::rendezvous::Rendezvous;
use crate::store::{Sealed, accept_peer, connect_peer, random_name};
use crate::{Error, Result};
use monitor::Monitor;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long one peer may take to prove itself.
const CHALLENGE: Duration = Duration::from_secs(1);
/// The pause between two looks at a socket that is not ready.
const NAP: Duration = Duration::from_millis(1);

/// What identifies this boot of this machine: the same for all processes of a host, in whatever container.
pub(crate) fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = std::fs::read_to_string(path).map_err(|e| Error::io(format!("read {path}"), e))?;
    Ok(id.trim().to_string())
}

/// Joins a group of processes of this host.
pub(crate) fn connect(who: &Rendezvous) -> Result<Arc<dyn Backend>> {
    let clock = Clock { who, started: Instant::now() };
    let bytes = Layout::bytes(who.world_size);
    let (paths, shared) = if who.rank == 0 { host(&clock, bytes)? } else { guest(&clock)? };
    let mut descriptors = shared.into_iter();
    let memory = descriptors.next().ok_or_else(|| broken("no memory arrived"))?;
    let processes: Vec<OwnedFd> = descriptors.collect();
    if processes.len() != who.world_size {
        return Err(broken(&format!("{} processes arrived, not {}", processes.len(), who.world_size)));
    }
    let layout = Layout::new(Arc::new(Mapping::new(&memory, bytes)?), who.world_size)?;
    let monitor = Monitor::start(layout.clone(), who.rank, processes)?;
    let fabric = Paths { rank: who.rank, paths: Mutex::new(paths), monitor };
    let me = Identity {
        name: "shm",
        rank: who.rank,
        world: who.world_size,
        generation: who.generation,
        probe: who.probe.clone(),
    };
    Ok(Arc::new(Engine::new(me, layout, Box::new(fabric), clock.left()?)?))
}

fn broken(why: &str) -> Error {
    Error::Corrupt { peer: "a rank of this host".into(), what: "the greeting", why: why.into() }
}

/// The time that joining may take.
struct Clock<'a> {
    who: &'a Rendezvous,
    started: Instant,
}

impl Clock<'_> {
    /// What is left of it.
    fn left(&self) -> Result<Duration> {
        let waited = self.started.elapsed();
        let missing = || (0..self.who.world_size).filter(|r| *r != self.who.rank).collect();
        self.who.within.checked_sub(waited).filter(|left| !left.is_zero()).ok_or_else(|| Error::Deadline {
            rank: self.who.rank,
            op: "join".into(),
            waited,
            missing: missing(),
        })
    }
}

type Met = (Vec<UnixStream>, Vec<OwnedFd>);

fn own_process() -> Result<OwnedFd> {
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    pidfd_open(getpid(), PidfdFlags::empty()).map_err(|e| Error::NotAvailable {
        what: "shm",
        why: format!("pidfd_open failed ({e}); it needs Linux 5.3"),
    })
}

/// Rank 0: makes the memory, meets the others, hands everything out.
fn host(clock: &Clock<'_>, bytes: usize) -> Result<Met> {
    let who = clock.who;
    let failed = |e| Error::io("listen for the ranks of this host", e);
    let name = format!("regatta-{}", random_name()?);
    let address = SocketAddr::from_abstract_name(&name).map_err(failed)?;
    let listener = UnixListener::bind_addr(&address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let memory = memory::create(bytes)?;
    who.scope().set("shm", format!("{}\n{name}", boot_id()?).as_bytes(), clock.left()?)?;
    let mut guests: Vec<Option<(UnixStream, OwnedFd)>> = (0..who.world_size).map(|_| None).collect();
    while guests.iter().skip(1).any(Option::is_none) {
        clock.left().map_err(|e| match e {
            Error::Deadline { rank, op, waited, .. } => {
                let missing = (1..who.world_size).filter(|r| guests[*r].is_none()).collect();
                Error::Deadline { rank, op, waited, missing }
            }
            other => other,
        })?;
        match listener.accept() {
            Ok((stream, _)) => match welcome(&stream, who) {
                Ok((rank, process)) => guests[rank] = Some((stream, process)),
                Err(e) => tracing::debug!("turned somebody away: {e}"),
            },
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => std::thread::sleep(NAP),
            Err(e) => return Err(Error::io("accept a rank of this host", e)),
        }
    }
    let (paths, mut processes): (Vec<_>, Vec<_>) = guests.into_iter().flatten().unzip();
    processes.insert(0, own_process()?);
    let mut all = vec![memory];
    all.append(&mut processes);
    let borrowed: Vec<BorrowedFd<'_>> = all.iter().map(AsFd::as_fd).collect();
    for path in &paths {
        passing::send(path, who.generation, &borrowed)?;
    }
    Ok((paths, all))
}

/// Lets a rank prove itself; returns its number and its process.
fn welcome(stream: &UnixStream, who: &Rendezvous) -> Result<(usize, OwnedFd)> {
    let failed = |e| Error::io("set up a local connection", e);
    let credentials =
        rustix::net::sockopt::socket_peercred(stream).map_err(|e| Error::io("ask who connected", e))?;
    if credentials.uid != rustix::process::geteuid() {
        return Err(Error::Denied { peer: "a local process".into(), why: "another user's".into() });
    }
    stream.set_nonblocking(false).map_err(failed)?;
    stream.set_read_timeout(Some(CHALLENGE)).map_err(failed)?;
    stream.set_write_timeout(Some(CHALLENGE)).map_err(failed)?;
    let mut sealed: Sealed<&UnixStream> = accept_peer(stream, &who.token, "a local process")?;
    let hello = sealed.receive(16)?.ok_or_else(|| broken("it hung up"))?;
    let words: [u8; 16] = hello.try_into().map_err(|_| broken("it has a wrong length"))?;
    let rank = u64::from_le_bytes(words[..8].try_into().expect("8 bytes"));
    let generation = u64::from_le_bytes(words[8..].try_into().expect("8 bytes"));
    if rank == 0 || rank >= who.world_size as u64 || generation != who.generation {
        return Err(broken(&format!("rank {rank} of generation {generation} does not belong here")));
    }
    let process = passing::receive(stream, generation, 1, &mut || Ok(()))?.pop();
    Ok((rank as usize, process.ok_or_else(|| broken("no process arrived"))?))
}

/// Any other rank: meets rank 0.
fn guest(clock: &Clock<'_>) -> Result<Met> {
    let who = clock.who;
    let found = who.scope().wait("shm", clock.left()?)?;
    let found = String::from_utf8_lossy(&found).into_owned();
    let (host, name) = found.split_once('\n').ok_or_else(|| broken("rank 0 left no name"))?;
    if host != boot_id()? {
        let why = format!("rank {} is on another host than rank 0; use a transport between hosts", who.rank);
        return Err(Error::NotAvailable { what: "shm", why });
    }
    let failed = |e| Error::io("meet rank 0", e);
    let address = SocketAddr::from_abstract_name(name).map_err(failed)?;
    let stream = UnixStream::connect_addr(&address).map_err(failed)?;
    stream.set_read_timeout(Some(clock.left()?)).map_err(failed)?;
    stream.set_write_timeout(Some(clock.left()?)).map_err(failed)?;
    let mut sealed = connect_peer(&stream, &who.token, "rank 0")?;
    let mut hello = (who.rank as u64).to_le_bytes().to_vec();
    hello.extend_from_slice(&who.generation.to_le_bytes());
    sealed.send(&hello).map_err(failed)?;
    passing::send(&stream, who.generation, &[own_process()?.as_fd()])?;
    let mut check = || clock.left().map(|_| ());
    let all = passing::receive(&stream, who.generation, who.world_size + 1, &mut check)?;
    Ok((vec![stream], all))
}

/// The sockets that memory travels by: to all others at rank 0, to rank 0 at the others.
#[derive(Debug)]
struct Paths {
    rank: usize,
    /// Held while a descriptor is passed.
    paths: Mutex<Vec<UnixStream>>,
    monitor: Monitor,
}

impl Fabric for Paths {
    fn share(&self, id: u32, bytes: usize, check: &mut dyn FnMut() -> Result<()>) -> Result<Arc<Mapping>> {
        let paths = self.paths.lock().unwrap_or_else(|p| p.into_inner());
        if self.rank == 0 {
            let memory = memory::create(bytes)?;
            for path in paths.iter() {
                if let Err(e) = passing::send(path, u64::from(id), &[memory.as_fd()]) {
                    return Err(passing::blame(e, check));
                }
            }
            return Ok(Arc::new(Mapping::new(memory, bytes)?));
        }
        let path = paths.first().ok_or_else(|| broken("there is no path to rank 0"))?;
        let memory = passing::receive(path, u64::from(id), 1, check)?.pop();
        Ok(Arc::new(Mapping::new(memory.ok_or_else(|| broken("no memory arrived"))?, bytes)?))
    }

    fn lost(&self) -> Vec<usize> {
        self.monitor.lost()
    }
}
