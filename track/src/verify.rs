//! The promise that a run's state equals the fold of its events, checked; and made true again where it is not.

use std::path::Path;

use rusqlite::TransactionBehavior;

use crate::codec;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::reader::Snapshot;
use crate::schema;
use crate::state::State;
use crate::store::FILE;
use crate::tables::Row;

/// What a check of a whole store found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// How many events were read.
    pub events: u64,
    /// Everything that is not as it should be, at most [`Verdict::MAX`] of them; none is a sound store.
    pub faults: Vec<String>,
}

impl Verdict {
    /// How many faults are listed.
    pub const MAX: usize = 20;

    /// Whether nothing was found.
    pub fn sound(&self) -> bool {
        self.faults.is_empty()
    }

    fn fault(&mut self, what: String) {
        if self.faults.len() < Self::MAX {
            self.faults.push(what);
        }
    }
}

impl Snapshot<'_> {
    /// Checks everything: the file's structure, every event's place and checksum, and that the projections are what the
    /// events add up to. Reads the whole log; its memory is that of the state.
    pub fn verify(&mut self) -> Result<Verdict> {
        let mut verdict = Verdict { events: 0, faults: Vec::new() };
        let structure = self.tx.prepare("PRAGMA integrity_check(20)").and_then(|mut statement| {
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        });
        match structure.map_err(self.failed()) {
            Ok(lines) => lines.into_iter().filter(|l| l != "ok").for_each(|l| verdict.fault(l)),
            Err(Error::Corrupt { what, .. }) => verdict.fault(what),
            Err(error) => return Err(error),
        }
        let replayed = match self.replay(&mut verdict) {
            Ok(state) => state,
            Err(Error::Corrupt { what, .. }) => {
                verdict.fault(what);
                return Ok(verdict);
            }
            Err(error) => return Err(error),
        };
        if verdict.events != self.committed() {
            verdict.fault(format!(
                "the projections are of event {}, the log has {}",
                self.committed(),
                verdict.events
            ));
        }
        match self.state() {
            Ok(stored) => compare(&replayed, &stored, &mut verdict),
            Err(Error::Corrupt { what, .. }) => verdict.fault(what),
            Err(error) => verdict.fault(error.to_string()),
        }
        Ok(verdict)
    }

    /// The fold of the log so far, read from the log alone.
    fn replay(&mut self, verdict: &mut Verdict) -> Result<State> {
        let (mut state, mut after) = (State::default(), 0);
        loop {
            let page = codec::page(&self.tx, after, 4_000).map_err(self.failed())?;
            let Some(last) = page.last() else { return Ok(state) };
            for raw in &page {
                after += 1;
                if raw.seq != after {
                    verdict.fault(format!("event {after} is missing"));
                    after = raw.seq;
                }
                if let Err(Error::Corrupt { what, .. }) = raw.check(self.path) {
                    verdict.fault(what);
                    continue;
                }
                state.apply(&raw.decode(&self.tx, self.words, self.path)?);
            }
            verdict.events += page.len() as u64;
            after = last.seq;
        }
    }
}

fn compare(replayed: &State, stored: &State, verdict: &mut Verdict) {
    fn table<R: Row>(replayed: &State, stored: &State, verdict: &mut Verdict) {
        let (replayed, stored) = (R::rows(replayed), R::rows(stored));
        for (key, row) in replayed {
            match stored.get(key) {
                None => verdict.fault(format!("{} has no row {key:?}", R::TABLE)),
                Some(other) if other != row => {
                    verdict.fault(format!("{} {key:?} is {other:?}, and the events say {row:?}", R::TABLE));
                }
                Some(_) => {}
            }
        }
        for key in stored.keys().filter(|key| !replayed.contains_key(key)) {
            verdict.fault(format!("{} has a row {key:?} that no event made", R::TABLE));
        }
    }
    table::<crate::state::Run>(replayed, stored, verdict);
    table::<crate::state::Attempt>(replayed, stored, verdict);
    table::<crate::state::Worker>(replayed, stored, verdict);
    table::<crate::state::Trial>(replayed, stored, verdict);
    table::<crate::state::Metric>(replayed, stored, verdict);
    table::<crate::state::Checkpoint>(replayed, stored, verdict);
    table::<crate::state::Source>(replayed, stored, verdict);
}

/// Makes a run's projections from its log again. Nobody may be writing to the run.
pub fn rebuild(folder: impl AsRef<Path>) -> Result<()> {
    let path = folder.as_ref().join(FILE);
    if !path.exists() {
        return Err(Error::NotFound { path });
    }
    let _lock = Lock::take(&path)?;
    let mut db = rusqlite::Connection::open(&path).map_err(Error::sqlite("rebuild", &path))?;
    schema::check(&db, &path)?;
    let tx = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(Error::sqlite("rebuild", &path))?;
    schema::fold_again(&tx, &path)?;
    tx.commit().map_err(Error::sqlite("rebuild", &path))
}
