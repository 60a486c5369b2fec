//! The run's store.

pub(crate) mod codec;
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
