//! Submitting a run and leaving it alone: the client's view of what places processes.
//!
//! An [`Engine`] starts a *driver*, the controller of a run, where its workers will be: as a process of this host
//! ([`local`]) or as a job of a cluster's own engine. The client can go away; it asks, reads the log and cancels by the
//! name it gave the job, from any machine that sees the engine's folder. What the driver does beside its workers is the
//! [`Spawner`](crate::Spawner)'s.
//!
//! Which engine, a file says ([`EngineConfig`]), and [`engine()`], [`control`] and [`spawner`] go from there.
//!
//! A driver's contract is its exit code: 0 for success, [`EXIT_RESUMABLE`] when it was told to leave and saved what is
//! needed to go on, anything else for failure. It is told by a signal: SIGTERM from [`Engine::cancel`], SIGUSR2 before
//! the engine takes its place away.

mod config;
pub mod conformance;
pub(crate) mod folder;
mod job;
pub mod local;
pub(crate) mod shell;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
pub use config::{EngineConfig, control, engine, spawner};
pub use job::{JobId, JobSpec, JobState, JobStatus, LogPart, Submitted};

/// The exit code of a driver that was told to leave, saved, and can be resumed.
pub const EXIT_RESUMABLE: i32 = 75;

/// What an engine can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Whether jobs stand in a queue of the engine.
    pub queues: bool,
    /// Whether it warns before it takes a job's place away.
    pub preempts: bool,
    /// Whether a job may run on several hosts.
    pub many_hosts: bool,
    /// Whether it keeps a time limit.
    pub time_limits: bool,
}

/// An engine as a client sees it. Every implementation runs [`conformance`].
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// Its name, for messages and records: `local`, `slurm`, `ray`, `kubernetes`.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn caps(&self) -> Caps;

    /// What [`submit`](Self::submit) would hand to the engine, as text, without doing anything. No value of a variable is
    /// in it.
    fn render(&self, spec: &JobSpec) -> Result<String>;

    /// Submits the driver, or finds it submitted already: however often it is called for one id, one job comes of it. What
    /// the engine says could never run is refused at once, with the engine's reason.
    async fn submit(&self, spec: &JobSpec) -> Result<Submitted>;

    /// The jobs as they stand, in the order asked. A name that was never submitted here is an error.
    async fn describe(&self, ids: &[JobId]) -> Result<Vec<JobStatus>>;

    /// What the driver wrote from this byte on. With nothing new it waits, at most this long, for more or for the job's end.
    async fn logs(&self, id: &JobId, from: u64, wait: Duration) -> Result<LogPart>;

    /// Asks the driver to leave (SIGTERM), ends the job after the grace, and says how it ended. A job that ended already is
    /// not an error.
    async fn cancel(&self, id: &JobId, grace: Duration) -> Result<JobStatus>;

    /// The jobs submitted with all these labels, oldest first.
    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<JobStatus>>;
}
