//! What every [`Engine`] must do, as code: each engine's tests run [`all`] against it.
//!
//! Needs room for one driver, and `/bin/sh` where drivers run; panics at the first broken promise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{EXIT_RESUMABLE, Engine, JobId, JobSpec, JobState, JobStatus};
use crate::conformance::sh;
use crate::error::Error;
use crate::request::GangRequest;
use crate::resource::Resources;
use crate::spawner::Reason;

/// How long any single step may take on a busy machine.
const STEP: Duration = Duration::from_secs(60);

/// Runs every case, one after the other.
pub async fn all(engine: Arc<dyn Engine>) {
    a_driver_runs_and_its_end_is_known(&*engine).await;
    an_exit_code_is_the_reason(&*engine).await;
    submitting_twice_is_submitting_once(&engine).await;
    secrets_reach_the_driver_alone(&*engine).await;
    a_log_is_read_in_pieces_while_it_grows(&*engine).await;
    a_polite_driver_leaves_by_itself(&*engine).await;
    a_stubborn_driver_is_ended(&*engine).await;
    jobs_are_found_by_their_labels(&*engine).await;
    a_job_that_was_never_submitted_is_an_error(&*engine).await;
}

/// A job of one small worker whose driver runs this shell script.
#[must_use]
pub fn job(script: &str) -> JobSpec {
    static JOBS: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let id = format!("conformance-{now:x}-{}", JOBS.fetch_add(1, Ordering::Relaxed));
    let room = GangRequest::new("conformance", 1, Resources::cpus(1));
    JobSpec::new(JobId::new(id).expect("a name"), sh(script), room)
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STEP, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not done within {STEP:?}"),
    }
}

/// Submits a job that must be new.
pub async fn submit(engine: &dyn Engine, spec: &JobSpec) {
    let submitted = soon("submit", engine.submit(spec)).await.expect("it is taken");
    assert!(submitted.new && !submitted.engine_id.is_empty(), "{submitted:?}");
}

/// Reads the whole log, following it to the end of the job.
pub async fn log(engine: &dyn Engine, id: &JobId) -> String {
    let (mut from, mut log) = (0, Vec::new());
    soon("the end of the log", async {
        loop {
            let part = engine.logs(id, from, Duration::from_secs(1)).await.expect("the log can be read");
            (from, log) = (part.next, [log, part.bytes].concat());
            if part.end {
                return String::from_utf8_lossy(&log).into_owned();
            }
        }
    })
    .await
}

/// Follows the log until it holds this text.
pub async fn logged(engine: &dyn Engine, id: &JobId, text: &str) {
    let (mut from, mut log) = (0, String::new());
    soon(text, async {
        while !log.contains(text) {
            let part = engine.logs(id, from, Duration::from_secs(1)).await.expect("the log can be read");
            log.push_str(&String::from_utf8_lossy(&part.bytes));
            from = part.next;
            assert!(!part.end, "`{text}` was awaited, the log ended: {log}");
        }
    })
    .await;
}

async fn status(engine: &dyn Engine, id: &JobId) -> JobStatus {
    let mut all = soon("describe", engine.describe(std::slice::from_ref(id))).await.expect("it is known");
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// Waits for the job's end and says how it ended.
pub async fn ended(engine: &dyn Engine, id: &JobId) -> Reason {
    log(engine, id).await;
    match status(engine, id).await.state {
        JobState::Ended(reason) => reason,
        other => panic!("the log of {id} ended, but it is {other:?}"),
    }
}

/// A driver gets its arguments as they are, and its success is told, with what it wrote.
pub async fn a_driver_runs_and_its_end_is_known(engine: &dyn Engine) {
    let mut spec = job("echo \"got $1|$2\"; echo to stderr >&2");
    spec.command = spec.command.arg("sh").arg("a 'b' $HOME").arg("");
    assert!(engine.render(&spec).expect("it can be rendered").contains("a "));
    submit(engine, &spec).await;
    let log = log(engine, &spec.id).await;
    assert!(log.contains("got a 'b' $HOME|\n") && log.contains("to stderr"), "{log}");
    assert_eq!(status(engine, &spec.id).await.state, JobState::Ended(Reason::Succeeded));
}

/// Failure and the wish to be resumed are told apart.
pub async fn an_exit_code_is_the_reason(engine: &dyn Engine) {
    for (code, expected) in [(7, Reason::UserError { code: 7 }), (EXIT_RESUMABLE, Reason::Preempted)] {
        let spec = job(&format!("exit {code}"));
        submit(engine, &spec).await;
        assert_eq!(ended(engine, &spec.id).await, expected);
    }
}

/// However often and however simultaneously a job is submitted, it runs once.
pub async fn submitting_twice_is_submitting_once(engine: &Arc<dyn Engine>) {
    let spec = job("echo once");
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let (engine, spec) = (engine.clone(), spec.clone());
            tokio::spawn(async move { engine.submit(&spec).await.expect("it is taken") })
        })
        .collect();
    let mut submitted = Vec::new();
    for task in tasks {
        submitted.push(soon("submit", task).await.expect("it does not panic"));
    }
    assert_eq!(submitted.iter().filter(|one| one.new).count(), 1, "{submitted:?}");
    assert!(submitted.iter().all(|one| one.engine_id == submitted[0].engine_id), "{submitted:?}");
    assert_eq!(log(&**engine, &spec.id).await.matches("once").count(), 1);
    assert!(!engine.submit(&spec).await.expect("it is known").new, "nor again after its end");
}

/// A variable is seen by the driver, not in what is rendered.
pub async fn secrets_reach_the_driver_alone(engine: &dyn Engine) {
    let mut spec = job("echo \"length ${#SECRET}\"");
    spec.command = spec.command.env("SECRET", "tell-no-one-'$x");
    let rendered = engine.render(&spec).expect("it can be rendered");
    assert!(!rendered.contains("tell-no-one") && !format!("{spec:?}").contains("tell-no-one"), "{rendered}");
    submit(engine, &spec).await;
    assert!(log(engine, &spec.id).await.contains("length 15\n"));
}

/// A reader that follows sees a line before the job's end, and every byte once.
pub async fn a_log_is_read_in_pieces_while_it_grows(engine: &dyn Engine) {
    let spec = job("echo first; trap 'echo last; exit 0' TERM; while :; do sleep 0.05; done");
    submit(engine, &spec).await;
    logged(engine, &spec.id, "first\n").await;
    let part = engine.logs(&spec.id, 6, Duration::ZERO).await.expect("it can be read");
    assert!(part.bytes.is_empty() && !part.end && part.next == 6, "{part:?}");
    assert_eq!(status(engine, &spec.id).await.state, JobState::Running);
    soon("cancel", engine.cancel(&spec.id, STEP)).await.expect("it ends");
    assert!(log(engine, &spec.id).await.contains("last\n"));
}

/// A driver that saves and leaves within its grace was cancelled, not preempted.
pub async fn a_polite_driver_leaves_by_itself(engine: &dyn Engine) {
    let spec = job("trap 'echo saved; exit 75' TERM; echo ready; while :; do sleep 0.05; done");
    submit(engine, &spec).await;
    logged(engine, &spec.id, "ready").await;
    let status = soon("cancel", engine.cancel(&spec.id, STEP * 2)).await.expect("it ends");
    assert_eq!(status.state, JobState::Ended(Reason::Cancelled), "{status:?}");
    assert!(log(engine, &spec.id).await.contains("saved"));
    soon("cancel again", engine.cancel(&spec.id, STEP)).await.expect("cancelling what is over does nothing");
}

/// One that does not listen is ended after its grace.
pub async fn a_stubborn_driver_is_ended(engine: &dyn Engine) {
    let spec = job("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    submit(engine, &spec).await;
    logged(engine, &spec.id, "ready").await;
    let (since, grace) = (std::time::Instant::now(), Duration::from_millis(300));
    let status = soon("cancel", engine.cancel(&spec.id, grace)).await.expect("it ends");
    assert!(since.elapsed() >= grace, "ended before its grace");
    assert_eq!(status.state, JobState::Ended(Reason::Cancelled), "{status:?}");
}

/// Every label asked for must be there.
pub async fn jobs_are_found_by_their_labels(engine: &dyn Engine) {
    let spec = job("exit 0");
    let (run, other) = (spec.id.to_string(), job("exit 0"));
    let spec = spec.label("run", &run).label("experiment", "conformance");
    submit(engine, &spec).await;
    submit(engine, &other).await;
    let wanted = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let found =
        engine.list(&wanted(&[("run", &run), ("experiment", "conformance")])).await.expect("it lists");
    assert_eq!(found.iter().map(|status| &status.id).collect::<Vec<_>>(), [&spec.id]);
    assert_eq!(found[0].labels, spec.labels);
    assert!(engine.list(&wanted(&[("run", &run), ("experiment", "x")])).await.expect("it lists").is_empty());
    let both = engine.describe(&[other.id.clone(), spec.id.clone()]).await.expect("both are known");
    assert_eq!(both.iter().map(|status| &status.id).collect::<Vec<_>>(), [&other.id, &spec.id]);
    ended(engine, &spec.id).await;
    ended(engine, &other.id).await;
}

/// Its name is in the error.
pub async fn a_job_that_was_never_submitted_is_an_error(engine: &dyn Engine) {
    let id = job("exit 0").id;
    let unknown = engine.describe(std::slice::from_ref(&id)).await;
    assert!(matches!(&unknown, Err(Error::UnknownJob { job, .. }) if *job == id), "{unknown:?}");
    assert!(engine.cancel(&id, STEP).await.is_err() && engine.logs(&id, 0, Duration::ZERO).await.is_err());
}
