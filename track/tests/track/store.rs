//! Writing, reading meanwhile, and who may.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use regatta_track::event::{Decision, Outcome, Report, RunFinished, TrialCreated, Unknown};
use regatta_track::state::Status;
use regatta_track::{Draft, Error, Event, Metrics, Query, Reader, Store, StoreConfig};

use crate::{LONG, assert_sound, begin, new_store, report};

#[test]
fn what_is_acknowledged_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    begin(&store);
    let metrics = Metrics::from([("loss", f64::NAN), ("acc", 0.5), ("inf", f64::NEG_INFINITY)]);
    let draft =
        Draft::new(Report { step: 7, metrics: metrics.clone() }).attempt(1).rank(0).trial(3).sequence(1);
    let ticket = store.append(draft).unwrap();
    assert_eq!(ticket.seq(), Some(4));
    assert_eq!(ticket.wait(LONG).unwrap(), Some(4));

    let mut reader = store.reader().unwrap();
    let mut snapshot = reader.snapshot().unwrap();
    let events = snapshot.events(&Query::default()).unwrap();
    assert_eq!(events.len(), 4);
    assert_eq!(events[3].event, Event::Report(Report { step: 7, metrics }));
    assert_eq!((events[3].trial, events[3].rank, events[3].attempt), (Some(3), Some(0), 1));
    assert_eq!(events[3].to_json().unwrap()["body"]["metrics"]["loss"], "NaN");
    let found = snapshot.metrics(Some(3)).unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[0].1.max, Some((0.5, 7)));
    assert!(found[2].1.last.is_nan() && found[2].1.min.is_none());
    let run = snapshot.run().unwrap().unwrap();
    assert_eq!((run.name.as_str(), run.status, run.attempts), ("brisk", Status::Running, 1));
    assert_eq!(run.config["lr"], 0.1);
    drop(snapshot);
    assert_eq!(assert_sound(dir.path()), 4);
}

#[test]
fn a_run_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    let (id, epoch) = (store.run_id().to_owned(), store.epoch());
    begin(&store);
    store.append(report(1, 0.5).sequence(1)).unwrap().wait(LONG).unwrap();
    store.close().unwrap();
    assert!(matches!(store.append(report(2, 0.4)), Err(Error::Closed)));
    assert!(!dir.path().join("run.db-wal").exists(), "a clean close leaves no write-ahead log");

    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    assert_eq!((store.committed(), store.run_id(), store.epoch()), (4, id.as_str(), epoch + 1));
    assert_eq!(
        store.append(report(1, 0.5).sequence(1)).unwrap().wait(LONG).unwrap(),
        None,
        "known from before"
    );
    assert_eq!(store.append(report(2, 0.4).sequence(2)).unwrap().wait(LONG).unwrap(), Some(5));
    let finished = RunFinished { outcome: Outcome::Completed, cause: None };
    assert_eq!(store.append(finished).unwrap().wait(LONG).unwrap(), Some(6));
    let run = store.reader().unwrap().snapshot().unwrap().run().unwrap().unwrap();
    assert_eq!((run.status, run.step, run.reports), (Status::Ended(Outcome::Completed), Some(2), 2));
    let points = store.reader().unwrap().snapshot().unwrap().history(None, "loss").unwrap();
    assert_eq!(points.iter().map(|p| (p.step, p.value)).collect::<Vec<_>>(), [(1, 0.5), (2, 0.4)]);
    assert_sound(dir.path());
}

#[test]
fn a_repeated_delivery_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    for step in 0..100_u64 {
        for _delivery in 0..3 {
            for rank in 0..2 {
                store.append(report(step, 1.0).rank(rank).sequence(step + 1)).unwrap().detach();
            }
        }
    }
    assert_eq!(store.flush(LONG).unwrap(), 200);
    // The same numbers of another attempt and of a trial are other events.
    assert!(store.append(report(0, 1.0).attempt(2).sequence(1)).unwrap().seq().is_some());
    assert!(store.append(report(0, 1.0).trial(0).sequence(1)).unwrap().seq().is_some());
    assert!(store.append(report(0, 1.0).sequence(1)).unwrap().seq().is_none());
    store.close().unwrap();
    assert_eq!(assert_sound(dir.path()), 202);
    let run = Reader::open(dir.path()).unwrap().snapshot().unwrap().run().unwrap().unwrap();
    assert_eq!(run.reports, 101, "only rank 0 speaks for the run");
}

#[test]
fn a_second_writer_is_refused_and_told_who_writes() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(dir.path(), StoreConfig::default()), Err(Error::NotFound { .. })));
    assert!(matches!(Reader::open(dir.path()), Err(Error::NotFound { .. })));
    let store = new_store(dir.path());
    let error = Store::open(dir.path(), StoreConfig::default()).err().expect("refused").to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    assert!(matches!(regatta_track::rebuild(dir.path()), Err(Error::Held { .. })));
    drop(store);
    assert!(matches!(Store::create(dir.path(), StoreConfig::default()), Err(Error::Exists { .. })));
    Store::open(dir.path(), StoreConfig::default()).expect("the lock went with its holder");
}

#[test]
fn readers_see_whole_moments_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut reader = Reader::open(dir.path()).unwrap();
                    let (mut looks, mut before) = (0_u64, 0);
                    while !stop.load(Ordering::Relaxed) || looks < 3 {
                        let mut snapshot = reader.snapshot().unwrap();
                        let committed = snapshot.committed();
                        assert!(committed >= before, "time goes forwards");
                        before = committed;
                        // Every event is a report to one of four trials, so the projections must add up to the log.
                        let state = snapshot.state().unwrap();
                        assert_eq!(state.trials.values().map(|t| t.reports).sum::<u64>(), committed);
                        assert_eq!(state.metrics.values().map(|m| m.count).sum::<u64>(), committed);
                        let query = Query { after: committed.saturating_sub(1), ..Query::default() };
                        assert_eq!(snapshot.events(&query).unwrap().len() as u64, committed.min(1));
                        looks += 1;
                    }
                })
            })
            .collect();
        for step in 0..30_000_u64 {
            store.append(report(step, step as f64).trial(step as u32 % 4)).unwrap().detach();
            if step % 3_000 == 0 {
                store.flush(LONG).unwrap();
            }
        }
        store.flush(LONG).unwrap();
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|r| r.join().unwrap());
    });
    assert_eq!(assert_sound(dir.path()), 30_000);
}

#[test]
fn a_full_queue_answers_at_once_or_waits_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        StoreConfig { queue_events: 4, append_deadline: Duration::from_millis(50), ..StoreConfig::default() };
    let store = Store::create(dir.path(), config).unwrap();
    store.append(report(0, 0.0)).unwrap().wait(LONG).unwrap();
    // Another connection holds SQLite's write lock, so the writer stands still, and the queue behind it fills.
    let blocker = rusqlite::Connection::open(dir.path().join("run.db")).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The writer may take one last batch while the queue fills, so it is full only when both say so in a row.
    let mut taken = Vec::new();
    let full = loop {
        match store.append(report(0, 0.0)) {
            Ok(ticket) => taken.push(ticket),
            Err(Error::Deadline { .. }) => match store.try_append(report(0, 0.0)) {
                Ok(ticket) => taken.push(ticket),
                Err(error) => break error,
            },
            Err(error) => panic!("{error}"),
        }
        assert!(taken.len() < 100, "the queue is bounded");
    };
    assert!(matches!(full, Error::Busy { events: 4, .. }), "{full}");
    assert!(matches!(taken[0].wait(Duration::from_millis(1)), Err(Error::Deadline { .. })));
    blocker.execute_batch("COMMIT").unwrap();
    for ticket in &taken {
        ticket.wait(LONG).unwrap();
    }
    store.append(report(0, 0.0)).unwrap().wait(LONG).unwrap();
}

#[test]
fn a_ticket_can_be_awaited() {
    struct Flag(std::thread::Thread);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    let waker = Waker::from(Arc::new(Flag(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    for _ in 0..20 {
        let mut ticket = pin!(store.append(report(0, 0.0)).unwrap());
        let seq = ticket.seq();
        let done = loop {
            match ticket.as_mut().poll(&mut context) {
                Poll::Ready(done) => break done.unwrap(),
                Poll::Pending => std::thread::park_timeout(LONG),
            }
        };
        assert_eq!(done, seq);
        assert!(store.committed() >= seq.unwrap());
    }
}

#[test]
fn a_kind_of_the_future_is_kept_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    begin(&store);
    let unknown = Unknown { kind: "worker_levitated".into(), version: 3, body: br#"{"height":2}"#.to_vec() };
    store.append(Draft::new(Event::Unknown(unknown.clone()))).unwrap().detach();
    let known = Unknown { kind: "report".into(), version: 1, body: vec![] };
    assert!(matches!(store.append(Event::Unknown(known)), Err(Error::Refused { .. })));
    let newer = Unknown { kind: "report".into(), version: 2, body: vec![1, 2] };
    store.append(Event::Unknown(newer.clone())).unwrap().wait(LONG).unwrap();
    store.close().unwrap();
    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    let mut reader = store.reader().unwrap();
    let mut snapshot = reader.snapshot().unwrap();
    let events = snapshot.events(&Query { after: 3, ..Query::default() }).unwrap();
    assert_eq!(events[0].event, Event::Unknown(unknown));
    assert_eq!(events[0].to_json().unwrap()["body"]["height"], 2);
    assert_eq!(events[1].event, Event::Unknown(newer));
    drop(snapshot);
    assert_eq!(assert_sound(dir.path()), 5);
}

#[test]
fn events_are_found_by_kind_and_trial() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    for trial in 0..3 {
        let config = serde_json::json!({"lr": f64::from(trial)});
        store
            .append(Draft::new(TrialCreated { config, ..Default::default() }).trial(trial))
            .unwrap()
            .detach();
        let stop = Decision { by: "asha".into(), action: "stop".into(), ..Decision::default() };
        store.append(Draft::new(stop).trial(trial)).unwrap().detach();
        store.append(report(1, 1.0).trial(trial)).unwrap().detach();
    }
    store.append(report(1, 1.0)).unwrap().detach();
    store.flush(LONG).unwrap();
    let mut reader = store.reader().unwrap();
    let mut snapshot = reader.snapshot().unwrap();
    let mut seqs = |scope, kinds: &[&str]| -> Vec<u64> {
        let query = Query { scope, kinds, ..Query::default() };
        snapshot.events(&query).unwrap().iter().map(|e| e.seq).collect()
    };
    assert_eq!(seqs(None, &["decision"]), [2, 5, 8]);
    assert_eq!(seqs(Some(Some(1)), &[]), [4, 5, 6]);
    assert_eq!(seqs(Some(Some(1)), &["report", "decision"]), [5, 6]);
    assert_eq!(seqs(Some(None), &[]), [10]);
    assert_eq!(snapshot.trial(2).unwrap().unwrap().config["lr"], 2.0);
    assert_eq!(snapshot.trials().unwrap().len(), 3);
}

#[test]
fn names_without_end_and_bodies_without_measure_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    let many = |i: u64| (0..1_000).map(|j| (format!("m{i}-{j}"), 0.0)).collect::<Metrics>();
    let refused = (0..100).find_map(|i| {
        store.append(Draft::new(Report { step: i, metrics: many(i) })).err().map(|error| (i, error))
    });
    let (round, error) = refused.expect("a bound on names");
    assert!(round == 65 && error.to_string().contains("keep numbers out of names"), "{round}: {error}");
    let log = regatta_track::event::LogTail { lines: vec!["x".repeat(17 << 20)] };
    assert!(matches!(store.append(log), Err(Error::Refused { .. })));
    store.close().unwrap();
    assert_sound(dir.path());
}

#[test]
fn a_store_whose_making_was_cut_short_is_none_and_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!Reader::finds(dir.path()));
    std::fs::write(dir.path().join("run.db"), "").unwrap();
    assert!(!Reader::finds(dir.path()));
    assert!(matches!(Store::open(dir.path(), StoreConfig::default()), Err(Error::NotFound { .. })));
    new_store(dir.path()).close().unwrap();
    assert!(Reader::finds(dir.path()));
    assert_sound(dir.path());
    // One that cannot be read is there.
    std::fs::write(dir.path().join("run.db"), [b'x'; 8192]).unwrap();
    assert!(Reader::finds(dir.path()));
}
