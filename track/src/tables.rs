//! The projections in SQLite: how each row of the state lies in its table, and the writer's cache over them, which turns
//! thousands of changes of a row within a group into one write.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params_from_iter};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::state::{Attempt, Checkpoint, Metric, Rows, Run, Scope, Source, State, Trial, Worker};

/// A row of a projection. Rows that change seldom are JSON, which SQL can look into (`row ->> '$.status'`); the metrics,
/// which change with every report, have columns.
pub(crate) trait Row: Clone + Default + PartialEq + Debug + 'static {
    type Key: Clone + Ord + Hash + Debug;
    const TABLE: &'static str;
    const KEYS: &'static [&'static str];
    const COLUMNS: &'static [&'static str];

    fn key_values(key: &Self::Key) -> Vec<Value>;
    fn read_key(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self::Key>;
    fn values(&self) -> rusqlite::Result<Vec<Value>>;
    /// Reads the columns, which follow the keys.
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self>;
    fn rows(state: &State) -> &BTreeMap<Self::Key, Self>;
    fn rows_mut(state: &mut State) -> &mut BTreeMap<Self::Key, Self>;
    fn cache(tables: &mut Caches) -> &mut Cache<Self>;
}

/// The run is -1 where a trial is expected: SQL has no unique NULL.
fn scope(trial: Scope) -> Value {
    Value::Integer(trial.map_or(-1, i64::from))
}

fn read_optional(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<u32>> {
    let value: i64 = row.get(column)?;
    if value == -1 {
        return Ok(None);
    }
    u32::try_from(value).map(Some).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

fn to_json<R: Serialize>(row: &R) -> rusqlite::Result<Vec<Value>> {
    let text = serde_json::to_string(row).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    Ok(vec![Value::Text(text)])
}

fn from_json<R: DeserializeOwned>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<R> {
    serde_json::from_str(row.get_ref(column)?.as_str()?)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, e.into()))
}

macro_rules! row {
    ($name:ident, $field:ident, $key:ty, $keys:expr, |$k:ident| $values:expr, |$r:ident| $read:expr,
     $columns:expr, $to:expr, $from:expr) => {
        impl Row for $name {
            type Key = $key;
            const TABLE: &'static str = stringify!($field);
            const KEYS: &'static [&'static str] = &$keys;
            const COLUMNS: &'static [&'static str] = &$columns;

            fn key_values($k: &Self::Key) -> Vec<Value> {
                $values
            }

            fn read_key($r: &rusqlite::Row<'_>) -> rusqlite::Result<Self::Key> {
                Ok($read)
            }

            fn values(&self) -> rusqlite::Result<Vec<Value>> {
                $to(self)
            }

            fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
                $from(row, Self::KEYS.len())
            }

            fn rows(state: &State) -> &BTreeMap<Self::Key, Self> {
                &state.$field
            }

            fn rows_mut(state: &mut State) -> &mut BTreeMap<Self::Key, Self> {
                &mut state.$field
            }

            fn cache(tables: &mut Caches) -> &mut Cache<Self> {
                &mut tables.$field
            }
        }
    };
}

row!(Run, runs, (), ["id"], |_k| vec![Value::Integer(1)], |_r| (), ["row"], to_json, from_json);
row!(
    Attempt,
    attempts,
    (Scope, u32),
    ["trial", "attempt"],
    |k| vec![scope(k.0), Value::Integer(k.1.into())],
    |r| (read_optional(r, 0)?, r.get(1)?),
    ["row"],
    to_json,
    from_json
);
row!(
    Worker,
    workers,
    (Scope, u32, u32),
    ["trial", "attempt", "rank"],
    |k| vec![scope(k.0), Value::Integer(k.1.into()), Value::Integer(k.2.into())],
    |r| (read_optional(r, 0)?, r.get(1)?, r.get(2)?),
    ["row"],
    to_json,
    from_json
);
row!(
    Trial,
    trials,
    u32,
    ["trial"],
    |k| vec![Value::Integer((*k).into())],
    |r| r.get(0)?,
    ["row"],
    to_json,
    from_json
);
row!(
    Checkpoint,
    checkpoints,
    (Scope, Arc<str>),
    ["trial", "id"],
    |k| vec![scope(k.0), Value::Text(k.1.to_string())],
    |r| (read_optional(r, 0)?, r.get(1)?),
    ["row"],
    to_json,
    from_json
);
row!(
    Source,
    sources,
    (Scope, u32, Option<u32>),
    ["trial", "attempt", "rank"],
    |k| vec![scope(k.0), Value::Integer(k.1.into()), scope(k.2)],
    |r| (read_optional(r, 0)?, r.get(1)?, read_optional(r, 2)?),
    ["sequence"],
    |row: &Source| Ok(vec![Value::Integer(row.sequence as i64)]),
    |row: &rusqlite::Row<'_>, at: usize| Ok(Source { sequence: row.get::<_, i64>(at)? as u64 })
);
row!(
    Metric,
    metrics,
    (Scope, Arc<str>),
    ["trial", "name"],
    |k| vec![scope(k.0), Value::Text(k.1.to_string())],
    |r| (read_optional(r, 0)?, r.get(1)?),
    ["last", "last_step", "min", "min_step", "max", "max_step", "count"],
    metric_values,
    read_metric
);

/// SQLite stores a NaN as NULL, so a NULL `last` is one; extremes are never NaN, so a NULL one is none.
fn metric_values(metric: &Metric) -> rusqlite::Result<Vec<Value>> {
    let integer = |n: u64| Value::Integer(n as i64);
    let extreme = |e: Option<(f64, u64)>| match e {
        Some((value, step)) => [Value::Real(value), integer(step)],
        None => [Value::Null, Value::Null],
    };
    let ([min, min_step], [max, max_step]) = (extreme(metric.min), extreme(metric.max));
    let last = if metric.last.is_nan() { Value::Null } else { Value::Real(metric.last) };
    Ok(vec![last, integer(metric.last_step), min, min_step, max, max_step, integer(metric.count)])
}

fn read_metric(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Metric> {
    let extreme = |column: usize| -> rusqlite::Result<Option<(f64, u64)>> {
        let value: Option<f64> = row.get(column)?;
        let step: Option<i64> = row.get(column + 1)?;
        Ok(value.zip(step.map(|s| s as u64)))
    };
    Ok(Metric {
        last: row.get::<_, Option<f64>>(at)?.unwrap_or(f64::NAN),
        last_step: row.get::<_, i64>(at + 1)? as u64,
        min: extreme(at + 2)?,
        max: extreme(at + 4)?,
        count: row.get::<_, i64>(at + 6)? as u64,
    })
}

/// Reads the rows whose leading keys equal `prefix`, in order of their keys.
pub(crate) fn scan<R: Row>(db: &Connection, prefix: &[Value]) -> rusqlite::Result<Vec<(R::Key, R)>> {
    let filter: Vec<String> =
        R::KEYS.iter().take(prefix.len()).enumerate().map(|(i, k)| format!("{k} = ?{}", i + 1)).collect();
    let filter = if filter.is_empty() { String::new() } else { format!("WHERE {}", filter.join(" AND ")) };
    let keys = R::KEYS.join(", ");
    let sql = format!("SELECT {keys}, {} FROM {} {filter} ORDER BY {keys}", R::COLUMNS.join(", "), R::TABLE);
    let mut statement = db.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(prefix), |row| Ok((R::read_key(row)?, R::read(row)?)))?;
    rows.collect()
}

/// As `scan`, for one trial or the run itself.
pub(crate) fn scan_scope<R: Row>(db: &Connection, trial: Scope) -> rusqlite::Result<Vec<(R::Key, R)>> {
    scan::<R>(db, &[scope(trial)])
}

/// The whole state as the tables have it.
pub(crate) fn load(db: &Connection) -> rusqlite::Result<State> {
    fn table<R: Row>(db: &Connection, state: &mut State) -> rusqlite::Result<()> {
        *R::rows_mut(state) = scan::<R>(db, &[])?.into_iter().collect();
        Ok(())
    }
    let mut state = State::default();
    table::<Run>(db, &mut state)?;
    table::<Attempt>(db, &mut state)?;
    table::<Worker>(db, &mut state)?;
    table::<Trial>(db, &mut state)?;
    table::<Metric>(db, &mut state)?;
    table::<Checkpoint>(db, &mut state)?;
    table::<Source>(db, &mut state)?;
    Ok(state)
}

/// The rows of one table that the writer has at hand. Clean ones may be dropped at any time.
pub(crate) struct Cache<R: Row> {
    rows: HashMap<R::Key, (R, bool)>,
    dirty: Vec<R::Key>,
    load: String,
    save: String,
}

impl<R: Row> Default for Cache<R> {
    fn default() -> Self {
        let filter: Vec<String> =
            R::KEYS.iter().enumerate().map(|(i, k)| format!("{k} = ?{}", i + 1)).collect();
        let (keys, columns) = (R::KEYS.join(", "), R::COLUMNS.join(", "));
        let marks = vec!["?"; R::KEYS.len() + R::COLUMNS.len()].join(", ");
        Cache {
            rows: HashMap::new(),
            dirty: Vec::new(),
            load: format!("SELECT {keys}, {columns} FROM {} WHERE {}", R::TABLE, filter.join(" AND ")),
            save: format!("INSERT OR REPLACE INTO {} ({keys}, {columns}) VALUES ({marks})", R::TABLE),
        }
    }
}

impl<R: Row> Cache<R> {
    fn row(&mut self, db: &Connection, key: R::Key) -> rusqlite::Result<&mut R> {
        use std::collections::hash_map::Entry;
        let (row, dirty) = match self.rows.entry(key.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let mut statement = db.prepare_cached(&self.load)?;
                let found = statement.query_row(params_from_iter(R::key_values(&key)), R::read).optional()?;
                entry.insert((found.unwrap_or_default(), false))
            }
        };
        if !*dirty {
            *dirty = true;
            self.dirty.push(key);
        }
        Ok(row)
    }

    fn flush(&mut self, db: &Connection, keep: usize) -> rusqlite::Result<()> {
        if self.rows.len() > keep {
            // What changed in this group is likely to change again.
            self.rows.retain(|_, (_, dirty)| *dirty);
            self.rows.shrink_to(keep);
        }
        let mut statement = db.prepare_cached(&self.save)?;
        for key in self.dirty.drain(..) {
            let Some((row, dirty)) = self.rows.get_mut(&key) else { continue };
            *dirty = false;
            statement.execute(params_from_iter(R::key_values(&key).into_iter().chain(row.values()?)))?;
        }
        Ok(())
    }
}

/// The writer's caches of all tables.
#[derive(Default)]
pub(crate) struct Caches {
    runs: Cache<Run>,
    attempts: Cache<Attempt>,
    workers: Cache<Worker>,
    trials: Cache<Trial>,
    metrics: Cache<Metric>,
    checkpoints: Cache<Checkpoint>,
    sources: Cache<Source>,
}

impl Caches {
    /// How many rows of a table stay at hand between groups, or as many as the last group changed: what bounds the writer's
    /// memory.
    const KEEP: usize = 2_000;

    /// The rows over this connection.
    pub(crate) fn over<'a>(&'a mut self, db: &'a Connection) -> Cached<'a> {
        Cached { caches: self, db }
    }

    /// Writes what changed.
    pub(crate) fn flush(&mut self, db: &Connection) -> rusqlite::Result<()> {
        self.runs.flush(db, Self::KEEP)?;
        self.attempts.flush(db, Self::KEEP)?;
        self.workers.flush(db, Self::KEEP)?;
        self.trials.flush(db, Self::KEEP)?;
        self.metrics.flush(db, Self::KEEP)?;
        self.checkpoints.flush(db, Self::KEEP)?;
        self.sources.flush(db, Self::KEEP)
    }
}

/// The tables as rows to fold into.
pub(crate) struct Cached<'a> {
    caches: &'a mut Caches,
    db: &'a Connection,
}

impl Rows for Cached<'_> {
    type Error = rusqlite::Error;

    fn row<R: Row>(&mut self, key: R::Key) -> rusqlite::Result<&mut R> {
        R::cache(self.caches).row(self.db, key)
    }
}
