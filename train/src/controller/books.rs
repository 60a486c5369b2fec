//! A run's store with all that hangs on it, as the controller's loop wants it: opened beside the first launch, appended to
//! without blocking the loop, and closed with everything told.

use std::collections::VecDeque;
use std::time::Duration;

use regatta_track::event::{RunConfigured, RunCreated};
use regatta_track::sink::{ProgressCsv, ResultJsonl, SinkConfig, Sinks, TensorBoard};
use regatta_track::state::Scope;
use regatta_track::{Draft, Query, Store, StoreConfig, Ticket, Timestamp, copy};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::drive::TIME_TOTAL;
use super::ledger::Ledger;
use crate::folder::RunFolder;
use crate::{Error, Result};

/// How often a store is copied to a remote storage.
const MIRROR_EVERY: Duration = Duration::from_secs(30);
/// How long an event may take to the disk.
const DURABLE_WITHIN: Duration = Duration::from_secs(60);
/// How long sinks and copies get to catch up at the end.
const CATCH_UP: Duration = Duration::from_secs(30);
/// The same where the store itself failed: the run is to end, and what it stores is followed when it goes on.
const HURRY: Duration = Duration::from_secs(1);

/// What opening a run's store takes.
pub(super) struct Opening {
    pub(super) folder: RunFolder,
    pub(super) resume: bool,
    pub(super) config: Value,
}

/// A store that is open.
pub(super) struct Opened {
    store: Store,
    sinks: Option<Sinks>,
    mirror: Option<copy::Mirror>,
    pub(super) ledger: Ledger,
}

/// The events of one run.
pub(super) struct Books {
    opened: Option<Opened>,
    opening: Option<JoinHandle<Result<Opened>>>,
    /// What happened before the store was open.
    backlog: Vec<Draft>,
    /// Appended when, not known to be durable.
    tickets: VecDeque<(Instant, Ticket)>,
    /// The last place given out.
    appended: u64,
}

impl Opening {
    /// Opens the store and all that hangs on it. Blocks.
    fn run(self) -> Result<Opened> {
        let Opening { folder, resume, config } = self;
        if resume && folder.is_remote() {
            folder.bring_back()?;
        }
        let store = match resume {
            true => Store::open(&folder.path, StoreConfig::default())?,
            false => Store::create(&folder.path, StoreConfig::default()).map_err(|error| match error {
                regatta_track::Error::Exists { .. } => {
                    let place = folder.path.display().to_string();
                    Error::RunExists { name: folder.name.clone(), folder: place }
                }
                other => other.into(),
            })?,
        };
        let ledger = if resume { read_ledger(&store)? } else { Ledger::default() };
        let (experiment, name) = (folder.experiment.clone(), folder.name.clone());
        if ledger.last == Timestamp::default() {
            store.append(RunCreated { experiment, name })?.detach();
        }
        let configured = store.append(RunConfigured { config })?;
        let path = &folder.path;
        let sinks: Vec<Box<dyn regatta_track::sink::Sink>> = vec![
            Box::new(ProgressCsv::new(path)),
            Box::new(ResultJsonl::new(path)),
            Box::new(TensorBoard::new(path)),
        ];
        let sinks = Some(Sinks::start(&store, sinks, SinkConfig::default())?);
        let mirror = match folder.is_remote() {
            true => {
                // Of the first copy a run must be able to go on.
                configured.wait(DURABLE_WITHIN)?;
                Some(copy::Mirror::start(&store, copy::open(&folder.storage)?, MIRROR_EVERY)?)
            }
            false => {
                configured.detach();
                None
            }
        };
        Ok(Opened { store, sinks, mirror, ledger })
    }
}

/// All kinds of events that the ledger is made of.
const KINDS: [&str; 6] = [
    "run_created",
    "run_finished",
    "attempt_started",
    "attempt_ended",
    "checkpoint_committed",
    "checkpoint_deleted",
];

fn read_ledger(store: &Store) -> Result<Ledger> {
    let mut reader = store.reader()?;
    let mut snapshot = reader.snapshot()?;
    let (mut ledger, mut after) = (Ledger::default(), 0);
    loop {
        let run: Option<Scope> = Some(None);
        let page = snapshot.events(&Query { after, limit: 4_000, scope: run, kinds: &KINDS })?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        page.iter().for_each(|e| ledger.apply(e.attempt, e.at, &e.event));
    }
    // A controller that died in an attempt was at work at least until its last report.
    if let Some(begun) = ledger.open {
        let metrics = snapshot.metrics(None)?;
        let total = metrics.iter().find(|(name, _)| **name == *TIME_TOTAL).map_or(0.0, |(_, m)| m.last);
        let worked = (total - ledger.spent.as_secs_f64()).max(0.0);
        ledger.last = ledger.last.max(Timestamp(begun.0 + (worked * 1e6) as i64));
    }
    Ok(ledger)
}

impl Books {
    /// Begins to open the store.
    pub(super) fn open(opening: Opening) -> Self {
        let opening = tokio::task::spawn_blocking(move || opening.run());
        Books {
            opened: None,
            opening: Some(opening),
            backlog: Vec::new(),
            tickets: VecDeque::new(),
            appended: 0,
        }
    }

    /// Waits until the store is open and everything that was said so far is durable.
    pub(super) async fn ready(&mut self) -> Result<&Opened> {
        if let Some(opening) = &mut self.opening {
            let opened = opening.await;
            self.opening = None;
            self.opened = Some(opened.map_err(|error| Error::other("open the run's store", error))??);
        }
        while let Some(draft) = self.backlog.first().cloned() {
            self.append(draft).await?;
            self.backlog.remove(0);
        }
        self.settle().await?;
        self.opened.as_ref().ok_or_else(|| regatta_track::Error::Closed.into())
    }

    /// Appends an event. Returns the place up to which the log must be durable for it to be; 0 before the store is open.
    pub(super) async fn append(&mut self, draft: Draft) -> Result<u64> {
        let Some(opened) = &self.opened else {
            self.backlog.push(draft);
            return Ok(0);
        };
        let ticket = loop {
            match opened.store.try_append(draft.clone()) {
                Err(regatta_track::Error::Busy { .. }) => {
                    let Some((_, ticket)) = self.tickets.pop_front() else {
                        return Err(regatta_track::Error::Closed.into());
                    };
                    within(ticket).await?;
                }
                other => break other?,
            }
        };
        self.appended = ticket.seq().unwrap_or(self.appended);
        self.tickets.push_back((Instant::now(), ticket));
        Ok(self.appended)
    }

    /// Waits until more of the log is durable than before; for ever if there is nothing to wait for. May be dropped.
    pub(super) async fn progress(&mut self) -> Result<()> {
        match self.tickets.front_mut() {
            Some((since, ticket)) => {
                let result = tokio::time::timeout_at(*since + DURABLE_WITHIN, ticket).await;
                self.tickets.pop_front();
                result.map_err(|_| slow())??;
            }
            None => std::future::pending().await,
        }
        let committed = self.committed();
        while self.tickets.front().is_some_and(|(_, ticket)| ticket.seq().is_none_or(|seq| seq <= committed))
        {
            self.tickets.pop_front();
        }
        Ok(())
    }

    /// Waits until everything that was appended is durable.
    pub(super) async fn settle(&mut self) -> Result<()> {
        while let Some((_, ticket)) = self.tickets.pop_back() {
            within(ticket).await?;
            self.tickets.clear();
        }
        Ok(())
    }

    /// The last place given out.
    pub(super) fn appended(&self) -> u64 {
        self.appended
    }

    /// Up to where the log is durable.
    pub(super) fn committed(&self) -> u64 {
        self.opened.as_ref().map_or(0, |opened| opened.store.committed())
    }

    /// Closes the store with everything told. What only copies it is warned about, and catches up at the next opening.
    pub(super) async fn close(mut self) -> Result<()> {
        let settled = if self.opening.is_some() { self.ready().await.map(drop) } else { self.settle().await };
        let Some(mut opened) = self.opened else { return settled };
        let within = if opened.store.failure().is_none() { CATCH_UP } else { HURRY };
        let closed = tokio::task::spawn_blocking(move || {
            let late = |what, result: regatta_track::Result<()>| {
                if let Err(error) = result {
                    tracing::warn!(what, %error, "the run is stored, but not everything that follows it is up to date");
                }
            };
            late("sinks", opened.sinks.take().map_or(Ok(()), |sinks| sinks.finish(within)));
            late("copy", opened.mirror.take().map_or(Ok(()), |mirror| mirror.finish(within).map(drop)));
            opened.store.close()
        });
        let closed = closed.await.map_err(|error| Error::other("close the run's store", error))?;
        settled.and(closed.map_err(Into::into))
    }
}

async fn within(ticket: Ticket) -> Result<()> {
    tokio::time::timeout(DURABLE_WITHIN, ticket).await.map_err(|_| slow())??;
    Ok(())
}

fn slow() -> Error {
    regatta_track::Error::Deadline { what: "an event's way to the disk".into(), after: DURABLE_WITHIN }.into()
}
