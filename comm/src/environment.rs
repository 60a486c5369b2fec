//! Who this process is, by its environment: torchrun's contract, srun's, and our own.
//!
//! | what | read, the first that is set |
//! |---|---|
//! | rank | `RANK`, `SLURM_PROCID` |
//! | world size | `WORLD_SIZE`, `SLURM_NTASKS` |
//! | rank on the host | `LOCAL_RANK`, `SLURM_LOCALID`, else 0 |
//! | the store | `REGATTA_STORE` (host:port, served by somebody else), else rank 0 serves it at `MASTER_ADDR`:`MASTER_PORT` |
//! | the token | `REGATTA_TOKEN`, else a name that is no secret: `TORCHELASTIC_RUN_ID`, `SLURM_JOB_ID`, `regatta` |
//! | generation | `REGATTA_GENERATION`, `TORCHELASTIC_RESTART_COUNT`, `SLURM_RESTART_COUNT`, else 0 |
//! | transport | `REGATTA_TRANSPORT`, else `auto` |
//!
//! Under torchrun, `MASTER_PORT` may be taken by its own store: rank 0 then serves on the first free one of the next
//! [`PORTS`] ports, and the others find it there by its token. Without `MASTER_ADDR`, srun's jobs of one node meet on the loopback.

use crate::group::ProcessGroup;
use crate::rendezvous::{Rendezvous, Transport};
use crate::store::{ScopedStore, Store, StoreServer, TcpStore, Token};
use crate::{Error, Result};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How many ports from `MASTER_PORT` on are tried.
pub const PORTS: u16 = 8;

/// What the environment says.
#[derive(Debug, Clone)]
pub struct Environment {
    /// This rank.
    pub rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
    /// This rank among those of its host.
    pub local_rank: usize,
    /// The store that somebody else serves, if any.
    pub store: Option<String>,
    /// Where rank 0 serves the store otherwise.
    pub master: (String, u16),
    /// The run's name, which scopes the store.
    pub run: String,
    /// The secret.
    pub token: Token,
    /// The incarnation.
    pub generation: u64,
    /// How to connect.
    pub transport: Transport,
}

impl Environment {
    /// Reads variables by `var`; pure, for tests.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Result<Environment> {
        let first = |names: &[&str]| names.iter().find_map(|n| Some((n.to_string(), var(n)?)));
        let number = |names: &[&str], default: Option<u64>| -> Result<u64> {
            match (first(names), default) {
                (Some((name, value)), _) => value
                    .trim()
                    .parse()
                    .map_err(|_| Error::invalid("from_env", format!("{name}={value:?} is not a number"))),
                (None, Some(default)) => Ok(default),
                (None, None) => {
                    let why =
                        format!("none of {} is set; start with torchrun, srun or regatta", names.join(", "));
                    Err(Error::invalid("from_env", why))
                }
            }
        };
        let run =
            first(&["REGATTA_RUN", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"]).map_or("regatta".into(), |f| f.1);
        let job = var("SLURM_JOB_ID").and_then(|j| j.parse::<u64>().ok()).unwrap_or(0);
        let port = number(&["MASTER_PORT"], Some(20_000 + job % 20_000))?;
        let port = u16::try_from(port)
            .map_err(|_| Error::invalid("from_env", format!("MASTER_PORT={port} is no port")))?;
        let (rank, world_size) =
            (number(&["RANK", "SLURM_PROCID"], None)?, number(&["WORLD_SIZE", "SLURM_NTASKS"], None)?);
        if rank >= world_size {
            return Err(Error::invalid("from_env", format!("rank {rank} is not in a world of {world_size}")));
        }
        let nodes = number(&["SLURM_NNODES"], Some(1))?;
        let host = match var("MASTER_ADDR") {
            Some(host) => host,
            None if nodes == 1 => "127.0.0.1".into(),
            None => {
                return Err(Error::invalid(
                    "from_env",
                    "MASTER_ADDR is not set, and there are several nodes",
                ));
            }
        };
        Ok(Environment {
            rank: rank as usize,
            world_size: world_size as usize,
            local_rank: number(&["LOCAL_RANK", "SLURM_LOCALID"], Some(0))? as usize,
            store: var("REGATTA_STORE"),
            master: (host, port),
            token: var("REGATTA_TOKEN").map_or_else(|| Token::insecure(&run), Token::new),
            run,
            generation: number(
                &["REGATTA_GENERATION", "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"],
                Some(0),
            )?,
            transport: var("REGATTA_TRANSPORT").unwrap_or_default().parse()?,
        })
    }

    /// Finds or serves the store, and joins.
    pub fn join(self, within: Duration) -> Result<ProcessGroup> {
        let started = Instant::now();
        let store: Arc<dyn Store> = match &self.store {
            Some(address) => Arc::new(TcpStore::new(address, self.token.clone())),
            None if self.rank == 0 => Arc::new(Served::start(&self)?),
            None => self.find(within)?,
        };
        let store = Arc::new(ScopedStore::new(store, self.run.clone()));
        let left = within.saturating_sub(started.elapsed());
        let who = Rendezvous {
            generation: self.generation,
            token: self.token.clone(),
            ..Rendezvous::new(store, self.rank, self.world_size)
        };
        who.transport(self.transport).within(left).join().map(|group| group.within(within))
    }

    fn ports(&self) -> impl Iterator<Item = u16> + use<> {
        let first = self.master.1;
        (0..PORTS).filter_map(move |i| first.checked_add(i))
    }

    /// Asks at each port whether our store is there.
    fn find(&self, within: Duration) -> Result<Arc<dyn Store>> {
        let started = Instant::now();
        let mut last = None;
        while started.elapsed() < within {
            for port in self.ports() {
                let store = TcpStore::new(format!("{}:{port}", self.master.0), self.token.clone());
                match store.get("", Duration::from_millis(500)) {
                    Ok(_) => return Ok(Arc::new(store)),
                    Err(e) => last = Some(e),
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let key = format!("{}:{}", self.master.0, self.master.1);
        let why = last.map_or("no time was given".to_string(), |e| e.to_string());
        Err(Error::Store { what: "find at", key, why })
    }
}

/// The store that rank 0 serves, alive as long as the group that uses it.
#[derive(Debug)]
struct Served {
    /// Ends when the last handle does. Behind a lock only to be shared between threads.
    _server: Mutex<StoreServer>,
    store: Arc<dyn Store>,
}

impl Served {
    fn start(who: &Environment) -> Result<Served> {
        let mut last = None;
        for port in who.ports() {
            match TcpListener::bind((who.master.0.as_str(), port))
                .or_else(|_| TcpListener::bind(("0.0.0.0", port)))
            {
                Ok(listener) => {
                    let server = StoreServer::start(listener, who.token.clone())?;
                    let store = server.store();
                    return Ok(Served { _server: Mutex::new(server), store });
                }
                Err(e) => last = Some(e),
            }
        }
        let last = last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into());
        Err(Error::io(
            format!("serve the store at {}:{} or the {PORTS} ports from there", who.master.0, who.master.1),
            last,
        ))
    }
}

impl Store for Served {
    fn get(&self, key: &str, within: Duration) -> Result<Option<Vec<u8>>> {
        self.store.get(key, within)
    }
    fn set(&self, key: &str, value: &[u8], within: Duration) -> Result<()> {
        self.store.set(key, value, within)
    }
    fn lease(&self, key: &str, value: &[u8], ttl: Duration, within: Duration) -> Result<()> {
        self.store.lease(key, value, ttl, within)
    }
    fn wait(&self, key: &str, within: Duration) -> Result<Vec<u8>> {
        self.store.wait(key, within)
    }
    fn add(&self, key: &str, delta: i64, within: Duration) -> Result<i64> {
        self.store.add(key, delta, within)
    }
    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>> {
        self.store.compare_set(key, expected, new, within)
    }
    fn delete(&self, key: &str, within: Duration) -> Result<bool> {
        self.store.delete(key, within)
    }
}

impl ProcessGroup {
    /// The group that this process was started as a part of, by [the environment](crate::environment). Rank 0 serves the store if nobody else does.
    pub fn from_env() -> Result<ProcessGroup> {
        Environment::read(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))?
            .join(crate::DEFAULT_DEADLINE)
    }
}
