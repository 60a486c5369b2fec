//! Sinks: exactly once whatever happens to them, and never the run's trouble.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use regatta_track::event::{Outcome, RunFinished, TrialCreated};
use regatta_track::sink::{Console, ProgressCsv, ResultJsonl, Sink, SinkConfig, Sinks, Start, TensorBoard};
use regatta_track::{Draft, Envelope, Error, Metrics, Store, StoreConfig};

use crate::{LONG, begin, new_store, report};

fn files(folder: &Path) -> Vec<Box<dyn Sink>> {
    vec![
        Box::new(ProgressCsv::new(folder)),
        Box::new(ResultJsonl::new(folder)),
        Box::new(TensorBoard::new(folder)),
    ]
}

fn drain(store: &Store, sinks: Vec<Box<dyn Sink>>) {
    Sinks::start(store, sinks, SinkConfig::default()).unwrap().finish(LONG).unwrap();
}

fn with_metrics(step: u64, metrics: impl Into<Metrics>) -> Draft {
    Draft::new(regatta_track::event::Report { step, metrics: metrics.into() }).attempt(1).rank(0)
}

#[test]
fn columns_grow_and_cells_stay_under_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    let at = regatta_track::Timestamp(1_500_000);
    store.append(with_metrics(0, [("loss", 0.5)]).at(at)).unwrap().detach();
    store.flush(LONG).unwrap();
    drain(&store, files(dir.path()));
    store
        .append(with_metrics(1, [("loss", 0.25), ("a,\"b\"\nc", 1.0), ("step", 9.0)]).at(at))
        .unwrap()
        .detach();
    store.append(with_metrics(2, [("a,\"b\"\nc", f64::NAN)]).at(at)).unwrap().detach();
    store.append(with_metrics(2, [("loss", 7.0)]).at(at).rank(1)).unwrap().detach();
    store.flush(LONG).unwrap();
    drain(&store, files(dir.path()));
    store.append(with_metrics(3, [("loss", 1e-9), ("new", f64::INFINITY)]).at(at)).unwrap().detach();
    store.flush(LONG).unwrap();
    drain(&store, files(dir.path()));
    let csv = fs::read_to_string(dir.path().join("progress.csv")).unwrap();
    let expected = "seq,attempt,step,timestamp,loss,\"a,\"\"b\"\"\nc\",metrics/step,new\n\
                    1,1,0,1.500000,0.5,,,\n2,1,1,1.500000,0.25,1,9,\n3,1,2,1.500000,,NaN,,\n\
                    5,1,3,1.500000,0.000000001,,,inf\n";
    assert_eq!(csv, expected);
    let lines = fs::read_to_string(dir.path().join("result.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[1]["metrics/step"], 9.0);
    assert_eq!(lines[2]["a,\"b\"\nc"], "NaN");
    assert_eq!((&lines[3]["seq"], &lines[3]["new"]), (&5.into(), &"Infinity".into()));
}

/// The numbers in the first column.
fn csv_seqs(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().skip(1).map(|line| line.split(',').next().unwrap().parse().unwrap()).collect()
}

fn jsonl_seqs(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["seq"].as_u64().unwrap())
        .collect()
}

/// What a crash leaves: files that are ahead of the cursor, and a last line that was cut.
#[test]
fn after_a_crash_every_line_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    let two = || -> Vec<Box<dyn Sink>> {
        vec![Box::new(ProgressCsv::new(dir.path())), Box::new(ResultJsonl::new(dir.path()))]
    };
    for step in 0..50 {
        store.append(report(step, 0.5)).unwrap().detach();
    }
    store.flush(LONG).unwrap();
    drain(&store, two());
    let cursors: Vec<_> =
        [".progress.csv.cursor", ".result.jsonl.cursor"].map(|n| dir.path().join(n)).to_vec();
    let old: Vec<_> = cursors.iter().map(|c| fs::read(c).unwrap()).collect();
    for step in 50..100 {
        store.append(report(step, 0.5)).unwrap().detach();
    }
    store.flush(LONG).unwrap();
    drain(&store, two());
    for (cut, name) in [(1, "progress.csv"), (20, "progress.csv"), (1, "result.jsonl"), (30, "result.jsonl")]
    {
        let path = dir.path().join(name);
        let length = fs::metadata(&path).unwrap().len();
        fs::File::options().write(true).open(&path).unwrap().set_len(length - cut).unwrap();
        cursors.iter().zip(&old).for_each(|(cursor, old)| fs::write(cursor, old).unwrap());
        drain(&store, two());
        let all: Vec<u64> = (1..=100).collect();
        assert_eq!(csv_seqs(&dir.path().join("progress.csv")), all);
        assert_eq!(jsonl_seqs(&dir.path().join("result.jsonl")), all);
    }
    // Without cursor and files everything is written anew.
    for entry in fs::read_dir(dir.path()).unwrap().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("run.db") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    drain(&store, two());
    assert_eq!(csv_seqs(&dir.path().join("progress.csv")).len(), 100);
}

#[test]
fn trials_have_files_of_their_own_however_many() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    for step in 0..3 {
        // More than are held open at once, in turns.
        for trial in 0..200 {
            store.append(report(step, f64::from(trial)).trial(trial)).unwrap().detach();
        }
    }
    store.flush(LONG).unwrap();
    drain(&store, files(dir.path()));
    assert!(!dir.path().join("progress.csv").exists(), "the run itself reported nothing");
    for trial in 0..200_u64 {
        let folder = dir.path().join(format!("trials/{trial:05}"));
        let seqs: Vec<u64> = (0..3).map(|step| step * 200 + trial + 1).collect();
        assert_eq!(csv_seqs(&folder.join("progress.csv")), seqs);
        assert_eq!(jsonl_seqs(&folder.join("result.jsonl")), seqs);
        let events = fs::read_dir(&folder).unwrap().flatten();
        assert_eq!(events.filter(|e| e.file_name().to_string_lossy().contains("tfevents")).count(), 1);
    }
}

/// Fails as often as it is told, after taking half of what it was given.
struct Moody {
    failures: u32,
    kept: Arc<Mutex<Vec<u64>>>,
    saved: usize,
}

impl Sink for Moody {
    fn name(&self) -> &str {
        "moody"
    }

    fn resume(&mut self) -> regatta_track::Result<Start> {
        let mut kept = self.kept.lock().unwrap();
        kept.truncate(self.saved);
        Ok(Start::After(kept.last().copied().unwrap_or(0)))
    }

    fn write(&mut self, events: &[Envelope]) -> regatta_track::Result<()> {
        let failing = self.failures > 0;
        self.failures = self.failures.saturating_sub(1);
        let count = if failing { events.len() / 2 } else { events.len() };
        self.kept.lock().unwrap().extend(events[..count].iter().map(|e| e.seq));
        if failing {
            return Err(Error::Storage {
                what: "a write".into(),
                place: "moody".into(),
                why: "not today".into(),
            });
        }
        Ok(())
    }

    fn save(&mut self, _upto: u64) -> regatta_track::Result<()> {
        self.saved = self.kept.lock().unwrap().len();
        Ok(())
    }
}

#[test]
fn a_sink_that_fails_is_tried_again_and_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    for step in 0..5_000 {
        store.append(report(step, 0.5)).unwrap().detach();
    }
    store.flush(LONG).unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let moody = Moody { failures: 3, kept: kept.clone(), saved: 0 };
    let config = SinkConfig { retry: Duration::from_millis(1), ..SinkConfig::default() };
    Sinks::start(&store, vec![Box::new(moody)], config).unwrap().finish(LONG).unwrap();
    assert_eq!(*kept.lock().unwrap(), (1..=5_000).collect::<Vec<u64>>());
}

/// Hangs in its first write until it is let go.
struct Hung(std::sync::mpsc::Receiver<()>);

impl Sink for Hung {
    fn name(&self) -> &str {
        "hung"
    }

    fn resume(&mut self) -> regatta_track::Result<Start> {
        Ok(Start::After(0))
    }

    fn write(&mut self, _events: &[Envelope]) -> regatta_track::Result<()> {
        let _let_go = self.0.recv_timeout(LONG);
        Ok(())
    }

    fn save(&mut self, _upto: u64) -> regatta_track::Result<()> {
        Ok(())
    }
}

#[test]
fn a_sink_that_hangs_holds_up_neither_the_run_nor_the_other_sinks() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    let (let_go, hung) = std::sync::mpsc::channel();
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(Hung(hung)), Box::new(ResultJsonl::new(dir.path()))];
    let sinks = Sinks::start(&store, sinks, SinkConfig::default()).unwrap();
    for step in 0..1_000 {
        store.append(report(step, 0.5)).unwrap().detach();
    }
    store.flush(LONG).unwrap();
    let deadline = Instant::now() + LONG;
    while sinks.status()[1].seq < 1_000 {
        assert!(Instant::now() < deadline, "{:?}", sinks.status());
        std::thread::yield_now();
    }
    let begun = Instant::now();
    let late = sinks.finish(Duration::from_millis(50)).err().unwrap();
    assert!(matches!(&late, Error::SinkBehind { name, committed: 1_000, .. } if name == "hung"), "{late}");
    assert!(begun.elapsed() < LONG / 2);
    store.close().unwrap();
    drop(let_go);
    assert_eq!(jsonl_seqs(&dir.path().join("result.jsonl")).len(), 1_000);
}

/// A folder that cannot be written to is the sink's trouble, told in its status, and over when the folder is back.
#[test]
fn a_sink_without_its_folder_says_so_and_goes_on_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(&dir.path().join("run"));
    let place = dir.path().join("place");
    fs::write(&place, "not a folder").unwrap();
    let config = SinkConfig {
        retry: Duration::from_millis(1),
        poll: Duration::from_millis(1),
        ..SinkConfig::default()
    };
    let sinks = Sinks::start(&store, vec![Box::new(ResultJsonl::new(&place))], config).unwrap();
    store.append(report(0, 0.5)).unwrap().wait(LONG).unwrap();
    let deadline = Instant::now() + LONG;
    while !sinks.status()[0].error.as_ref().is_some_and(|e| e.contains("place")) {
        assert!(Instant::now() < deadline, "{:?}", sinks.status());
        std::thread::yield_now();
    }
    store.append(report(1, 0.5)).unwrap().wait(LONG).unwrap();
    fs::remove_file(&place).unwrap();
    sinks.finish(LONG).unwrap();
    assert_eq!(jsonl_seqs(&place.join("result.jsonl")), [1, 2]);
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_console_shows_what_a_person_wants_to_know() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    store.append(report(0, 9.0)).unwrap().detach();
    store.flush(LONG).unwrap();
    let screen = Screen::default();
    let config = SinkConfig { poll: Duration::from_millis(1), ..SinkConfig::default() };
    let sinks = Sinks::start(&store, vec![Box::new(Console::new(screen.clone()))], config).unwrap();
    let deadline = Instant::now() + LONG;
    while sinks.status()[0].seq < 1 {
        assert!(Instant::now() < deadline, "the console took its place");
        std::thread::yield_now();
    }
    begin(&store);
    store.append(with_metrics(1450, [("loss", 0.093_123), ("lr", 3e-5), ("n", 12.0)])).unwrap().detach();
    let config = serde_json::json!({"lr": 0.1});
    store.append(Draft::new(TrialCreated { config, ..Default::default() }).trial(7)).unwrap().detach();
    let cause = regatta_track::event::Cause {
        rank: Some(1),
        ..regatta_track::event::Cause::new("loss is NaN\nat all")
    };
    store.append(RunFinished { outcome: Outcome::Failed, cause: Some(cause) }).unwrap().detach();
    store.flush(LONG).unwrap();
    sinks.finish(LONG).unwrap();
    let text = String::from_utf8(screen.0.lock().unwrap().clone()).unwrap();
    let expected = "run mnist/brisk\nattempt 1 started at step 0, 2 workers\n\
                    step 1450  loss 0.09312  lr 3.000e-5  n 12\ntrial 00007  created {\"lr\":0.1}\n\
                    run failed: rank 1: loss is NaN at all\n";
    assert_eq!(text, expected);
}

#[test]
fn sinks_end_with_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), StoreConfig::default()).unwrap();
    let sinks = Sinks::start(&store, files(dir.path()), SinkConfig::default()).unwrap();
    for step in 0..10 {
        store.append(report(step, 0.5)).unwrap().detach();
    }
    store.close().unwrap();
    let deadline = Instant::now() + LONG;
    while !sinks.status().iter().all(|s| s.finished && s.seq == 10) {
        assert!(Instant::now() < deadline, "{:?}", sinks.status());
        std::thread::yield_now();
    }
}
