//! Slurm: a run as a job of a cluster that has it, by the command-line tools alone (22.05 and newer).
//!
//! # From nothing to a running job
//!
//! On a login node, with the program and a folder on storage that all nodes see:
//!
//! ```no_run
//! use regatta_cluster::engine::{Engine, JobId, JobSpec};
//! use regatta_cluster::slurm::{SlurmConfig, SlurmEngine};
//! use regatta_cluster::{GangRequest, Placement, WorkerCommand};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = SlurmConfig { partition: Some("gpu".into()), spare: 1, ..SlurmConfig::default() };
//! let engine = SlurmEngine::new(config, "/shared/jobs");
//! let room = GangRequest::new("mnist", 2, "cpu: 8, gpu: 1".parse()?).placement(Placement::StrictSpread);
//! let spec = JobSpec::new(JobId::new("mnist-1")?, WorkerCommand::myself()?.arg("train"), room);
//! println!("{}", engine.render(&spec)?);
//! let submitted = engine.submit(&spec).await?;
//! println!("job {}", submitted.engine_id);
//! # Ok(())
//! # }
//! ```
//!
//! The job's batch step, on its first node, is the driver. There [`SlurmSpawner::from_env`] finds the nodes that were
//! given, and places gangs on them as [`local`](crate::local) does on its own; a worker is a step of its own
//! (`srun --exact`), which Slurm confines to the CPUs and GPUs (`gres`) it was given. The driver's port has to be open to the
//! other nodes: [`control`] makes it so. Workers dial the address that Slurm itself told them, so names need not resolve.
//!
//! # What happens when something fails
//!
//! | what | then |
//! |---|---|
//! | a worker fails or is killed | its own exit code is told within a tenth of a second; other workers are not touched |
//! | a node dies, or hangs | the controller's heartbeats miss it; [`Spawner::kill`](crate::Spawner::kill) waits for it no longer than [`SlurmConfig::kill_seconds`], tells its workers as lost and closes the node for the rest of the job; a new gang goes to spare nodes, which Slurm's own timeout (minutes) has no say in |
//! | the driver dies | its step ends, and with it Slurm ends the job and every worker; resume the run as a new job |
//! | the first node dies | as the driver's death |
//! | the time limit comes, or a preemption | the driver gets SIGUSR2 the [`notice`](crate::engine::JobSpec::notice) before; it saves and exits with 75. At a preemption Slurm sends it only where the site has `SlurmctldParameters=preempt_send_user_signal` and a `GraceTime` |
//! | cancelled | SIGTERM to the driver alone, which stops its workers; after the grace the job is ended |
//! | no room | what could never run is refused by [`submit`](crate::engine::Engine::submit), with Slurm's reason; else the job is queued, and says for what |
//! | the controller does not answer | each call to a tool has a deadline; workers and driver do not need the controller while they run |
//!
//! Jobs are never requeued: that takes minutes, and the driver would run twice.
//!
//! # Secrets
//!
//! Slurm shows arguments and scripts to everyone, and may keep environments. So the driver's variables go through a file of
//! mode 0600 in the job's folder, which is removed once read, and the workers' through the standard input of their steps.

mod config;
#[cfg(feature = "slurm")]
mod engine;
#[cfg(feature = "slurm")]
mod script;
#[cfg(feature = "slurm")]
mod spawner;
#[cfg(feature = "slurm")]
mod step;
#[cfg(feature = "slurm")]
mod text;
#[cfg(feature = "slurm")]
mod tool;

#[cfg(feature = "slurm")]
use crate::control::ControlConfig;

pub use config::SlurmConfig;
#[cfg(feature = "slurm")]
pub use engine::SlurmEngine;
#[cfg(feature = "slurm")]
pub use spawner::SlurmSpawner;

#[cfg(feature = "slurm")]
pub(crate) const ENGINE: &str = "slurm";

/// Stands for the driver's host in an address that workers dial: each puts in its place what Slurm told it.
pub const LAUNCH_NODE: &str = "launch-node.regatta";

/// A control port that the job's other nodes reach: on all addresses of this one, under the address that Slurm tells them.
#[cfg(feature = "slurm")]
#[must_use]
pub fn control() -> ControlConfig {
    use std::net::{Ipv6Addr, SocketAddr};

    // A host without IPv6 has no such address to bind.
    let v6 = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    let listen =
        if v6 { SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)) } else { SocketAddr::from(([0, 0, 0, 0], 0)) };
    ControlConfig { listen, advertise: Some(LAUNCH_NODE.into()), ..ControlConfig::default() }
}
