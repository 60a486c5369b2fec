//! Kubernetes: a run as pods of a cluster that has it, by its API alone.
//!
//! # From nothing to a running job
//!
//! The program is in an image, the cluster's administrator has applied the [`MANIFEST`] to the namespace, and `kubectl`
//! works from here:
//!
//! ```no_run
//! use regatta_cluster::engine::{Engine, JobId, JobSpec};
//! use regatta_cluster::kubernetes::{KubernetesConfig, KubernetesEngine};
//! use regatta_cluster::{GangRequest, WorkerCommand};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = KubernetesEngine::new(KubernetesConfig::new("registry.example.com/mnist:7"));
//! let room = GangRequest::new("mnist", 2, "cpu: 8, gpu: 1, memory: 32GiB".parse()?);
//! let command = WorkerCommand::new("mnist").args(["train", "/config/mnist.ron"]);
//! let spec = JobSpec::new(JobId::new("mnist-1")?, command, room);
//! println!("{}", engine.render(&spec)?);
//! println!("{}", engine.submit(&spec).await?.engine_id);
//! # Ok(())
//! # }
//! ```
//!
//! A headless service of the job's name is the job's record and owns the driver's pod. There [`KubernetesSpawner::from_env`]
//! makes a pod for each worker, which the driver's pod owns. A worker's pod is placed by the cluster's scheduler, and waits on
//! its node for a secret that says what it runs: so a gang has all its places before anything of it begins, and the driver
//! knows its nodes. Deleting the service deletes everything.
//!
//! A pod is a host of its own: it has an address and GPUs that count from 0, wherever it stands.
//!
//! # What happens when something fails
//!
//! | what | then |
//! |---|---|
//! | a worker fails or is killed | its exit code is told as soon as its node tells; other workers are not touched |
//! | a node dies, or hangs | the controller's heartbeats miss it; [`Spawner::kill`](crate::Spawner::kill) waits for it no longer than [`KubernetesConfig::kill_seconds`] beyond the grace, tells its workers as lost, takes their pods out of the cluster and asks the scheduler for other nodes from then on. Kubernetes' own timeouts (minutes) have no say in it |
//! | the driver dies | its workers miss it and end by themselves; programs that do not are deleted by whoever next asks after the job. Resume the run as a new job |
//! | the driver's pod is deleted, or its node drained | SIGTERM, the [`notice`](crate::engine::JobSpec::notice), then the end; workers go with it. The job is [`Forgotten`](crate::engine::JobState::Forgotten), and can be resumed where it saved |
//! | the time limit comes, or a preemption | SIGTERM the notice before; it saves and exits with 75 |
//! | cancelled | SIGTERM to the driver, which stops its workers; after the grace its pod is deleted, and its log with it |
//! | no room | what no node could hold is refused by [`submit`](crate::engine::Engine::submit) and [`acquire`](crate::Spawner::acquire), where nodes may be listed; else it waits, and says for what in the scheduler's words |
//! | an image that cannot be pulled | the launch fails at once, with the registry's reason |
//! | a right is missing | the error says which, in the API server's words |
//! | the API server does not answer | each request has a deadline; driver and workers do not need it while they run |
//!
//! # Secrets
//!
//! Whoever may look at pods sees their arguments and variables. So the driver's variables and everything its workers are
//! told go through secrets, which the pods own. The service account may create secrets, and read none.

#[cfg(feature = "kubernetes")]
mod api;
mod config;
#[cfg(feature = "kubernetes")]
mod engine;
#[cfg(feature = "kubernetes")]
mod log;
#[cfg(feature = "kubernetes")]
mod nodes;
#[cfg(feature = "kubernetes")]
mod pod;
#[cfg(feature = "kubernetes")]
mod quantity;
#[cfg(feature = "kubernetes")]
mod render;
#[cfg(feature = "kubernetes")]
mod reserve;
#[cfg(feature = "kubernetes")]
mod script;
#[cfg(feature = "kubernetes")]
mod spawner;
#[cfg(feature = "kubernetes")]
mod status;
#[cfg(feature = "kubernetes")]
mod watcher;
#[cfg(feature = "kubernetes")]
mod worker;

#[cfg(feature = "kubernetes")]
use crate::control::ControlConfig;
#[cfg(feature = "kubernetes")]
use crate::error::Result;

pub use config::{Form, KubernetesConfig, Mount, Toleration, Volume};
#[cfg(feature = "kubernetes")]
pub use engine::KubernetesEngine;
#[cfg(feature = "kubernetes")]
pub use kube::Client;
#[cfg(feature = "kubernetes")]
pub use render::{HIDDEN, render};
#[cfg(feature = "kubernetes")]
pub use spawner::KubernetesSpawner;

#[cfg(feature = "kubernetes")]
pub(crate) const ENGINE: &str = "kubernetes";

/// The service account of drivers with the least rights they need, and the rights of whoever submits.
pub const MANIFEST: &str = include_str!("manifest.yaml");

/// Seconds as they are written in a configuration.
#[cfg(feature = "kubernetes")]
fn seconds(seconds: f64) -> std::time::Duration {
    std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// A control port that the cluster's other pods reach, at the address of the pod this process is in.
#[cfg(feature = "kubernetes")]
pub fn control(config: &KubernetesConfig) -> Result<ControlConfig> {
    use std::net::{IpAddr, Ipv6Addr, SocketAddr};

    use crate::error::Error;

    let unusable = |problem: &str| Error::Environment { variable: pod::POD_IP, problem: problem.into() };
    let address = std::env::var(pod::POD_IP)
        .map_err(|_| unusable("is not set: this process is not the driver of a job of Kubernetes"))?;
    let host = match address.parse() {
        Ok(IpAddr::V4(address)) => address.to_string(),
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        Err(_) => return Err(unusable(&format!("is {address:?}, which is no address"))),
    };
    let any: IpAddr = if host.starts_with('[') { Ipv6Addr::UNSPECIFIED.into() } else { [0, 0, 0, 0].into() };
    let listen = SocketAddr::from((any, config.port));
    Ok(ControlConfig { listen, advertise: Some(host), ..ControlConfig::default() })
}
