//! The runtime under every run: resources, gangs of worker processes, and the engines that place them.

mod allocator;
mod error;
mod events;
mod placement;
mod request;
mod resource;
mod spawner;

pub mod conformance;
pub mod env;
pub mod local;

pub use allocator::{Allocator, Decision, MAX_WORKERS, RequestId};
pub use error::{Error, Result};
pub use events::{EventSender, Events, QUEUED_LINES, queue};
pub use placement::{Infeasible, Placement, lay_out};
pub use request::{GangRequest, Lease, LeaseId, Seat};
pub use resource::{Bytes, Milli, Resources};
pub use spawner::{Exit, Launch, NodeStatus, Reason, Spawner, Stream, WorkerCommand, WorkerEvent, WorkerId};

// The control plane, over the spawner.
pub mod control;
pub mod gang;
pub mod link;
pub mod logs;
pub mod proto;
pub mod token;
pub mod worker;

pub use control::{Control, ControlConfig};
pub use gang::failure::{Cause, CauseKind, Failure};
pub use gang::machine::Timing;
pub use gang::{Begin, Gang, GangEvent, GangSpec, Message, MessageBody};
pub use token::Token;
pub use worker::{Command, Worker, WorkerConfig};
