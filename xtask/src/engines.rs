//! `test-engines`: real engines, installed into the cache and started on this machine for as long as a test takes.
//!
//! Nothing is installed into the system, daemons run on free ports, and only what was started is stopped.

mod kubernetes;
mod ray;
mod slurm;

use std::net::TcpListener;
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Engine {
    /// slurmctld and three slurmd on this host
    Slurm,
    /// A head and two more nodes on this host
    Ray,
    /// etcd, the API server, its controllers and its scheduler on this host; nodes that run pods as processes
    Kubernetes,
}

/// Starts the engine, runs its tests, and takes it down whatever came of them. With `keep` it says what its tools need and
/// waits, in place of the tests.
pub(crate) fn test(engine: Engine, keep: bool) -> Result<()> {
    match engine {
        Engine::Slurm => slurm::test(keep),
        Engine::Ray => ray::test(keep),
        Engine::Kubernetes => kubernetes::test(keep),
    }
}

/// The program of the example.
const EXAMPLE: &str = "mnist_resnet";

/// A command that is told to end when this process does, however that comes.
fn bound(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
