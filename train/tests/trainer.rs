//! Runs of crews that play a script: what is stored, what is told, and how runs end and go on.

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use regatta_checkpoint::retention::{Best, Mode};
use regatta_cluster::CauseKind;
use regatta_train::metrics::Merge::{Mean, Rank0};
use regatta_train::wire::{Decision, Restore};
use regatta_train::{
    CheckpointConfig, Error, FailureConfig, RunConfig, RunEvent, RunResult, Status, StopReason, Threshold,
    TrainContext, Trainer, metrics,
};
use serde_json::Value;
use support::Move::*;
use support::{Scripted, toy, trainer};

const LOSS_1: &[(&str, f64, regatta_train::metrics::Merge)] = &[("loss", 1.0, Mean), ("lr", 0.1, Rank0)];
const LOSS_3: &[(&str, f64, regatta_train::metrics::Merge)] = &[("loss", 3.0, Mean)];
const NAN: &[(&str, f64, regatta_train::metrics::Merge)] = &[("loss", f64::NAN, Rank0)];

fn root() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Names what happens, in order.
fn listen(trainer: Trainer) -> (Trainer, Arc<Mutex<Vec<String>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let told = heard.clone();
    let listener = move |event: &RunEvent<'_>| {
        let text = match event {
            RunEvent::Begun { experiment, run, resumed, .. } => format!("begun {experiment}/{run} {resumed}"),
            RunEvent::Started { attempt, about, .. } => format!("started {attempt} {about}"),
            RunEvent::Restored { step, .. } => format!("restored {step}"),
            RunEvent::Report { iteration, step, .. } => format!("report {iteration} at {step}"),
            RunEvent::Checkpoint(committed) => format!("checkpoint {}", committed.step),
            RunEvent::Stopping { reason, .. } => format!("stopping: {reason}"),
            RunEvent::Failed { attempt, .. } => format!("failed {attempt}"),
            RunEvent::Recovering { .. } => "recovering".into(),
            RunEvent::Ended { status } => format!("{status:?}"),
            _ => return,
        };
        told.lock().unwrap().push(text);
    };
    (trainer.callback(listener), heard)
}

#[test]
fn a_run_stores_what_its_ranks_report_and_acknowledges_it() {
    let root = root();
    let crew = Scripted::new(2, |_| {
        let first = [Restored, Report(0, 1, 10, LOSS_1), Report(1, 1, 10, LOSS_3), Commit(10)];
        let second = [Report(1, 2, 20, LOSS_3), Report(0, 2, 20, LOSS_1), Done(1, 0), Done(0, 42), Finish];
        [first.to_vec(), second.to_vec()].concat()
    });
    let seen = crew.seen();
    let best = Some(Best { metric: "loss".into(), mode: Mode::Min, count: 1 });
    let checkpoint = CheckpointConfig { best, ..CheckpointConfig::default() };
    let (trainer, heard) = listen(trainer(root.path(), crew).checkpoint(checkpoint));
    let result = trainer.fit().unwrap();

    assert_eq!((result.status(), result.attempts(), result.step()), (&Status::Completed, 1, 20));
    assert_eq!(result.value::<u64>().unwrap(), 42);
    let metrics = result.metrics();
    assert_eq!((metrics.get("loss"), metrics.get("lr")), (Some(2.0), Some(0.1)));
    assert_eq!((metrics.get("epoch"), metrics.get("iteration")), (Some(0.0), Some(2.0)));
    assert_eq!(metrics.get("time_iteration"), Some(1.0), "by rank 0's clock");
    assert!(metrics.get("time_total").unwrap() > 0.0);
    let history: Vec<(u64, f64)> =
        result.history("loss").unwrap().iter().map(|point| (point.step, point.value)).collect();
    assert_eq!(history, [(10, 2.0), (20, 2.0)]);
    let last = result.last_checkpoint().unwrap();
    assert_eq!((last.step, last.metrics.get("loss")), (10, Some(0.1)));
    assert_eq!(result.best_checkpoint(), Some(last));

    assert_eq!(
        *heard.lock().unwrap(),
        [
            "begun toy/one false",
            "started 1 2 x script",
            "restored 0",
            "report 1 at 10",
            "checkpoint 10",
            "report 2 at 20",
            "Completed"
        ]
    );
    // Everything was acknowledged by the end: five sayings of rank 0, three of rank 1.
    let seen = seen.lock().unwrap();
    let last = |rank| seen.acknowledged.iter().rev().find(|(who, _)| *who == rank).copied();
    assert_eq!((last(0), last(1)), (Some((0, 5)), Some((1, 3))));
    assert!(seen.acknowledged.is_sorted_by(|a, b| a.0 != b.0 || a.1 < b.1));

    let path = root.path().join("toy/one");
    assert_eq!(result.path(), path);
    for file in ["config.ron", "env.json", "progress.csv", "result.jsonl", "run.db"] {
        assert!(path.join(file).is_file(), "{file}");
    }
    assert_eq!(std::fs::read_to_string(path.join("result.jsonl")).unwrap().lines().count(), 2);
    let stored = regatta_train::folder::read_config(&path).unwrap();
    assert_eq!((stored.config, stored.run.name.as_deref()), (Value::from(1), Some("one")));

    let again = RunResult::open(&path).unwrap();
    assert_eq!((again.status(), again.value::<u64>().unwrap()), (&Status::Completed, 42));
    assert_eq!(again.best_checkpoint(), result.best_checkpoint());
}

#[test]
fn failures_are_made_good_from_the_last_commit_told_or_not() {
    let root = root();
    let crew = Scripted::new(1, |attempt| match attempt {
        1 => {
            let before = [Restored, Report(0, 1, 10, LOSS_1), Commit(10), Report(0, 2, 20, LOSS_1)];
            [before.to_vec(), vec![CommitUntold(15), Fail(CauseKind::Killed { signal: 11 }, "")]].concat()
        }
        2 => vec![Restored, SaveFails(16), Report(0, 1, 20, NAN), Fail(CauseKind::Preempted, "node gone")],
        _ => vec![Restored, Report(0, 1, 20, LOSS_3), Done(0, 7), Finish],
    });
    let seen = crew.seen();
    let (trainer, heard) = listen(trainer(root.path(), crew));
    let begun = Instant::now();
    let result = trainer.fit().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));

    assert_eq!((result.attempts(), result.value::<u64>().unwrap()), (3, 7));
    // What the first attempt reported at step 20 was undone by going back to 15.
    let steps: Vec<(u32, u64, bool)> = result
        .history("loss")
        .unwrap()
        .iter()
        .map(|point| (point.attempt, point.step, point.value.is_nan()))
        .collect();
    assert_eq!(steps, [(1, 10, false), (3, 20, false)]);
    assert_eq!(result.last_checkpoint().unwrap().step, 15, "a commit that nobody told of counts");
    let starts = &seen.lock().unwrap().starts;
    let numbers: Vec<(u32, u64)> = starts.iter().map(|start| (start.attempt, start.generation)).collect();
    assert_eq!(numbers, [(1, 1), (2, 2), (3, 3)]);
    assert_eq!((&starts[0].restore, &starts[1].restore), (&Restore::Nothing, &Restore::Newest));
    assert!(starts[2].spent_seconds > 0.0);
    let heard = heard.lock().unwrap();
    assert_eq!(heard.iter().filter(|text| *text == "recovering").count(), 2, "{heard:?}");
    assert!(heard.contains(&"restored 15".to_owned()), "{heard:?}");
}

#[test]
fn a_crash_loop_ends_with_its_first_error_and_can_be_resumed() {
    let root = root();
    let failure = FailureConfig { max_failures: 2, backoff_seconds: 0.01, ..FailureConfig::default() };
    let crew = Scripted::new(2, |attempt| match attempt {
        1 => vec![Fail(CauseKind::Killed { signal: 11 }, "")],
        _ => vec![Fail(CauseKind::Exited { code: 1 }, "")],
    });
    let error = trainer(root.path(), crew).failure(failure.clone()).fit().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Failed(_)), "{text}");
    assert!(
        text.starts_with(
            "run toy/one (3 failures, and 2 were to be made good (max_failures)) failed, because:"
        ),
        "{text}"
    );
    assert!(text.contains("  | the last line\n"), "{text}");
    assert!(
        text.contains("root cause: rank 1 (slot 1, attempt 1) was killed by signal 11 (SIGSEGV"),
        "{text}"
    );

    let stored = RunResult::open(root.path().join("toy/one")).unwrap();
    assert_eq!((stored.status(), stored.attempts()), (&Status::Failed, 3));
    assert!(stored.error().unwrap().to_string().contains("SIGSEGV"), "{:?}", stored.error());

    // Whoever resumes it has seen that, and gets the whole budget again.
    let crew = Scripted::new(1, |attempt| match attempt {
        4 | 5 => vec![Fail(CauseKind::Exited { code: 1 }, "")],
        _ => vec![Done(0, attempt.into()), Finish],
    });
    let result = trainer(root.path(), crew).failure(failure).resume("one").fit().unwrap();
    assert_eq!((result.value::<u64>().unwrap(), result.status()), (6, &Status::Completed));
}

#[test]
fn a_stop_is_graceful_and_the_run_goes_on_where_it_was() {
    let root = root();
    let crew = Scripted::new(1, |_| vec![Restored, Report(0, 1, 10, LOSS_1)]).on_stop(&[
        Commit(11),
        Done(0, 1),
        Finish,
    ]);
    let seen = crew.seen();
    let trainer1 = trainer(root.path(), crew);
    let handle = trainer1.handle();
    let stop = move |event: &RunEvent<'_>| {
        if let RunEvent::Report { .. } = event {
            handle.stop(StopReason::Preempted);
        }
    };
    let result = trainer1.callback(stop).fit().unwrap();
    assert_eq!(result.status(), &Status::Stopped { reason: StopReason::Preempted, forced: false });
    assert_eq!(result.last_checkpoint().unwrap().step, 11);
    assert!(result.error().is_none());
    assert_eq!(seen.lock().unwrap().decisions.len(), 1);
    assert_eq!(RunResult::open(result.path()).unwrap().status(), result.status());

    let crew = Scripted::new(1, |_| vec![Restored, Report(0, 1, 12, LOSS_1), Done(0, 2), Finish]);
    let seen = crew.seen();
    let (trainer2, heard) = listen(trainer(root.path(), crew).resume("toy/one"));
    let result = trainer2.fit().unwrap();
    assert_eq!((result.status(), result.attempts()), (&Status::Completed, 2));
    let start = seen.lock().unwrap().starts[0].clone();
    assert_eq!((start.attempt, start.generation, start.restore), (2, 2, Restore::Newest));
    assert!(heard.lock().unwrap().contains(&"report 2 at 12".to_owned()), "{heard:?}");
}

#[test]
fn the_total_time_covers_every_iteration() {
    let root = root();
    let work = |ctx: &mut TrainContext, _: Value| -> regatta_train::Result<()> {
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(100));
            ctx.report(metrics! { loss: 1.0 }).send()?;
        }
        Ok(())
    };
    let storage = root.path().to_string_lossy();
    let result = Trainer::new(work, Value::Null).in_process().storage(storage).fit().unwrap();
    let values = |name| result.history(name).unwrap().into_iter().map(|point| point.value);
    let mut sum = 0.0;
    for (total, iteration) in values("time_total").zip(values("time_iteration")) {
        sum += iteration;
        assert!(iteration >= 0.1 && total >= sum, "{total} seconds, of which {sum} are known");
    }
    assert!(sum >= 0.2);
}

#[test]
fn a_goal_that_is_reached_completes_the_run() {
    let root = root();
    let crew = Scripted::new(2, |_| vec![Report(0, 1, 5, LOSS_1), Report(1, 1, 5, LOSS_3)]).on_stop(&[
        Done(0, 1),
        Done(1, 1),
        Finish,
    ]);
    let seen = crew.seen();
    let mut run = RunConfig { storage: root.path().to_str().unwrap().into(), ..RunConfig::default() };
    run.stop.metrics.insert("loss".into(), Threshold::AtMost(2.0));
    let result = Trainer::new(toy, Value::Null).crew(crew).run(run).fit().unwrap();
    assert_eq!(result.status(), &Status::Completed);
    let expected = Decision::Stop(StopReason::Reached("loss 2".into()));
    assert_eq!(seen.lock().unwrap().decisions, [expected]);
}

#[test]
fn a_rank_that_does_not_report_is_named() {
    let root = root();
    let crew = Scripted::new(3, |_| vec![Report(0, 1, 5, LOSS_1), Report(2, 1, 5, LOSS_3)]);
    let failure = FailureConfig { max_failures: 0, report_deadline_seconds: 0.1, ..FailureConfig::default() };
    let error = trainer(root.path(), crew).failure(failure).fit().unwrap_err();
    assert_eq!(error.to_string(), "report 1 (step 5): rank 1 did not report within 100ms after the first");
}

#[test]
fn two_controllers_on_one_run_the_second_is_refused() {
    let root = root();
    let first = trainer(root.path(), Scripted::new(1, |_| vec![Report(0, 1, 5, LOSS_1)]));
    let (handle, (ready, begun)) = (first.handle(), std::sync::mpsc::channel());
    let first = first.callback(move |event: &RunEvent<'_>| {
        if let RunEvent::Report { .. } = event {
            ready.send(()).unwrap();
        }
    });
    let running = std::thread::spawn(move || first.fit());
    begun.recv_timeout(Duration::from_secs(30)).unwrap();

    let error = trainer(root.path(), Scripted::new(1, |_| vec![])).fit().unwrap_err();
    assert!(matches!(&error, Error::RunExists { .. }), "{error}");
    let error = trainer(root.path(), Scripted::new(1, |_| vec![])).resume("one").fit().unwrap_err();
    assert!(error.to_string().contains("is being written by process"), "{error}");

    handle.kill();
    let result = running.join().unwrap().unwrap();
    assert_eq!(result.status(), &Status::Stopped { reason: StopReason::User, forced: true });
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let root = root();
    let crew = || Scripted::new(1, |_| vec![]);
    let refused = |trainer: Trainer| trainer.fit().unwrap_err().to_string();

    assert!(refused(trainer(root.path(), crew()).run("a/b")).starts_with("run.name: "));
    assert!(refused(trainer(root.path(), crew()).workers(0)).starts_with("scaling.workers: "));
    let missing = refused(trainer(root.path(), crew()).resume("nobody"));
    assert!(missing.starts_with("there is no run \"nobody\""), "{missing}");

    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    let unwritable = refused(trainer(&file, crew()));
    assert!(unwritable.contains("choose another place with run.storage"), "{unwritable}");

    // Worker processes find their function by its name.
    let unregistered = refused(Trainer::new(toy, Value::Null).storage(root.path().to_str().unwrap()));
    assert!(unregistered.contains("put #[regatta::trainable] above the function"), "{unregistered}");
    assert!(!root.path().join("toy").exists(), "nothing was made");
}
