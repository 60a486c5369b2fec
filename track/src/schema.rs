//! The file's layout, its versions, and the way from an older one to this one.
//!
//! A change of the layout *or of the fold* takes the next version: migration ends with a rebuild of the projections, so
//! that they are always what this build's fold makes of the log.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::codec::{self, Words};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::state;
use crate::tables::Caches;

/// The schema this build writes.
pub(crate) const VERSION: u32 = 2;

/// "Rgta", which tells `file` and us whose database this is.
const APPLICATION_ID: i32 = 0x5267_7461;

const PROJECTIONS: &str = "
    CREATE TABLE runs (id INTEGER PRIMARY KEY, row TEXT NOT NULL);
    CREATE TABLE attempts (trial INTEGER, attempt INTEGER, row TEXT NOT NULL, PRIMARY KEY (trial, attempt)) WITHOUT ROWID;
    CREATE TABLE workers (trial INTEGER, attempt INTEGER, rank INTEGER, row TEXT NOT NULL,
        PRIMARY KEY (trial, attempt, rank)) WITHOUT ROWID;
    CREATE TABLE trials (trial INTEGER PRIMARY KEY, row TEXT NOT NULL);
    CREATE TABLE metrics (trial INTEGER, name TEXT, last REAL, last_step INTEGER NOT NULL, min REAL, min_step INTEGER,
        max REAL, max_step INTEGER, count INTEGER NOT NULL, PRIMARY KEY (trial, name)) WITHOUT ROWID;
    CREATE TABLE checkpoints (trial INTEGER, id TEXT, row TEXT NOT NULL, PRIMARY KEY (trial, id)) WITHOUT ROWID;
    CREATE TABLE sources (trial INTEGER, attempt INTEGER, rank INTEGER, sequence INTEGER NOT NULL,
        PRIMARY KEY (trial, attempt, rank)) WITHOUT ROWID;";

const DROP_PROJECTIONS: &str = "
    DROP TABLE IF EXISTS runs; DROP TABLE IF EXISTS attempts; DROP TABLE IF EXISTS workers; DROP TABLE IF EXISTS trials;
    DROP TABLE IF EXISTS metrics; DROP TABLE IF EXISTS checkpoints; DROP TABLE IF EXISTS sources;";

/// The log, and the words its rows refer to by number: kinds as `name/version`, and the names of metrics.
const LOG: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('run_id', lower(hex(randomblob(16)))), ('epoch', 0), ('applied', 0);
    CREATE TABLE kinds (id INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE);
    CREATE TABLE names (id INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE);
    CREATE TABLE events (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, attempt INTEGER NOT NULL, rank INTEGER,
        trial INTEGER, sequence INTEGER, kind INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX events_of_trial ON events (trial, seq) WHERE trial IS NOT NULL;";

/// What each older version needs to become the next: the first entry takes 1 to 2.
const MIGRATIONS: &[fn(&Transaction<'_>, &Path) -> Result<()>] = &[from_1];

/// Version 1 had no checksums and no index by trial.
fn from_1(tx: &Transaction<'_>, path: &Path) -> Result<()> {
    tx.execute_batch(
        "ALTER TABLE events ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
         CREATE INDEX IF NOT EXISTS events_of_trial ON events (trial, seq) WHERE trial IS NOT NULL;",
    )
    .map_err(Error::sqlite("migrate", path))?;
    let mut after = 0;
    loop {
        let page = codec::page(tx, after, 1_000).map_err(Error::sqlite("migrate", path))?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.seq;
        for raw in &page {
            tx.prepare_cached("UPDATE events SET crc = ?2 WHERE seq = ?1")
                .and_then(|mut s| s.execute((raw.seq, raw.checksum())))
                .map_err(Error::sqlite("migrate", path))?;
        }
    }
}

/// The file's schema; 0 is a file that holds nothing yet.
pub(crate) fn version(db: &Connection, path: &Path) -> Result<u32> {
    let pragma = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let found = pragma("user_version").map_err(Error::sqlite("open", path))?;
    let application = pragma("application_id").map_err(Error::sqlite("open", path))?;
    if found != 0 && application != i64::from(APPLICATION_ID) {
        return Err(Error::Corrupt { path: path.into(), what: "it is a database of another program".into() });
    }
    Ok(u32::try_from(found).unwrap_or(u32::MAX))
}

/// Refuses a file that this build cannot read.
pub(crate) fn check(db: &Connection, path: &Path) -> Result<()> {
    match version(db, path)? {
        0 => Err(Error::NotFound { path: path.into() }),
        VERSION => Ok(()),
        found if found > VERSION => Err(Error::NewerSchema { path: path.into(), found, supported: VERSION }),
        found => Err(Error::OlderSchema { path: path.into(), found, supported: VERSION }),
    }
}

/// Makes an empty file a store, or an older store one of this version, in one transaction.
pub(crate) fn prepare(db: &mut Connection, path: &Path) -> Result<()> {
    let found = version(db, path)?;
    if found > VERSION {
        return Err(Error::NewerSchema { path: path.into(), found, supported: VERSION });
    }
    if found < VERSION {
        let tx = db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(Error::sqlite("migrate", path))?;
        if found == 0 {
            tx.execute_batch(LOG).map_err(Error::sqlite("create", path))?;
        } else {
            tracing::info!(path = %path.display(), from = found, to = VERSION, "migrating the run's store");
            for migration in &MIGRATIONS[found as usize - 1..] {
                migration(&tx, path)?;
            }
        }
        fold_again(&tx, path)?;
        tx.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
        ))
        .and_then(|()| tx.commit())
        .map_err(Error::sqlite("migrate", path))?;
    }
    Ok(())
}

/// Replaces the projections with what the log adds up to.
pub(crate) fn fold_again(tx: &Transaction<'_>, path: &Path) -> Result<()> {
    let sql = Error::sqlite;
    tx.execute_batch(DROP_PROJECTIONS).map_err(sql("rebuild", path))?;
    tx.execute_batch(PROJECTIONS).map_err(sql("rebuild", path))?;
    let (mut words, mut caches, mut applied) = (Words::default(), Caches::default(), 0);
    loop {
        let page = codec::page(tx, applied, 4_000).map_err(sql("rebuild", path))?;
        let Some(last) = page.last() else { break };
        applied = last.seq;
        for raw in &page {
            let envelope = raw.decode(tx, &mut words, path)?;
            state::apply(&mut caches.over(tx), &envelope).map_err(sql("rebuild", path))?;
        }
        caches.flush(tx).map_err(sql("rebuild", path))?;
    }
    tx.execute("UPDATE meta SET value = ?1 WHERE key = 'applied'", [applied])
        .map_err(sql("rebuild", path))?;
    Ok(())
}

/// A number that the file keeps about itself.
pub(crate) fn meta(db: &Connection, key: &str) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?.query_row([key], |row| row.get(0))
}

/// Which run this is: the same in every copy of it.
pub(crate) fn run_id(db: &Connection) -> rusqlite::Result<String> {
    db.query_row("SELECT value FROM meta WHERE key = 'run_id'", [], |row| row.get(0))
}

/// Every kind that this build writes, as the file spells them.
pub(crate) fn known_kinds() -> impl Iterator<Item = String> {
    Event::KINDS.iter().map(|(kind, version)| format!("{kind}/{version}"))
}
