//! A spawner without processes: the test plays the workers, and says how their processes end.
#![allow(dead_code, unreachable_pub)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use regatta_cluster::*;
use tokio::sync::mpsc;

/// What was asked of the spawner.
pub struct Launched {
    pub launch: Launch,
    pub events: EventSender,
}

impl Launched {
    /// The configuration that a worker of this launch would read from its environment.
    pub fn worker(&self, slot: u32) -> WorkerConfig {
        let variable = |name: &str| self.launch.command.env[name].to_str().unwrap().to_owned();
        let token = Token::new(variable(env::TOKEN));
        let gang = variable(env::GANG).parse().unwrap();
        let mut config = WorkerConfig::new(variable(env::ADDR), token, gang, slot);
        config.attempt = self.launch.attempt;
        config.orphan = worker::Orphan::Tell;
        config.tls_name =
            self.launch.command.env.get(env::TLS_NAME).map(|name| name.to_str().unwrap().to_owned());
        config.authority =
            self.launch.command.env.get(env::AUTHORITY).map(|pem| pem.to_str().unwrap().to_owned());
        config
    }

    /// The worker's process ends.
    pub fn exits(&self, slot: usize, code: Option<i32>, signal: Option<i32>) {
        let reason = match code.unwrap_or(128 + signal.unwrap_or(0)) {
            0 => Reason::Succeeded,
            code => Reason::UserError { code },
        };
        let exit = Exit { code, signal, reason, tail: Vec::new() };
        self.events.send(WorkerEvent::Exited { slot, exit });
    }
}

#[derive(Debug)]
pub struct FakeSpawner {
    launches: mpsc::UnboundedSender<Launched>,
    pub calls: Mutex<Vec<String>>,
}

impl FakeSpawner {
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Launched>) {
        let (launches, launched) = mpsc::unbounded_channel();
        (Arc::new(Self { launches, calls: Mutex::default() }), launched)
    }

    fn called(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl std::fmt::Debug for Launched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.launch.fmt(f)
    }
}

#[async_trait::async_trait]
impl Spawner for FakeSpawner {
    fn engine(&self) -> &'static str {
        "fake"
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        Vec::new()
    }

    async fn acquire(&self, request: GangRequest) -> Result<Lease> {
        let seats = (0..request.max_workers).map(|slot| Seat {
            slot,
            node: "here".into(),
            local_slot: slot,
            resources: request.per_worker.clone(),
            cpus: Vec::new(),
            gpus: Vec::new(),
        });
        Ok(Lease { id: LeaseId(1), seats: seats.collect() })
    }

    async fn launch(&self, _lease: LeaseId, launch: Launch) -> Result<Events> {
        self.called(format!("launch {}", launch.attempt));
        let (events, receiver) = queue();
        self.launches.send(Launched { launch, events }).ok();
        Ok(receiver)
    }

    async fn kill(&self, _lease: LeaseId, _grace: Duration) -> Result<()> {
        self.called("kill");
        Ok(())
    }

    async fn release(&self, _lease: LeaseId) -> Result<()> {
        self.called("release");
        Ok(())
    }
}

/// Deadlines short enough for a test and long enough for a loaded machine.
pub fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(20),
        suspect: Duration::from_millis(700),
        dead: Duration::from_millis(1500),
        start: Duration::from_secs(20),
        settle: Duration::from_millis(300),
        lease: Duration::from_secs(6),
    }
}

/// A gang of so many workers that exist only in the test.
pub fn spec(workers: usize) -> GangSpec {
    let request = GangRequest::new("test", workers, Resources::default());
    GangSpec::new("test", request, WorkerCommand::new("none")).timing(timing())
}

/// The longest any test waits for one thing.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Reads the gang's events until one matches, and returns what `pick` makes of it.
pub async fn until<T>(gang: &mut Gang, what: &str, mut pick: impl FnMut(&GangEvent) -> Option<T>) -> T {
    let mut seen = Vec::new();
    let wait = async {
        while let Some(event) = gang.next().await {
            let picked = pick(&event);
            seen.push(event);
            if let Some(picked) = picked {
                return picked;
            }
        }
        panic!("the gang was over before {what}; seen: {seen:#?}");
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// The gang's failure.
pub async fn failure(gang: &mut Gang) -> Failure {
    until(gang, "the failure", |event| event.failure().cloned()).await
}

/// The next message of a worker.
pub async fn message(gang: &mut Gang) -> Message {
    until(gang, "a message", |event| match event {
        GangEvent::Message(message) => Some(message.clone()),
        _ => None,
    })
    .await
}

/// A worker in this process that has taken its assignment and said that it is ready.
pub async fn ready(config: WorkerConfig) -> Worker {
    let worker = Worker::connect(config).unwrap();
    assigned(&worker).await;
    worker
}

/// Takes the assignment and says that it is ready.
pub async fn assigned(worker: &Worker) -> worker::Assignment {
    match command(worker).await {
        Command::Assign(assignment) => {
            worker.ready().unwrap();
            assignment
        }
        other => panic!("expected an assignment, got {other:?}"),
    }
}

pub async fn command(worker: &Worker) -> Command {
    tokio::time::timeout(PATIENCE, worker.next_async()).await.expect("a command").unwrap()
}

/// A started gang with its workers in this process.
pub struct Crew {
    pub control: Control,
    pub spawner: Arc<FakeSpawner>,
    pub launched: Launched,
    pub gang: Gang,
    pub workers: Vec<Worker>,
    pub launches: mpsc::UnboundedReceiver<Launched>,
}

pub async fn running(workers: usize) -> Crew {
    let control = Control::bind(ControlConfig::default()).await.unwrap();
    running_on(control, spec(workers)).await
}

pub async fn running_on(control: Control, spec: GangSpec) -> Crew {
    let size = spec.request.max_workers as u32;
    let (spawner, mut launches) = FakeSpawner::new();
    let mut gang = Gang::launch(&control, spawner.clone(), spec).await.unwrap();
    let launched = launches.recv().await.unwrap();
    let workers: Vec<Worker> =
        (0..size).map(|slot| Worker::connect(launched.worker(slot)).unwrap()).collect();
    for worker in &workers {
        assigned(worker).await;
    }
    tokio::time::timeout(PATIENCE, gang.joined(drop)).await.expect("joins").unwrap();
    gang.start(Begin { trainable: "t".into(), config: b"c".to_vec(), restore: Vec::new() }).unwrap();
    for worker in &workers {
        let Command::Start { begin, .. } = command(worker).await else { panic!("expected start") };
        assert_eq!(begin.trainable, "t");
    }
    until(&mut gang, "the start", |event| {
        matches!(event, GangEvent::Happened(gang::state::Event::Started { .. })).then_some(())
    })
    .await;
    Crew { control, spawner, launched, gang, workers, launches }
}
