//! Memory stays flat however many events go through. Alone in its binary, so that nothing else is measured.

use std::time::Duration;

use regatta_track::event::Report;
use regatta_track::sink::{ResultJsonl, Sink, SinkConfig, Sinks};
use regatta_track::{Draft, Metrics, Store, StoreConfig};

/// Resident bytes now.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
}

#[test]
fn memory_does_not_grow_with_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { queue_events: 4_096, ..StoreConfig::default() };
    let store = Store::create(dir.path(), config).unwrap();
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(ResultJsonl::new(dir.path()))];
    let sinks = Sinks::start(&store, sinks, SinkConfig::default()).unwrap();
    let fill = |from: u64, to: u64| {
        for step in from..to {
            let metrics = Metrics::from([("loss", step as f64), ("acc", 0.5)]);
            store
                .append(Draft::new(Report { step, metrics }).attempt(1).sequence(step + 1))
                .unwrap()
                .detach();
        }
        store.flush(Duration::from_secs(60)).unwrap();
    };
    // Caches and buffers reach their size, the write-ahead log its first wrap.
    fill(0, 60_000);
    let early = resident();
    fill(60_000, 260_000);
    let late = resident();
    // Two hundred thousand events in memory would be sixty megabytes at the very least.
    assert!(late - early < 24e6, "{:.1} MB early, {:.1} MB late", early / 1e6, late / 1e6);
    sinks.finish(Duration::from_secs(100)).unwrap();
}
