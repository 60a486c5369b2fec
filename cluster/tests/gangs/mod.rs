//! A driver of gangs that are broken, and its workers, for tests on real clusters: what it does it says in its log, which the
//! test follows by the engine under test.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use regatta_cluster::engine::{Engine, JobSpec, JobState, conformance};
use regatta_cluster::gang::state::Event;
use regatta_cluster::*;

/// What a process of the test is: the test itself if it is not set.
pub(crate) const ROLE: &str = "REGATTA_TEST_ROLE";
pub(crate) const SECRET: &str = "a-secret-that-nobody-may-see";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// From a failure to the first step of the new gang, with a heartbeat deadline of three seconds.
pub(crate) const RECOVERED: Duration = Duration::from_secs(10);

pub(crate) fn run(what: impl Future<Output = ()>) -> ExitCode {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(what);
    ExitCode::SUCCESS
}

#[allow(clippy::print_stdout, reason = "the log of the driver is what the tests read")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

pub(crate) fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

/// The worker: one step after the other until it is told to stop.
pub(crate) fn worker() -> ExitCode {
    let worker = Worker::from_env().expect("become a worker");
    let (mut begun, mut step) = (false, 0);
    loop {
        match worker.next(Duration::from_millis(20)) {
            Ok(Command::Assign(_)) => worker.ready().expect("ready"),
            Ok(Command::Start { .. }) => begun = true,
            Ok(Command::Stop { .. }) => return ExitCode::SUCCESS,
            Ok(_) | Err(Error::Timeout { .. }) => {}
            Err(_) => return ExitCode::from(9),
        }
        if begun {
            let me = format!("{} {}", std::env::var(env::NODE).expect("a node"), std::process::id());
            // Where reports wait for a controller that is away, the steps wait too.
            if worker.report(step, me.into_bytes()).is_ok() {
                step += 1;
            }
        }
    }
}

/// The driver: gangs of two nodes, one after the other, away from the nodes that failed; it says what happens.
pub(crate) async fn driver(control: Control, spawner: Arc<dyn Spawner>, node: &str, logs: PathBuf) {
    say(&format!("driver {} on {node}", std::process::id()));
    let timing =
        Timing { suspect: Duration::from_secs(1), dead: Duration::from_secs(3), ..Timing::default() };
    let command = WorkerCommand::myself().unwrap().env(ROLE, "worker").env("SECRET", SECRET);
    let mut request = GangRequest::new("test", 2, Resources::cpus(1)).placement(Placement::StrictSpread);
    for attempt in 1..10 {
        let mut spec =
            GangSpec::new(format!("test-{attempt}"), request.clone(), command.clone()).timing(timing);
        spec.attempt = attempt;
        spec.logs = Some(logs.clone());
        let mut gang = Gang::launch(&control, spawner.clone(), spec).await.unwrap();
        let failure = match gang.joined(drop).await {
            Err(Error::Gang(failure)) => *failure,
            joined => {
                joined.unwrap();
                gang.start(Begin::default()).unwrap();
                steps(&mut gang, attempt).await
            }
        };
        let node = gang.lease().seats[failure.root.slot as usize].node.clone();
        say(&format!("failed {attempt} at {} on {node}: {}", now(), failure.root));
        if matches!(failure.root.kind, CauseKind::Silent { .. } | CauseKind::Lost) {
            request.excluded.insert(node);
        }
        // What is left of it ends beside the new one's start.
        tokio::spawn(gang.stop(Duration::ZERO));
    }
}

/// Follows a gang until it fails; says once that both ranks are beyond their third step.
async fn steps(gang: &mut Gang, attempt: u32) -> Failure {
    let mut at = [0, 0];
    let mut said = false;
    while let Some(event) = gang.next().await {
        match event {
            GangEvent::Message(message) => {
                if let MessageBody::Report { step, payload } = &message.body {
                    let place = String::from_utf8_lossy(payload).into_owned();
                    if *step == 0 {
                        say(&format!("rank {} of {attempt} on {place}", message.rank));
                    }
                    at[message.rank as usize] = *step;
                }
                gang.acknowledge(&message).unwrap();
                if !said && at.iter().all(|step| *step >= 3) {
                    said = true;
                    say(&format!("stepping {attempt} at {}", now()));
                }
            }
            GangEvent::Happened(Event::Failed(failure)) => return failure,
            _ => {}
        }
    }
    panic!("the gang was over without a failure");
}

/// This program in another role, with room for so many workers like these, each on a node of its own.
pub(crate) fn job(role: &str, workers: usize, each: Resources) -> JobSpec {
    let mut spec = conformance::job("");
    spec.command = WorkerCommand::myself().unwrap().env(ROLE, role).env("SECRET", SECRET);
    spec.room = GangRequest::new("test", workers, each).placement(Placement::StrictSpread);
    spec
}

/// Follows a driver's log.
pub(crate) struct Watched {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) spec: JobSpec,
    from: u64,
    log: String,
}

impl Watched {
    pub(crate) async fn submit(engine: Arc<dyn Engine>, spec: JobSpec) -> Self {
        conformance::submit(&*engine, &spec).await;
        Self { engine, spec, from: 0, log: String::new() }
    }

    /// Waits for a line that begins so, and returns what follows there.
    pub(crate) async fn line(&mut self, start: &str) -> String {
        let since = Instant::now();
        loop {
            let whole = self.log.rfind('\n').map_or("", |end| &self.log[..end]);
            if let Some(line) = whole.lines().find_map(|line| line.strip_prefix(start)) {
                return line.to_owned();
            }
            assert!(since.elapsed() < PATIENCE, "`{start}` was awaited; the log is\n{}", self.log);
            let part = self.engine.logs(&self.spec.id, self.from, Duration::from_secs(1)).await.unwrap();
            assert!(!part.end, "`{start}` was awaited, the job is over; the log is\n{}", self.log);
            self.from = part.next;
            self.log.push_str(&String::from_utf8_lossy(&part.bytes));
        }
    }

    /// The node and the process id of a rank.
    pub(crate) async fn rank(&mut self, rank: usize, attempt: u32) -> (String, i32) {
        let line = self.line(&format!("rank {rank} of {attempt} on ")).await;
        let (node, pid) = line.split_once(' ').unwrap();
        (node.to_owned(), pid.parse().unwrap())
    }

    pub(crate) async fn cancel(&self) -> JobState {
        self.engine.cancel(&self.spec.id, Duration::ZERO).await.unwrap().state
    }

    /// How long after this moment the attempt stepped.
    pub(crate) async fn recovered(&mut self, attempt: u32, since: u128) -> Duration {
        let at: u128 = self.line(&format!("stepping {attempt} at ")).await.parse().unwrap();
        let took = Duration::from_millis((at - since) as u64);
        let failed = self.line(&format!("failed {} at ", attempt - 1)).await;
        eprintln!("a new gang stepped after {took:?}; failed at {failed}");
        took
    }
}
