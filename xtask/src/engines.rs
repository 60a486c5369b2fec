//! `test-engines`: real engines, installed into the cache and started on this machine for as long as a test takes.
//!
//! Nothing is installed into the system, daemons run on free ports, and only what was started is stopped.

mod kubernetes;
mod ray;
mod slurm;

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;
use rustix::process::Pid;

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

/// Says what a cluster's tools need in their environment, and keeps it until Enter is pressed.
fn kept(environment: &[(&str, String)]) -> Result<()> {
    for (name, value) in environment {
        println!("export {name}='{value}'");
    }
    eprintln!("the cluster runs until Enter is pressed");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// Other processes than this with such a variable in their environment, written as `NAME=value`.
fn marked(mark: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let this = std::process::id() as i32;
    pids.filter(|pid| *pid != this).filter(own).filter_map(Pid::from_raw).collect()
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
