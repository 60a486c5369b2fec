//! Copies in an object store. The data goes up in parts, so memory does not grow with it; the pointer is one conditional
//! put.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion};
use tokio::runtime::Runtime;

use super::{Upload, Version};
use crate::error::{Error, Result};

/// How long one request may take; a transfer may take this long for each part.
const REQUEST: Duration = Duration::from_secs(60);

/// The size of a part.
const PART: usize = 8 << 20;

/// A place in an object store.
pub struct ObjectUpload {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    place: String,
    runtime: Mutex<Runtime>,
}

impl ObjectUpload {
    /// What a URL names, with credentials from the environment.
    pub fn open(url: &str) -> Result<Self> {
        let parsed = url::Url::parse(url).map_err(|e| Error::Storage {
            what: "opening it".into(),
            place: "the given storage URL".into(),
            why: e.to_string(),
        })?;
        // A password in a URL must not come into a message.
        let mut shown = parsed.clone();
        let _ = shown.set_password(None);
        let _ = shown.set_username("");
        shown.set_query(None);
        let failed = |why: String| Error::Storage {
            what: "opening it".into(),
            place: shown.to_string(),
            why: why.replace(parsed.as_str(), shown.as_str()),
        };
        let options = std::env::vars()
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .filter(|(name, _)| ["aws_", "azure_", "google_"].iter().any(|p| name.starts_with(p)));
        // A program that has chosen its own cryptography keeps it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (store, prefix) =
            object_store::parse_url_opts(&parsed, options).map_err(|e| failed(e.to_string()))?;
        Self::new(store.into(), prefix, shown.as_str())
    }

    /// A store of the caller's, below a prefix; `place` is what messages call it.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Key, place: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::io("start a runtime for", Path::new(place)))?;
        Ok(ObjectUpload { store, prefix, place: place.into(), runtime: Mutex::new(runtime) })
    }

    fn key(&self, name: &str) -> Key {
        self.prefix.clone().join(name)
    }

    fn failed(&self, what: &str, why: impl ToString) -> Error {
        Error::Storage { what: what.into(), place: self.place.clone(), why: why.to_string() }
    }

    /// Runs requests to their end, each within its deadline.
    fn block<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).block_on(future)
    }

    async fn within<T>(
        &self,
        what: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<object_store::Result<T>> {
        tokio::time::timeout(REQUEST, request)
            .await
            .map_err(|_| Error::Deadline { what: format!("{what} at {}", self.place), after: REQUEST })
    }
}

impl Upload for ObjectUpload {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn read(&self, name: &str) -> Result<Option<(Vec<u8>, Version)>> {
        let what = format!("reading {name}");
        self.block(async {
            let key = self.key(name);
            let get = async {
                let found = self.store.get(&key).await?;
                let version = found.meta.e_tag.clone().or(found.meta.version.clone());
                Ok((found.bytes().await?, version))
            };
            match self.within(&what, get).await? {
                Ok((bytes, version)) => {
                    let version = version.unwrap_or_else(|| format!("{:08x}", crc32c::crc32c(&bytes)));
                    Ok(Some((bytes.to_vec(), Version(version))))
                }
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(self.failed(&what, e)),
            }
        })
    }

    fn swap(&self, name: &str, bytes: &[u8], expected: Option<&Version>) -> Result<Option<Version>> {
        use object_store::Error::{AlreadyExists, NotFound, NotImplemented, Precondition};
        let what = format!("replacing {name}");
        let put = |mode: PutMode| {
            let options = PutOptions { mode, ..PutOptions::default() };
            let payload = PutPayload::from(bytes.to_vec());
            let key = self.key(name);
            self.block(async { self.within(&what, self.store.put_opts(&key, payload, options)).await })
        };
        let mode = match expected {
            None => PutMode::Create,
            Some(Version(version)) => PutMode::Update(UpdateVersion {
                e_tag: Some(version.clone()),
                version: Some(version.clone()),
            }),
        };
        let done = match put(mode)? {
            // A store without conditions (plain HTTP): look, then write. Two controllers within that moment are not told apart.
            Err(NotImplemented { .. }) => {
                if self.read(name)?.map(|(_, version)| version).as_ref() != expected {
                    return Ok(None);
                }
                put(PutMode::Overwrite)?
            }
            done => done,
        };
        match done {
            Ok(put) => match put.e_tag.or(put.version) {
                Some(version) => Ok(Some(Version(version))),
                None => Ok(self.read(name)?.map(|(_, version)| version)),
            },
            // The condition may have failed by ourselves: a request whose answer was lost is sent again. And one that failed
            // for good may have done its work. What is there now decides; nobody else writes these bytes.
            Err(e) => match self.read(name)? {
                Some((there, version)) if there == bytes => Ok(Some(version)),
                _ if matches!(e, AlreadyExists { .. } | Precondition { .. } | NotFound { .. }) => Ok(None),
                _ => Err(self.failed(&what, e)),
            },
        }
    }

    fn upload(&self, name: &str, file: &Path) -> Result<()> {
        let what = format!("uploading {name}");
        let from = std::fs::File::open(file).map_err(Error::io("read", file))?;
        let part = || -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            (&from).take(PART as u64).read_to_end(&mut bytes).map_err(Error::io("read", file))?;
            Ok(bytes)
        };
        self.block(async {
            let key = self.key(name);
            let first = part()?;
            if first.len() < PART {
                let put = self.within(&what, self.store.put(&key, first.into())).await?;
                return put.map(drop).map_err(|e| self.failed(&what, e));
            }
            let begun = self.within(&what, self.store.put_multipart(&key)).await?;
            let mut upload = begun.map_err(|e| self.failed(&what, e))?;
            let mut next = first;
            while !next.is_empty() {
                let sent = self.within(&what, upload.put_part(next.into())).await;
                if let Err(e) = sent.and_then(|sent| sent.map_err(|e| self.failed(&what, e))) {
                    drop(self.within(&what, upload.abort()).await);
                    return Err(e);
                }
                next = part()?;
            }
            let done = self.within(&what, upload.complete()).await?;
            done.map(drop).map_err(|e| self.failed(&what, e))
        })
    }

    fn download(&self, name: &str, file: &Path) -> Result<()> {
        let what = format!("downloading {name}");
        let mut to = std::fs::File::create(file).map_err(Error::io("create", file))?;
        self.block(async {
            let key = self.key(name);
            let found = self.within(&what, self.store.get(&key)).await?.map_err(|e| self.failed(&what, e))?;
            let mut parts = found.into_stream();
            while let Some(part) = self.within(&what, async { Ok(parts.next().await) }).await?.unwrap_or(None)
            {
                let part = part.map_err(|e| self.failed(&what, e))?;
                to.write_all(&part).map_err(Error::io("write", file))?;
            }
            Ok(())
        })
    }

    fn delete(&self, name: &str) -> Result<()> {
        let what = format!("removing {name}");
        self.block(async {
            match self.within(&what, self.store.delete(&self.key(name))).await? {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(e) => Err(self.failed(&what, e)),
            }
        })
    }
}
