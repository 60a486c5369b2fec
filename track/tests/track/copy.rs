//! Copies: consistent, atomic, never over a later controller's, and enough to resume from.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use regatta_track::copy::{self, FolderUpload, Mirror, Upload, Version, conformance};
use regatta_track::{Error, Store, StoreConfig};

use crate::{LONG, assert_sound, begin, new_store, report};

const SOON: Duration = Duration::from_millis(20);
const NEVER: Duration = Duration::from_secs(3600);

fn mirror(store: &Store, to: &Path, every: Duration) -> Mirror {
    Mirror::start(store, Box::new(FolderUpload::new(to)), every).unwrap()
}

#[test]
fn a_folder_does_what_an_upload_must() {
    let (dir, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    conformance::check(&FolderUpload::new(dir.path().join("deep/er")), scratch.path()).unwrap();
}

#[cfg(feature = "object-store")]
#[test]
fn an_object_store_does_what_an_upload_must() {
    let scratch = tempfile::tempdir().unwrap();
    conformance::check(&*copy::open("memory:///runs").unwrap(), scratch.path()).unwrap();
    assert!(copy::open("s3-ish://bucket").is_err());
}

#[test]
fn a_run_resumes_from_its_copy_alone() {
    let (dir, place, other) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = new_store(dir.path());
    begin(&store);
    let copies = mirror(&store, place.path(), SOON);
    for step in 0..20_000_u64 {
        store.append(report(step, 0.5).sequence(step + 1)).unwrap().detach();
        // While it is written, any copy there is is whole.
        if step % 4_000 == 3_999 {
            let before = copies.status().copied;
            let deadline = Instant::now() + LONG;
            store.flush(LONG).unwrap();
            while copies.status().copied <= before {
                assert!(Instant::now() < deadline, "{:?}", copies.status());
                std::thread::yield_now();
            }
            let mid = tempfile::tempdir().unwrap();
            let info = copy::restore(&FolderUpload::new(place.path()), mid.path()).unwrap();
            assert_eq!(assert_sound(mid.path()), info.seq);
        }
    }
    store.flush(LONG).unwrap();
    assert_eq!(copies.finish(LONG).unwrap(), 20_003);
    let objects = fs::read_dir(place.path()).unwrap().flatten();
    let objects = objects.filter(|e| e.file_name().to_string_lossy().starts_with("run.db.0")).count();
    assert_eq!(objects, 2, "the latest copy and the one before");

    // The first machine is gone; another goes on, in a folder elsewhere.
    let upload = copy::open(&format!("file://{}", place.path().display())).unwrap();
    let info = copy::restore(&*upload, other.path().join("run")).unwrap();
    let resumed = Store::open(other.path().join("run"), StoreConfig::default()).unwrap();
    assert_eq!((resumed.run_id(), resumed.committed()), (store.run_id(), info.seq));
    assert_eq!(resumed.epoch(), store.epoch() + 1);
    assert!(resumed.append(report(9, 0.5).sequence(10)).unwrap().seq().is_none(), "it knows what it had");
    resumed.append(report(20_000, 0.5).sequence(20_001)).unwrap().wait(LONG).unwrap();
    assert_eq!(mirror(&resumed, place.path(), NEVER).finish(LONG).unwrap(), 20_004);

    // The first controller was only cut off, and comes back: its copies are refused, and the later one stays.
    let zombie = mirror(&store, place.path(), NEVER).finish(LONG).err().unwrap();
    assert!(matches!(&zombie, Error::NewerCopy { why, .. } if why.contains("opening 2")), "{zombie}");
    assert_eq!(copy::latest(&*upload).unwrap().unwrap().seq, 20_004);
    resumed.close().unwrap();
    assert_sound(&other.path().join("run"));
}

#[test]
fn a_controller_that_was_overtaken_stops_copying() {
    let (dir, place, other) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = new_store(dir.path());
    begin(&store);
    store.flush(LONG).unwrap();
    let first = mirror(&store, place.path(), SOON);
    let deadline = Instant::now() + LONG;
    while first.status().copied < 3 {
        assert!(Instant::now() < deadline, "{:?}", first.status());
        std::thread::yield_now();
    }
    copy::restore(&FolderUpload::new(place.path()), other.path()).unwrap();
    let resumed = Store::open(other.path(), StoreConfig::default()).unwrap();
    mirror(&resumed, place.path(), NEVER).finish(LONG).unwrap();
    store.append(report(0, 0.5)).unwrap().wait(LONG).unwrap();
    let overtaken = first.finish(LONG).err().unwrap();
    assert!(matches!(&overtaken, Error::NewerCopy { why, .. } if why.contains("took over")), "{overtaken}");
    assert_eq!(copy::latest(&FolderUpload::new(place.path())).unwrap().unwrap().epoch, 2);
}

#[test]
fn what_is_there_is_not_replaced_by_what_is_older_or_other() {
    let (dir, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let upload = FolderUpload::new(place.path());
    assert!(matches!(copy::restore(&upload, dir.path()), Err(Error::Storage { .. })), "no copy yet");
    let store = new_store(dir.path());
    begin(&store);
    store.flush(LONG).unwrap();
    mirror(&store, place.path(), NEVER).finish(LONG).unwrap();
    assert!(matches!(copy::restore(&upload, dir.path()), Err(Error::Held { .. })), "it is being written");
    store.append(report(0, 0.5)).unwrap().wait(LONG).unwrap();
    store.close().unwrap();
    assert!(matches!(copy::restore(&upload, dir.path()), Err(Error::Exists { .. })), "the folder is ahead");

    let stranger = tempfile::tempdir().unwrap();
    let another = new_store(stranger.path());
    let refused = mirror(&another, place.path(), NEVER).finish(LONG).err().unwrap();
    assert!(matches!(&refused, Error::NewerCopy { why, .. } if why.contains("another run")), "{refused}");
    another.close().unwrap();
    assert!(matches!(copy::restore(&upload, stranger.path()), Err(Error::NewerCopy { .. })));
}

#[test]
fn a_copy_that_was_damaged_is_refused() {
    let (dir, place, to) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = new_store(dir.path());
    begin(&store);
    store.flush(LONG).unwrap();
    mirror(&store, place.path(), NEVER).finish(LONG).unwrap();
    let upload = FolderUpload::new(place.path());
    let object = place.path().join(copy::latest(&upload).unwrap().unwrap().object);
    let mut bytes = fs::read(&object).unwrap();
    bytes[5_000] ^= 1;
    fs::write(&object, bytes).unwrap();
    let refused = copy::restore(&upload, to.path()).err().unwrap().to_string();
    assert!(refused.contains("checksum"), "{refused}");
    assert!(!to.path().join("run.db").exists());
}

/// A storage that fails its first uploads.
struct Flaky(FolderUpload, std::sync::atomic::AtomicU32);

impl Upload for Flaky {
    fn place(&self) -> String {
        self.0.place()
    }
    fn read(&self, name: &str) -> regatta_track::Result<Option<(Vec<u8>, Version)>> {
        self.0.read(name)
    }
    fn swap(
        &self,
        name: &str,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> regatta_track::Result<Option<Version>> {
        self.0.swap(name, bytes, expected)
    }
    fn upload(&self, name: &str, file: &Path) -> regatta_track::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.1.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
            return Err(Error::Storage { what: "upload".into(), place: self.place(), why: "flaky".into() });
        }
        self.0.upload(name, file)
    }
    fn download(&self, name: &str, file: &Path) -> regatta_track::Result<()> {
        self.0.download(name, file)
    }
    fn delete(&self, name: &str) -> regatta_track::Result<()> {
        self.0.delete(name)
    }
}

#[test]
fn a_storage_that_fails_is_tried_again() {
    let (dir, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = new_store(dir.path());
    begin(&store);
    store.flush(LONG).unwrap();
    let flaky = Flaky(FolderUpload::new(place.path()), 3.into());
    let copies = Mirror::start(&store, Box::new(flaky), Duration::from_millis(1)).unwrap();
    let deadline = Instant::now() + LONG;
    while copies.status().copied < 3 {
        assert!(Instant::now() < deadline, "{:?}", copies.status());
        std::thread::yield_now();
    }
    assert_eq!(copies.finish(LONG).unwrap(), 3);
}
