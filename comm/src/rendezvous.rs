//! How a group comes to be: who we are, where the others are found, and which back end connects us.

use crate::backend::Backend;
use crate::group::{DEFAULT_DEADLINE, ProcessGroup};
use crate::store::{ScopedStore, Store, Token};
use crate::tcp::Wire;
use crate::thread::Hub;
use crate::{Error, Result};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Which back end connects the ranks.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Transport {
    /// The best that all ranks can use: `shm` if they share a host and its memory, else as [`Transport::Hier`]. A rank that is
    /// alone needs no other.
    #[default]
    Auto,
    /// Ranks are threads of one process and meet in the hub.
    Thread(Arc<Hub>),
    /// Ranks are processes of one host.
    Shm,
    /// Ranks are anywhere, connected over TCP.
    Tcp,
    /// Ranks of one host share memory, and hosts are connected over TCP. Who shares a host is found out, unless the ranks name
    /// theirs.
    Hier(Option<String>),
}

impl FromStr for Transport {
    type Err = Error;

    fn from_str(name: &str) -> Result<Transport> {
        match name {
            "auto" | "" => Ok(Transport::Auto),
            "shm" => Ok(Transport::Shm),
            "tcp" => Ok(Transport::Tcp),
            "hier" => Ok(Transport::Hier(None)),
            other => Err(Error::NotAvailable {
                what: "transport",
                why: format!("{other:?} is not one of auto, shm, tcp, hier"),
            }),
        }
    }
}

/// All that a rank must know to join a group. Fill it in and [`join`](Rendezvous::join).
#[derive(Debug, Clone)]
pub struct Rendezvous {
    /// Where the ranks find each other. Scope it to the run.
    pub store: Arc<dyn Store>,
    /// This rank.
    pub rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
    /// The incarnation: frames and memory of another one are refused.
    pub generation: u64,
    /// The group's name in the store: `world`, and its splits below it.
    pub name: String,
    /// The run's secret.
    pub token: Token,
    /// How the ranks are connected.
    pub transport: Transport,
    /// What all-reduces of f32 travel as where all goes over TCP.
    pub wire: Wire,
    /// How long joining may take; also the deadline of the group's calls unless they say otherwise.
    pub within: Duration,
    /// Told of every phase that a call goes through, for fault injection; see [`Phase`](crate::Phase).
    pub probe: Option<crate::Probe>,
}

impl Rendezvous {
    /// Of this rank in a world that meets in `store`.
    pub fn new(store: Arc<dyn Store>, rank: usize, world_size: usize) -> Rendezvous {
        Rendezvous {
            store,
            rank,
            world_size,
            generation: 0,
            name: "world".into(),
            token: Token::insecure("regatta"),
            transport: Transport::Auto,
            wire: Wire::Exact,
            within: DEFAULT_DEADLINE,
            probe: None,
        }
    }

    /// With this secret.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = token;
        self
    }

    /// Over this transport.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// With f32 all-reduces travelling like this over TCP.
    #[must_use]
    pub fn wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }

    /// With this deadline, for joining and for calls.
    #[must_use]
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// Told of every phase of every call.
    #[must_use]
    pub fn probe(mut self, probe: crate::Probe) -> Self {
        self.probe = Some(probe);
        self
    }

    /// The part of the store that belongs to this group and generation alone.
    pub fn scope(&self) -> Arc<dyn Store> {
        Arc::new(ScopedStore::new(self.store.clone(), format!("{}/g{}", self.name, self.generation)))
    }

    /// Joins: returns when all ranks have.
    pub fn join(self) -> Result<ProcessGroup> {
        if self.rank >= self.world_size {
            let why = format!("rank {} is not in a world of {}", self.rank, self.world_size);
            return Err(Error::invalid("join", why));
        }
        let backend = self.connect()?;
        tracing::debug!(
            rank = self.rank,
            world_size = self.world_size,
            generation = self.generation,
            backend = backend.name(),
            "joined"
        );
        let within = self.within;
        Ok(ProcessGroup::over(backend, Some(Arc::new(self)), within))
    }

    fn connect(&self) -> Result<Arc<dyn Backend>> {
        match &self.transport {
            Transport::Thread(hub) => crate::thread::connect(self, hub),
            Transport::Tcp => crate::tcp::connect(self),
            Transport::Hier(host) => crate::hier::connect(self, host.as_deref()),
            Transport::Shm => crate::shm::connect(self),
            // Who is alone has nobody to meet.
            Transport::Auto if self.world_size == 1 => crate::thread::connect(self, &Arc::default()),
            Transport::Auto => crate::hier::connect(self, None),
        }
    }
}
