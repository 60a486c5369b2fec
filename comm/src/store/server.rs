//! The store's TCP server: a thread for each connection, nothing for strangers.

use super::auth::{Sealed, Token, accept_peer};
use super::wire::{MAX_FRAME, Reply, Request};
use super::{MemoryStore, Store};
use crate::{Error, Result};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a stranger may take to prove that it is none.
const CHALLENGE: Duration = Duration::from_secs(2);
/// How long one read or write of a member may take.
const EXCHANGE: Duration = Duration::from_secs(10);
/// Connections at a time, strangers included.
const MAX_CONNECTIONS: usize = 4096;
/// The longest that a request waits in the server; clients ask again.
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// A store that others reach by [`TcpStore`](super::TcpStore). It stops when it is dropped, and waits for its threads.
#[derive(Debug)]
pub struct StoreServer {
    address: SocketAddr,
    inside: Arc<Inside>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inside {
    store: Arc<MemoryStore>,
    token: Token,
    stopping: AtomicBool,
    /// The open connections, so that stopping can end them.
    connections: Mutex<HashMap<u64, TcpStream>>,
}

impl StoreServer {
    /// Serves on `listener`, which its caller has bound, to those who hold `token`.
    pub fn start(listener: TcpListener, token: Token) -> Result<StoreServer> {
        let address = listener.local_addr().map_err(|e| Error::io("find the store's address", e))?;
        let inside = Arc::new(Inside {
            store: Arc::default(),
            token,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let shared = inside.clone();
        let accepting = std::thread::Builder::new()
            .name("regatta-store".into())
            .spawn(move || shared.accept(&listener))
            .map_err(|e| Error::io("start the store's thread", e))?;
        Ok(StoreServer { address, inside, accepting: Some(accepting) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The store itself, for the process that serves it.
    pub fn store(&self) -> Arc<MemoryStore> {
        self.inside.store.clone()
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        self.inside.stopping.store(true, Ordering::Release);
        let mut here = self.address;
        if here.ip().is_unspecified() {
            here.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        // Wakes the accepting thread, which then sees that it should stop.
        let woken = TcpStream::connect_timeout(&here, Duration::from_secs(1));
        for stream in self.inside.connections().values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if woken.is_ok()
            && let Some(thread) = self.accepting.take()
            && thread.join().is_err()
        {
            tracing::warn!("the store's thread panicked");
        }
    }
}

impl Inside {
    fn connections(&self) -> std::sync::MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.connections.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        let mut members: Vec<JoinHandle<()>> = Vec::new();
        let mut number = 0;
        loop {
            let accepted = listener.accept();
            if self.stopping.load(Ordering::Acquire) {
                break;
            }
            members.retain(|m| !m.is_finished());
            let (stream, peer) = match accepted {
                Ok(accepted) if members.len() < MAX_CONNECTIONS => accepted,
                Ok(_) => continue,
                Err(e) => {
                    tracing::debug!("accepting: {e}");
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
            };
            number += 1;
            let (this, number) = (self.clone(), number);
            let Ok(kept) = stream.try_clone() else { continue };
            self.connections().insert(number, kept);
            let serve = move || {
                if let Err(e) = this.serve(stream, &peer.to_string()) {
                    tracing::debug!("store connection from {peer}: {e}");
                }
                this.connections().remove(&number);
            };
            match std::thread::Builder::new().name("regatta-store-peer".into()).spawn(serve) {
                Ok(thread) => members.push(thread),
                Err(_) => drop(self.connections().remove(&number)),
            }
        }
        for stream in self.connections().values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        for member in members {
            let _ = member.join();
        }
    }

    fn serve(&self, stream: TcpStream, peer: &str) -> Result<()> {
        let set = |limit: Duration| -> std::io::Result<()> {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit.min(EXCHANGE)))
        };
        let failed = |e| Error::io("set up a connection", e);
        set(CHALLENGE).map_err(failed)?;
        let half = stream.try_clone().map_err(failed)?;
        let mut sealed: Sealed<TcpStream> = accept_peer(half, &self.token, peer)?;
        // A member may be silent for as long as it likes; stopping ends the read.
        stream.set_read_timeout(None).map_err(failed)?;
        stream.set_write_timeout(Some(EXCHANGE)).map_err(failed)?;
        while let Some(body) = sealed.receive(MAX_FRAME)? {
            let reply = self.answer(Request::decode(&body)?);
            sealed.send(&reply.encode()).map_err(|e| Error::io("answer", e))?;
        }
        Ok(())
    }

    fn answer(&self, request: Request) -> Reply {
        let (store, now) = (&self.store, Duration::ZERO);
        let result = match request {
            Request::Get { key } => store.get(&key, now).map(|v| v.map_or(Reply::Absent, Reply::Value)),
            Request::Set { key, value } => store.set(&key, &value, now).map(|()| Reply::Done),
            Request::Lease { key, value, ttl_millis } => {
                store.lease(&key, &value, Duration::from_millis(ttl_millis), now).map(|()| Reply::Done)
            }
            Request::Wait { key, millis } => {
                let within = Duration::from_millis(millis).min(LONGEST_WAIT);
                Ok(store.wait(&key, within).map_or(Reply::Absent, Reply::Value))
            }
            Request::Add { key, delta } => store.add(&key, delta, now).map(Reply::Sum),
            Request::CompareSet { key, expected, new } => {
                store.compare_set(&key, expected.as_deref(), &new, now).map(Reply::Value)
            }
            Request::Delete { key } => {
                store.delete(&key, now).map(|was| if was { Reply::Done } else { Reply::Absent })
            }
        };
        result.unwrap_or_else(|e| Reply::Failed(e.to_string()))
    }
}
