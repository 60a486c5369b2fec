//! The Ray engine against a dashboard that answers as Ray's does, and against some that do not.
#![cfg(feature = "ray")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use regatta_cluster::engine::{Engine, JobId, JobSpec, JobState, conformance};
use regatta_cluster::ray::{RayConfig, RayEngine};
use regatta_cluster::{Error, GangRequest, Reason, Resources};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const TOKEN: &str = "the-token";
const PATIENCE: Duration = Duration::from_secs(60);

/// What the dashboard remembers and was asked.
#[derive(Default)]
struct Seen {
    packages: BTreeMap<String, Bytes>,
    uploads: Vec<String>,
    jobs: BTreeMap<String, Value>,
    /// Posted bodies, in order.
    posted: Vec<Value>,
    log: Vec<u8>,
    /// Those who follow the log.
    followers: Vec<mpsc::UnboundedSender<Result<Vec<u8>, std::io::Error>>>,
    streams: usize,
}

type Shared = Arc<Mutex<Seen>>;

impl Seen {
    fn write(&mut self, text: &str) {
        self.log.extend_from_slice(text.as_bytes());
        self.followers.iter().for_each(|follower| drop(follower.send(Ok(text.as_bytes().to_vec()))));
    }

    fn end(&mut self, id: &JobId, status: &str, code: Option<i32>) {
        let job = self.jobs.get_mut(id.as_str()).unwrap();
        (job["status"], job["driver_exit_code"]) = (status.into(), code.into());
    }
}

/// The dashboard, on a port of its own.
async fn dashboard() -> (Shared, RayConfig, tempfile::TempDir) {
    let seen = Shared::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let routes = Router::new()
        .route("/api/packages/gcs/{name}", get(has_package).put(put_package))
        .route("/api/jobs/", post(submit).get(list))
        .route("/api/jobs/{id}", get(describe))
        .route("/api/jobs/{id}/stop", post(stop))
        .route("/api/v0/nodes", get(nodes))
        .route("/api/v0/logs/{kind}", get(log))
        .with_state(seen.clone())
        .layer(middleware::from_fn(guard));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let folder = tempfile::tempdir().unwrap();
    let config = with_token(RayConfig::at(address), &folder, TOKEN);
    (seen, config, folder)
}

fn with_token(config: RayConfig, folder: &tempfile::TempDir, token: &str) -> RayConfig {
    let file = folder.path().join(format!("token-{}", token.len()));
    std::fs::write(&file, token).unwrap();
    RayConfig { token_file: Some(file), ..config }
}

async fn guard(request: Request, next: Next) -> Response {
    let presented = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    match presented {
        None => (StatusCode::UNAUTHORIZED, "Unauthorized: Missing authentication token").into_response(),
        Some(value) if value == format!("Bearer {TOKEN}") => next.run(request).await,
        Some(_) => (StatusCode::FORBIDDEN, "Forbidden: Invalid authentication token").into_response(),
    }
}

async fn has_package(State(seen): State<Shared>, Path(name): Path<String>) -> StatusCode {
    let there = seen.lock().unwrap().packages.contains_key(&name);
    if there { StatusCode::OK } else { StatusCode::NOT_FOUND }
}

async fn put_package(State(seen): State<Shared>, Path(name): Path<String>, body: Bytes) {
    let mut seen = seen.lock().unwrap();
    seen.uploads.push(name.clone());
    seen.packages.insert(name, body);
}

async fn submit(State(seen): State<Shared>, body: String) -> Response {
    let body: Value = serde_json::from_str(&body).unwrap();
    let id = body["submission_id"].as_str().unwrap().to_owned();
    let mut seen = seen.lock().unwrap();
    seen.posted.push(body.clone());
    if seen.jobs.contains_key(&id) {
        let text = format!(
            "Traceback (most recent call last):\n  x\nValueError: Job with submission_id {id} already exists."
        );
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    let start = seen.jobs.len() + 1;
    let job = json!({"submission_id": id, "status": "RUNNING", "message": "Job is currently running.",
        "error_type": null, "start_time": start, "metadata": body["metadata"], "driver_node_id": "abc",
        "driver_agent_http_address": "http://127.0.0.10:52365", "driver_exit_code": null});
    seen.jobs.insert(id.clone(), job);
    json!({"job_id": id, "submission_id": id}).to_string().into_response()
}

async fn list(State(seen): State<Shared>) -> String {
    let seen = seen.lock().unwrap();
    // Newest first, with one that is not ours: neither may matter.
    let theirs = json!({"submission_id": null, "status": "RUNNING", "metadata": null, "start_time": 0});
    Value::from_iter(seen.jobs.values().rev().cloned().chain([theirs])).to_string()
}

async fn describe(State(seen): State<Shared>, Path(id): Path<String>) -> Response {
    match seen.lock().unwrap().jobs.get(&id) {
        Some(job) => job.to_string().into_response(),
        None => (StatusCode::NOT_FOUND, format!("Job {id} does not exist")).into_response(),
    }
}

async fn stop(State(seen): State<Shared>, Path(id): Path<String>) -> String {
    seen.lock().unwrap().jobs.get_mut(&id).unwrap()["status"] = "STOPPED".into();
    json!({"stopped": true}).to_string()
}

async fn nodes() -> String {
    let node = |id: &str| json!({"node_id": id, "node_ip": id, "node_name": id, "state": "ALIVE", "resources_total": {"CPU": 2.0}});
    json!({"result": true, "data": {"result": {"result": [node("a"), node("b")]}}}).to_string()
}

async fn log(State(seen): State<Shared>, Path(kind): Path<String>) -> Body {
    let mut seen = seen.lock().unwrap();
    if kind == "file" {
        return seen.log.clone().into();
    }
    seen.streams += 1;
    let (sender, receiver) = mpsc::unbounded_channel();
    sender.send(Ok(seen.log.clone())).unwrap();
    seen.followers.push(sender);
    Body::from_stream(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver))
}

fn begun(id: &JobId) -> String {
    format!("Running entrypoint for job {id}: printf x\n\u{1e}regatta-driver 4711\n")
}

#[tokio::test]
async fn a_job_is_submitted_once_and_its_package_uploaded_once() {
    let (seen, config, folder) = dashboard().await;
    let file = folder.path().join("a.ron");
    std::fs::write(&file, "(epochs: 1)").unwrap();
    let engine: Arc<dyn Engine> = Arc::new(
        RayEngine::new(RayConfig { files: vec![file], driver: Resources::cpus(1), ..config }).unwrap(),
    );
    let mut spec = conformance::job("exit 0").label("run", "mnist");
    spec.command = spec.command.env("SECRET", "tell-no-one");
    let submits: Vec<_> = (0..3)
        .map(|_| {
            let (engine, spec) = (engine.clone(), spec.clone());
            tokio::spawn(async move { engine.submit(&spec).await.unwrap() })
        })
        .collect();
    let mut new = 0;
    for submit in submits {
        new += usize::from(submit.await.unwrap().new);
    }
    assert_eq!(new, 1);
    assert!(!engine.submit(&spec).await.unwrap().new);
    let again = JobSpec { id: JobId::new("another").unwrap(), ..spec.clone() };
    let before = seen.lock().unwrap().uploads.len();
    assert!(engine.submit(&again).await.unwrap().new);

    let seen = seen.lock().unwrap();
    assert_eq!(seen.uploads.len(), before + 1, "the variables alone: the program is there");
    let body = &seen.posted[0];
    assert_eq!(body["metadata"]["regatta-label:run"], "mnist");
    assert_eq!(body["entrypoint_num_cpus"], 1.0);
    let package = body["runtime_env"]["working_dir"].as_str().unwrap().strip_prefix("gcs://").unwrap();
    assert!(seen.packages.contains_key(package));
    assert!(!seen.posted.iter().any(|body| body.to_string().contains("tell-no-one")));
    let render = engine.render(&spec).unwrap();
    assert!(render.contains(package) && render.contains("a.ron") && render.contains("bin/sh"), "{render}");
}

#[tokio::test]
async fn a_token_that_is_wrong_or_missing_is_said_with_what_to_do() {
    let (_seen, config, folder) = dashboard().await;
    for (token, said) in [("wrong", "does not know the token"), ("", "wants a token and none was found")] {
        let engine = RayEngine::new(with_token(config.clone(), &folder, token)).unwrap();
        let error = engine.submit(&conformance::job("exit 0")).await.unwrap_err();
        assert!(matches!(&error, Error::Unauthorized { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(said) && text.contains("RAY_AUTH_TOKEN"), "{text}");
        assert!(!text.contains("the-token"));
    }
}

#[tokio::test]
async fn a_dashboard_that_is_not_there_or_does_not_answer_is_an_error_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let config = RayConfig { request_seconds: 0.2, ..RayConfig::at(&address) };
    let engine = RayEngine::new(config).unwrap();
    let unreachable = async || {
        let since = Instant::now();
        let error = engine.submit(&conformance::job("exit 0")).await.unwrap_err();
        assert!(matches!(&error, Error::Unreachable { .. }), "{error}");
        assert!(since.elapsed() < PATIENCE && error.to_string().contains(&address), "{error}");
        error.to_string()
    };
    assert!(unreachable().await.contains("no answer within 200ms"));
    drop(listener);
    assert!(unreachable().await.contains("is the cluster up"));
}

#[tokio::test]
async fn what_is_no_dashboard_is_told_from_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let page = Router::new().fallback(|| async { "<html>welcome</html>" });
    tokio::spawn(async move { axum::serve(listener, page).await });
    let engine = RayEngine::new(RayConfig::at(&address)).unwrap();
    let error = engine.describe(&[JobId::new("a").unwrap()]).await.unwrap_err().to_string();
    assert!(error.contains("cannot be read") && error.contains("<html>"), "{error}");
}

#[tokio::test]
async fn jobs_are_listed_by_their_labels_oldest_first_and_unknown_ones_are_errors() {
    let (_seen, config, _folder) = dashboard().await;
    let engine = RayEngine::new(config).unwrap();
    let job = |name: &str, run: &str| {
        let spec = conformance::job("exit 0").label("run", run);
        JobSpec { id: JobId::new(name).unwrap(), ..spec }
    };
    for spec in [job("z-first", "a"), job("a-second", "a"), job("m-third", "b")] {
        engine.submit(&spec).await.unwrap();
    }
    let labels = BTreeMap::from([("run".to_owned(), "a".to_owned())]);
    let found = engine.list(&labels).await.unwrap();
    assert_eq!(found.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["z-first", "a-second"]);
    assert_eq!((found[0].labels.clone(), found[0].nodes.as_str()), (labels, "127.0.0.10"));
    assert_eq!(engine.list(&BTreeMap::new()).await.unwrap().len(), 3, "ours alone");
    let unknown = JobId::new("never").unwrap();
    for asked in [vec![unknown.clone()], vec![JobId::new("m-third").unwrap(), unknown]] {
        let error = engine.describe(&asked).await.unwrap_err();
        assert!(matches!(&error, Error::UnknownJob { job, .. } if job.as_str() == "never"), "{error}");
    }
}

#[tokio::test]
async fn a_log_is_followed_on_one_stream_and_begins_with_the_drivers_own_words() {
    let (seen, config, _folder) = dashboard().await;
    let engine = RayEngine::new(config.clone()).unwrap();
    let spec = conformance::job("exit 0");
    engine.submit(&spec).await.unwrap();
    let write = |text: &str| seen.lock().unwrap().write(text);
    write(&begun(&spec.id)[..40]);
    let waiting = engine.logs(&spec.id, 0, Duration::from_millis(50)).await.unwrap();
    assert!(waiting.bytes.is_empty() && !waiting.end && waiting.next == 0, "{waiting:?}");
    write(&format!("{}first\n", &begun(&spec.id)[40..]));
    let first = engine.logs(&spec.id, 0, PATIENCE).await.unwrap();
    assert_eq!((first.bytes.as_slice(), first.next), (&b"first\n"[..], 6));
    let (next, ()) = tokio::join!(engine.logs(&spec.id, 6, PATIENCE), async { write("se\u{e9}") });
    assert_eq!(next.unwrap().bytes, "se\u{e9}".as_bytes());
    assert_eq!(seen.lock().unwrap().streams, 1, "what was read is not read again");
    // From the middle of it, by another.
    let other = RayEngine::new(config).unwrap();
    assert_eq!(other.logs(&spec.id, 2, PATIENCE).await.unwrap().bytes, "rst\nse\u{e9}".as_bytes());

    write("the last");
    seen.lock().unwrap().end(&spec.id, "FAILED", Some(7));
    assert_eq!(conformance::log(&engine, &spec.id).await, "first\nse\u{e9}the last");
    assert_eq!(conformance::ended(&engine, &spec.id).await, Reason::UserError { code: 7 });
}

#[tokio::test]
async fn a_cancelled_job_is_waited_for() {
    let (_seen, config, _folder) = dashboard().await;
    let engine = RayEngine::new(config).unwrap();
    let spec = conformance::job("exit 0");
    engine.submit(&spec).await.unwrap();
    let status = engine.cancel(&spec.id, PATIENCE).await.unwrap();
    assert_eq!((status.state, status.word.as_str()), (JobState::Ended(Reason::Cancelled), "STOPPED"));
    engine.cancel(&spec.id, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn what_could_never_run_is_refused_unless_nodes_may_come() {
    let (_seen, config, _folder) = dashboard().await;
    let mut spec = conformance::job("exit 0");
    spec.room = GangRequest::new("huge", 5, Resources::cpus(1));
    let error = RayEngine::new(config.clone()).unwrap().submit(&spec).await.unwrap_err();
    assert!(matches!(&error, Error::Infeasible(why) if why.would_fit == 4), "{error}");
    let growing = RayEngine::new(RayConfig { autoscaling: true, ..config }).unwrap();
    assert!(growing.submit(&spec).await.unwrap().new);
}

/// A server that speaks TLS under this certificate and knows no job.
async fn tls_dashboard(issuer: &rcgen::CertifiedIssuer<'static, rcgen::KeyPair>) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let certificate = names.signed_by(&key, issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream
                .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .await;
        }
    });
    address
}

#[tokio::test]
async fn with_tls_only_the_given_authority_is_trusted() {
    let authority = || {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap()
    };
    let (trusted, other) = (authority(), authority());
    let address = tls_dashboard(&trusted).await;
    let folder = tempfile::tempdir().unwrap();
    let describe = async |authority: &rcgen::CertifiedIssuer<'static, rcgen::KeyPair>| {
        let file: PathBuf = folder.path().join("ca.pem");
        std::fs::write(&file, authority.pem()).unwrap();
        let config = RayConfig { authority: Some(file), ..RayConfig::at(&address) };
        RayEngine::new(config).unwrap().describe(&[JobId::new("a").unwrap()]).await.unwrap_err()
    };
    assert!(matches!(describe(&trusted).await, Error::UnknownJob { .. }));
    let error = describe(&other).await;
    assert!(matches!(&error, Error::Unreachable { reason, .. } if reason.contains("certificate")), "{error}");
    let config = RayConfig { authority: Some(folder.path().join("none.pem")), ..RayConfig::at(&address) };
    assert!(RayEngine::new(config).unwrap_err().to_string().contains("none.pem"));
}
