//! How the ranks come to be connected, each with each. A stranger who connects gets nothing and holds nobody up; a rank of
//! another generation is turned away with the reason.

use super::engine::Sockets;
use crate::rendezvous::Rendezvous;
use crate::store::{accept_peer, connect_peer};
use crate::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest a handshake may take: all of it is a few hundred bytes.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at a time; whoever comes then waits in the listener's queue.
const AT_A_TIME: usize = 64;
/// Pause before a refused connection is tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// Names the address that others reach this rank at, where the route to `MASTER_ADDR` is the wrong one.
const ADDRESS_VARIABLE: &str = "REGATTA_HOST_ADDR";

/// Names the controller, as `http://host:port`, in ranks that one started.
const CONTROLLER_VARIABLE: &str = "REGATTA_ADDR";

/// The buffers of a connection between ranks of one host, in bytes: several pieces fit, so that both ends work at the same time.
const AT_HOME: usize = 2 << 20;

/// Connections beside the lanes.
const CONTROL: u32 = 0;
const DIRECT: u32 = 1;
const FIRST_LANE: u32 = 2;

/// What a rank says about itself after the token challenge.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) struct Greeting {
    group: [u8; 16],
    generation: u64,
    world: u32,
    rank: u32,
    connection: u32,
}

impl Greeting {
    pub(super) const BYTES: usize = 36;

    fn of(who: &Rendezvous, connection: u32) -> Greeting {
        // Who would put other bytes on the wire is not of this group.
        let hash = blake3::hash(format!("{} {:?}", who.name, who.wire).as_bytes());
        let group = hash.as_bytes()[..16].try_into().expect("16 of 32 bytes");
        let (world, rank) = (who.world_size as u32, who.rank as u32);
        Greeting { group, generation: who.generation, world, rank, connection }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.group.to_vec();
        bytes.extend(self.generation.to_le_bytes());
        for number in [self.world, self.rank, self.connection] {
            bytes.extend(number.to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Greeting> {
        let bytes: &[u8; Greeting::BYTES] = bytes.try_into().ok()?;
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Some(Greeting {
            group: bytes[..16].try_into().expect("16 bytes"),
            generation: u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes")),
            world: number(24),
            rank: number(28),
            connection: number(32),
        })
    }
}

/// What the accepting end answers.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Answer {
    Welcome = 0,
    OtherGeneration = 1,
    NotExpected = 2,
}

/// Connects this rank with all others.
pub(super) fn connect(who: &Rendezvous, lanes: usize) -> Result<Vec<Option<Sockets>>> {
    let started = Instant::now();
    let address = own_address();
    let failed = |e| Error::io(format!("listen at {address}"), e);
    let listener = TcpListener::bind((address, 0)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let at = listener.local_addr().map_err(failed)?;
    who.scope().set(&format!("tcp/{}", who.rank), at.to_string().as_bytes(), who.within)?;
    let each = FIRST_LANE + lanes as u32;
    let meeting = Meeting { who, each, started, state: Mutex::default() };
    let outcome = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let outcome = meeting.accept_all(scope, &listener);
            // Strangers in the middle of a handshake are not waited for.
            meeting.close_pending();
            outcome
        });
        let connected = meeting.connect_all();
        if connected.is_err() {
            meeting.lock().given_up = true;
        }
        let accepted = accepting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        connected.and(accepted)
    });
    outcome?;
    meeting.sockets()
}

/// The connections made so far, by rank and number.
#[derive(Default)]
struct State {
    made: HashMap<(u32, u32), TcpStream>,
    pending: HashMap<u64, TcpStream>,
    seen: u64,
    given_up: bool,
}

struct Meeting<'a> {
    who: &'a Rendezvous,
    /// Connections to each peer.
    each: u32,
    started: Instant,
    state: Mutex<State>,
}

impl Meeting<'_> {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time that is left, and who is missing if none is.
    fn left(&self) -> Result<Duration> {
        let waited = self.started.elapsed();
        if let Some(left) = self.who.within.checked_sub(waited).filter(|left| !left.is_zero()) {
            return Ok(left);
        }
        let state = self.lock();
        let met = |rank: usize| (0..self.each).all(|c| state.made.contains_key(&(rank as u32, c)));
        let missing = (0..self.who.world_size).filter(|r| *r != self.who.rank && !met(*r)).collect();
        Err(Error::Deadline { rank: self.who.rank, op: "join".into(), waited, missing })
    }

    /// Connects to every rank below this one.
    fn connect_all(&self) -> Result<()> {
        for rank in 0..self.who.rank {
            let found = self.who.scope().wait(&format!("tcp/{rank}"), self.left()?)?;
            let text = String::from_utf8_lossy(&found).into_owned();
            let Ok(at) = text.parse::<SocketAddr>() else {
                let why = format!("{text:?} is no address");
                return Err(Error::Store {
                    what: "read the address of a rank",
                    key: format!("tcp/{rank}"),
                    why,
                });
            };
            for connection in 0..self.each {
                let stream = self.connect_one(rank, at, connection)?;
                self.lock().made.insert((rank as u32, connection), stream);
            }
        }
        Ok(())
    }

    fn connect_one(&self, rank: usize, at: SocketAddr, connection: u32) -> Result<TcpStream> {
        loop {
            let left = self.left()?;
            match TcpStream::connect_timeout(&at, left.min(HANDSHAKE)) {
                Ok(stream) => return self.introduce(stream, rank, at, connection),
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::TimedOut) => {
                    tracing::debug!(rank, %at, error = %e, "not reachable yet");
                    std::thread::sleep(AGAIN.min(left));
                }
                Err(e) => return Err(Error::io(format!("connect to rank {rank} at {at}"), e)),
            }
        }
    }

    /// The connecting end of a handshake.
    fn introduce(
        &self,
        stream: TcpStream,
        rank: usize,
        at: SocketAddr,
        connection: u32,
    ) -> Result<TcpStream> {
        let peer = format!("rank {rank} at {at}");
        set_timeouts(&stream, Some(self.left()?))?;
        let mut sealed = connect_peer(stream, &self.who.token, &peer)?;
        let failed = |e| Error::io(format!("greet {peer}"), e);
        sealed.send(&Greeting::of(self.who, connection).encode()).map_err(failed)?;
        let answer = sealed.receive(1)?.and_then(|bytes| bytes.first().copied());
        match answer {
            Some(a) if a == Answer::Welcome as u8 => Ok(sealed.stream),
            Some(a) if a == Answer::OtherGeneration as u8 => Err(Error::Excluded {
                rank: self.who.rank,
                generation: self.who.generation,
                why: format!("{peer} is of another generation"),
            }),
            Some(_) => Err(Error::Denied { peer, why: "it does not expect this rank in its group".into() }),
            None => Err(Error::PeerLost {
                rank,
                generation: self.who.generation,
                cause: "it closed the connection while the group was being formed".into(),
            }),
        }
    }

    /// Accepts connections until every rank above this one has made all of its own.
    fn accept_all<'scope>(
        &'scope self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        listener: &TcpListener,
    ) -> Result<()> {
        let wanted = (self.who.world_size - 1 - self.who.rank) * self.each as usize;
        loop {
            let left = self.left()?;
            let busy = {
                let state = self.lock();
                let above = state.made.keys().filter(|(rank, _)| *rank as usize > self.who.rank).count();
                if above == wanted || state.given_up {
                    return Ok(());
                }
                state.pending.len() >= AT_A_TIME
            };
            if busy {
                std::thread::sleep(AGAIN.min(left));
                continue;
            }
            match listener.accept() {
                Ok((stream, from)) => self.welcome_in_background(scope, stream, from),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    wait_readable(listener, left.min(Duration::from_millis(5)));
                }
                Err(e) => tracing::debug!(error = %e, "a connection came to nothing"),
            }
        }
    }

    fn welcome_in_background<'scope>(
        &'scope self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        stream: TcpStream,
        from: SocketAddr,
    ) {
        let Ok(handle) = stream.try_clone() else { return };
        let number = {
            let mut state = self.lock();
            state.seen += 1;
            let number = state.seen;
            state.pending.insert(number, handle);
            number
        };
        scope.spawn(move || {
            let outcome = self.welcome(stream, from);
            let mut state = self.lock();
            state.pending.remove(&number);
            match outcome {
                Ok((rank, connection, stream)) => {
                    state.made.entry((rank, connection)).or_insert(stream);
                }
                Err(e) => tracing::debug!(%from, error = %e, "turned somebody away"),
            }
        });
    }

    /// The accepting end of a handshake.
    fn welcome(&self, stream: TcpStream, from: SocketAddr) -> Result<(u32, u32, TcpStream)> {
        let peer = from.to_string();
        stream.set_nonblocking(false).map_err(|e| Error::io("accept a connection", e))?;
        set_timeouts(&stream, Some(HANDSHAKE))?;
        let mut sealed = accept_peer(stream, &self.who.token, &peer)?;
        let greeting = sealed.receive(Greeting::BYTES)?.as_deref().and_then(Greeting::decode);
        let mine = Greeting::of(self.who, 0);
        let answer = match greeting {
            Some(g) if g.group != mine.group || g.world != mine.world => Answer::NotExpected,
            Some(g) if g.generation != mine.generation => Answer::OtherGeneration,
            Some(g) if g.rank > mine.rank && g.rank < mine.world && g.connection < self.each => {
                match self.lock().made.contains_key(&(g.rank, g.connection)) {
                    true => Answer::NotExpected,
                    false => Answer::Welcome,
                }
            }
            _ => Answer::NotExpected,
        };
        sealed.send(&[answer as u8]).map_err(|e| Error::io(format!("answer {peer}"), e))?;
        match greeting {
            Some(g) if answer == Answer::Welcome => Ok((g.rank, g.connection, sealed.stream)),
            _ => Err(Error::Denied { peer, why: format!("it is not expected: {greeting:?}") }),
        }
    }

    fn close_pending(&self) {
        for stream in self.lock().pending.values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// All connections, made ready for the engine.
    fn sockets(self) -> Result<Vec<Option<Sockets>>> {
        let mut made = self.state.into_inner().unwrap_or_else(PoisonError::into_inner).made;
        let mut take = |rank: usize, connection: u32| -> Result<Arc<TcpStream>> {
            let Some(stream) = made.remove(&(rank as u32, connection)) else {
                let cause = "it never made all of its connections".into();
                return Err(Error::PeerLost { rank, generation: self.who.generation, cause });
            };
            settle(&stream).map_err(|e| Error::io(format!("set up a connection to rank {rank}"), e))?;
            Ok(Arc::new(stream))
        };
        let mut all = Vec::with_capacity(self.who.world_size);
        for rank in 0..self.who.world_size {
            if rank == self.who.rank {
                all.push(None);
                continue;
            }
            let (control, direct) = (take(rank, CONTROL)?, take(rank, DIRECT)?);
            let lanes = (FIRST_LANE..self.each).map(|c| take(rank, c)).collect::<Result<_>>()?;
            all.push(Some(Sockets { control, direct, lanes }));
        }
        Ok(all)
    }
}

/// No waiting, no delay, and a sign of life once a second while nothing else is said.
fn settle(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    if stream.peer_addr()?.ip() == stream.local_addr()?.ip() {
        settle_at_home(stream);
    }
    Ok(())
}

/// Between ranks of one host a connection is a copy from memory to memory. What is there for a network's sake, pacing by timers
/// and windows that open slowly, only makes them sleep. Without these settings it works too, so none has to succeed.
fn settle_at_home(stream: &TcpStream) {
    // Reno never paces and is there on every kernel, for every user.
    let _ = sockopt::set_tcp_congestion(stream, "reno");
    let _ = sockopt::set_socket_send_buffer_size(stream, AT_HOME);
    let _ = sockopt::set_socket_recv_buffer_size(stream, AT_HOME);
}

fn set_timeouts(stream: &TcpStream, within: Option<Duration>) -> Result<()> {
    let failed = |e| Error::io("set up a connection", e);
    stream.set_nodelay(true).map_err(failed)?;
    stream.set_read_timeout(within).map_err(failed)?;
    stream.set_write_timeout(within).map_err(failed)
}

fn wait_readable(listener: &TcpListener, within: Duration) {
    let timeout = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: i64::from(within.subsec_nanos()) };
    // An error or a signal only means to look again.
    let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout));
}

/// The address that others reach this host at: the one of the route to the master, or to the controller that started this
/// rank, unless the user knows better.
fn own_address() -> IpAddr {
    if let Some(address) = std::env::var(ADDRESS_VARIABLE).ok().and_then(|text| text.parse().ok()) {
        return address;
    }
    let route = |master: String| {
        // Connecting a datagram socket sends nothing; it only chooses the route.
        let socket = UdpSocket::bind("0.0.0.0:0").or_else(|_| UdpSocket::bind("[::]:0"))?;
        socket.connect((master.as_str(), 9))?;
        socket.local_addr().map(|at| at.ip())
    };
    let set = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let master = set("MASTER_ADDR").or_else(|| host_of(&set(CONTROLLER_VARIABLE)?));
    master.and_then(|master| route(master).ok()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The host in `http://host:port`.
fn host_of(url: &str) -> Option<String> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next()?;
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned()).filter(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn the_controllers_host_is_found_in_its_address() {
        for (url, host) in
            [("http://10.0.0.7:4711", "10.0.0.7"), ("https://[fe80::1]:1/x", "fe80::1"), ("node:7", "node")]
        {
            assert_eq!(host_of(url).as_deref(), Some(host), "{url}");
        }
        assert_eq!(host_of("http://"), None);
    }
}
