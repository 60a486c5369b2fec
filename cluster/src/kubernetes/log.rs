//! A container's log, read from any byte on and followed while it grows.
//!
//! The API knows no byte to begin at: a reader that goes on where it stopped keeps its stream, any other reads from the
//! beginning and skips. Where a node has rotated a log (10 MiB, usually) the beginning is gone for whoever comes later.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use futures_util::AsyncBufReadExt;
use futures_util::io::AsyncBufRead;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};

use super::api::ask;
use super::pod::CONTAINER;
use crate::error::Result;

/// The most that is handed on at once.
const PART: usize = 1 << 20;

/// A reader of one pod's log.
pub(super) struct PodLog {
    api: Api<Pod>,
    pod: String,
    patience: Duration,
    /// How many bytes were handed on, or skipped at the reader's wish.
    at: u64,
    stream: Option<Open>,
}

struct Open {
    reader: Pin<Box<dyn AsyncBufRead + Send>>,
    /// How much of it was handed on before.
    skip: u64,
}

impl fmt::Debug for PodLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodLog").field("pod", &self.pod).field("at", &self.at).finish_non_exhaustive()
    }
}

impl PodLog {
    /// A reader from this byte on.
    pub(super) fn new(api: Api<Pod>, pod: impl Into<String>, at: u64, patience: Duration) -> Self {
        Self { api, pod: pod.into(), patience, at, stream: None }
    }

    /// Where the next piece begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next piece; empty at the end of the stream, after which the next call opens it anew. Following, the end is the
    /// container's, or a connection's. May be dropped at any time without losing anything.
    pub(super) async fn next(&mut self, follow: bool) -> Result<Vec<u8>> {
        if self.stream.is_none() {
            let params = LogParams { container: Some(CONTAINER.into()), follow, ..LogParams::default() };
            let what = format!("the log of `{}`", self.pod);
            let reader = ask(&what, self.patience, self.api.log_stream(&self.pod, &params)).await?;
            self.stream = Some(Open { reader: Box::pin(reader), skip: self.at });
        }
        while let Some(open) = &mut self.stream {
            // An end, or a connection that broke: where the container still runs it is opened again.
            let ready = open.reader.fill_buf().await.map(<[u8]>::len).unwrap_or(0);
            if ready == 0 {
                self.stream = None;
                break;
            }
            let skipped = ready.min(usize::try_from(open.skip).unwrap_or(usize::MAX));
            let taken = (ready - skipped).min(PART);
            // Ready already: it does not wait again.
            let bytes = open.reader.fill_buf().await.map(|ready| ready[skipped..skipped + taken].to_vec());
            open.reader.consume_unpin(skipped + taken);
            open.skip -= skipped as u64;
            let bytes = bytes.unwrap_or_default();
            self.at += bytes.len() as u64;
            if !bytes.is_empty() {
                return Ok(bytes);
            }
        }
        Ok(Vec::new())
    }

    /// Forgets the connection, so that the next piece is asked for anew.
    pub(super) fn reopen(&mut self) {
        self.stream = None;
    }
}
