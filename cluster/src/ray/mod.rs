//! Ray: a run as a job of a cluster that has it, by its Jobs API over HTTP; nothing of Ray is needed at the client.
//!
//! It is written against Ray 2.60; `tests/ray.rs` says what it has to show on a real cluster.
//!
//! # From nothing to a running job
//!
//! From any machine that reaches the cluster's dashboard:
//!
#![cfg_attr(feature = "ray", doc = "```no_run")]
#![cfg_attr(not(feature = "ray"), doc = "```ignore")]
//! use regatta_cluster::engine::{Engine, JobId, JobSpec};
//! use regatta_cluster::ray::{RayConfig, RayEngine};
//! use regatta_cluster::{GangRequest, Placement, WorkerCommand};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = RayEngine::new(RayConfig { files: vec!["mnist.ron".into()], ..RayConfig::at("http://head:8265") })?;
//! let room = GangRequest::new("mnist", 2, "cpu: 8, gpu: 1".parse()?).placement(Placement::StrictSpread);
//! let command = WorkerCommand::myself()?.arg("train").arg("mnist.ron");
//! let spec = JobSpec::new(JobId::new("mnist-1")?, command, room);
//! println!("{}", engine.render(&spec)?);
//! engine.submit(&spec).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The program and the files become a package named by its content, which is uploaded once; the job's entrypoint is the
//! driver, in the unpacked package. There [`RaySpawner`] starts a small Python process of its own, its hand in the cluster:
//! a gang is one fresh placement group, and an actor in each of its bundles runs one worker. What stands in the driver's
//! package is looked for in the package on the worker's own node. The driver's port has to be open to the other nodes:
//! [`control`] makes it so, and workers dial the address by which Ray knows the driver's node.
//!
//! # What happens when something fails
//!
//! | what | then |
//! |---|---|
//! | a worker fails or is killed | its own exit code is told at once; other workers are not touched |
//! | an actor dies | the worker and all it started are killed, and it is told as lost |
//! | a node dies, or hangs | the controller's heartbeats miss it; [`Spawner::kill`](crate::Spawner::kill) waits for it no longer than [`RayConfig::kill_seconds`], tells its workers as lost and closes the node for the rest of the job; a new gang goes to a new placement group elsewhere, which Ray's own timeout (a minute) has no say in |
//! | the driver dies | its placement groups go, and every worker with them; resume the run as a new job |
//! | the head dies | the driver with it, where it stands there; workers end as without any controller |
//! | cancelled | SIGTERM to the driver, which stops its workers; after the grace it is killed |
//! | no room | what the cluster could never seat is refused by [`submit`](crate::engine::Engine::submit), unless [`RayConfig::autoscaling`]; else gangs wait in line |
//! | the dashboard does not answer | each call has a deadline; driver and workers do not need it while they run |
//!
//! Ray warns of nothing: a driver hears of the end by SIGTERM alone.
//!
//! # Secrets
//!
//! Ray shows entrypoints and runtime environments to everyone who has the cluster's token. So the driver's variables travel in
//! a package of their own that nothing shows, in a file of mode 0600 that is removed once read, and those of workers in the
//! arguments of a call.

mod config;
#[cfg(feature = "ray")]
mod engine;
#[cfg(feature = "ray")]
mod http;
#[cfg(feature = "ray")]
mod job;
#[cfg(feature = "ray")]
mod log;
#[cfg(feature = "ray")]
mod node;
#[cfg(feature = "ray")]
mod package;
#[cfg(feature = "ray")]
mod shim;
#[cfg(feature = "ray")]
mod spawner;
#[cfg(feature = "ray")]
mod worker;

pub use config::RayConfig;
#[cfg(feature = "ray")]
pub use engine::RayEngine;
#[cfg(feature = "ray")]
pub use spawner::RaySpawner;

#[cfg(feature = "ray")]
pub(crate) const ENGINE: &str = "ray";

/// Stands for the driver's host in an address that workers dial, until Ray has said which it is.
#[cfg(feature = "ray")]
pub const DRIVER_NODE: &str = "driver-node.regatta";

/// A control port that the cluster's other nodes reach: on all addresses of this one, under the address that Ray knows it by.
#[cfg(feature = "ray")]
#[must_use]
pub fn control() -> crate::control::ControlConfig {
    crate::control::ControlConfig::everywhere(DRIVER_NODE)
}
