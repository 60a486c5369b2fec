//! The commit protocol on an S3 that misbehaves: errors before and after the deed, slow answers, requests that arrive
//! twice, answers that never come. Exactly one COMMIT comes of every acknowledged save, and it verifies.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use regatta_checkpoint::store::{FileStore, ObjectStore, Retry};
use regatta_checkpoint::*;
use regatta_checkpoint_s3_tests::{BUCKET, Mischief, Server};

/// A store with as little retrying in the client as it allows, so that the crate's own is what is tested.
fn store_of(server: &Server, prefix: &str) -> Arc<dyn Store> {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(5),
        ..BackoffConfig::default()
    };
    // Clients made by hand choose their own cryptography; `ObjectStore::from_url` does it for its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let s3 = AmazonS3Builder::new()
        .with_endpoint(&server.endpoint)
        .with_bucket_name(BUCKET)
        .with_region("us-east-1")
        .with_skip_signature(true)
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(RetryConfig { backoff, max_retries: 1, retry_timeout: Duration::from_secs(20) })
        .build()
        .unwrap();
    let retry = Retry { attempts: 12, first_wait_seconds: 0.001, max_wait_seconds: 0.02, ..Retry::default() };
    let location = format!("{}/{prefix}", server.endpoint);
    Arc::new(ObjectStore::new(Arc::new(s3), prefix.into(), location, retry).unwrap())
}

#[test]
fn stores_conform() {
    let folder = tempfile::tempdir().unwrap();
    conformance::store(&FileStore::create(folder.path()).unwrap());
    conformance::store(&FileStore::on(fs::sim::SimFs::new()));
    conformance::store(&*store::open("memory:///some/where").unwrap());
    conformance::store(&*store_of(&Server::start(), "runs/one"));
}

#[test]
fn every_mischief_on_commit_leaves_exactly_one() {
    use Mischief::*;
    let server = Server::start();
    let store = store_of(&server, "run");
    let mut savers = build_all(&config(), &store, group(2)).unwrap();
    let cases: &[&[Mischief]] = &[
        &[ErrorBefore],
        &[ErrorAfter],
        &[LostReply],
        &[Twice],
        &[Slow],
        &[ErrorBefore, ErrorBefore, ErrorAfter],
        &[ErrorBefore, LostReply],
        &[ErrorBefore, Slow],
        &[ErrorBefore, ErrorBefore, Twice],
    ];
    for (step, case) in (1..).zip(cases) {
        server.on_commit(case);
        for outcome in save_all(&mut savers, step) {
            outcome.unwrap_or_else(|error| panic!("{case:?}: {error}"));
        }
        assert_eq!(server.left_on_commit(), 0, "{case:?} was not all used");
        let found = recover::newest(store.clone(), Verify::Full).unwrap();
        assert_eq!(found.checkpoint.manifest().step, step);
        assert_whole(&found.checkpoint);
    }
    let commits = server.commits();
    assert_eq!(commits.len(), cases.len());
    assert!(commits.values().all(|&count| count == 1), "{commits:?}");
}

#[test]
fn saves_survive_a_store_that_misbehaves_all_the_time() {
    let server = Server::start();
    let store = store_of(&server, "run");
    server.misbehave(1);
    let config = SaverConfig { retention: Retention::last(2), ..config() };
    let mut savers = build_all(&config, &store, group(2)).unwrap();
    for step in 1..=12 {
        server.misbehave(step);
        for outcome in save_all(&mut savers, step) {
            outcome.unwrap();
        }
    }
    let seen = server.seen();
    assert!(seen.len() == 6, "not all kinds of mischief came about: {seen:?}");
    let found = recover::newest(store.clone(), Verify::Full).unwrap();
    assert_eq!((found.checkpoint.manifest().step, found.damaged), (12, vec![]));
    assert_whole(&found.checkpoint);
    let commits = server.commits();
    assert!(commits.len() == 12 && commits.values().all(|&count| count == 1), "{commits:?}");
    server.misbehave(0);
    assert!(catalog::list(&*store).unwrap().len() >= 2);
}

#[test]
fn a_store_that_is_gone_fails_the_save_with_the_reason() {
    let server = Server::start();
    let store = store_of(&server, "run");
    let mut savers = build_all(&config(), &store, group(1)).unwrap();
    save_all(&mut savers, 1).remove(0).unwrap();
    server.on_commit(&[Mischief::ErrorBefore; 100]);
    let error = save_all(&mut savers, 2).remove(0).unwrap_err().to_string();
    assert!(error.contains("COMMIT") && error.contains("500"), "{error}");
    server.on_commit(&[]);
    assert_eq!(recover::newest(store, Verify::Full).unwrap().checkpoint.manifest().step, 1);
}

#[test]
fn a_large_shard_goes_up_in_parts_and_comes_down_whole() {
    let server = Server::start();
    let store = store_of(&server, "run");
    let data: Vec<u8> = (0..30_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let tensors = [Tensor::replicated("large", Dtype::U8, &[30_000_000], &data)];
    let mut saver = config().build(store.clone(), Arc::new(Solo)).unwrap();
    saver.save(&Save::new(1, &tensors)).unwrap().wait(LIMIT).unwrap();
    let found = recover::newest(store, Verify::OnRead).unwrap();
    assert!(*found.checkpoint.tensor("large").unwrap() == data[..]);
    let part = Region::new([12_345_678], [10]);
    assert_eq!(*found.checkpoint.region("large", &part).unwrap(), data[12_345_678..12_345_688]);
}

#[test]
fn credentials_are_never_shown() {
    for url in
        ["memory://user:secret@host/path?token=secret", "nonsense://user:secret@host/path?token=secret"]
    {
        let shown = match ObjectStore::from_url(url) {
            Ok(store) => format!("{store:?} {}", store.location()),
            Err(error) => format!("{error:?} {error}"),
        };
        assert!(!shown.contains("secret"), "{shown}");
    }
}
