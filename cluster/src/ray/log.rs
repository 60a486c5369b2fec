//! A driver's log as it grows.
//!
//! The Jobs API has a websocket for this. It is not used: it looks into the file once in one to two seconds, reads it as text
//! and breaks at the first byte that is none. The dashboard's own stream of a log file is read in its place, which tells bytes
//! within a tenth of a second, and is plain HTTP. Neither can begin anywhere but at the beginning, so a stream is kept for the
//! reader who comes back for more.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Response;

use super::http::Dashboard;
use super::package::MARK;
use crate::engine::JobId;
use crate::error::Result;

/// How often the cluster looks for something new.
const INTERVAL: &str = "0.1";

/// What a driver's log begins with: Ray's own lines, and ours that ends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begins {
    /// Where the driver's own output begins.
    pub(super) at: usize,
    /// The driver's process group.
    pub(super) group: u32,
}

/// Finds the end of what Ray wrote before the driver did.
pub(super) fn begins(log: &[u8]) -> Option<Begins> {
    let mark = format!("\u{1e}{MARK} ").into_bytes();
    let start = log.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let length = log[start..].iter().position(|byte| *byte == b'\n')?;
    let group = std::str::from_utf8(&log[start..start + length]).ok()?.parse().ok()?;
    Some(Begins { at: start + length + 1, group })
}

/// A stream that stands where its reader stopped.
#[derive(Debug)]
pub(super) struct Tail {
    answer: Response,
    /// What came before the driver's own output, while that has not begun.
    before: Option<Vec<u8>>,
    /// How much of the driver's output has passed.
    at: u64,
}

impl Tail {
    pub(super) async fn open(dashboard: &Dashboard, node: &str, id: &JobId) -> Result<Option<Self>> {
        let path = format!("/api/v0/logs/stream?{}&interval={INTERVAL}", file(node, id));
        // Where there is no file yet, there may be one soon.
        let answer = dashboard.stream(&path).await?.ok();
        Ok(answer.map(|answer| Self { answer, before: Some(Vec::new()), at: 0 }))
    }

    pub(super) fn stands_at(&self, at: u64) -> bool {
        self.at == at
    }

    /// What the driver wrote from here on; `None` when the stream ended.
    pub(super) async fn read(&mut self, from: u64) -> Option<Vec<u8>> {
        loop {
            let chunk = self.answer.chunk().await.ok()??.to_vec();
            let own = match &mut self.before {
                None => chunk,
                Some(before) => {
                    before.extend_from_slice(&chunk);
                    let Some(begins) = begins(before) else { continue };
                    let own = before.split_off(begins.at);
                    self.before = None;
                    own
                }
            };
            let skip = from.saturating_sub(self.at).min(own.len() as u64);
            self.at += own.len() as u64;
            if skip < own.len() as u64 {
                return Some(own[skip as usize..].to_vec());
            }
        }
    }
}

fn file(node: &str, id: &JobId) -> String {
    format!("node_id={node}&filename=job-driver-{id}.log&lines=-1")
}

/// All of the log, with Ray's own lines; nothing where the file or its node is gone.
pub(super) async fn whole(
    dashboard: &Dashboard,
    node: &str,
    id: &JobId,
    patience: Duration,
) -> Result<Vec<u8>> {
    let path = format!("/api/v0/logs/file?{}", file(node, id));
    let Ok(mut answer) = dashboard.stream(&path).await? else { return Ok(Vec::new()) };
    let mut log = Vec::new();
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(patience, answer.chunk()).await {
        log.extend_from_slice(&chunk);
    }
    Ok(log)
}

/// The driver's part of a whole log. Where it never began, what Ray wrote says why.
pub(super) fn own(log: &[u8]) -> &[u8] {
    begins(log).map_or(log, |begins| &log[begins.at..])
}

/// The streams that wait for their readers, by job.
#[derive(Debug, Default)]
pub(super) struct Tails(Mutex<HashMap<JobId, Tail>>);

impl Tails {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Tail>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, id: &JobId, from: u64) -> Option<Tail> {
        self.all().remove(id).filter(|tail| tail.stands_at(from))
    }

    pub(super) fn keep(&self, id: &JobId, tail: Tail) {
        self.all().insert(id.clone(), tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_begins_where_the_driver_does() {
        let log = format!("Running entrypoint for job a: printf '{MARK}'\n\u{1e}{MARK} 4711\nfirst\n");
        let found = begins(log.as_bytes()).unwrap();
        assert_eq!((found.group, &log[found.at..]), (4711, "first\n"));
        assert_eq!(own(log.as_bytes()), b"first\n");
        let cut = &log.as_bytes()[..log.len() - 8];
        assert_eq!(begins(cut), None, "the line has not ended");
        assert_eq!(own(b"no environment\n"), b"no environment\n");
    }
}
