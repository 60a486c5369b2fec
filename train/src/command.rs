//! Programs in any language as the ranks of a run. They do not call home: what they are told stands in their environment,
//! which is torchrun's and a little more, and what they say are lines on their standard output.
//!
//! | line | means |
//! |---|---|
//! | `regatta: {"loss": 0.1, "step": 3}` | a report, of rank 0 alone; `step` and `epoch` say where it is |
//! | `regatta: {"checkpoint": "DIR"}` | the files under `DIR`, in `REGATTA_CHECKPOINT_DIR`, are a checkpoint now; the program lets go of them |
//!
//! A restart finds the files of the last checkpoint under `REGATTA_RESTORE_DIR`. A stop is SIGTERM: whoever saves then
//! loses nothing. Files are kept as tensors of bytes in checkpoints like all others, so they are verified, atomic, thinned
//! out and carried to object stores in the same way.

mod attempt;
mod contract;
mod files;
mod line;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use regatta_cluster::{Events, GangRequest, Launch, Lease, Spawner, WorkerCommand};
use serde_json::Value;

use self::attempt::Attempt;
pub use self::contract::{Contract, free_port};
use crate::config::{Experiment, Trainable};
use crate::crew::{Crew, CrewEvent};
use crate::wire::{Decision, Start};
use crate::{Error, Result, preflight};

/// What a crew of foreign programs is made of.
pub struct CommandPlan {
    /// What makes processes.
    pub spawner: Arc<dyn Spawner>,
    /// The command line, with `{keys}` of the configuration.
    pub line: String,
    /// The seats they need.
    pub request: GangRequest,
    /// Threads of one operation, if that was said.
    pub threads: Option<usize>,
    /// Where their output goes.
    pub logs: PathBuf,
}

/// A crew of programs in any language.
pub struct CommandCrew {
    plan: CommandPlan,
    /// Whether the nodes were seen to share the run's storage.
    looked: bool,
    lease: Option<Lease>,
    running: Option<(Events, Attempt)>,
}

impl CommandCrew {
    /// A crew that nothing is launched of yet.
    pub fn new(plan: CommandPlan) -> Self {
        CommandCrew { plan, looked: false, lease: None, running: None }
    }

    fn command(&self, start: &Start) -> Result<WorkerCommand> {
        let mut words = words::of(&self.plan.line, &start.config)?.into_iter();
        let program = words.next().ok_or_else(|| Error::config("trainable", "the command is empty"))?;
        let mut command = WorkerCommand::new(program)
            .args(words)
            // What a program prints is to be heard when it is said.
            .env("PYTHONUNBUFFERED", "1")
            .env("REGATTA_CONFIG", start.config.to_string())
            .env("REGATTA_SEED", start.seed.to_string())
            .env("REGATTA_CHECKPOINT_DIR", files::incoming(start));
        if let Some(threads) = self.plan.threads {
            command = command.env("OMP_NUM_THREADS", threads.to_string());
        }
        Ok(command)
    }
}

/// Checks what can be of a command before it is launched: that it can be read, and that its keys are configured.
pub fn check(experiment: &Experiment<Value>) -> Result<()> {
    match &experiment.trainable {
        Trainable::Command(line) => words::of(line, &experiment.config).map(drop),
        Trainable::Function(_) => Ok(()),
    }
}

/// The command line as it will be run, word by word.
pub fn words(line: &str, config: &Value) -> Result<Vec<String>> {
    words::of(line, config)
}

#[async_trait]
impl Crew for CommandCrew {
    async fn launch(&mut self, start: Start) -> Result<()> {
        self.stop(Duration::ZERO).await?;
        let mut command = self.command(&start)?;
        let preparing = start.clone();
        let restored = tokio::task::spawn_blocking(move || files::prepare(&preparing))
            .await
            .map_err(|error| Error::other("restore the files of a checkpoint", error))??;
        if let Some(restored) = &restored {
            command = command.env("REGATTA_RESTORE_DIR", &restored.folder);
        }
        let lease = self.plan.spawner.acquire(self.plan.request.clone()).await?;
        let contract = Contract {
            run_id: format!("{}/{}", start.experiment, start.run),
            restart: start.attempt.saturating_sub(1),
            max_restarts: start.failure.max_failures,
            local: self.plan.spawner.engine() == "local",
            port: free_port()?,
        };
        let mut launch = Launch::new(command).attempt(start.attempt).logs(&self.plan.logs);
        launch.slot_env = contract.slots(&lease);
        let id = lease.id;
        if !self.looked {
            let looked = preflight::check_seats(&*self.plan.spawner, &lease, &start.storage).await;
            if let Err(error) = looked {
                self.plan.spawner.release(id).await?;
                return Err(error);
            }
            self.looked = true;
        }
        let mut attempt = Attempt::new(start, &lease, self.plan.spawner.clone());
        self.lease = Some(lease);
        let events = self.plan.spawner.launch(id, launch).await?;
        attempt.started(restored);
        self.running = Some((events, attempt));
        Ok(())
    }

    async fn next(&mut self) -> Option<CrewEvent> {
        let (events, attempt) = self.running.as_mut()?;
        attempt.next(events).await
    }

    /// What these programs say is said once, on a pipe: there is nobody to be told.
    fn acknowledge(&mut self, _rank: u32, _sequence: u64) {}

    fn decide(&mut self, decision: &Decision) {
        if let (Decision::Stop(reason), Some((_, attempt))) = (decision, &mut self.running) {
            attempt.ask_to_stop(reason.clone());
        }
    }

    async fn stop(&mut self, grace: Duration) -> Result<()> {
        let ended = match &self.lease {
            Some(lease) => {
                let ended = self.plan.spawner.kill(lease.id, grace).await;
                ended.and(self.plan.spawner.release(lease.id).await)
            }
            None => Ok(()),
        };
        if let Some((_, attempt)) = self.running.take() {
            attempt.close().await;
        }
        self.lease = None;
        Ok(ended?)
    }
}
