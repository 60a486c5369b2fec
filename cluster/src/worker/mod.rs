//! The worker's side of the control stream.
//!
//! A process that was launched as a member of a gang becomes one with [`Worker::from_env`] at the top of its `main`. From
//! then on a thread of its own speaks with the controller; the program takes [`Command`]s and reports. Reporting queues
//! and returns, so a training step never waits for the network, the controller or its disk; what was queued arrives
//! exactly once, also over reconnects, for as long as both sides live.

mod config;
mod host;
mod session;
mod shared;
mod store;
mod sys;

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::OnceCell;
use tonic::transport::Channel;

use self::shared::Shared;
use crate::proto::control::{self as pb, from_worker};
use crate::{Begin, Error, Result};
pub use config::{Connection, Dial, Orphan, WorkerConfig};
pub use store::RendezvousClient;

/// The worker's place in a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The generation. What the worker reports belongs to the last one it took.
    pub generation: u64,
    /// The run, which with the generation names the rendezvous.
    pub run: String,
    /// Its rank.
    pub rank: u32,
    /// How many ranks there are.
    pub world: u32,
    /// Its rank among those of its node.
    pub local_rank: u32,
    /// How many ranks its node has.
    pub local_world: u32,
}

/// What the controller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Take this place; answer with [`Worker::ready`].
    Assign(Assignment),
    /// Begin the work.
    Start {
        /// The generation it is for.
        generation: u64,
        /// What to begin.
        begin: Begin,
    },
    /// A decision on what was reported.
    Decide {
        /// The generation it is for.
        generation: u64,
        /// The decision.
        payload: Vec<u8>,
    },
    /// The generation is over: leave its collectives and wait for the next command.
    Abort {
        /// The generation.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// End within the grace.
    Stop {
        /// How long it may take.
        grace: Duration,
        /// Why.
        reason: String,
    },
}

/// This process as a member of a gang. All calls may come from any thread. Dropping it closes the session without waiting.
pub struct Worker {
    shared: Arc<Shared>,
    runtime: Arc<OnceLock<tokio::runtime::Handle>>,
    /// To the rendezvous; one serves all generations.
    channel: Arc<OnceCell<Channel>>,
}

impl Worker {
    /// Becomes the worker that the environment describes, and calls home. Returns at once; the first command comes when all
    /// members have called.
    pub fn from_env() -> Result<Self> {
        Self::connect(WorkerConfig::from_env()?)
    }

    /// Becomes the worker that the configuration describes.
    pub fn connect(config: WorkerConfig) -> Result<Self> {
        let orphan = config.orphan;
        let (worker, session) = Self::hosted(config);
        let system = |operation| move |source| Error::System { operation, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("make the control thread's runtime"))?;
        let shared = worker.shared.clone();
        std::thread::Builder::new()
            .name("regatta-control".into())
            .spawn(move || {
                runtime.block_on(session);
                if let Orphan::EndAfter(grace) = orphan
                    && !shared.lock().closing
                {
                    end_process(&shared, grace);
                }
            })
            .map_err(system("start the control thread"))?;
        Ok(worker)
    }

    /// The worker without its thread: it lives while the future is polled. For simulations; the configuration's
    /// [`Orphan`] is not applied.
    pub fn hosted(config: WorkerConfig) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared::new(config));
        let runtime = Arc::new(OnceLock::new());
        let worker = Self { shared: shared.clone(), runtime: runtime.clone(), channel: Arc::default() };
        let session = async move {
            runtime.set(tokio::runtime::Handle::current()).ok();
            session::run(shared).await;
        };
        (worker, session)
    }

    /// Waits for the controller's next command.
    pub fn next(&self, timeout: Duration) -> Result<Command> {
        self.shared.take_within(timeout)
    }

    /// The controller's next command, if one is there.
    pub fn try_next(&self) -> Result<Option<Command>> {
        self.shared.take()
    }

    /// The controller's next command, for asynchronous programs, which put their own deadline around it.
    pub async fn next_async(&self) -> Result<Command> {
        loop {
            let arrived = self.shared.arrived.notified();
            if let Some(command) = self.shared.take()? {
                return Ok(command);
            }
            arrived.await;
        }
    }

    /// Whether the generation is over, by an abort that has arrived though it may not have been taken yet, or because the
    /// session ended. Cheap enough to be asked in every step and while waiting in a collective.
    pub fn is_over(&self, generation: u64) -> bool {
        self.shared.is_over(generation)
    }

    /// The generation of the last assignment taken; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.shared.generation()
    }

    /// Says that the worker took its assignment and can be started.
    pub fn ready(&self) -> Result<()> {
        self.shared
            .push("ready", 0, |generation| from_worker::Body::Ready(pb::Ready { generation }))
            .map(drop)
    }

    /// Reports results of a step and returns their number. Never waits: what the controller has not taken over yet is kept,
    /// up to the configured limits, beyond which this fails with [`Error::OutboxFull`].
    pub fn report(&self, step: u64, payload: Vec<u8>) -> Result<u64> {
        self.shared.push("a report", payload.len(), |generation| {
            from_worker::Body::Report(pb::Report { generation, step, payload })
        })
    }

    /// Says that this rank's part of a checkpoint is on storage.
    pub fn shard_written(&self, step: u64, payload: Vec<u8>) -> Result<u64> {
        self.shared.push("a written shard", payload.len(), |generation| {
            from_worker::Body::ShardWritten(pb::ShardWritten { generation, step, payload })
        })
    }

    /// Says that the work is done.
    pub fn finished(&self, payload: Vec<u8>) -> Result<u64> {
        self.shared.push("a result", payload.len(), |generation| {
            from_worker::Body::Finished(pb::Finished { generation, payload })
        })
    }

    /// Says that the work failed; `peer` is the rank whose loss was the reason, where that is known. Long errors keep their
    /// beginning and their end.
    pub fn failed(&self, error: &str, peer: Option<u32>) -> Result<u64> {
        let error = shortened(error);
        self.shared.push("an error", error.len(), |generation| {
            from_worker::Body::Failed(pb::Failed { generation, error, peer })
        })
    }

    /// Passes a log line on. Never waits; lines are left out, and counted, when too many wait.
    pub fn log(&self, line: &str) {
        self.shared.log(line);
    }

    /// Waits until the controller has taken over everything that was said.
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        self.shared.flush(timeout)
    }

    /// Waits until the controller has taken over everything, and closes the session.
    pub fn close(self, timeout: Duration) -> Result<()> {
        self.flush(timeout)
    }

    /// The rendezvous of the worker's present generation.
    pub fn rendezvous(&self, assignment: &Assignment) -> RendezvousClient {
        RendezvousClient::new(
            self.shared.config.clone(),
            assignment,
            self.channel.clone(),
            self.runtime.get().cloned(),
        )
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// The longest error passed on.
const ERROR_LIMIT: usize = 64 << 10;

fn shortened(error: &str) -> String {
    if error.len() <= ERROR_LIMIT {
        return error.to_owned();
    }
    let head = error.floor_char_boundary(ERROR_LIMIT / 2);
    let tail = error.ceil_char_boundary(error.len() - ERROR_LIMIT / 2);
    format!("{}\n[{} bytes left out]\n{}", &error[..head], tail - head, &error[tail..])
}

/// Ends this process, which nobody wants any more, after the grace; unless the program closes its worker by itself.
fn end_process(shared: &Shared, grace: Duration) {
    let deadline = std::time::Instant::now() + grace;
    while std::time::Instant::now() < deadline {
        if shared.lock().closing {
            return;
        }
        std::thread::sleep(Duration::from_millis(50).min(grace));
    }
    tracing::error!(slot = shared.config.slot, "the worker lost its controller and did not end by itself");
    // Exit handlers may hang in a driver; nothing this process still does counts, so it ends at once.
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).ok();
}
