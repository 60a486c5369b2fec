//! What became of the pods one waits for: a list, then the news of them, then a list again.
//!
//! News may be late or lost, as when the API server restarts: every so often the list is read anew, and what it says counts.
//! Whoever waits has a deadline of his own, and workers' heartbeats are the authority over them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use tokio::sync::watch;

use super::status::{Seen, read};
use crate::error::chain;

/// How long news is listened for before the list is read again.
const ANEW: u32 = 20;
/// How long after news that broke off the list is asked for again.
const AGAIN: Duration = Duration::from_millis(250);

/// The pods a spawner has.
#[derive(Clone, Debug)]
pub(super) struct Watcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pods: Mutex<HashMap<String, Entry>>,
    /// Counts what was heard, so that waiters look again.
    news: watch::Sender<u64>,
}

#[derive(Debug)]
struct Entry {
    seen: Seen,
    /// When it was last known to be there.
    at: Instant,
}

impl Watcher {
    /// Begins to watch. It ends with the last of its clones.
    pub(super) fn start(api: Api<Pod>, selector: String, patience: Duration) -> Self {
        let shared = Arc::new(Shared { pods: Mutex::default(), news: watch::Sender::new(0) });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            loop {
                let said = once(&api, &selector, patience, &weak).await;
                if weak.strong_count() == 0 {
                    return;
                }
                if let Err(error) = said {
                    tracing::warn!(error, "the pods cannot be watched just now");
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        Self { shared }
    }

    /// Remembers a pod that was just made.
    pub(super) fn add(&self, pod: &Pod) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        // What came by the news before the answer is newer.
        self.shared.pods().entry(name).or_insert_with(|| Entry { seen: read(pod), at: Instant::now() });
        self.shared.tell();
    }

    /// Forgets a pod.
    pub(super) fn forget(&self, name: &str) {
        self.shared.pods().remove(name);
    }

    /// The pod as it was last seen.
    pub(super) fn look(&self, name: &str) -> Seen {
        match self.shared.pods().get(name) {
            Some(entry) => entry.seen.clone(),
            None => Seen { gone: true, ..Seen::default() },
        }
    }

    /// Waits until something is so, which is looked at whenever there are news; `None` when the time is up.
    pub(super) async fn wait<T>(
        &self,
        within: Duration,
        mut so: impl FnMut(&Self) -> Option<T>,
    ) -> Option<T> {
        let mut news = self.shared.news.subscribe();
        let waited = async {
            loop {
                news.borrow_and_update();
                if let Some(found) = so(self) {
                    return found;
                }
                if news.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(within, waited).await.ok()
    }
}

impl Shared {
    fn pods(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.news.send_modify(|news| *news += 1);
    }

    fn heard(&self, pod: &Pod, gone: bool) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        if let Some(entry) = self.pods().get_mut(&name) {
            let seen = Seen { gone, ..read(pod) };
            *entry = Entry { seen, at: Instant::now() };
        }
        self.tell();
    }

    /// Takes a list over; what was there before the list was asked for, and is not in it, is gone.
    fn listed(&self, list: &[Pod], asked: Instant) {
        let named: HashMap<&str, &Pod> =
            list.iter().filter_map(|pod| Some((pod.metadata.name.as_deref()?, pod))).collect();
        for (name, entry) in self.pods().iter_mut() {
            match named.get(name.as_str()) {
                Some(pod) => *entry = Entry { seen: read(pod), at: Instant::now() },
                None if entry.at < asked => entry.seen.gone = true,
                None => {}
            }
        }
        self.tell();
    }
}

/// One list and the news after it, until they end or `ANEW` seconds have passed.
async fn once(
    api: &Api<Pod>,
    selector: &str,
    patience: Duration,
    shared: &std::sync::Weak<Shared>,
) -> Result<(), String> {
    let asked = Instant::now();
    let params = ListParams::default().labels(selector);
    let list = tokio::time::timeout(patience, api.list(&params)).await;
    let list = list.map_err(|_| format!("no answer within {patience:?}"))?.map_err(|error| chain(&error))?;
    let Some(known) = shared.upgrade() else { return Ok(()) };
    known.listed(&list.items, asked);
    drop(known);
    let version = list.metadata.resource_version.unwrap_or_default();
    let params = WatchParams::default().labels(selector).timeout(ANEW);
    let listen = async {
        let mut news = api.watch(&params, &version).await.map_err(|error| chain(&error))?.boxed();
        while let Some(event) = news.try_next().await.map_err(|error| chain(&error))? {
            let Some(known) = shared.upgrade() else { return Ok(()) };
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => known.heard(&pod, false),
                WatchEvent::Deleted(pod) => known.heard(&pod, true),
                WatchEvent::Bookmark(_) => {}
                // Usually that the version is too old: the list will bring another.
                WatchEvent::Error(_) => return Ok(()),
            }
        }
        Ok(())
    };
    // A connection that died without a word must not keep the list from being read.
    let most = Duration::from_secs(u64::from(ANEW) + 5);
    tokio::time::timeout(most, listen).await.unwrap_or(Ok(()))
}
