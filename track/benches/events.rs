//! How many results a second the store takes with durable group commits, while a reader looks on, and in how much memory.
//!
//! `cargo bench -p regatta-track --bench events -- [--events N] [--trials N] [--senders N] [--folder PATH]` prints one
//! line of JSON.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use regatta_track::event::Report;
use regatta_track::{Draft, Metrics, Reader, Store, StoreConfig};

struct Args {
    events: u64,
    trials: u32,
    senders: u32,
    folder: PathBuf,
}

fn args() -> Args {
    let mut args = Args { events: 1_000_000, trials: 16, senders: 2, folder: std::env::temp_dir() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|n| n.parse().ok()).expect("a number");
        match word.as_str() {
            "--events" => args.events = number(),
            "--trials" => args.trials = number() as u32,
            "--senders" => args.senders = number() as u32,
            "--folder" => args.folder = words.next().expect("a path").into(),
            _ => {}
        }
    }
    args
}

/// Resident megabytes now.
fn rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}

fn main() {
    let args = args();
    let dir = tempfile::Builder::new().prefix("regatta-events").tempdir_in(&args.folder).expect("a folder");
    let store = Store::create(dir.path(), StoreConfig::default()).expect("a store");
    let names: Vec<std::sync::Arc<str>> = ["loss", "val/acc", "lr"].map(Into::into).to_vec();
    let each = args.events / u64::from(args.senders);
    let (done, looks, early_mb) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..args.senders)
            .map(|sender| {
                let (store, names, args) = (&store, &names, &args);
                scope.spawn(move || {
                    for n in 0..each {
                        let value = n as f64;
                        let metrics: Metrics = names.iter().map(|name| (name.clone(), value)).collect();
                        let trial = n as u32 % args.trials;
                        let draft =
                            Draft::new(Report { step: n, metrics }).attempt(sender).rank(0).trial(trial);
                        store.append(draft.sequence(n + 1)).expect("append").detach();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut reader = Reader::open(dir.path()).expect("a reader");
            while !done.load(Ordering::Relaxed) {
                let snapshot = reader.snapshot().expect("a snapshot");
                let reports: u64 = snapshot.trials().expect("trials").iter().map(|(_, t)| t.reports).sum();
                assert_eq!(reports, snapshot.committed(), "a reader saw half a group");
                if snapshot.committed() > args.events / 10 && early_mb.load(Ordering::Relaxed) == 0 {
                    early_mb.store(rss_mb() as u64, Ordering::Relaxed);
                }
                looks.fetch_add(1, Ordering::Relaxed);
                drop(snapshot);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        senders.into_iter().for_each(|s| s.join().expect("a sender"));
        store.flush(Duration::from_secs(60)).expect("a flush");
        done.store(true, Ordering::Relaxed);
    });
    let seconds = begin.elapsed().as_secs_f64();
    let total = each * u64::from(args.senders);
    assert_eq!(store.committed(), total);
    let rss = rss_mb();
    store.close().expect("a clean close");
    let bytes = std::fs::metadata(dir.path().join("run.db")).map_or(0, |m| m.len());
    let line = serde_json::json!({
        "case": "events", "per_s": (total as f64 / seconds).round(), "rss_mb": rss.round(),
        "rss_early_mb": early_mb.load(Ordering::Relaxed), "events": total, "seconds": (seconds * 100.0).round() / 100.0,
        "bytes_per_event": (bytes as f64 / total as f64).round(), "reader_looks": looks.load(Ordering::Relaxed),
    });
    writeln!(std::io::stdout(), "{line}").expect("stdout");
}
