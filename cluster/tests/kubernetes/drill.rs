//! The driver and the workers of the tests, as processes of their own: gangs, one after the other, away from the nodes that
//! failed. What happens stands in the driver's log, which is what the tests read.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regatta_cluster::gang::state::Event;
use regatta_cluster::kubernetes::{self, KubernetesConfig, KubernetesSpawner};
use regatta_cluster::*;

pub(crate) const ROLE: &str = "REGATTA_TEST_ROLE";
/// How many workers of how many CPUs, and how they are placed: `2 1 strict_spread`.
pub(crate) const GANG: &str = "REGATTA_TEST_GANG";
pub(crate) const SECRET: &str = "a-secret-that-nobody-may-see";

/// What pods of the tests are made with. They take nothing for the driver, so that all there is is the workers'.
pub(crate) fn config() -> KubernetesConfig {
    KubernetesConfig { driver: Resources::none(), kill_seconds: 2.0, ..KubernetesConfig::new("tests:1") }
}

#[allow(clippy::print_stdout, reason = "the log of the driver is what the tests read")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

pub(crate) fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

/// One step after the other until it is told to stop.
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

pub(crate) async fn conform() {
    let spawner = KubernetesSpawner::from_env(config()).await.unwrap();
    conformance::all(&spawner).await;
    say("it conforms");
}

fn request() -> GangRequest {
    let gang = std::env::var(GANG).unwrap_or_else(|_| "2 1 strict_spread".into());
    let parts: Vec<&str> = gang.split(' ').collect();
    let placement = serde_json::from_str(&format!("\"{}\"", parts[2])).unwrap();
    let request =
        GangRequest::new("test", parts[0].parse().unwrap(), Resources::cpus(parts[1].parse().unwrap()));
    request.placement(placement).patience(Duration::from_secs(60))
}

pub(crate) async fn driver() {
    say(&format!("driver {}", std::process::id()));
    let control = Control::bind(kubernetes::control(&config()).unwrap()).await.unwrap();
    let spawner = Arc::new(KubernetesSpawner::from_env(config()).await.unwrap());
    let timing =
        Timing { suspect: Duration::from_secs(1), dead: Duration::from_secs(3), ..Timing::default() };
    let command = WorkerCommand::myself().unwrap().env(ROLE, "worker").env("SECRET", SECRET);
    let mut request = request();
    for attempt in 1..10 {
        let mut spec =
            GangSpec::new(format!("test-{attempt}"), request.clone(), command.clone()).timing(timing);
        spec.attempt = attempt;
        let mut gang = match Gang::launch(&control, spawner.clone(), spec).await {
            Ok(gang) => gang,
            Err(error) => return say(&format!("no gang: {error}")),
        };
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

/// Follows a gang until it fails; says once that all ranks are beyond their third step.
async fn steps(gang: &mut Gang, attempt: u32) -> gang::failure::Failure {
    let mut at = vec![0; gang.lease().workers()];
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
