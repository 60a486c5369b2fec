//! An event as a row of the log: its columns, its checksum, and the numbers that stand for words.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, Row};

use crate::error::{Error, Result};
use crate::event::{Envelope, Event, Report, Timestamp};
use crate::metrics;

/// Words and the numbers that stand for them, from 1 on in the order of their first use.
#[derive(Default)]
pub(crate) struct Interner {
    ids: HashMap<Arc<str>, u32>,
    words: Vec<Arc<str>>,
}

impl Interner {
    pub(crate) fn load(db: &Connection, table: &str) -> rusqlite::Result<Self> {
        let mut all = Interner::default();
        all.refresh(db, table)?;
        Ok(all)
    }

    /// Reads the words that were added since.
    fn refresh(&mut self, db: &Connection, table: &str) -> rusqlite::Result<()> {
        let mut statement =
            db.prepare_cached(&format!("SELECT word FROM {table} WHERE id > ?1 ORDER BY id"))?;
        let mut rows = statement.query([self.words.len() as i64])?;
        while let Some(row) = rows.next()? {
            self.add(row.get::<_, Arc<str>>(0)?);
        }
        Ok(())
    }

    pub(crate) fn id(&self, word: &str) -> Option<u32> {
        self.ids.get(word).copied()
    }

    pub(crate) fn add(&mut self, word: Arc<str>) -> u32 {
        let next = self.words.len() as u32 + 1;
        let id = *self.ids.entry(word.clone()).or_insert(next);
        if id == next {
            self.words.push(word);
        }
        id
    }

    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    pub(crate) fn since(&self, count: usize) -> &[Arc<str>] {
        &self.words[count..]
    }

    fn word(&self, id: u32) -> Option<&Arc<str>> {
        self.words.get((id as usize).checked_sub(1)?)
    }
}

/// A reader's words, read again when a number is met that is not known yet.
#[derive(Default)]
pub(crate) struct Words {
    kinds: Interner,
    names: Interner,
}

/// A row of the log.
pub(crate) struct Raw {
    pub(crate) seq: i64,
    pub(crate) at: i64,
    pub(crate) attempt: u32,
    pub(crate) rank: Option<u32>,
    pub(crate) trial: Option<u32>,
    pub(crate) sequence: Option<i64>,
    pub(crate) kind: u32,
    pub(crate) body: Vec<u8>,
    pub(crate) crc: u32,
}

/// The columns in the order in which `Raw::read` wants them.
pub(crate) const COLUMNS: &str = "seq, at, attempt, rank, trial, sequence, kind, body, crc";

impl Raw {
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Raw> {
        Ok(Raw {
            seq: row.get(0)?,
            at: row.get(1)?,
            attempt: row.get(2)?,
            rank: row.get(3)?,
            trial: row.get(4)?,
            sequence: row.get(5)?,
            kind: row.get(6)?,
            body: row.get(7)?,
            crc: row.get(8)?,
        })
    }

    /// CRC-32C over every column before it: SQLite has no checksums of its own outside the write-ahead log.
    pub(crate) fn checksum(&self) -> u32 {
        self.checksum_with(&self.body)
    }

    /// The same for a body that is kept elsewhere.
    pub(crate) fn checksum_with(&self, body: &[u8]) -> u32 {
        let mut head = [0_u8; 48];
        let optional = |n: Option<u32>| n.map_or(-1, i64::from) as u64;
        head[..8].copy_from_slice(&self.seq.to_le_bytes());
        head[8..16].copy_from_slice(&self.at.to_le_bytes());
        head[16..20].copy_from_slice(&self.attempt.to_le_bytes());
        head[20..24].copy_from_slice(&self.kind.to_le_bytes());
        head[24..32].copy_from_slice(&optional(self.rank).to_le_bytes());
        head[32..40].copy_from_slice(&optional(self.trial).to_le_bytes());
        head[40..].copy_from_slice(&self.sequence.unwrap_or(-1).to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&head), body)
    }

    /// Refuses a row whose checksum does not fit.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        if self.checksum() == self.crc {
            return Ok(());
        }
        Err(Error::Corrupt {
            path: path.into(),
            what: format!("event {} does not fit its checksum", self.seq),
        })
    }

    /// Makes an event of it.
    pub(crate) fn decode(&self, db: &Connection, words: &mut Words, path: &Path) -> Result<Envelope> {
        let corrupt =
            |what: String| Error::Corrupt { path: path.into(), what: format!("event {}: {what}", self.seq) };
        if words.kinds.word(self.kind).is_none() {
            words.kinds.refresh(db, "kinds").map_err(Error::sqlite("read", path))?;
        }
        let word = words
            .kinds
            .word(self.kind)
            .ok_or_else(|| corrupt(format!("no kind has number {}", self.kind)))?;
        let (kind, version) = word.rsplit_once('/').unwrap_or((word, ""));
        let version: u16 = version.parse().map_err(|_| corrupt(format!("{word:?} is not a kind")))?;
        let event = if (kind, version) == ("report", 1) {
            let mut unpacked = metrics::unpack(&self.body, |id| words.names.word(id).cloned());
            if unpacked.is_none() {
                words.names.refresh(db, "names").map_err(Error::sqlite("read", path))?;
                unpacked = metrics::unpack(&self.body, |id| words.names.word(id).cloned());
            }
            let (step, metrics) = unpacked.ok_or_else(|| corrupt("its report cannot be read".into()))?;
            Event::Report(Report { step, metrics })
        } else {
            Event::from_json_bytes(kind, version, &self.body)
                .map_err(|e| corrupt(format!("its {kind} (version {version}) cannot be read: {e}")))?
        };
        Ok(Envelope {
            seq: self.seq as u64,
            at: Timestamp(self.at),
            attempt: self.attempt,
            rank: self.rank,
            trial: self.trial,
            sequence: self.sequence.map(|n| n as u64),
            event,
        })
    }
}

/// The rows after a place in the log, at most so many.
pub(crate) fn page(db: &Connection, after: i64, limit: i64) -> rusqlite::Result<Vec<Raw>> {
    let sql = format!("SELECT {COLUMNS} FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2");
    db.prepare_cached(&sql)?.query_map((after, limit), Raw::read)?.collect()
}
