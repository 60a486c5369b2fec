//! kill -9 at any moment. The child is this test binary itself; what it says it was acknowledged must be there afterwards.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use regatta_track::{Event, Query, Reader, Store, StoreConfig};

use crate::{LONG, assert_sound, report};

const FOLDER: &str = "REGATTA_TRACK_CRASH_FOLDER";

/// How many kills: few in a plain run, as many as asked for otherwise.
fn rounds() -> u64 {
    std::env::var("REGATTA_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
}

/// The child's part: appends for ever, and prints the number of each event that was acknowledged.
#[test]
#[ignore = "the child of kill_9_at_random_loses_nothing_acknowledged"]
fn crash_child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let store = match Store::open(folder, StoreConfig::default()) {
        Ok(store) => store,
        Err(_) => Store::create(folder, StoreConfig::default()).unwrap(),
    };
    // A resumed controller starts with the number after the last one stored.
    let first = store.reader().unwrap().snapshot().unwrap().run().unwrap().map_or(0, |run| run.reports);
    let mut out = std::io::stdout().lock();
    let mut step = first;
    loop {
        let burst = 1 + (step * 7919 % 300);
        let tickets: Vec<_> = (0..burst)
            .map(|i| store.append(report(step + i, value(step + i)).sequence(step + i + 1)).unwrap())
            .collect();
        for ticket in tickets {
            step += 1;
            assert!(ticket.wait(LONG).unwrap().is_some());
            if writeln!(out, "acked {step}").is_err() {
                return;
            }
        }
    }
}

fn value(step: u64) -> f64 {
    (step as f64).sin()
}

fn spawn(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["crash::crash_child", "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn kill_9_at_random_loses_nothing_acknowledged() {
    let mut dir = tempfile::tempdir().unwrap();
    let mut seed = 0x2545_F491_4F6C_DD1D_u64;
    for round in 0..rounds() {
        if round % 10 == 0 {
            dir = tempfile::tempdir().unwrap();
        }
        let mut child = spawn(dir.path());
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
        let until = (seed >> 33) % 4_000;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let number = |line: &str| line.strip_prefix("acked ").and_then(|n| n.parse::<u64>().ok());
        let mut acknowledged = 0;
        let mut heard = 0;
        for line in lines.by_ref() {
            let Some(n) = number(&line.unwrap()) else { continue };
            (acknowledged, heard) = (n, heard + 1);
            if heard > until {
                break;
            }
        }
        assert!(heard > 0, "round {round}: the child died by itself");
        child.kill().unwrap();
        // What was still in the pipe was acknowledged too.
        for line in lines.map_while(Result::ok) {
            acknowledged = number(&line).unwrap_or(acknowledged);
        }
        child.wait().unwrap();
        check(dir.path(), acknowledged, round);
    }
}

/// A reader comes first, before any writer could have mended anything.
fn check(folder: &Path, acknowledged: u64, round: u64) {
    let mut reader = Reader::open(folder).unwrap();
    let mut snapshot = reader.snapshot().unwrap();
    let committed = snapshot.committed();
    assert!(committed >= acknowledged, "round {round}: {acknowledged} acknowledged, {committed} there");
    let mut after = 0;
    while after < committed {
        for e in snapshot.events(&Query { after, ..Query::default() }).unwrap() {
            after += 1;
            assert_eq!((e.seq, e.sequence), (after, Some(after)), "round {round}");
            let Event::Report(report) = &e.event else { panic!("round {round}: {e:?}") };
            assert_eq!((report.step, report.metrics.get("loss")), (after - 1, Some(value(after - 1))));
        }
    }
    drop(snapshot);
    assert_eq!(assert_sound(folder), committed);
}
