//! The runtime under every run: resources, gangs of worker processes, and the engines that place them.
//!
//! A **gang** is a number of equal workers that start together or not at all. One [`Allocator`] owns everything there is
//! to give and seats gangs in order; a [`Spawner`] turns seats into processes, tells of their ends and takes them down
//! with all they left behind. [`local`] is the spawner for the driver's own host; others place workers through a cluster's
//! own engine and hold to the same [`conformance`].
//!
//! ```
//! use std::time::Duration;
//! use regatta_cluster::local::{LocalConfig, LocalSpawner};
//! use regatta_cluster::{GangRequest, Launch, Resources, Spawner, WorkerCommand, WorkerEvent};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), regatta_cluster::Error> {
//! let spawner = LocalSpawner::new(LocalConfig::default())?;
//! let lease = spawner.acquire(GangRequest::new("hello", 1, Resources::cpus(1))).await?;
//!
//! let command = WorkerCommand::new("/bin/sh").arg("-c").arg("echo worker $REGATTA_SLOT of $REGATTA_SLOTS");
//! let mut events = spawner.launch(lease.id, Launch::new(command)).await?;
//! while let Some(event) = events.next().await {
//!     match event {
//!         WorkerEvent::Line { text, .. } => assert_eq!(text, "worker 0 of 1"),
//!         WorkerEvent::Exited { exit, .. } => assert_eq!(exit.code, Some(0)),
//!         _ => {}
//!     }
//! }
//! spawner.release(lease.id).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The driver itself is started, watched and cancelled through an [`engine::Engine`], which is also there for a client that
//! goes away meanwhile.
//!
//! Over the spawner stands the control plane. A [`Control`] opens one port; a [`Gang`] is launched behind it, its workers
//! call that port ([`Worker`]), and a pure supervisor ([`gang::machine`]) decides what their calls, silences and ends mean:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use std::time::Duration;
//! use regatta_cluster::gang::state::Event;
//! use regatta_cluster::{Begin, Command, Control, ControlConfig, Gang, GangEvent, GangRequest, GangSpec, Resources};
//! use regatta_cluster::{Worker, WorkerCommand, WorkerConfig};
//! # use regatta_cluster::local::{LocalConfig, LocalSpawner};
//!
//! fn worker() -> regatta_cluster::Result<()> {
//!     let worker = Worker::from_env()?;
//!     loop {
//!         match worker.next(Duration::from_secs(600))? {
//!             Command::Assign(_) => worker.ready()?,
//!             Command::Start { .. } => {
//!                 worker.report(1, b"loss 0.1".to_vec())?;
//!                 worker.finished(Vec::new())?;
//!             }
//!             Command::Stop { .. } => return Ok(()),
//!             _ => {}
//!         }
//!     }
//! }
//!
//! async fn driver() -> Result<(), Box<dyn std::error::Error>> {
//!     let control = Control::bind(ControlConfig::default()).await?;
//!     let spawner = Arc::new(LocalSpawner::new(LocalConfig::default())?);
//!     let request = GangRequest::new("hello", 2, Resources::cpus(1));
//!     let mut gang = Gang::launch(&control, spawner, GangSpec::new("hello", request, WorkerCommand::myself()?)).await?;
//!     gang.joined(drop).await?;
//!     gang.start(Begin::default())?;
//!     while let Some(event) = gang.next().await {
//!         match event {
//!             GangEvent::Message(message) => gang.acknowledge(&message)?, // once it is safe
//!             GangEvent::Happened(Event::Failed(failure)) => return Err(failure.of("hello").into()),
//!             GangEvent::Happened(Event::Finished { .. }) => break,
//!             _ => {}
//!         }
//!     }
//!     Ok(gang.stop(Duration::from_secs(10)).await?)
//! }
//!
//! // One program is both.
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! if WorkerConfig::is_worker() { Ok(worker()?) } else { tokio::runtime::Runtime::new()?.block_on(driver()) }
//! # }
//! ```

mod allocator;
mod error;
mod events;
#[cfg(feature = "slurm")]
mod line;
mod placement;
mod request;
mod resource;
mod spawner;

pub mod conformance;
pub mod contract;
pub mod engine;
pub mod env;
pub mod kubernetes;
pub mod local;
pub mod ray;
pub mod slurm;

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
