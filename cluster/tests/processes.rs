//! Gangs of real processes over the local spawner, and what befalls them. This program is its own worker: it has a `main`
//! of its own because a worker must take its secret out of the environment while it has one thread.

mod support;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use regatta_cluster::gang::state::Event;
use regatta_cluster::local::{LocalConfig, LocalSpawner};
use regatta_cluster::*;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use support::{PATIENCE, failure, message, until};

/// What a worker process of these tests does, beside what it is told.
const ROLE: &str = "REGATTA_TEST_ROLE";

fn main() -> ExitCode {
    match std::env::var(ROLE).as_deref() {
        Ok("mute") => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        Ok("driver") => {
            driver();
            ExitCode::SUCCESS
        }
        Ok(_) => worker(),
        Err(_) => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

/// A worker: does what the name of its trainable says.
fn worker() -> ExitCode {
    let worker = Worker::from_env().expect("become a worker");
    assert!(std::env::var(env::TOKEN).is_err(), "the secret is still in the environment");
    loop {
        let Ok(command) = worker.next(Duration::from_secs(60)) else { return ExitCode::from(9) };
        match command {
            Command::Assign(_) => worker.ready().expect("ready"),
            Command::Start { begin, .. } => {
                let pid = std::process::id().to_le_bytes().to_vec();
                worker.report(0, pid).expect("report");
                match begin.trainable.as_str() {
                    "finish" => drop(worker.finished(Vec::new()).expect("finished")),
                    "exit" => {
                        worker.flush(PATIENCE).expect("flush");
                        return ExitCode::from(7);
                    }
                    "fail" => {
                        worker.log("a line before the end");
                        worker.failed("it went wrong", None).expect("failed");
                        worker.flush(PATIENCE).expect("flush");
                        return ExitCode::FAILURE;
                    }
                    // A long computation: the main thread takes no commands any more, and never sees what becomes of it.
                    "compute" => loop {
                        std::hint::black_box((0..1_000_000u64).sum::<u64>());
                        std::thread::sleep(Duration::from_millis(1));
                    },
                    _ => {}
                }
            }
            Command::Decide { payload, .. } => drop(worker.report(1, payload).expect("report")),
            Command::Stop { .. } => return ExitCode::SUCCESS,
            _ => {}
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn command(role: &str) -> WorkerCommand {
    WorkerCommand::myself().unwrap().env(ROLE, role)
}

fn spec(role: &str, workers: usize) -> GangSpec {
    let request = GangRequest::new("test", workers, "cpu: 0.1".parse().unwrap());
    GangSpec::new("test", request, command(role)).timing(support::timing())
}

fn begin(trainable: &str) -> Begin {
    Begin { trainable: trainable.into(), ..Begin::default() }
}

struct Launched {
    control: Control,
    gang: Gang,
    pids: Vec<Pid>,
}

/// A gang at its work, with the process ids of its members.
async fn launched(trainable: &str, workers: usize) -> Launched {
    let control = Control::bind(ControlConfig::default()).await.unwrap();
    let spawner = Arc::new(LocalSpawner::new(LocalConfig::default()).unwrap());
    let mut gang = Gang::launch(&control, spawner, spec("worker", workers)).await.unwrap();
    let pids = started(&mut gang, trainable, workers).await;
    Launched { control, gang, pids }
}

async fn started(gang: &mut Gang, trainable: &str, workers: usize) -> Vec<Pid> {
    tokio::time::timeout(PATIENCE, gang.joined(drop)).await.expect("joins").unwrap();
    gang.start(begin(trainable)).unwrap();
    let mut pids = vec![None; workers];
    while pids.contains(&None) {
        let message = message(gang).await;
        if let MessageBody::Report { payload, .. } = &message.body {
            let pid = u32::from_le_bytes(payload.as_slice().try_into().unwrap());
            pids[message.rank as usize] = Pid::from_raw(pid as i32);
        }
        gang.acknowledge(&message).unwrap();
    }
    pids.into_iter().flatten().collect()
}

fn alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    test_kill_process(pid).is_ok() && !stat.contains(") Z ")
}

/// Waits until the processes are gone, and returns how long that took.
async fn gone(pids: &[Pid]) -> Duration {
    let began = Instant::now();
    while pids.iter().any(|pid| alive(*pid)) {
        assert!(began.elapsed() < PATIENCE, "processes were left behind");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

fn trials() -> Vec<Trial> {
    fn trial<F: Future<Output = ()> + Send + 'static>(name: &str, test: fn() -> F) -> Trial {
        Trial::test(name, move || {
            runtime().block_on(test());
            Ok(())
        })
    }
    vec![
        trial("a_gang_of_processes_works_and_leaves_nothing_behind", works),
        trial("a_killed_worker_is_the_root_cause_and_the_gang_recovers", killed),
        trial("an_exit_code_and_an_error_are_told_apart", exits),
        trial("a_stopped_worker_is_declared_dead_and_fenced", stopped),
        trial("a_long_computation_is_not_taken_for_death", computes),
        trial("a_worker_that_never_calls_home_is_found_and_ended", mute),
        trial("a_program_that_does_not_exist_is_the_root_cause", no_program),
        trial("workers_do_not_outlive_a_killed_driver", driver_killed),
        trial("a_worker_whose_controller_is_gone_ends_itself", orphan),
    ]
}

async fn works() {
    let Launched { mut gang, pids, control: _control } = launched("finish", 2).await;
    until(&mut gang, "the end", |event| {
        matches!(event, GangEvent::Happened(Event::Finished { .. })).then_some(())
    })
    .await;
    // The same processes take the next piece of work.
    gang.start(begin("echo")).unwrap();
    let mut again = vec![];
    while again.len() < 2 {
        let message = message(&mut gang).await;
        if let (2, MessageBody::Report { payload, .. }) = (message.generation, &message.body) {
            again.push(u32::from_le_bytes(payload.as_slice().try_into().unwrap()) as i32);
        }
    }
    again.sort_unstable();
    let mut expected: Vec<i32> = pids.iter().map(|pid| pid.as_raw_nonzero().get()).collect();
    expected.sort_unstable();
    assert_eq!(again, expected);
    gang.stop(Duration::from_secs(10)).await.unwrap();
    assert!(pids.iter().all(|pid| !alive(*pid)), "I6: stop returned before its processes were gone");
}

async fn killed() {
    let Launched { mut gang, pids, control: _control } = launched("compute", 2).await;
    let began = Instant::now();
    kill_process(pids[1], Signal::KILL).unwrap();
    let failure = failure(&mut gang).await;
    assert_eq!((failure.root.rank, &failure.root.kind), (1, &CauseKind::Killed { signal: 9 }));
    assert!(began.elapsed() < Duration::from_secs(3), "it took {:?}", began.elapsed());
    gang.relaunch().unwrap();
    let again = started(&mut gang, "echo", 2).await;
    assert!(pids.iter().all(|pid| !alive(*pid)), "the first attempt still runs beside the second");
    gang.stop(Duration::ZERO).await.unwrap();
    assert!(again.iter().all(|pid| !alive(*pid)), "I6");
}

async fn exits() {
    let Launched { mut gang, control: _control, .. } = launched("exit", 1).await;
    assert_eq!(failure(&mut gang).await.root.kind, CauseKind::Exited { code: 7 });
    gang.relaunch().unwrap();
    started(&mut gang, "fail", 1).await;
    let failure = failure(&mut gang).await;
    assert_eq!((&failure.root.kind, failure.root.message.as_str()), (&CauseKind::Error, "it went wrong"));
    assert_eq!(failure.log_tail, ["a line before the end"]);
    gang.stop(Duration::ZERO).await.unwrap();
}

async fn stopped() {
    let Launched { mut gang, pids, control: _control } = launched("echo", 2).await;
    kill_process(pids[0], Signal::STOP).unwrap();
    until(&mut gang, "the suspicion", |event| {
        matches!(event, GangEvent::Happened(Event::Suspected { slot: 0 })).then_some(())
    })
    .await;
    let failure = failure(&mut gang).await;
    assert_eq!(failure.root.rank, 0);
    let CauseKind::Silent { silence } = failure.root.kind else { panic!("{failure}") };
    assert!(silence >= support::timing().dead && silence < Duration::from_secs(10), "{silence:?}");
    // The zombie wakes, is refused, and ends itself; nothing it says is heard.
    kill_process(pids[0], Signal::CONT).unwrap();
    gone(&pids[..1]).await;
    gang.relaunch().unwrap();
    let again = started(&mut gang, "echo", 2).await;
    assert!(!again.contains(&pids[0]));
    gang.stop(Duration::ZERO).await.unwrap();
    gone(&pids).await;
}

async fn computes() {
    let Launched { mut gang, pids, control: _control } = launched("compute", 1).await;
    // Longer than the deadline for the dead.
    let watch = async {
        while let Some(event) = gang.next().await {
            assert!(event.failure().is_none(), "{event:?}");
            assert!(!matches!(event, GangEvent::Happened(Event::Suspected { .. })), "{event:?}");
        }
    };
    let over = tokio::time::timeout(support::timing().dead * 2, watch).await;
    assert!(over.is_err() && alive(pids[0]));
    gang.stop(Duration::ZERO).await.unwrap();
    assert!(!alive(pids[0]), "I6");
}

async fn mute() {
    let control = Control::bind(ControlConfig::default()).await.unwrap();
    let spawner = Arc::new(LocalSpawner::new(LocalConfig::default()).unwrap());
    let timing = Timing { start: Duration::from_millis(500), ..support::timing() };
    let mut gang = Gang::launch(&control, spawner, spec("mute", 1).timing(timing)).await.unwrap();
    let Err(Error::Gang(failure)) = gang.joined(drop).await else { panic!("expected a failure") };
    let expected = CauseKind::NeverCalledHome { after: Duration::from_millis(500) };
    assert_eq!(failure.root.kind, expected);
    gang.stop(Duration::ZERO).await.unwrap();
}

async fn no_program() {
    let control = Control::bind(ControlConfig::default()).await.unwrap();
    let spawner = Arc::new(LocalSpawner::new(LocalConfig::default()).unwrap());
    let spec = GangSpec { command: WorkerCommand::new("/nowhere/to/be/found"), ..spec("worker", 1) };
    let mut gang = Gang::launch(&control, spawner, spec).await.unwrap();
    let Err(Error::Gang(failure)) = gang.joined(drop).await else { panic!("expected a failure") };
    assert_eq!(failure.root.kind, CauseKind::NotLaunched);
    assert!(failure.to_string().contains("/nowhere/to/be/found"), "{failure}");
    gang.stop(Duration::ZERO).await.unwrap();
}

/// The role `driver`: a gang at work, its process ids on standard output, and then nothing until it is killed.
fn driver() {
    use std::io::Write;
    runtime().block_on(async {
        let launched = launched("compute", 2).await;
        let mut out = std::io::stdout();
        for pid in &launched.pids {
            writeln!(out, "{}", pid.as_raw_nonzero()).unwrap();
        }
        out.flush().unwrap();
        std::future::pending::<()>().await;
    });
}

async fn driver_killed() {
    use std::io::{BufRead, BufReader};
    let mut driver = std::process::Command::new(std::env::current_exe().unwrap());
    let mut driver = driver.env(ROLE, "driver").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(driver.stdout.take().unwrap()).lines().take(2);
    let pids: Vec<Pid> = lines.map(|line| Pid::from_raw(line.unwrap().parse().unwrap()).unwrap()).collect();
    assert!(pids.len() == 2 && pids.iter().all(|pid| alive(*pid)));
    driver.kill().unwrap();
    driver.wait().unwrap();
    let took = gone(&pids).await;
    assert!(took < Duration::from_secs(5), "they lived on for {took:?}");
}

/// On an engine that does not tie workers to the driver's life, the lease does, whatever the main thread is stuck in.
async fn orphan() {
    let controller = runtime();
    let (spawner, mut launches) = support::FakeSpawner::new();
    let timing = Timing { lease: Duration::from_millis(800), ..support::timing() };
    let spec = spec("worker", 1).timing(timing);
    let launch = controller.spawn(async move {
        let control = Control::bind(ControlConfig::default()).await.unwrap();
        (Gang::launch(&control, spawner, spec).await.unwrap(), control)
    });
    let (mut gang, control) = launch.await.unwrap();
    let launch = launches.recv().await.unwrap().launch;
    let mut child = std::process::Command::new(&launch.command.program)
        .envs(&launch.command.env)
        .envs([(env::SLOT, "0"), (env::ATTEMPT, "1")])
        .spawn()
        .unwrap();
    let pids = started(&mut gang, "compute", 1).await;
    assert_eq!(pids[0].as_raw_nonzero().get() as u32, child.id());
    // The whole control plane is gone at once, as if its process had been killed: no refusal, no goodbye.
    controller.shutdown_background();
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
    let status = tokio::time::timeout(PATIENCE, status).await.expect("the orphan ends").unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(
        status.signal(),
        Some(9),
        "its control thread ended it, since its main thread is busy: {status}"
    );
    drop((gang, control));
}
