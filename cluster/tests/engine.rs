//! The client's side of the local engine: a driver as a process that outlives whoever submitted it.

use std::sync::Arc;
use std::time::Duration;

use regatta_cluster::engine::local::LocalEngine;
use regatta_cluster::engine::{Engine, JobState, conformance};
use regatta_cluster::{Error, Reason, WorkerCommand};

#[tokio::test]
async fn local_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conformance::all(Arc::new(LocalEngine::new(folder.path()))).await;
}

#[tokio::test]
async fn another_client_finds_reads_and_cancels_what_the_first_submitted() {
    let folder = tempfile::tempdir().unwrap();
    let spec = conformance::job("echo ready; while :; do sleep 0.05; done");
    LocalEngine::new(folder.path()).submit(&spec).await.unwrap();
    let other = LocalEngine::new(folder.path());
    conformance::logged(&other, &spec.id, "ready").await;
    let status = other.cancel(&spec.id, Duration::from_secs(30)).await.unwrap();
    assert_eq!(status.state, JobState::Ended(Reason::Cancelled));
}

#[tokio::test]
async fn a_driver_that_was_killed_says_by_what_and_one_that_is_not_there_says_so_in_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let engine = LocalEngine::new(folder.path());
    let spec = conformance::job("kill -9 $$");
    engine.submit(&spec).await.unwrap();
    assert_eq!(conformance::ended(&engine, &spec.id).await, Reason::UserError { code: 137 });

    let mut spec = conformance::job("");
    spec.command = WorkerCommand::new("/nowhere/to/be/found");
    engine.submit(&spec).await.unwrap();
    assert_eq!(conformance::ended(&engine, &spec.id).await, Reason::UserError { code: 127 });
    assert!(conformance::log(&engine, &spec.id).await.contains("/nowhere/to/be/found"));
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let spec = conformance::job("exit 0");
    let error = LocalEngine::new("/proc/nowhere").submit(&spec).await.unwrap_err();
    assert!(matches!(&error, Error::File { .. }) && error.to_string().contains("/proc/nowhere"), "{error}");
}
