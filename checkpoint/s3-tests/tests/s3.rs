//! The commit protocol on an S3 that misbehaves: errors before and after the deed, slow answers, requests that arrive
//! twice, answers that never come. Exactly one COMMIT comes of every acknowledged save, and it verifies.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use regatta_checkpoint::store::{FileStore, ObjectStore, Retry};
use regatta_checkpoint::*;
use s3s::service::S3ServiceBuilder;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mischief {
    None,
    ErrorBefore,
    ErrorAfter,
    LostReply,
    Twice,
    Slow,
}

/// An S3 in this process, and what it was asked to do.
struct Server {
    endpoint: String,
    _folder: tempfile::TempDir,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    service: s3s::service::S3Service,
    /// s3s-fs looks and then writes; a real S3 does both at once.
    one_at_a_time: tokio::sync::Mutex<()>,
    requests: AtomicU64,
    seed: AtomicU64,
    /// Mischief for the next PUTs of a COMMIT, the last one first, before chance gets to it.
    on_commit: Mutex<Vec<Mischief>>,
    created: Mutex<HashMap<String, u32>>,
    seen: Mutex<HashMap<&'static str, u32>>,
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bucket")).unwrap();
        let service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap()).build();
        let shared = Arc::new(Shared {
            service,
            one_at_a_time: tokio::sync::Mutex::new(()),
            requests: AtomicU64::new(0),
            seed: AtomicU64::new(0),
            on_commit: Mutex::new(Vec::new()),
            created: Mutex::new(HashMap::new()),
            seen: Mutex::new(HashMap::new()),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serving = shared.clone();
        runtime.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let shared = serving.clone();
                let service = hyper::service::service_fn(move |request| answer(shared.clone(), request));
                tokio::spawn(async move {
                    let io = hyper_util::rt::TokioIo::new(socket);
                    // A lost reply ends the connection with an error; that is its purpose.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        });
        Server { endpoint, _folder: folder, shared, _runtime: runtime }
    }

    /// A store with as little retrying in the client as it allows, so that the crate's own is what is tested.
    fn store(&self, prefix: &str) -> Arc<dyn Store> {
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(1),
            max_backoff: Duration::from_millis(5),
            ..BackoffConfig::default()
        };
        // Clients made by hand choose their own cryptography; `ObjectStore::from_url` does it for its own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let s3 = AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_bucket_name("bucket")
            .with_region("us-east-1")
            .with_skip_signature(true)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_retry(RetryConfig { backoff, max_retries: 1, retry_timeout: Duration::from_secs(20) })
            .build()
            .unwrap();
        let retry =
            Retry { attempts: 12, first_wait_seconds: 0.001, max_wait_seconds: 0.02, ..Retry::default() };
        let location = format!("{}/{prefix}", self.endpoint);
        Arc::new(ObjectStore::new(Arc::new(s3), prefix.into(), location, retry).unwrap())
    }

    fn misbehave(&self, seed: u64) {
        self.shared.seed.store(seed, Ordering::SeqCst);
    }

    /// How often each COMMIT came to be.
    fn commits(&self) -> HashMap<String, u32> {
        self.shared.created.lock().unwrap().clone()
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<s3s::Body>, Infallible> {
    match serve(&shared, request).await {
        Some(response) => Ok(response),
        // A task that panics takes its connection with it. The client sees no reply.
        None => std::panic::resume_unwind(Box::new("reply lost on purpose")),
    }
}

async fn serve(shared: &Shared, request: Request<Incoming>) -> Option<Response<s3s::Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let commit = parts.method == hyper::Method::PUT && parts.uri.path().ends_with("/COMMIT");
    let mischief = choose(shared, commit);
    *shared.seen.lock().unwrap().entry(word(mischief)).or_default() += 1;
    let failure = || {
        let mut response =
            Response::new(s3s::Body::from(Bytes::from_static(b"<Error><Code>InternalError</Code></Error>")));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    };
    if mischief == Mischief::ErrorBefore {
        return Some(failure());
    }
    if mischief == Mischief::Slow {
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let mut response = None;
    for _ in 0..if mischief == Mischief::Twice { 2 } else { 1 } {
        let _turn = shared.one_at_a_time.lock().await;
        let request = Request::from_parts(parts.clone(), s3s::Body::from(body.clone()));
        let done = shared.service.call(request).await.unwrap();
        if commit && done.status().is_success() {
            *shared.created.lock().unwrap().entry(parts.uri.path().to_owned()).or_default() += 1;
        }
        response = Some(done);
    }
    match mischief {
        Mischief::ErrorAfter => Some(failure()),
        Mischief::LostReply => None,
        _ => response,
    }
}

fn choose(shared: &Shared, commit: bool) -> Mischief {
    let number = shared.requests.fetch_add(1, Ordering::SeqCst);
    if commit && let Some(mischief) = shared.on_commit.lock().unwrap().pop() {
        return mischief;
    }
    let seed = shared.seed.load(Ordering::SeqCst);
    if seed == 0 {
        return Mischief::None;
    }
    match ((number + seed * 1000).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % 16 {
        0 => Mischief::ErrorBefore,
        1 => Mischief::ErrorAfter,
        2 => Mischief::LostReply,
        3 => Mischief::Twice,
        4 => Mischief::Slow,
        _ => Mischief::None,
    }
}

fn word(mischief: Mischief) -> &'static str {
    match mischief {
        Mischief::None => "none",
        Mischief::ErrorBefore => "error before",
        Mischief::ErrorAfter => "error after",
        Mischief::LostReply => "lost reply",
        Mischief::Twice => "twice",
        Mischief::Slow => "slow",
    }
}

#[test]
fn stores_conform() {
    let folder = tempfile::tempdir().unwrap();
    conformance::store(&FileStore::create(folder.path()).unwrap());
    conformance::store(&FileStore::on(fs::sim::SimFs::new()));
    conformance::store(&*store::open("memory:///some/where").unwrap());
    conformance::store(&*Server::start().store("runs/one"));
}

#[test]
fn every_mischief_on_commit_leaves_exactly_one() {
    use Mischief::*;
    let server = Server::start();
    let store = server.store("run");
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
        *server.shared.on_commit.lock().unwrap() = case.iter().rev().copied().collect();
        for outcome in save_all(&mut savers, step) {
            outcome.unwrap_or_else(|error| panic!("{case:?}: {error}"));
        }
        assert!(server.shared.on_commit.lock().unwrap().is_empty(), "{case:?} was not all used");
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
    let store = server.store("run");
    server.misbehave(1);
    let config = SaverConfig { retention: Retention::last(2), ..config() };
    let mut savers = build_all(&config, &store, group(2)).unwrap();
    for step in 1..=12 {
        server.misbehave(step);
        for outcome in save_all(&mut savers, step) {
            outcome.unwrap();
        }
    }
    let seen = server.shared.seen.lock().unwrap().clone();
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
    let store = server.store("run");
    let mut savers = build_all(&config(), &store, group(1)).unwrap();
    save_all(&mut savers, 1).remove(0).unwrap();
    let others: Vec<_> = std::iter::repeat_n(Mischief::ErrorBefore, 100).collect();
    *server.shared.on_commit.lock().unwrap() = others;
    let error = save_all(&mut savers, 2).remove(0).unwrap_err().to_string();
    assert!(error.contains("COMMIT") && error.contains("500"), "{error}");
    server.shared.on_commit.lock().unwrap().clear();
    assert_eq!(recover::newest(store, Verify::Full).unwrap().checkpoint.manifest().step, 1);
}

#[test]
fn a_large_shard_goes_up_in_parts_and_comes_down_whole() {
    let server = Server::start();
    let store = server.store("run");
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
