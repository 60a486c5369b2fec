//! `test-engines`: real engines, installed into the cache and started on this machine for as long as a test takes.
//!
//! Nothing is installed into the system, daemons run on free ports, and only what was started is stopped.

mod slurm;

use anyhow::Result;
use clap::ValueEnum;

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Engine {
    /// slurmctld and three slurmd on this host
    Slurm,
}

/// Starts the engine, runs its tests, and takes it down whatever came of them. With `keep` it says what its tools need and
/// waits, in place of the tests.
pub(crate) fn test(engine: Engine, keep: bool) -> Result<()> {
    match engine {
        Engine::Slurm => slurm::test(keep),
    }
}
