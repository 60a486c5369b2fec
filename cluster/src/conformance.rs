//! What every [`Spawner`] must do, as code: each engine's tests run [`all`] against a cluster of its own.
//!
//! Needs an idle cluster of two to eight CPUs whose nodes have `/bin/sh`, and panics at the first broken promise.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::events::Events;
use crate::request::{GangRequest, Lease};
use crate::resource::Resources;
use crate::spawner::{Exit, Launch, Reason, Spawner, WorkerCommand, WorkerEvent};

/// How long any single step may take on a busy machine.
const STEP: Duration = Duration::from_secs(30);

/// Runs every case, one after the other.
pub async fn all(spawner: &dyn Spawner) {
    starts_run_and_end_once(spawner).await;
    output_arrives_before_the_end(spawner).await;
    workers_know_their_place(spawner).await;
    a_polite_worker_may_end_by_itself(spawner).await;
    a_stubborn_worker_is_ended(spawner).await;
    nothing_starts_where_one_cannot(spawner).await;
    a_lease_carries_one_gang_at_a_time(spawner).await;
    the_impossible_is_refused_at_once(spawner).await;
    gangs_wait_in_order_and_with_patience(spawner).await;
    what_is_dropped_is_given_back(spawner).await;
    releasing_ends_and_frees(spawner).await;
    parked_workers_are_reused_or_gone(spawner).await;
}

/// A command that runs this shell script.
#[must_use]
pub fn sh(script: &str) -> WorkerCommand {
    WorkerCommand::new("/bin/sh").arg("-c").arg(script)
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STEP, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not done within {STEP:?}"),
    }
}

/// Acquires a gang of so many workers of one CPU.
pub async fn acquire(spawner: &dyn Spawner, workers: usize) -> Lease {
    let request = GangRequest::new("conformance", workers, Resources::cpus(1)).patience(STEP);
    spawner.acquire(request).await.expect("an idle cluster seats it")
}

async fn launch(spawner: &dyn Spawner, lease: &Lease, script: &str) -> Events {
    soon("launch", spawner.launch(lease.id, Launch::new(sh(script)))).await.expect("it starts")
}

/// Reads a gang's events to their end.
pub async fn to_the_end(events: &mut Events) -> Vec<WorkerEvent> {
    let mut seen = Vec::new();
    while let Some(event) = soon("the next event", events.next()).await {
        seen.push(event);
    }
    seen
}

/// The exits among events, by slot.
#[must_use]
pub fn exits(events: &[WorkerEvent]) -> Vec<(usize, Exit)> {
    let exit = |event: &WorkerEvent| match event {
        WorkerEvent::Exited { slot, exit } => Some((*slot, exit.clone())),
        _ => None,
    };
    let mut exits: Vec<_> = events.iter().filter_map(exit).collect();
    exits.sort_by_key(|(slot, _)| *slot);
    exits
}

/// Waits for a line that starts so; returns what follows.
pub async fn line(events: &mut Events, start: &str) -> String {
    loop {
        match soon("a line", events.next()).await {
            Some(WorkerEvent::Line { text, .. }) if text.starts_with(start) => {
                return text[start.len()..].to_owned();
            }
            Some(event) => assert!(!event.is_end(), "`{start}` was awaited, {event:?} came"),
            None => panic!("`{start}` was awaited, the events ended"),
        }
    }
}

async fn release(spawner: &dyn Spawner, lease: &Lease) {
    soon("release", spawner.release(lease.id)).await.expect("a lease can be released");
}

fn all_free(spawner: &dyn Spawner) -> bool {
    spawner.nodes().iter().all(|node| node.free == node.total)
}

/// Every worker starts once, ends once with its own code, and then the events end.
pub async fn starts_run_and_end_once(spawner: &dyn Spawner) {
    let lease = acquire(spawner, 2).await;
    let mut events = launch(spawner, &lease, "exit $((REGATTA_SLOT * 7))").await;
    let seen = to_the_end(&mut events).await;
    for slot in 0..2 {
        let of_slot: Vec<_> = seen.iter().filter(|event| event.slot() == slot).collect();
        assert!(matches!(of_slot.first(), Some(WorkerEvent::Started { reused: false, .. })), "{of_slot:?}");
        assert_eq!(of_slot.iter().filter(|event| event.is_end()).count(), 1, "{of_slot:?}");
        assert!(of_slot.last().is_some_and(|event| event.is_end()));
    }
    let exits = exits(&seen);
    assert_eq!((exits[0].1.code, &exits[0].1.reason), (Some(0), &Reason::Succeeded));
    assert_eq!((exits[1].1.code, &exits[1].1.reason), (Some(7), &Reason::UserError { code: 7 }));
    release(spawner, &lease).await;
    assert!(all_free(spawner));
}

/// Lines of both outputs arrive, also one without an end, and the last of them stand in the exit.
pub async fn output_arrives_before_the_end(spawner: &dyn Spawner) {
    let lease = acquire(spawner, 1).await;
    let script =
        "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; echo to stderr >&2; printf last";
    let seen = to_the_end(&mut launch(spawner, &lease, script).await).await;
    let lines: Vec<&str> = seen
        .iter()
        .filter_map(
            |event| if let WorkerEvent::Line { text, .. } = event { Some(text.as_str()) } else { None },
        )
        .collect();
    assert_eq!(lines.len(), 202, "{lines:?}");
    assert!(lines.contains(&"line 199") && lines.contains(&"to stderr") && lines.contains(&"last"));
    assert!(seen.last().is_some_and(WorkerEvent::is_end));
    let tail = &exits(&seen)[0].1.tail;
    assert!(tail.len() < 200 && tail.contains(&"last".to_owned()), "{tail:?}");
    release(spawner, &lease).await;
}

/// Slots, attempt and a name that is never used twice are in the environment.
pub async fn workers_know_their_place(spawner: &dyn Spawner) {
    let lease = acquire(spawner, 2).await;
    let command =
        sh("echo $REGATTA_SLOT $REGATTA_SLOTS $REGATTA_ATTEMPT $MINE $REGATTA_WORKER").env("MINE", "yes");
    let launched = spawner.launch(lease.id, Launch::new(command).attempt(3)).await;
    let seen = to_the_end(&mut launched.expect("it starts")).await;
    for slot in 0..2 {
        let id = seen.iter().find_map(|event| match event {
            WorkerEvent::Started { slot: s, worker, .. } if *s == slot => Some(worker.clone()),
            _ => None,
        });
        let told = format!("{slot} 2 3 yes {}", id.expect("it started"));
        let said = |event: &WorkerEvent| matches!(event, WorkerEvent::Line { slot: s, text, .. } if *s == slot && *text == told);
        assert!(seen.iter().any(said), "`{told}` is not in {seen:?}");
    }
    release(spawner, &lease).await;
}

/// Within its grace a worker that listens to SIGTERM ends as it likes, and early.
pub async fn a_polite_worker_may_end_by_itself(spawner: &dyn Spawner) {
    let lease = acquire(spawner, 1).await;
    let mut events =
        launch(spawner, &lease, "trap 'echo saved; exit 75' TERM; echo ready; while :; do sleep 0.05; done")
            .await;
    line(&mut events, "ready").await;
    let start = Instant::now();
    soon("kill", spawner.kill(lease.id, STEP * 2)).await.expect("it ends");
    assert!(start.elapsed() < STEP, "the whole grace was waited out");
    let seen = to_the_end(&mut events).await;
    let exit = &exits(&seen)[0].1;
    assert_eq!((exit.code, &exit.reason), (Some(75), &Reason::Cancelled));
    assert!(exit.tail.contains(&"saved".to_owned()));
    release(spawner, &lease).await;
}

/// One that does not listen is ended after the grace, not before.
pub async fn a_stubborn_worker_is_ended(spawner: &dyn Spawner) {
    let lease = acquire(spawner, 1).await;
    let mut events = launch(spawner, &lease, "trap '' TERM; echo ready; while :; do sleep 0.05; done").await;
    line(&mut events, "ready").await;
    let (start, grace) = (Instant::now(), Duration::from_millis(300));
    soon("kill", spawner.kill(lease.id, grace)).await.expect("it ends");
    assert!(start.elapsed() >= grace, "ended after {:?}, before its grace", start.elapsed());
    let seen = to_the_end(&mut events).await;
    assert_eq!(exits(&seen)[0].1.reason, Reason::Cancelled);
    soon("kill again", spawner.kill(lease.id, grace)).await.expect("killing the dead does nothing");
    release(spawner, &lease).await;
}

/// A program that does not exist fails the launch, and the lease can be used again.
pub async fn nothing_starts_where_one_cannot(spawner: &dyn Spawner) {
    let lease = acquire(spawner, 2).await;
    let command = WorkerCommand::new("/nonexistent/program");
    let error = spawner.launch(lease.id, Launch::new(command)).await.expect_err("there is no such program");
    assert!(error.to_string().contains("/nonexistent/program"), "{error}");
    let seen = to_the_end(&mut launch(spawner, &lease, "exit 0").await).await;
    assert_eq!(exits(&seen).len(), 2);
    release(spawner, &lease).await;
}

/// While workers run another launch is refused; when they have ended it is not. A lease that is not held does nothing.
pub async fn a_lease_carries_one_gang_at_a_time(spawner: &dyn Spawner) {
    let lease = acquire(spawner, 1).await;
    let mut events = launch(spawner, &lease, "echo ready; sleep 1000").await;
    line(&mut events, "ready").await;
    let again = spawner.launch(lease.id, Launch::new(sh("exit 0"))).await;
    assert!(matches!(again, Err(Error::StillRunning { running: 1, .. })), "{again:?}");
    soon("kill", spawner.kill(lease.id, Duration::ZERO)).await.expect("it ends");
    to_the_end(&mut launch(spawner, &lease, "exit 0").await).await;
    release(spawner, &lease).await;
    release(spawner, &lease).await;
    let late = spawner.launch(lease.id, Launch::new(sh("exit 0"))).await;
    assert!(matches!(late, Err(Error::UnknownLease { .. })), "{late:?}");
}

/// What could never run is refused without waiting, naming what would fit.
pub async fn the_impossible_is_refused_at_once(spawner: &dyn Spawner) {
    let cpus: u64 = spawner.nodes().iter().map(|node| node.total.cpu.units()).sum();
    let request = GangRequest::new("huge", cpus as usize + 1, Resources::cpus(1));
    match soon("the refusal", spawner.acquire(request)).await {
        Err(Error::Infeasible(why)) => assert_eq!(why.would_fit, cpus as usize, "{why}"),
        other => panic!("not refused: {other:?}"),
    }
}

/// A full cluster keeps gangs in line; patience runs out with a reason; the line moves when seats come free.
pub async fn gangs_wait_in_order_and_with_patience(spawner: &dyn Spawner) {
    let cpus: u64 = spawner.nodes().iter().map(|node| node.total.cpu.units()).sum();
    let lease = acquire(spawner, cpus as usize).await;
    let one = |name: &str| GangRequest::new(name, 1, Resources::cpus(1));
    let hasty = spawner.acquire(one("hasty").patience(Duration::from_millis(20))).await;
    assert!(matches!(&hasty, Err(Error::NoCapacity { gang, .. }) if gang == "hasty"), "{hasty:?}");
    let waiting = spawner.acquire(one("waiting").patience(STEP));
    let (waited, ()) = tokio::join!(waiting, release(spawner, &lease));
    release(spawner, &waited.expect("its turn came")).await;
    assert!(all_free(spawner));
}

/// A future of `acquire` that is dropped keeps nothing, before and after its turn came.
pub async fn what_is_dropped_is_given_back(spawner: &dyn Spawner) {
    let cpus: u64 = spawner.nodes().iter().map(|node| node.total.cpu.units()).sum();
    let all = || GangRequest::new("all", cpus as usize, Resources::cpus(1)).patience(STEP);
    let lease = acquire(spawner, cpus as usize).await;
    {
        let mut given_up = spawner.acquire(all());
        let polled = tokio::time::timeout(Duration::from_millis(5), &mut given_up).await;
        assert!(polled.is_err(), "the cluster is full");
        release(spawner, &lease).await;
    }
    let lease = soon("acquire", spawner.acquire(all())).await.expect("nothing is in the way");
    release(spawner, &lease).await;
    assert!(all_free(spawner));
}

/// Releasing a lease with a running gang ends the gang first.
pub async fn releasing_ends_and_frees(spawner: &dyn Spawner) {
    let lease = acquire(spawner, 2).await;
    let mut events = launch(spawner, &lease, "trap '' TERM; echo ready; sleep 1000").await;
    line(&mut events, "ready").await;
    release(spawner, &lease).await;
    assert!(all_free(spawner));
    let seen = to_the_end(&mut events).await;
    assert!(exits(&seen).iter().all(|(_, exit)| exit.reason == Reason::Cancelled));
}

/// A parked gang's seats are free; the same command on them is taken over, another is started anew and finds them empty.
pub async fn parked_workers_are_reused_or_gone(spawner: &dyn Spawner) {
    let script = "echo ready; exec sleep 1000";
    let lease = acquire(spawner, 1).await;
    let mut events = launch(spawner, &lease, script).await;
    line(&mut events, "ready").await;
    let kept = soon("park", spawner.park(lease.id)).await.expect("a lease can be parked");
    assert!(all_free(spawner));
    let lease = acquire(spawner, 1).await;
    let mut events = launch(spawner, &lease, script).await;
    let first = soon("the start", events.next()).await;
    assert!(
        matches!(first, Some(WorkerEvent::Started { reused, .. }) if reused == kept),
        "{first:?}, kept: {kept}"
    );
    let parked: Result<bool> = soon("park", spawner.park(lease.id)).await;
    assert!(parked.is_ok());
    let lease = acquire(spawner, 1).await;
    let mut events = launch(spawner, &lease, "exit 0").await;
    let first = soon("the start", events.next()).await;
    assert!(matches!(first, Some(WorkerEvent::Started { reused: false, .. })), "{first:?}");
    to_the_end(&mut events).await;
    release(spawner, &lease).await;
}
