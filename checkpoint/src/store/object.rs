//! Checkpoints on object stores. There is no rename and no folder: shards go up in parallel parts and appear when they
//! are complete, and what may exist only once is put on the condition that nothing is there. An answer that was lost
//! is not guessed at: the object is read back.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    Error as Refused, ObjectStore as Remote, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use super::{Blob, Created, Entry, Store};
use crate::error::{Error, Result};

/// The size of a part going up or coming down. Larger files go up in larger parts, as there may be 10,000 of them.
const PART: usize = 8 << 20;
const MAX_PARTS: usize = 9_000;
/// Parts under way at a time.
const PARALLEL: usize = 8;
/// The only variables of the environment that are looked at. Their values are never logged.
const VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// How to go on after a failure. The client below retries single requests on its own, too.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// How often an operation is tried.
    pub attempts: u32,
    /// Seconds before the second attempt; doubled before each later one.
    pub first_wait_seconds: f64,
    /// Seconds before an attempt at most.
    pub max_wait_seconds: f64,
    /// Seconds that one request (one part, or a small object) may take.
    pub request_seconds: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { attempts: 6, first_wait_seconds: 0.2, max_wait_seconds: 10.0, request_seconds: 300.0 }
    }
}

/// A store on any `object_store`, below a prefix.
#[derive(Debug, Clone)]
pub struct ObjectStore(Arc<Client>);

struct Client {
    remote: Arc<dyn Remote>,
    prefix: Path,
    location: String,
    retry: Retry,
    /// Its own, so that callers need none. Nothing is left of it but on drop.
    runtime: Option<Runtime>,
}

impl ObjectStore {
    /// Opens a URL, with credentials from the usual variables of the environment.
    pub fn from_url(url: &str) -> Result<Self> {
        let parsed =
            url::Url::parse(url).map_err(|error| Error::Invalid(format!("not a store's URL: {error}")))?;
        let mut shown = parsed.clone();
        // A password in a URL must not come into a message.
        let _ = shown.set_password(None);
        let _ = shown.set_username("");
        shown.set_query(None);
        let options =
            std::env::vars().filter(|(name, _)| VARIABLES.iter().any(|start| name.starts_with(start)));
        // A program that has chosen its own cryptography keeps it.
        #[cfg(feature = "tls")]
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (remote, prefix) = object_store::parse_url_opts(&parsed, options).map_err(|error| {
            // The error may quote the URL.
            let reason =
                error.to_string().replace(parsed.as_str(), shown.as_str()).replace(url, shown.as_str());
            Error::NotAvailable(format!("cannot open {shown}: {reason}"))
        })?;
        Self::new(Arc::from(remote), prefix, shown.to_string(), Retry::default())
    }

    /// A store on an opened `object_store`; `location` is what to call it in messages.
    pub fn new(remote: Arc<dyn Remote>, prefix: Path, location: String, retry: Retry) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("checkpoint-io")
            .enable_all()
            .build()
            .map_err(Error::io("start", "the threads for object stores"))?;
        Ok(ObjectStore(Arc::new(Client { remote, prefix, location, retry, runtime: Some(runtime) })))
    }
}

impl Client {
    fn at(&self, path: &str) -> Path {
        path.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), |at, part| at.join(part))
    }

    /// Starts a request; what comes of it arrives in the channel.
    fn start<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T, Refused>> + Send + 'static,
    ) -> Receiver<Result<T, Refused>> {
        let (to, from) = mpsc::channel();
        let limit = Duration::from_secs_f64(self.retry.request_seconds);
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                let outcome = tokio::time::timeout(limit, request).await.unwrap_or_else(|_| {
                    let source = format!("no answer within {} s", limit.as_secs_f64()).into();
                    Err(Refused::Generic { store: "request", source })
                });
                // Whoever asked may have given up.
                let _ = to.send(outcome);
            });
        }
        from
    }

    fn wait<T>(&self, from: Receiver<Result<T, Refused>>) -> Result<T, Refused> {
        // The request has its own limit; a little more for the answer to get here.
        let limit = Duration::from_secs_f64(self.retry.request_seconds + 5.0);
        from.recv_timeout(limit).unwrap_or_else(|_| {
            Err(Refused::Generic {
                store: "request",
                source: "the threads for object stores are stuck".into(),
            })
        })
    }

    /// Runs a request, again if it fails in a way that may pass.
    fn request<T: Send + 'static, R>(&self, mut request: impl FnMut() -> R) -> Result<T, Refused>
    where
        R: Future<Output = Result<T, Refused>> + Send + 'static,
    {
        self.attempts(|| self.wait(self.start(request())))
    }

    fn attempts<T>(&self, mut attempt: impl FnMut() -> Result<T, Refused>) -> Result<T, Refused> {
        let mut wait = self.retry.first_wait_seconds;
        for _ in 1..self.retry.attempts {
            match attempt() {
                Err(error) if may_pass(&error) => {
                    tracing::debug!(%error, wait, "trying again");
                    std::thread::sleep(Duration::from_secs_f64(wait));
                    wait = (wait * 2.0).min(self.retry.max_wait_seconds);
                }
                other => return other,
            }
        }
        attempt()
    }

    fn get(&self, at: &Path) -> Result<Option<Vec<u8>>, Refused> {
        let found = self.request(|| {
            let (remote, at) = (self.remote.clone(), at.clone());
            async move { remote.get(&at).await?.bytes().await }
        });
        absent(found.map(|bytes| bytes.to_vec()))
    }

    fn head(&self, at: &Path) -> Result<Option<u64>, Refused> {
        let found = self.request(|| {
            let (remote, at) = (self.remote.clone(), at.clone());
            async move { remote.head(&at).await }
        });
        absent(found.map(|meta| meta.size))
    }

    fn put(&self, at: &Path, bytes: &[u8], mode: PutMode) -> Result<(), Refused> {
        let (remote, at, payload) =
            (self.remote.clone(), at.clone(), PutPayload::from(Bytes::copy_from_slice(bytes)));
        let options = PutOptions { mode, ..PutOptions::default() };
        self.wait(self.start(async move { remote.put_opts(&at, payload, options).await })).map(drop)
    }

    /// One attempt to put an object that must not be there; `Some` is what was there.
    fn put_new(&self, at: &Path, bytes: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
        match self.put(at, bytes, PutMode::Create) {
            Ok(()) => Ok(None),
            // Plain HTTP servers know no conditions: the best there is leaves a moment for a race.
            Err(Refused::NotImplemented { .. } | Refused::NotSupported { .. }) => match self.get(at)? {
                Some(there) => Ok(Some(there)),
                None => self.put(at, bytes, PutMode::Overwrite).map(|()| None),
            },
            // Refused, or unclear: whatever it was, what is there now decides.
            Err(error) => match self.get(at)? {
                Some(there) => Ok(Some(there)),
                // A conflict with a request that then came to nothing, or a failure before anything was done.
                None => Err(Refused::Generic { store: "conditional put", source: Box::new(error) }),
            },
        }
    }

    fn upload(&self, at: &Path, bytes: &[u8]) -> Result<(), Refused> {
        let (remote, to) = (self.remote.clone(), at.clone());
        let mut upload = self.wait(self.start(async move { remote.put_multipart(&to).await }))?;
        let mut under_way = VecDeque::new();
        let mut outcome = Ok(());
        for part in bytes.chunks(PART.max(bytes.len().div_ceil(MAX_PARTS))) {
            if under_way.len() == PARALLEL {
                outcome = under_way.pop_front().map_or(Ok(()), |first| self.wait(first));
                if outcome.is_err() {
                    break;
                }
            }
            under_way.push_back(self.start(upload.put_part(PutPayload::from(Bytes::copy_from_slice(part)))));
        }
        for part in under_way {
            let answer = self.wait(part);
            outcome = outcome.and(answer);
        }
        let completed = self.wait(self.start(async move {
            match outcome {
                Ok(()) => upload.complete().await.map(drop),
                Err(error) => {
                    // Parts that stay cost money until the bucket's own rule removes them.
                    if let Err(error) = upload.abort().await {
                        tracing::debug!(%error, "could not abort an upload");
                    }
                    Err(error)
                }
            }
        }));
        match completed {
            // The answer may be lost though the upload is complete. Nobody else writes under this name.
            Err(error) => match self.head(at)? {
                Some(size) if size == bytes.len() as u64 => Ok(()),
                _ => Err(error),
            },
            Ok(()) => Ok(()),
        }
    }

    fn entries(&self, folder: &str) -> Result<Vec<Entry>, Refused> {
        let prefix = self.at(folder);
        let listed = self.request(|| {
            let (remote, prefix) = (self.remote.clone(), prefix.clone());
            async move { remote.list_with_delimiter(Some(&prefix)).await }
        })?;
        let folders = listed.common_prefixes.iter().filter_map(|path| {
            let name = path.filename()?.to_owned();
            Some(Entry { name, folder: true, size: 0, modified: None })
        });
        let files = listed.objects.iter().filter_map(|object| {
            let name = object.location.filename()?.to_owned();
            Some(Entry {
                name,
                folder: false,
                size: object.size,
                modified: Some(SystemTime::from(object.last_modified)),
            })
        });
        Ok(folders.chain(files).collect())
    }

    fn failed(&self, operation: &'static str, path: &str) -> impl FnOnce(Refused) -> Error {
        let path = format!("{}: {path}", self.location);
        move |refused| {
            let kind = match &refused {
                Refused::NotFound { .. } => io::ErrorKind::NotFound,
                Refused::PermissionDenied { .. } | Refused::Unauthenticated { .. } => {
                    io::ErrorKind::PermissionDenied
                }
                Refused::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
                _ => io::ErrorKind::Other,
            };
            Error::Io { operation, path, source: io::Error::new(kind, refused) }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // An ordinary drop waits, and panics where waiting is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client's own form may show how it was configured.
        f.debug_struct("Client").field("location", &self.location).finish_non_exhaustive()
    }
}

fn may_pass(error: &Refused) -> bool {
    !matches!(
        error,
        Refused::NotFound { .. }
            | Refused::AlreadyExists { .. }
            | Refused::Precondition { .. }
            | Refused::NotImplemented { .. }
            | Refused::NotSupported { .. }
            | Refused::InvalidPath { .. }
            | Refused::PermissionDenied { .. }
            | Refused::Unauthenticated { .. }
    )
}

fn absent<T>(found: Result<T, Refused>) -> Result<Option<T>, Refused> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Refused::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Store for ObjectStore {
    fn location(&self) -> String {
        self.0.location.clone()
    }

    fn make_folder(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let at = self.0.at(path);
        let began = Instant::now();
        let written = self.0.attempts(|| match bytes.len() {
            0..=PART => self.0.put(&at, bytes, PutMode::Overwrite),
            _ => self.0.upload(&at, bytes),
        });
        tracing::debug!(path, bytes = bytes.len(), seconds = began.elapsed().as_secs_f64(), "put");
        written.map_err(self.0.failed("put", path))
    }

    fn create(&self, path: &str, bytes: &[u8]) -> Result<Created> {
        let at = self.0.at(path);
        match self.0.attempts(|| self.0.put_new(&at, bytes)).map_err(self.0.failed("put", path))? {
            None => Ok(Created::New),
            Some(there) => Ok(Created::Exists(there)),
        }
    }

    fn replace(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let at = self.0.at(path);
        self.0.attempts(|| self.0.put(&at, bytes, PutMode::Overwrite)).map_err(self.0.failed("put", path))
    }

    fn seal(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>> {
        self.0.entries(folder).map_err(self.0.failed("list", folder))
    }

    fn open(&self, path: &str) -> Result<Option<Arc<dyn Blob>>> {
        let at = self.0.at(path);
        let size = self.0.head(&at).map_err(self.0.failed("look up", path))?;
        let blob = |size| RemoteBlob { client: self.0.clone(), at, path: path.to_owned(), size };
        Ok(size.map(|size| Arc::new(blob(size)) as Arc<dyn Blob>))
    }

    fn remove(&self, path: &str) -> Result<()> {
        let at = self.0.at(path);
        let removed = self.0.request(|| {
            let (remote, at) = (self.0.remote.clone(), at.clone());
            async move { remote.delete(&at).await }
        });
        absent(removed).map_err(self.0.failed("delete", path)).map(drop)
    }

    fn remove_folder(&self, path: &str) -> Result<()> {
        for entry in self.list(path)?.into_iter().filter(|entry| !entry.folder) {
            self.remove(&format!("{path}/{}", entry.name))?;
        }
        Ok(())
    }

    fn free_space(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

struct RemoteBlob {
    client: Arc<Client>,
    at: Path,
    path: String,
    size: u64,
}

impl Blob for RemoteBlob {
    fn len(&self) -> u64 {
        self.size
    }

    fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        let fetch = |range: Range<u64>| {
            let (remote, at) = (self.client.remote.clone(), self.at.clone());
            async move { remote.get_range(&at, range).await }
        };
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let mut next = range.start;
        let mut under_way = VecDeque::new();
        while bytes.len() as u64 != range.end - range.start {
            while next < range.end && under_way.len() < PARALLEL {
                let part = next..range.end.min(next + PART as u64);
                next = part.end;
                under_way.push_back((part.clone(), self.client.start(fetch(part))));
            }
            let Some((part, first)) = under_way.pop_front() else { break };
            let fetched = match self.client.wait(first) {
                Err(error) if may_pass(&error) => self.client.request(|| fetch(part.clone())),
                other => other,
            };
            let fetched = fetched.map_err(self.client.failed("get", &self.path))?;
            if fetched.len() as u64 != part.end - part.start {
                let source =
                    io::Error::new(io::ErrorKind::UnexpectedEof, "fewer bytes came than were asked for");
                return Err(Error::Io { operation: "get", path: self.path.clone(), source });
            }
            bytes.extend_from_slice(&fetched);
        }
        Ok(Cow::Owned(bytes))
    }
}
