//! The ranks of an attempt as worker processes: a gang of the cluster's, driven in the trainer's terms.
//!
//! Every attempt gets room anew. So a run with a range of workers takes what there is at each start, and one that waits
//! before a restart keeps nobody else out.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use regatta_cluster::engine::{self, EngineConfig};
use regatta_cluster::gang::state::Event;
use regatta_cluster::logs::LogLine;
use regatta_cluster::{Begin, Cause, CauseKind, Control, Failure, Gang, GangEvent, GangSpec};
use regatta_cluster::{Message, MessageBody, Spawner, Timing, WorkerCommand};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{FailureConfig, ScalingConfig};
use crate::crew::{Crew, CrewEvent, Saying};
use crate::preflight::{self, Probe};
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
        Self::on(&EngineConfig::Local).await
    }

    /// What the engine gave the job that this process is the driver of. An error outside of such a job.
    pub async fn on(config: &EngineConfig) -> Result<Self> {
        // The port is opened while the spawner starts.
        let control = Control::bind(engine::control(config)?);
        let (control, spawner) = tokio::join!(control, engine::spawner(config));
        Ok(Site { control: Arc::new(control?), spawner: spawner? })
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

/// What a worker is started with.
#[derive(Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) start: Start,
    /// What it has to find in the run's storage, if that may not be the driver's.
    pub(crate) probe: Option<Probe>,
}

/// A crew of worker processes.
pub(crate) struct GangCrew {
    plan: GangPlan,
    /// The storage in which a word lies for the workers to find.
    probed: Option<String>,
    /// Nodes on which workers were lost.
    suspects: BTreeSet<String>,
    gang: Option<Gang>,
    begin: Option<Begin>,
    attempt: u32,
    generation: u64,
    over: bool,
}

/// The variables by which libraries are told how many threads to use.
const THREAD_VARIABLES: [&str; 5] = [
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
];

impl GangCrew {
    pub(crate) fn new(plan: GangPlan) -> Self {
        GangCrew {
            plan,
            probed: None,
            suspects: BTreeSet::new(),
            gang: None,
            begin: None,
            attempt: 0,
            generation: 0,
            over: false,
        }
    }

    fn spec(&self, start: &Start) -> GangSpec {
        let GangPlan { command, scaling, failure, logs, .. } = &self.plan;
        let run = format!("{}/{}", start.experiment, start.run);
        let mut request = scaling.request(&run);
        request.excluded.clone_from(&self.suspects);
        let mut command = command.clone();
        for (name, threads) in THREAD_VARIABLES.iter().filter_map(|name| Some((*name, scaling.threads?))) {
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
                self.suspect(&failure);
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

    /// The node of a worker that fell silent or was lost may be broken: the next attempt goes elsewhere if it can.
    fn suspect(&mut self, failure: &Failure) {
        let lost = matches!(
            failure.root.kind,
            CauseKind::Silent { .. } | CauseKind::Lost | CauseKind::NeverCalledHome { .. }
        );
        let seat = self.gang.as_ref().and_then(|gang| gang.lease().seats.get(failure.root.slot as usize));
        if let (true, Some(seat)) = (lost, seat) {
            self.suspects.insert(seat.node.clone());
        }
    }

    /// Gets seats away from nodes under suspicion, or, where there are not enough others, also there.
    async fn gather(&mut self, start: &Start) -> Result<Gang> {
        let Site { control, spawner } = &self.plan.site;
        match Gang::launch(control, spawner.clone(), self.spec(start)).await {
            Err(regatta_cluster::Error::Infeasible(_)) if !self.suspects.is_empty() => {
                self.suspects.clear();
                Ok(Gang::launch(control, spawner.clone(), self.spec(start)).await?)
            }
            launched => Ok(launched?),
        }
    }

    /// Lays down what the workers have to find, where not all of them are on this host.
    async fn probe(&mut self, start: &Start) -> Result<Option<Probe>> {
        if self.plan.site.spawner.engine() == EngineConfig::Local.name() {
            return Ok(None);
        }
        let storage = start.storage.clone();
        self.probed = Some(storage.clone());
        let laid = tokio::task::spawn_blocking(move || preflight::lay(&storage)).await;
        laid.map_err(|error| Error::other("look at the run's storage", error))?.map(Some)
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
        (self.attempt, self.generation, self.over) = (start.attempt, start.generation, false);
        let probe = self.probe(&start).await?;
        self.gang = Some(self.gather(&start).await?);
        let config = serde_json::to_vec(&Sent { start, probe })
            .map_err(|error| Error::other("write the workers' start", error))?;
        self.begin = Some(Begin { trainable: self.plan.trainable.clone(), config, restore: Vec::new() });
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
        if let Some(storage) = self.probed.take() {
            tokio::task::spawn_blocking(move || preflight::clear(&storage));
        }
        match self.gang.take() {
            Some(gang) => Ok(gang.stop(grace).await?),
            None => Ok(()),
        }
    }
}
