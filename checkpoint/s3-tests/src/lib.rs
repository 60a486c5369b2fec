//! An S3 in the same process, which misbehaves when it is told to: for tests of whatever saves to one. A package of its own,
//! because an S3 takes longer to build than everything else that the checkpoints need.
//!
//! ```
//! use regatta_checkpoint_s3_tests::Server;
//!
//! let server = Server::start();
//! let variables = server.environment();
//! assert!(variables.iter().any(|(name, value)| *name == "AWS_ENDPOINT_URL" && *value == server.endpoint));
//! ```

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use s3s::service::S3ServiceBuilder;

/// What may befall a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mischief {
    /// Nothing.
    None,
    /// It is refused with a 500, and nothing is done.
    ErrorBefore,
    /// It is done, and answered with a 500.
    ErrorAfter,
    /// It is done, and the answer never comes.
    LostReply,
    /// It is done twice.
    Twice,
    /// It takes a while.
    Slow,
}

/// The bucket there is.
pub const BUCKET: &str = "bucket";

/// An S3 in this process, and what it was asked to do.
pub struct Server {
    /// Where it listens.
    pub endpoint: String,
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
    /// Starts it on a free port, with an empty [`BUCKET`].
    #[must_use]
    pub fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
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

    /// The variables with which clients find it and need no credentials.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, &str); 4] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_SKIP_SIGNATURE", "true"),
        ]
    }

    /// From now on every third request or so meets with mischief, which one by this seed; 0 is none.
    pub fn misbehave(&self, seed: u64) {
        self.shared.seed.store(seed, Ordering::SeqCst);
    }

    /// What befalls the next PUTs of a COMMIT, in this order, before chance gets to it.
    pub fn on_commit(&self, mischief: &[Mischief]) {
        *self.shared.on_commit.lock().unwrap() = mischief.iter().rev().copied().collect();
    }

    /// How many of those have not come about yet.
    #[must_use]
    pub fn left_on_commit(&self) -> usize {
        self.shared.on_commit.lock().unwrap().len()
    }

    /// How often each kind of mischief came about.
    #[must_use]
    pub fn seen(&self) -> HashMap<&'static str, u32> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// How often each COMMIT came to be.
    #[must_use]
    pub fn commits(&self) -> HashMap<String, u32> {
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
