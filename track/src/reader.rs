//! Reading a run, from any process and while it is written. A [`Snapshot`] sees one moment: everything committed by then,
//! its projections and its log in agreement, whatever the writer does meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, Transaction, params_from_iter};

use crate::codec::{self, Raw, Words};
use crate::error::{Error, Result};
use crate::event::{Envelope, Event, Timestamp};
use crate::schema;
use crate::state::{Attempt, Checkpoint, Metric, Run, Scope, State, Trial, Worker};
use crate::store::FILE;
use crate::tables;

/// A connection that only reads.
pub struct Reader {
    db: Connection,
    words: Words,
    path: PathBuf,
}

impl Reader {
    /// Opens the run in a folder. No writer is needed, and none is disturbed.
    pub fn open(folder: impl AsRef<Path>) -> Result<Reader> {
        let path = folder.as_ref().join(FILE);
        if !path.exists() {
            return Err(Error::NotFound { path });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags).map_err(Error::sqlite("open", &path))?;
        db.busy_timeout(Duration::from_secs(10)).map_err(Error::sqlite("open", &path))?;
        schema::check(&db, &path)?;
        Ok(Reader { db, words: Words::default(), path })
    }

    /// Whether a run is stored in this folder. A file whose making was cut short holds none, and is made again by
    /// [`Store::create`](crate::Store::create).
    pub fn finds(folder: impl AsRef<Path>) -> bool {
        !matches!(Reader::open(folder), Err(Error::NotFound { .. }))
    }

    /// This moment. While it is held the write-ahead log cannot be cut, so let go of it soon.
    pub fn snapshot(&mut self) -> Result<Snapshot<'_>> {
        let tx = self.db.transaction().map_err(Error::sqlite("read", &self.path))?;
        let committed = schema::meta(&tx, "applied").map_err(Error::sqlite("read", &self.path))? as u64;
        Ok(Snapshot { tx, words: &mut self.words, path: &self.path, committed })
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.db
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Which events to read.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// Those after this place.
    pub after: u64,
    /// At most so many.
    pub limit: usize,
    /// Of one trial, or of the run itself; `None` is all.
    pub scope: Option<Scope>,
    /// Of these kinds, as `Event::kind` names them; none given is all.
    pub kinds: &'a [&'a str],
}

impl Default for Query<'_> {
    fn default() -> Self {
        Query { after: 0, limit: 1_000, scope: None, kinds: &[] }
    }
}

/// A metric's value in the course of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The event that reported it.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// In which attempt.
    pub attempt: u32,
    /// At which step.
    pub step: u64,
    /// The value.
    pub value: f64,
}

/// One moment of a run.
pub struct Snapshot<'a> {
    pub(crate) tx: Transaction<'a>,
    pub(crate) words: &'a mut Words,
    pub(crate) path: &'a Path,
    committed: u64,
}

impl Snapshot<'_> {
    /// The last event in it.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// The whole state.
    pub fn state(&self) -> Result<State> {
        tables::load(&self.tx).map_err(self.failed())
    }

    /// The run, once an event told of it.
    pub fn run(&self) -> Result<Option<Run>> {
        let rows = tables::scan::<Run>(&self.tx, &[]).map_err(self.failed())?;
        Ok(rows.into_iter().next().map(|(_, run)| run))
    }

    /// All trials, by number.
    pub fn trials(&self) -> Result<Vec<(u32, Trial)>> {
        tables::scan::<Trial>(&self.tx, &[]).map_err(self.failed())
    }

    /// One trial.
    pub fn trial(&self, trial: u32) -> Result<Option<Trial>> {
        let rows = tables::scan::<Trial>(&self.tx, &[Value::Integer(trial.into())]).map_err(self.failed())?;
        Ok(rows.into_iter().next().map(|(_, trial)| trial))
    }

    /// The attempts at the run or a trial, by number.
    pub fn attempts(&self, scope: Scope) -> Result<Vec<(u32, Attempt)>> {
        let rows = tables::scan_scope::<Attempt>(&self.tx, scope).map_err(self.failed())?;
        Ok(rows.into_iter().map(|((_, attempt), row)| (attempt, row)).collect())
    }

    /// The workers of the run or a trial, by attempt and rank.
    pub fn workers(&self, scope: Scope) -> Result<Vec<((u32, u32), Worker)>> {
        let rows = tables::scan_scope::<Worker>(&self.tx, scope).map_err(self.failed())?;
        Ok(rows.into_iter().map(|((_, attempt, rank), row)| ((attempt, rank), row)).collect())
    }

    /// The metrics of the run or a trial, by name: last and extremes.
    pub fn metrics(&self, scope: Scope) -> Result<Vec<(Arc<str>, Metric)>> {
        let rows = tables::scan_scope::<Metric>(&self.tx, scope).map_err(self.failed())?;
        Ok(rows.into_iter().map(|((_, name), row)| (name, row)).collect())
    }

    /// The checkpoints of the run or a trial, by name; those that retention removed say when.
    pub fn checkpoints(&self, scope: Scope) -> Result<Vec<(Arc<str>, Checkpoint)>> {
        let rows = tables::scan_scope::<Checkpoint>(&self.tx, scope).map_err(self.failed())?;
        Ok(rows.into_iter().map(|((_, id), row)| (id, row)).collect())
    }

    /// A page of the log, in order.
    pub fn events(&mut self, query: &Query<'_>) -> Result<Vec<Envelope>> {
        let raw = self.raw(query).map_err(self.failed())?;
        raw.iter()
            .map(|raw| {
                raw.check(self.path)?;
                raw.decode(&self.tx, self.words, self.path)
            })
            .collect()
    }

    fn raw(&self, query: &Query<'_>) -> rusqlite::Result<Vec<Raw>> {
        let mut sql = format!("SELECT {} FROM events WHERE seq > ?1", codec::COLUMNS);
        let mut values = vec![Value::Integer(query.after.min(i64::MAX as u64) as i64)];
        match query.scope {
            None => {}
            Some(None) => sql.push_str(" AND trial IS NULL"),
            Some(Some(trial)) => {
                values.push(Value::Integer(trial.into()));
                sql.push_str(&format!(" AND trial = ?{}", values.len()));
            }
        }
        if !query.kinds.is_empty() {
            let mut either = Vec::new();
            for kind in query.kinds {
                values.push(Value::Text(format!("{kind}/")));
                either.push(format!("substr(word, 1, length(?{0})) = ?{0}", values.len()));
            }
            sql.push_str(&format!(" AND kind IN (SELECT id FROM kinds WHERE {})", either.join(" OR ")));
        }
        values.push(Value::Integer(query.limit.min(i64::MAX as usize) as i64));
        sql.push_str(&format!(" ORDER BY seq LIMIT ?{}", values.len()));
        self.tx.prepare_cached(&sql)?.query_map(params_from_iter(values), Raw::read)?.collect()
    }

    /// A metric's values in the order of their reports, as rank 0 and the controller told them.
    pub fn history(&mut self, scope: Scope, metric: &str) -> Result<Vec<Point>> {
        let (mut points, mut after) = (Vec::new(), 0);
        loop {
            let query = Query { after, limit: 4_000, scope: Some(scope), kinds: &["report"] };
            let page = self.events(&query)?;
            let Some(last) = page.last() else { return Ok(points) };
            after = last.seq;
            for e in page.iter().filter(|e| e.rank.unwrap_or(0) == 0) {
                let Event::Report(report) = &e.event else { continue };
                if let Some(value) = report.metrics.get(metric) {
                    points.push(Point { seq: e.seq, at: e.at, attempt: e.attempt, step: report.step, value });
                }
            }
        }
    }

    pub(crate) fn failed(&self) -> impl FnOnce(rusqlite::Error) -> Error {
        Error::sqlite("read", self.path)
    }
}
