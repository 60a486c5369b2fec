//! What a run remembers: an append-only log of events in SQLite, the state they add up to, copies of both elsewhere, and
//! the sinks they feed.
//!
//! A run's folder holds one `run.db`. Its controller opens it as a [`Store`] and appends [`Event`]s; one thread writes
//! them in groups, and a [`Ticket`] is good once its event survives `kill -9` and a power cut. In the same transaction
//! every event is folded into the projections (run, attempts, workers, trials, metrics, checkpoints), so that the state
//! *always* equals the fold of the events; [`Snapshot::verify`] checks that and [`rebuild`] makes it so.
//! A [`Reader`] sees whole moments from any process while the run goes on. A resumed controller opens the store again,
//! and what its workers deliver twice is stored once.
//!
//! ```
//! use std::time::Duration;
//! use regatta_track::event::{AttemptStarted, Report, RunCreated};
//! use regatta_track::sink::{ProgressCsv, SinkConfig, Sinks};
//! use regatta_track::{Draft, Metrics, Store, StoreConfig};
//!
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let store = Store::create(folder, StoreConfig::default())?;
//! let sinks = Sinks::start(&store, vec![Box::new(ProgressCsv::new(folder))], SinkConfig::default())?;
//!
//! // Where durability need not be awaited, the event goes its way all the same.
//! store.append(RunCreated { experiment: "mnist".into(), name: "brisk-otter".into() })?.detach();
//! store.append(Draft::new(AttemptStarted { world_size: 1, ..Default::default() }).attempt(1))?.detach();
//! let report = Report { step: 100, metrics: Metrics::from([("loss", 0.25)]) };
//! let ticket = store.append(Draft::new(report).attempt(1).rank(0).sequence(1))?;
//! ticket.wait(Duration::from_secs(10))?; // now it is durable: acknowledge it to the worker
//!
//! let mut reader = store.reader()?;
//! let metrics = reader.snapshot()?.metrics(None)?;
//! assert_eq!((&*metrics[0].0, metrics[0].1.last), ("loss", 0.25));
//!
//! sinks.finish(Duration::from_secs(10))?;
//! store.close()?;
//! assert!(folder.join("progress.csv").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # When not to use it
//! The store wants a local disk: SQLite's write-ahead log does not work on network file systems. Keep it beside its
//! controller and let a [`copy::Mirror`] carry it away. Bulk data belongs into files; an event's body ends at 16 MiB.
//!
//! # What is promised
//! - **Durable**: an acknowledged event is on the disk (`synchronous = FULL`), whatever kills the process or the machine.
//! - **Once**: events that carry a sender's sequence are stored once by (trial, attempt, rank, sequence).
//! - **Bounded**: memory does not grow with the log; a full queue makes [`Store::append`] wait, with a deadline, and
//!   [`Store::try_append`] answer [`Error::Busy`].
//! - **One writer**: a second is refused and told who writes; a dead one's lock frees itself.
//! - **Clean ends**: a full disk stops the writer with an error that names the disk, and nothing acknowledged is lost.

mod codec;
pub mod copy;
mod error;
pub mod event;
mod lock;
mod metrics;
mod reader;
mod schema;
pub mod sink;
pub mod state;
mod store;
mod study;
mod tables;
mod verify;
mod writer;

pub use error::{Error, Result};
pub use event::{Draft, Envelope, Event, Timestamp};
pub use metrics::Metrics;
pub use reader::{Point, Query, Reader, Snapshot};
pub use state::State;
pub use store::{Store, StoreConfig, Ticket};
pub use verify::{Verdict, rebuild};
