//! The ranks of an attempt as worker processes: a gang of the cluster's, driven in the trainer's terms.
//!
//! Every attempt gets room anew. So a run with a range of workers takes what there is at each start, and one that waits
//! before a restart keeps nobody else out.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use regatta_cluster::env::THREADS;
use regatta_cluster::gang::state::Event;
use regatta_cluster::logs::LogLine;
use regatta_cluster::{
    Begin, Cause, CauseKind, Control, ControlConfig, Failure, Gang, GangEvent, GangRequest, GangSpec,
};
use regatta_cluster::{Message, MessageBody, Spawner, Timing, WorkerCommand};
use serde::de::DeserializeOwned;

use crate::config::{FailureConfig, ScalingConfig};
use crate::crew::{Crew, CrewEvent, Saying};
use crate::wire::{Decision, Start};
use crate::{Error, Result};

/// What worker processes need of the process that drives them. One is enough for any number of runs.
#[derive(Clone)]
pub struct Site {
    /// The port that workers call.
    pub control: Arc<Control>,
    /// What makes processes, and knows what room there is.
    pub spawner: Arc<dyn Spawner>,
}

impl Site {
    /// This host.
    pub async fn local() -> Result<Self> {
        use regatta_cluster::local::{LocalConfig, LocalSpawner};
        // The spawner starts a thread and a process: the port is opened meanwhile.
        let spawner = tokio::task::spawn_blocking(|| LocalSpawner::new(LocalConfig::default()));
        let (control, spawner) = tokio::join!(Control::bind(ControlConfig::default()), spawner);
        let spawner = spawner.map_err(|error| Error::other("start the local spawner", error))??;
        Ok(Site { control: Arc::new(control?), spawner: Arc::new(spawner) })
    }
}

/// What a crew of processes is made of.
pub(crate) struct GangPlan {
    pub(crate) site: Site,
    pub(crate) command: WorkerCommand,
    pub(crate) trainable: String,
    pub(crate) scaling: ScalingConfig,
    pub(crate) failure: FailureConfig,
    pub(crate) logs: PathBuf,
}

/// A crew of worker processes.
pub(crate) struct GangCrew {
    plan: GangPlan,
    gang: Option<Gang>,
    begin: Option<Begin>,
    attempt: u32,
    generation: u64,
    over: bool,
}

impl GangCrew {
    pub(crate) fn new(plan: GangPlan) -> Self {
        GangCrew { plan, gang: None, begin: None, attempt: 0, generation: 0, over: false }
    }

    fn spec(&self, start: &Start) -> GangSpec {
        let GangPlan { command, scaling, failure, logs, .. } = &self.plan;
        let run = format!("{}/{}", start.experiment, start.run);
        let request = request(&run, scaling);
        let mut command = command.clone();
        for (name, threads) in THREADS.iter().filter_map(|name| Some((*name, scaling.threads?))) {
            command = command.env(name, threads.to_string());
        }
        let mut spec = GangSpec::new(run, request, command).timing(timing(failure)).logs(logs);
        (spec.attempt, spec.generation) = (start.attempt, start.generation);
        spec
    }

    fn about(&self) -> String {
        let Some(gang) = &self.gang else { return String::new() };
        let lease = gang.lease();
        let gpu = lease.seats.iter().any(|seat| !seat.gpus.is_empty());
        let device = if gpu { "gpu" } else { "cpu" };
        match (lease.workers(), lease.nodes().len()) {
            (1, _) => format!("1 x {device}"),
            (workers, 1) if gpu => format!("{workers} x {device}"),
            (workers, 1) => format!("{workers} x {device}, shm"),
            (workers, nodes) => format!("{workers} x {device} on {nodes} nodes"),
        }
    }

    /// What the gang's event means for the trainer, if it means anything.
    fn translate(&mut self, event: GangEvent) -> Option<CrewEvent> {
        match event {
            GangEvent::Happened(Event::Joined) => {
                let started = match (&self.gang, self.begin.take()) {
                    (Some(gang), Some(begin)) => gang.start(begin),
                    _ => return None,
                };
                if let Err(error) = started {
                    return Some(self.failed(self.cause(0, CauseKind::NotLaunched, error.to_string())));
                }
                let world_size = self.gang.as_ref().map_or(0, |gang| gang.lease().workers() as u32);
                Some(CrewEvent::Started { world_size, about: self.about() })
            }
            GangEvent::Happened(Event::Failed(failure)) => {
                self.over = true;
                Some(CrewEvent::Failed(Box::new(failure)))
            }
            GangEvent::Happened(Event::Finished { .. }) => {
                self.over = true;
                Some(CrewEvent::Finished)
            }
            GangEvent::Message(message) => Some(self.message(message)),
            GangEvent::Log(LogLine { rank, text, .. }) => Some(CrewEvent::Line { rank, text }),
            _ => None,
        }
    }

    fn message(&mut self, message: Message) -> CrewEvent {
        let Message { rank, sequence, body, .. } = message;
        let saying = match body {
            MessageBody::Report { payload, .. } => read(&payload).map(Saying::Told),
            MessageBody::ShardWritten { payload, .. } => read(&payload).map(Saying::Committed),
            MessageBody::Finished { payload } => read(&payload).map(Saying::Done),
            _ => Err("it is of a kind that this build does not know".into()),
        };
        match saying {
            Ok(saying) => CrewEvent::Said { rank, sequence, saying },
            Err(why) => {
                let text =
                    format!("it said what cannot be read (is it another build of the program?): {why}");
                self.failed(self.cause(rank, CauseKind::Error, text))
            }
        }
    }

    fn cause(&self, rank: u32, kind: CauseKind, message: String) -> Cause {
        Cause { rank, slot: rank, attempt: self.attempt, generation: self.generation, kind, message }
    }

    fn failed(&mut self, root: Cause) -> CrewEvent {
        self.over = true;
        CrewEvent::Failed(Box::new(Failure::new(root, Vec::new())))
    }
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    serde_json::from_slice(payload).map_err(|error| error.to_string())
}

/// The seats a run asks for.
pub(crate) fn request(run: &str, scaling: &ScalingConfig) -> GangRequest {
    let mut resources = scaling.resources.clone();
    if scaling.gpu && resources.gpu.is_zero() {
        resources = resources.with_gpus(1);
    }
    GangRequest::new(run, scaling.workers.min(), resources)
        .workers(scaling.workers.min()..=scaling.workers.max())
        .placement(scaling.placement)
        .patience(
            Duration::try_from_secs_f64(scaling.patience_seconds).unwrap_or(GangRequest::DEFAULT_PATIENCE),
        )
}

fn timing(failure: &FailureConfig) -> Timing {
    let dead = Duration::try_from_secs_f64(failure.dead_seconds).unwrap_or(Timing::default().dead);
    // Below that, a busy machine looks like a dead one.
    let dead = dead.max(Duration::from_millis(500));
    let default = Timing::default();
    Timing { dead, suspect: dead.mul_f64(0.4).min(default.suspect), lease: dead * 2, ..default }
}

#[async_trait]
impl Crew for GangCrew {
    async fn launch(&mut self, start: Start) -> Result<()> {
        self.stop(Duration::ZERO).await?;
        let config =
            serde_json::to_vec(&start).map_err(|error| Error::other("write the workers' start", error))?;
        let begin = Begin { trainable: self.plan.trainable.clone(), config, restore: Vec::new() };
        let spec = self.spec(&start);
        (self.attempt, self.generation, self.over) = (start.attempt, start.generation, false);
        let Site { control, spawner } = &self.plan.site;
        self.gang = Some(Gang::launch(control, spawner.clone(), spec).await?);
        self.begin = Some(begin);
        Ok(())
    }

    async fn next(&mut self) -> Option<CrewEvent> {
        loop {
            if self.over {
                return None;
            }
            let event = self.gang.as_mut()?.next().await?;
            if let Some(event) = self.translate(event) {
                return Some(event);
            }
        }
    }

    fn acknowledge(&mut self, rank: u32, sequence: u64) {
        let (attempt, generation) = (self.attempt, self.generation);
        let body = MessageBody::Finished { payload: Vec::new() };
        if let Some(gang) = &self.gang {
            // A gang that is over has nobody left to be told.
            gang.acknowledge(&Message { rank, attempt, generation, sequence, body }).ok();
        }
    }

    fn decide(&mut self, decision: &Decision) {
        let Some(gang) = &self.gang else { return };
        let payload = serde_json::to_vec(decision).unwrap_or_default();
        for rank in 0..gang.lease().workers() as u32 {
            if let Err(error) = gang.decide(rank, self.generation, payload.clone()) {
                tracing::debug!(rank, %error, "a decision could not be passed on");
            }
        }
    }

    async fn stop(&mut self, grace: Duration) -> Result<()> {
        match self.gang.take() {
            Some(gang) => Ok(gang.stop(grace).await?),
            None => Ok(()),
        }
    }
}
