//! The store's TCP client: one connection, made when needed and again when lost.

use super::Store;
use super::auth::{Sealed, Token, connect_peer};
use super::wire::{MAX_FRAME, Reply, Request};
use crate::{Error, Result};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long the server may hold a request.
const SLICE: Duration = Duration::from_millis(100);
/// The pause before connecting again.
const RETRY: Duration = Duration::from_millis(20);
/// How long one attempt to connect may take.
const ATTEMPT: Duration = Duration::from_secs(2);

/// A [`Store`] behind a [`StoreServer`](super::StoreServer).
#[derive(Debug)]
pub struct TcpStore {
    address: String,
    token: Token,
    /// Held for one exchange, never for a whole wait.
    connection: Mutex<Option<Sealed<TcpStream>>>,
}

impl TcpStore {
    /// Of the server at `address` (host:port). Connects at the first request, and waits for the server to come up.
    pub fn new(address: impl Into<String>, token: Token) -> TcpStore {
        TcpStore { address: address.into(), token, connection: Mutex::new(None) }
    }

    fn connect(&self, left: Duration) -> Result<Sealed<TcpStream>> {
        let failed = |e| Error::io(format!("connect to the store at {}", self.address), e);
        let limit = left.min(ATTEMPT).max(Duration::from_millis(1));
        let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
        for address in self.address.to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&address, limit) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(failed)?;
                    stream.set_read_timeout(Some(limit)).map_err(failed)?;
                    stream.set_write_timeout(Some(limit)).map_err(failed)?;
                    return connect_peer(stream, &self.token, &self.address);
                }
                Err(e) => last = e,
            }
        }
        Err(failed(last))
    }

    /// One exchange over the connection. On failure the connection is given up.
    fn exchange(&self, frame: &[u8], left: Duration) -> Result<Reply> {
        let mut connection = self.connection.lock().unwrap_or_else(|p| p.into_inner());
        let mut sealed = match connection.take() {
            Some(sealed) => sealed,
            None => self.connect(left)?,
        };
        let failed = |e| Error::io(format!("ask the store at {}", self.address), e);
        let limit = left.max(Duration::from_millis(1)) + SLICE;
        sealed.stream.set_read_timeout(Some(limit)).map_err(failed)?;
        sealed.send(frame).map_err(failed)?;
        let Some(body) = sealed.receive(MAX_FRAME)? else {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        };
        let reply = Reply::decode(&body)?;
        *connection = Some(sealed);
        Ok(reply)
    }

    /// Asks until there is an answer, or the time is up. Only `Add` is not asked twice: it might count twice.
    fn ask(&self, what: &'static str, request: &Request, within: Duration) -> Result<Reply> {
        let started = Instant::now();
        let frame = request.encode()?;
        loop {
            let left = within.saturating_sub(started.elapsed());
            let error = match self.exchange(&frame, left) {
                Ok(Reply::Failed(why)) => return Err(Error::Store { what, key: request.key().into(), why }),
                Ok(reply) => return Ok(reply),
                Err(e) => e,
            };
            let sent = !matches!(&error, Error::Io { what, .. } if what.starts_with("connect"));
            let hopeless =
                matches!(error, Error::Denied { .. }) || (sent && matches!(request, Request::Add { .. }));
            if hopeless || started.elapsed() + RETRY >= within {
                let why = format!("{error} (after {:?} of {within:?})", started.elapsed());
                return match error {
                    denied @ Error::Denied { .. } => Err(denied),
                    _ => Err(Error::Store { what, key: request.key().into(), why }),
                };
            }
            std::thread::sleep(RETRY);
        }
    }
}

fn unexpected(key: &str, reply: &Reply) -> Error {
    Error::Corrupt { peer: "the store".into(), what: "its answer", why: format!("{reply:?} for {key:?}") }
}

impl Store for TcpStore {
    fn get(&self, key: &str, within: Duration) -> Result<Option<Vec<u8>>> {
        match self.ask("get", &Request::Get { key: key.into() }, within)? {
            Reply::Value(value) => Ok(Some(value)),
            Reply::Absent => Ok(None),
            other => Err(unexpected(key, &other)),
        }
    }

    fn set(&self, key: &str, value: &[u8], within: Duration) -> Result<()> {
        match self.ask("set", &Request::Set { key: key.into(), value: value.into() }, within)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(key, &other)),
        }
    }

    fn lease(&self, key: &str, value: &[u8], ttl: Duration, within: Duration) -> Result<()> {
        let ttl_millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        match self.ask(
            "lease",
            &Request::Lease { key: key.into(), value: value.into(), ttl_millis },
            within,
        )? {
            Reply::Done => Ok(()),
            other => Err(unexpected(key, &other)),
        }
    }

    fn wait(&self, key: &str, within: Duration) -> Result<Vec<u8>> {
        let started = Instant::now();
        loop {
            let left = within.saturating_sub(started.elapsed());
            let millis = left.min(SLICE).as_millis() as u64;
            match self.ask("wait for", &Request::Wait { key: key.into(), millis }, left)? {
                Reply::Value(value) => return Ok(value),
                Reply::Absent if started.elapsed() < within => {}
                Reply::Absent => {
                    let why = format!("nobody set it within {within:?}");
                    return Err(Error::Store { what: "wait for", key: key.into(), why });
                }
                other => return Err(unexpected(key, &other)),
            }
        }
    }

    fn add(&self, key: &str, delta: i64, within: Duration) -> Result<i64> {
        match self.ask("add to", &Request::Add { key: key.into(), delta }, within)? {
            Reply::Sum(sum) => Ok(sum),
            other => Err(unexpected(key, &other)),
        }
    }

    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>> {
        let request =
            Request::CompareSet { key: key.into(), expected: expected.map(Into::into), new: new.into() };
        match self.ask("compare and set", &request, within)? {
            Reply::Value(value) => Ok(value),
            other => Err(unexpected(key, &other)),
        }
    }

    fn delete(&self, key: &str, within: Duration) -> Result<bool> {
        match self.ask("delete", &Request::Delete { key: key.into() }, within)? {
            Reply::Done => Ok(true),
            Reply::Absent => Ok(false),
            other => Err(unexpected(key, &other)),
        }
    }
}
