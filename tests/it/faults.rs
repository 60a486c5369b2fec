//! What befalls a run's processes: each fault is told for what it is, with its rank, and made good within the budget; and
//! nothing of the run is left behind.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process, test_kill_process};

use crate::support::{Place, Running, came, until, workers};

const RUN: &str = r#"(
    trainable: "sums",
    config: (steps: 40),
    scaling: (workers: 2),
    checkpoint: (every: Steps(5)),
    failure: (backoff_seconds: 0, max_failures: 1),
)"#;
const SUM: u64 = 40 * 41 / 2;

fn root_cause(err: &str) -> &str {
    let (_, cause) = err.rsplit_once("root cause: ").unwrap_or_else(|| panic!("no root cause: {err}"));
    cause.lines().next().unwrap_or_default()
}

#[test]
fn a_worker_over_its_memory_is_named_with_its_limit_and_made_good_while_the_budget_lasts() {
    let place = Place::new();
    place.write("a.ron", RUN);
    let args =
        ["train", "a.ron", "--json", "fault=Hog", "at=23", "scaling.resources=memory: 192MiB", "--name"];
    let ran = place.run(&[&args[..], &["once"]].concat()).code(0);
    assert_eq!((&ran.json()["value"], &ran.json()["attempts"]), (&SUM.into(), &2.into()));
    let told = |cause: &str| {
        assert!(cause.starts_with("rank 1 (slot 1, attempt 1)"), "{cause}");
        let (used, rest) = cause
            .split_once("used ")
            .and_then(|(_, rest)| rest.split_once(" of memory where its seat has 192MiB: "))
            .unwrap_or_else(|| panic!("{cause}"));
        let used: f64 = used.trim_end_matches(|c: char| c.is_alphabetic()).parse().unwrap();
        assert!(used > 192.0 && rest.starts_with("ask for more `memory` per worker"), "{cause}");
    };
    told(root_cause(&ran.err));
    assert!(ran.err.contains("restored step-000020"), "{}", ran.err);

    let failed = place.run(&[&args[..], &["ever", "times=9"]].concat()).code(1);
    let last = failed.err.trim_end().lines().last().unwrap();
    told(root_cause(last));
    assert!(failed.err.contains("2 failures, and 1 were to be made good (max_failures)"), "{}", failed.err);
}

#[test]
fn a_rank_that_stops_in_its_step_is_found_by_its_silence() {
    let place = Place::new();
    place.write("a.ron", RUN);
    let args = ["train", "a.ron", "--name", "frozen", "--json", "millis=80", "failure.dead_seconds=1"];
    let child = place.start_until_step(&args, "frozen");
    let frozen = workers(child.id())[1];
    kill_process(frozen, Signal::STOP).unwrap();
    let begun = Instant::now();
    let ran = came(child).code(0);
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    assert_eq!((&ran.json()["value"], &ran.json()["attempts"]), (&SUM.into(), &2.into()));
    let cause = root_cause(&ran.err);
    assert!(cause.starts_with("rank 1 (slot 1, attempt 1) was not heard for 1"), "{cause}");
    assert!(test_kill_process(frozen).is_err(), "it is still there");
}

#[test]
fn a_rank_that_never_comes_to_the_end_of_its_step_is_found_by_the_others() {
    let place = Place::new();
    place.write("a.ron", RUN);
    let args = ["train", "a.ron", "--json", "fault=Hang", "at=23", "failure.collective_deadline_seconds=1"];
    let begun = Instant::now();
    let ran = place.run(&args).code(0);
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    assert_eq!((&ran.json()["value"], &ran.json()["attempts"]), (&SUM.into(), &2.into()));
    let cause = root_cause(&ran.err);
    assert!(
        cause.contains("lost its peer, rank 1: ") && cause.contains("still waiting for ranks [1]"),
        "{cause}"
    );
}

fn is_committed(run: &Path, name: &str) -> bool {
    let checkpoints = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    checkpoints
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(name))
        .any(|entry| entry.path().join("COMMIT").exists())
}

fn is_struck(run: &Path, attempt: u32) -> bool {
    let log = std::fs::read_to_string(run.join(format!("logs/attempt_{attempt}/rank_1.log")));
    log.is_ok_and(|log| log.contains("struck by Hang"))
}

/// Sends a signal, and the next once the first was heard.
fn twice(mut running: Running, signal: Signal) {
    let all = workers(running.id());
    assert_eq!(all.len(), 2);
    running.signal(signal);
    running.until("stopping after step");
    let begun = Instant::now();
    running.signal(signal);
    let ended = running.came().code(130);
    assert!(begun.elapsed() < Duration::from_secs(10), "at once is not {:?}", begun.elapsed());
    assert!(ended.err.contains("ended at once") && ended.err.contains("resume: "), "{}", ended.err);
    for worker in all {
        assert!(test_kill_process(worker).is_err(), "worker {worker:?} is left behind");
    }
}

#[test]
fn a_second_signal_ends_all_at_once_and_the_run_still_goes_on_later() {
    let place = Place::new();
    place.write("a.ron", RUN);
    // The step that the first signal waits for never ends, in the first two attempts.
    let args =
        ["train", "a.ron", "--name", "hung", "fault=Hang", "at=23", "times=2", "failure.grace_seconds=300"];
    let running = Running::of(place.start(&args));
    let folder = place.path().join("runs/sums/hung");
    until(&format!("a commit of step 20 under {}", folder.display()), || {
        is_committed(&folder, "step-000020")
    });
    until("rank 1 hangs", || is_struck(&folder, 1));
    twice(running, Signal::INT);
    assert_eq!(place.run(&["show", "hung", "--json"]).code(0).json()["status"], "resumable");

    let mut running = Running::of(place.start(&["resume", "hung"]));
    running.until("restored step-000020");
    until("rank 1 hangs again", || is_struck(&folder, 2));
    twice(running, Signal::TERM);
    let ran = place.run(&["resume", "hung", "--json"]).code(0).says("restored step-000020");
    assert_eq!((&ran.json()["value"], &ran.json()["attempts"]), (&SUM.into(), &3.into()));
}
