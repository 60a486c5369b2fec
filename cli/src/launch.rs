//! `regatta launch`: a drop-in for torchrun on one machine. Starts N processes with its environment, passes their output
//! on, and ends them all when one fails, or when it is asked to.

use std::ffi::OsString;
use std::time::Duration;

use regatta_cluster::local::{LocalConfig, LocalNode, LocalSpawner, Pinning};
use regatta_cluster::{
    Cause, CauseKind, Events, Exit, Failure, GangRequest, Lease, Reason, Resources, Spawner, Stream,
    WorkerCommand, WorkerEvent,
};
use regatta_train::command::{Contract, free_port};

use crate::args::Launch;
use crate::out;
use crate::problem::{Outcome, Problem, exit};
use crate::signals::Signals;

/// How long the others get once one has failed.
const AFTER_FAILURE: Duration = Duration::from_secs(3);

/// How a try ended.
enum Ended {
    Well,
    Failed(Box<Failure>),
    Asked,
}

pub(crate) fn run(args: &Launch) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Problem::failed(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(launch(args))
}

async fn launch(args: &Launch) -> Outcome {
    let host = LocalNode::this_host();
    let gpus = host.gpu_ids.join(",");
    // As many as are asked for, whatever there is of CPUs: that is the caller's business here.
    let room = Resources::cpus(u32::from(args.processes));
    let node = LocalNode { resources: room, cpu_ids: Vec::new(), gpu_ids: Vec::new(), ..host };
    let config = LocalConfig { nodes: vec![node], pinning: Pinning::Never, ..LocalConfig::default() };
    let spawner = LocalSpawner::new(config)?;
    let mut signals = Signals::listen()?;
    let grace = Duration::try_from_secs_f64(args.grace)
        .map_err(|_| Problem::usage(format!("--grace {} is no time: give seconds", args.grace)))?;
    for restart in 0..=args.max_restarts {
        let lease =
            spawner.acquire(GangRequest::new("launch", args.processes.into(), Resources::cpus(1))).await?;
        let ended = attempt(args, &spawner, &lease, restart, &gpus, (&mut signals, grace)).await;
        spawner.release(lease.id).await?;
        match ended? {
            Ended::Well => return Ok(()),
            Ended::Asked => {
                return Err(Problem { code: exit::FORCED, message: "stopped by a signal".into() });
            }
            Ended::Failed(failure) if restart == args.max_restarts => {
                return Err(Problem::failed(failure.of("the launch").to_string()));
            }
            Ended::Failed(failure) => {
                let left = args.max_restarts - restart;
                eprintln!("{failure}\nstarting all again; {left} restarts are left");
            }
        }
    }
    Ok(())
}

async fn attempt(
    args: &Launch,
    spawner: &LocalSpawner,
    lease: &Lease,
    restart: u32,
    gpus: &str,
    (signals, grace): (&mut Signals, Duration),
) -> Outcome<Ended> {
    let port = match args.master_port {
        Some(port) => port,
        None => free_port()?,
    };
    let run_id = format!("launch-{}", std::process::id());
    let contract = Contract { run_id, restart, max_restarts: args.max_restarts, local: true, port };
    let mut words = args.program.iter();
    let program = words.next().cloned().unwrap_or_default();
    let mut command = WorkerCommand::new(program).args(words).env("CUDA_VISIBLE_DEVICES", gpus);
    // Said by the user, it counts.
    for name in [
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "RAYON_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    ] {
        if let Some(value) = std::env::var_os(name) {
            command = command.env(name, value);
        }
    }
    if std::env::var_os("PYTHONUNBUFFERED").is_none() {
        command = command.env("PYTHONUNBUFFERED", OsString::from("1"));
    }
    let mut launch = regatta_cluster::Launch::new(command).attempt(restart + 1);
    launch.slot_env = contract.slots(lease);
    launch.logs = args.log_dir.clone();
    let events = spawner.launch(lease.id, launch).await?;
    watch(spawner, lease, events, signals, grace).await
}

/// Passes lines on until all have ended.
async fn watch(
    spawner: &LocalSpawner,
    lease: &Lease,
    mut events: Events,
    signals: &mut Signals,
    grace: Duration,
) -> Outcome<Ended> {
    let mut causes: Vec<(Cause, Vec<String>)> = Vec::new();
    let mut asked = 0;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = signals.next() => {
                asked += 1;
                // The second time nobody wants to wait.
                let grace = if asked == 1 { grace } else { Duration::ZERO };
                end(spawner, lease, &mut events, signals, grace).await?;
                return Ok(Ended::Asked);
            }
        };
        match event {
            None => break,
            Some(WorkerEvent::Line { stream, text, .. }) => show(stream, &text)?,
            Some(WorkerEvent::Exited { slot, exit }) if exit.reason != Reason::Succeeded => {
                causes.push((cause(slot, &exit), exit.tail));
                end(spawner, lease, &mut events, signals, AFTER_FAILURE).await?;
                break;
            }
            Some(WorkerEvent::Lost { slot, cause: why }) => {
                causes.push((told(slot, CauseKind::Lost, why), Vec::new()));
                end(spawner, lease, &mut events, signals, AFTER_FAILURE).await?;
                break;
            }
            Some(_) => {}
        }
    }
    match causes.pop() {
        None => Ok(Ended::Well),
        // Its lines were shown as they came: they are not told again.
        Some((root, _)) => Ok(Ended::Failed(Box::new(Failure::new(root, Vec::new())))),
    }
}

/// Ends all, and passes on what they still say. Another signal ends them at once.
async fn end(
    spawner: &LocalSpawner,
    lease: &Lease,
    events: &mut Events,
    signals: &mut Signals,
    grace: Duration,
) -> Outcome {
    let mut ending = spawner.kill(lease.id, grace);
    loop {
        tokio::select! {
            ended = &mut ending => {
                ended?;
                break;
            }
            () = signals.next() => ending = spawner.kill(lease.id, Duration::ZERO),
            Some(event) = events.next() => {
                if let WorkerEvent::Line { stream, text, .. } = event {
                    show(stream, &text)?;
                }
            }
        }
    }
    while let Some(event) = events.next().await {
        if let WorkerEvent::Line { stream, text, .. } = event {
            show(stream, &text)?;
        }
    }
    Ok(())
}

fn show(stream: Stream, text: &str) -> Outcome {
    match stream {
        Stream::Stdout => out::text(&format!("{text}\n")),
        Stream::Stderr => {
            eprintln!("{text}");
            Ok(())
        }
    }
}

fn cause(slot: usize, exit: &Exit) -> Cause {
    let kind = match (exit.code, exit.signal) {
        (_, Some(signal)) => CauseKind::Killed { signal },
        (Some(code), None) => CauseKind::Exited { code },
        (None, None) => CauseKind::Lost,
    };
    let message = match &exit.reason {
        Reason::UserError { .. } => String::new(),
        other => other.to_string(),
    };
    told(slot, kind, message)
}

fn told(slot: usize, kind: CauseKind, message: String) -> Cause {
    Cause { rank: slot as u32, slot: slot as u32, attempt: 1, generation: 0, kind, message }
}
