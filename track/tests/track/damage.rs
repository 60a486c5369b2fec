//! Files that are damaged, cut, of another version, or on a disk that is full.

use std::fs;
use std::path::Path;
use std::process::Command;

use regatta_track::event::LogTail;
use regatta_track::{Draft, Error, Query, Reader, Store, StoreConfig};

use crate::{LONG, assert_sound, begin, new_store, report, verify};

fn filled(folder: &Path, reports: u64) {
    let store = new_store(folder);
    begin(&store);
    for step in 0..reports {
        store.append(report(step, 1.0 / (step + 1) as f64).sequence(step + 1)).unwrap().detach();
    }
    store.close().unwrap();
}

fn sql(folder: &Path, statements: &str) {
    rusqlite::Connection::open(folder.join("run.db")).unwrap().execute_batch(statements).unwrap();
}

#[test]
fn a_newer_schema_is_refused_by_all() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 10);
    sql(dir.path(), "PRAGMA user_version = 99");
    let before = fs::read(dir.path().join("run.db")).unwrap();
    let reader = Reader::open(dir.path()).err().unwrap();
    let writer = Store::open(dir.path(), StoreConfig::default()).err().unwrap();
    for error in [reader, writer] {
        assert!(matches!(error, Error::NewerSchema { found: 99, .. }), "{error}");
        assert!(error.to_string().contains("upgrade"), "{error}");
    }
    assert!(fs::read(dir.path().join("run.db")).unwrap() == before, "a refused file is left as it is");
}

/// The layout of schema 1, as it was before checksums, with a projection that no longer fits the fold.
const SCHEMA_1: &str = r#"
    CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('run_id', '00112233445566778899aabbccddeeff'), ('epoch', 4), ('applied', 3);
    CREATE TABLE kinds (id INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE);
    INSERT INTO kinds VALUES (1, 'run_created/1'), (2, 'report/1');
    CREATE TABLE names (id INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE);
    INSERT INTO names VALUES (1, 'loss');
    CREATE TABLE events (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, attempt INTEGER NOT NULL, rank INTEGER,
        trial INTEGER, sequence INTEGER, kind INTEGER NOT NULL, body BLOB NOT NULL);
    INSERT INTO events VALUES
        (1, 1000000, 0, NULL, NULL, NULL, 1, CAST('{"experiment":"old","name":"tub"}' AS BLOB)),
        (2, 2000000, 1, 0, NULL, 1, 2, x'050101000000000000e03f'),
        (3, 3000000, 1, 0, 7, 2, 2, x'060101000000000000d03f');
    CREATE TABLE runs (id INTEGER PRIMARY KEY, row TEXT NOT NULL);
    INSERT INTO runs VALUES (1, '{"name":"something else"}');
    PRAGMA application_id = 1382511713;
    PRAGMA user_version = 1;
"#;

#[test]
fn an_older_schema_is_migrated_when_it_is_next_written() {
    let dir = tempfile::tempdir().unwrap();
    sql(dir.path(), SCHEMA_1);
    let refused = Reader::open(dir.path()).err().unwrap();
    assert!(matches!(refused, Error::OlderSchema { found: 1, .. }), "{refused}");
    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    assert_eq!((store.committed(), store.epoch()), (3, 5));
    assert_eq!(store.run_id(), "00112233445566778899aabbccddeeff");
    assert!(store.append(report(5, 0.5).sequence(1)).unwrap().seq().is_none(), "its senders are known");
    store.append(report(7, 0.125).sequence(2)).unwrap().wait(LONG).unwrap();
    store.close().unwrap();
    assert_eq!(assert_sound(dir.path()), 4);
    let mut reader = Reader::open(dir.path()).unwrap();
    let mut snapshot = reader.snapshot().unwrap();
    assert_eq!(snapshot.run().unwrap().unwrap().name, "tub");
    assert_eq!(snapshot.history(Some(7), "loss").unwrap()[0].value, 0.25);
    assert_eq!(snapshot.metrics(None).unwrap()[0].1.min, Some((0.125, 7)));
}

#[test]
fn a_database_of_somebody_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    sql(dir.path(), "CREATE TABLE cats (name TEXT); PRAGMA user_version = 1;");
    assert!(matches!(Store::open(dir.path(), StoreConfig::default()), Err(Error::Corrupt { .. })));
    fs::write(
        dir.path().join("run.db"),
        b"this is not a database, but it is long enough to look at ".repeat(50),
    )
    .unwrap();
    assert!(matches!(Reader::open(dir.path()), Err(Error::Corrupt { .. })));
    assert!(matches!(Store::open(dir.path(), StoreConfig::default()), Err(Error::Corrupt { .. })));
}

#[test]
fn damage_in_the_log_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 2_000);
    // Long before the end: found by whoever reads it and by verify.
    sql(dir.path(), "UPDATE events SET body = CAST(x'00' || substr(body, 2) AS BLOB) WHERE seq = 100");
    let mut reader = Reader::open(dir.path()).unwrap();
    let read = reader.snapshot().unwrap().events(&Query { after: 90, ..Query::default() }).err().unwrap();
    assert!(read.to_string().contains("event 100 does not fit its checksum"), "{read}");
    assert!(verify(dir.path()).faults.iter().any(|f| f.contains("event 100 ")));
    // At the end: found on opening.
    sql(dir.path(), "UPDATE events SET at = at + 1 WHERE seq = 2000");
    let opened = Store::open(dir.path(), StoreConfig::default()).err().unwrap();
    assert!(matches!(opened, Error::Corrupt { .. }), "{opened}");
    sql(dir.path(), "DELETE FROM events WHERE seq = 500");
    assert!(verify(dir.path()).faults.iter().any(|f| f.contains("event 500 is missing")));
}

#[test]
fn a_projection_that_lies_is_found_and_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 500);
    assert_sound(dir.path());
    sql(
        dir.path(),
        "UPDATE metrics SET min = -1 WHERE name = 'loss'; DELETE FROM attempts; DELETE FROM sources;",
    );
    let faults = verify(dir.path()).faults;
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(faults.iter().any(|f| f.starts_with("metrics (None, \"loss\")")), "{faults:?}");
    regatta_track::rebuild(dir.path()).unwrap();
    assert_eq!(assert_sound(dir.path()), 503);
}

#[test]
fn a_file_that_was_cut_is_found() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 20_000);
    let path = dir.path().join("run.db");
    let length = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(length / 2 / 4096 * 4096).unwrap();
    let opened = Store::open(dir.path(), StoreConfig::default()).err();
    assert!(matches!(opened, Some(Error::Corrupt { .. })), "{opened:?}");
    // Bytes that turned in the middle of the file.
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 20_000);
    let path = dir.path().join("run.db");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 512].iter_mut().for_each(|b| *b ^= 0x55);
    fs::write(&path, bytes).unwrap();
    assert!(!verify(dir.path()).sound());
}

/// A write-ahead log that was cut anywhere is what a power cut leaves of an unfinished write: the groups before it stand.
#[test]
fn a_torn_write_ahead_log_loses_nothing_before_the_tear() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    begin(&store);
    let mut durable = Vec::new();
    for step in 0..40_u64 {
        store.append(report(step, 0.5)).unwrap().wait(LONG).unwrap();
        durable.push((fs::metadata(dir.path().join("run.db-wal")).unwrap().len(), step + 4));
    }
    let (db, wal) =
        (fs::read(dir.path().join("run.db")).unwrap(), fs::read(dir.path().join("run.db-wal")).unwrap());
    for (round, cut) in (0..wal.len()).step_by(wal.len() / 30).enumerate() {
        let torn = tempfile::tempdir().unwrap();
        fs::write(torn.path().join("run.db"), &db).unwrap();
        let mut wal = wal[..cut].to_vec();
        if round % 2 == 1 {
            wal.extend_from_slice(&[0xA5; 1_000]);
        }
        fs::write(torn.path().join("run.db-wal"), wal).unwrap();
        let whole = durable.iter().filter(|(length, _)| *length <= cut as u64).map(|(_, seq)| *seq).max();
        let Ok(store) = Store::open(torn.path(), StoreConfig::default()) else {
            assert_eq!(whole, None, "cut at {cut}");
            continue;
        };
        assert!(store.committed() >= whole.unwrap_or(0), "cut at {cut}: {} < {whole:?}", store.committed());
        store.append(report(99, 0.5)).unwrap().wait(LONG).unwrap();
        store.close().unwrap();
        assert_sound(torn.path());
    }
}

/// Appends until the store gives up, and says what it acknowledged before.
fn fill_up(store: &Store) -> (u64, Error) {
    let mut acknowledged = 0;
    for _ in 0..10_000 {
        let log = LogTail { lines: vec!["all work and no play ".repeat(500)] };
        match store.append(Draft::new(log).attempt(1)).and_then(|ticket| ticket.wait(LONG)) {
            Ok(seq) => acknowledged = seq.unwrap(),
            Err(error) => return (acknowledged, error),
        }
    }
    panic!("the disk did not fill up");
}

#[test]
fn a_store_at_its_limit_stops_cleanly_and_goes_on_with_a_higher_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { max_bytes: Some(1 << 20), ..StoreConfig::default() };
    let store = Store::create(dir.path(), config).unwrap();
    begin(&store);
    let (acknowledged, error) = fill_up(&store);
    assert!(matches!(error, Error::QuotaFull { max_bytes: 1_048_576, .. }), "{error}");
    assert!(matches!(store.append(report(1, 0.5)), Err(Error::QuotaFull { .. })));
    assert!(matches!(store.failure(), Some(Error::QuotaFull { .. })));
    assert!(matches!(store.close(), Err(Error::QuotaFull { .. })));
    drop(store);
    assert_eq!(assert_sound(dir.path()), acknowledged);
    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    store.append(report(1, 0.5)).unwrap().wait(LONG).unwrap();
}

/// A real file system of 3 MB, gone with the guard.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m", "regatta-track-test"])
            .arg(dir.path())
            .output();
        mount.is_ok_and(|o| o.status.success()).then(|| SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn a_full_disk_stops_the_run_cleanly_and_is_named() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: no right to mount a small tmpfs here");
        return;
    };
    let run = disk.0.path().join("runs/brisk");
    let store = new_store(&run);
    begin(&store);
    let (acknowledged, error) = fill_up(&store);
    let text = error.to_string();
    assert!(matches!(&error, Error::DiskFull { disk: named, .. } if named == disk.0.path()), "{text}");
    assert!(text.contains("make room"), "{text}");
    drop(store);
    assert_eq!(assert_sound(&run), acknowledged);
    // With room again, the run goes on with all that was acknowledged.
    let room = Command::new("mount").args(["-o", "remount,size=20m"]).arg(disk.0.path()).status().unwrap();
    assert!(room.success());
    let store = Store::open(&run, StoreConfig::default()).unwrap();
    assert_eq!(store.committed(), acknowledged);
    store.append(report(1, 0.5)).unwrap().wait(LONG).unwrap();
    store.close().unwrap();
    assert_sound(&run);
}
