//! The one thread that writes: takes what waits, folds it, commits it as a group, and says so.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::codec::{self, Interner, Raw};
use crate::error::{Error, Result, disk_of};
use crate::event::Envelope;
use crate::lock::Lock;
use crate::schema;
use crate::state::{self, Source};
use crate::store::{Pending, Shared, SourceKey};
use crate::tables::{self, Caches};

/// The most events of one group: bounds how long the first of them waits for the last.
const GROUP: usize = 8_192;

/// How many of the last events are checked when a store is opened; `Snapshot::verify` checks all.
const TAIL: i64 = 256;

/// What an opened store starts from.
pub(crate) struct Opened {
    pub(crate) applied: u64,
    pub(crate) epoch: u64,
    pub(crate) run_id: String,
    pub(crate) sources: HashMap<SourceKey, u64>,
    pub(crate) words: (Interner, Interner),
}

/// Opens the file for writing: creates or migrates it, checks its end, and counts this opening.
pub(crate) fn open(path: &Path, max_bytes: Option<u64>, create: bool) -> Result<(Connection, Opened)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let flags = if create { flags | OpenFlags::SQLITE_OPEN_CREATE } else { flags };
    let mut db = Connection::open_with_flags(path, flags).map_err(Error::sqlite("open", path))?;
    let found = schema::version(&db, path)?;
    match (create, found) {
        (true, 1..) => return Err(Error::Exists { path: path.into() }),
        (false, 0) => return Err(Error::NotFound { path: path.into() }),
        (false, newer) if newer > schema::VERSION => {
            return Err(Error::NewerSchema { path: path.into(), found, supported: schema::VERSION });
        }
        _ => {}
    }
    // FULL makes every commit wait for the write-ahead log to be on the disk: that is what an acknowledgement means.
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -8192; PRAGMA temp_store = MEMORY;",
    )
    .and_then(|()| db.busy_timeout(Duration::from_secs(10)))
    .map_err(Error::sqlite("open", path))?;
    if let Some(max) = max_bytes {
        let page: u64 = db
            .pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0).map(|n| n as u64))
            .map_err(Error::sqlite("open", path))?;
        db.execute_batch(&format!("PRAGMA max_page_count = {}", (max / page).max(1)))
            .map_err(Error::sqlite("open", path))?;
    }
    let prepared = schema::prepare(&mut db, path).and_then(|()| begin(&mut db, path));
    let opened = prepared.map_err(|e| quota(e, path, max_bytes))?;
    if create {
        sync_folder(path)?;
    }
    Ok((db, opened))
}

/// A new file is there after a power cut only if its folder says so.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("sync", folder))
}

fn begin(db: &mut Connection, path: &Path) -> Result<Opened> {
    check_tail(db, path)?;
    let epoch = "UPDATE meta SET value = value + 1 WHERE key = 'epoch'";
    let read = |db: &Connection| -> rusqlite::Result<Opened> {
        db.execute(epoch, [])?;
        let mut words = (Interner::load(db, "kinds")?, Interner::load(db, "names")?);
        let stored = words.0.len();
        schema::known_kinds().for_each(|kind| {
            words.0.add(kind.into());
        });
        insert_words(db, "kinds", &words.0, stored)?;
        Ok(Opened {
            applied: schema::meta(db, "applied")? as u64,
            epoch: schema::meta(db, "epoch")? as u64,
            run_id: schema::run_id(db)?,
            sources: tables::scan::<Source>(db, &[])?
                .into_iter()
                .map(|(key, row)| (key, row.sequence))
                .collect(),
            words,
        })
    };
    let tx =
        db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(Error::sqlite("open", path))?;
    let opened = read(&tx).map_err(Error::sqlite("open", path))?;
    tx.commit().map_err(Error::sqlite("open", path))?;
    Ok(opened)
}

/// A cheap look at where damage by a crash would be.
fn check_tail(db: &Connection, path: &Path) -> Result<()> {
    let corrupt = |what: String| Error::Corrupt { path: path.into(), what };
    let applied = schema::meta(db, "applied").map_err(Error::sqlite("check", path))?;
    let page = codec::page(db, applied - TAIL, TAIL + 1).map_err(Error::sqlite("check", path))?;
    let last = page.last().map_or(0, |raw| raw.seq);
    if last != applied {
        return Err(corrupt(format!("its log ends at event {last} and its projections at event {applied}")));
    }
    if page.windows(2).any(|pair| pair[0].seq + 1 != pair[1].seq) {
        return Err(corrupt(format!("its log has a gap before event {last}")));
    }
    page.iter().try_for_each(|raw| raw.check(path))
}

fn insert_words(db: &Connection, table: &str, words: &Interner, stored: usize) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(&format!("INSERT INTO {table} (id, word) VALUES (?1, ?2)"))?;
    for (i, word) in words.since(stored).iter().enumerate() {
        statement.execute(((stored + i + 1) as i64, word))?;
    }
    Ok(())
}

/// Tells a full disk from a full allowance, which SQLite does not.
fn quota(error: Error, path: &Path, max_bytes: Option<u64>) -> Error {
    match (error, max_bytes) {
        (Error::DiskFull { disk, free_bytes, .. }, Some(max_bytes)) if free_bytes >= 1 << 20 => {
            Error::QuotaFull { path: path.into(), disk, max_bytes }
        }
        (error, _) => error,
    }
}

pub(crate) struct Writer {
    db: Connection,
    shared: Arc<Shared>,
    path: PathBuf,
    max_bytes: Option<u64>,
    caches: Caches,
    stored: (usize, usize),
    /// Given back when the writer is gone, after its connection.
    _lock: Lock,
}

/// Whatever ends the writer, a panic too, nobody waits for it any longer.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.fail(Error::Closed);
    }
}

impl Writer {
    pub(crate) fn new(
        db: Connection,
        lock: Lock,
        shared: Arc<Shared>,
        path: PathBuf,
        max_bytes: Option<u64>,
    ) -> Writer {
        let stored = {
            let words = shared.words.read().unwrap_or_else(PoisonError::into_inner);
            (words.0.len(), words.1.len())
        };
        Writer { db, shared, path, max_bytes, caches: Caches::default(), stored, _lock: lock }
    }

    pub(crate) fn run(mut self) {
        let _end = End(self.shared.clone());
        while let Some(group) = self.next_group() {
            match self.write(group) {
                Ok(committed) => self.shared.commit(committed),
                Err(error) => {
                    let error = quota(error, &self.path, self.max_bytes);
                    // Whoever waits is told first: to say it may fail as well.
                    self.shared.fail(error.clone());
                    tracing::error!(path = %self.path.display(), %error, "the run's store stopped");
                    return;
                }
            }
        }
        if let Err(error) = self.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            let disk = disk_of(&self.path).0;
            tracing::warn!(path = %self.path.display(), disk = %disk.display(), %error, "the write-ahead log stays as it is");
        }
    }

    /// What waits, or `None` at the end.
    fn next_group(&self) -> Option<Vec<Pending>> {
        let mut queue = self.shared.lock();
        loop {
            if !queue.pending.is_empty() {
                let count = queue.pending.len().min(GROUP);
                let group: Vec<Pending> = queue.pending.drain(..count).collect();
                queue.bytes -= group.iter().map(|p| p.bytes).sum::<usize>();
                return Some(group);
            }
            if queue.closing {
                return None;
            }
            queue = self.shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Commits a group, and says where the log now ends.
    fn write(&mut self, group: Vec<Pending>) -> Result<u64> {
        let failed = || Error::sqlite("write", &self.path);
        let shared = self.shared.clone();
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed())?;
        let stored = {
            let words = shared.words.read().unwrap_or_else(PoisonError::into_inner);
            insert_words(&tx, "kinds", &words.0, self.stored.0).map_err(failed())?;
            insert_words(&tx, "names", &words.1, self.stored.1).map_err(failed())?;
            (words.0.len(), words.1.len())
        };
        let last = group.last().map_or(0, |p| p.seq);
        append(&tx, &mut self.caches, group)
            .and_then(|()| self.caches.flush(&tx))
            .and_then(|()| {
                tx.prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'applied'")?
                    .execute([last as i64])?;
                tx.commit()
            })
            .map_err(failed())?;
        self.stored = stored;
        Ok(last)
    }
}

fn append(tx: &Transaction<'_>, caches: &mut Caches, group: Vec<Pending>) -> rusqlite::Result<()> {
    let columns = codec::COLUMNS;
    let sql = format!("INSERT INTO events ({columns}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)");
    let mut insert = tx.prepare_cached(&sql)?;
    let mut rows = caches.over(tx);
    for pending in group {
        let draft = pending.draft;
        let envelope = Envelope {
            seq: pending.seq,
            at: pending.at,
            attempt: draft.attempt,
            rank: draft.rank,
            trial: draft.trial,
            sequence: draft.sequence,
            event: draft.event,
        };
        let mut raw = Raw {
            seq: pending.seq as i64,
            at: envelope.at.0,
            attempt: draft.attempt,
            rank: draft.rank,
            trial: draft.trial,
            sequence: draft.sequence.map(|n| n as i64),
            kind: pending.kind,
            body: Vec::new(),
            crc: 0,
        };
        raw.crc = raw.checksum_with(&pending.body);
        insert.execute((
            raw.seq,
            raw.at,
            raw.attempt,
            raw.rank,
            raw.trial,
            raw.sequence,
            raw.kind,
            &pending.body,
            raw.crc,
        ))?;
        state::apply(&mut rows, &envelope)?;
    }
    Ok(())
}
