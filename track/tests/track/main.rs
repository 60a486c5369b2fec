//! The crate's promises, held through its public API.

mod copy;
mod crash;
mod damage;
mod fold;
mod optuna;
mod sinks;
mod store;
mod tensorboard;

use std::process::Command;
use std::time::Duration;

use regatta_track::event::{AttemptStarted, Report, RunConfigured, RunCreated};
use regatta_track::{Draft, Metrics, Reader, Store, StoreConfig, Verdict};

/// Longer than anything here takes on a machine that is busy with other things.
const LONG: Duration = Duration::from_secs(60);

fn new_store(folder: &std::path::Path) -> Store {
    Store::create(folder, StoreConfig::default()).expect("a new store")
}

fn report(step: u64, loss: f64) -> Draft {
    Draft::new(Report { step, metrics: Metrics::from([("loss", loss)]) }).attempt(1).rank(0)
}

/// A run with its first attempt begun.
fn begin(store: &Store) {
    let config = serde_json::json!({"lr": 0.1, "model": {"name": "mlp", "wide": true}});
    store.append(RunCreated { experiment: "mnist".into(), name: "brisk".into() }).expect("append").detach();
    store.append(RunConfigured { config }).expect("append").detach();
    let started = AttemptStarted { world_size: 2, generation: 1, ..AttemptStarted::default() };
    store.append(Draft::new(started).attempt(1)).expect("append").detach();
}

fn verify(folder: &std::path::Path) -> Verdict {
    Reader::open(folder).expect("a reader").snapshot().expect("a snapshot").verify().expect("a verdict")
}

fn assert_sound(folder: &std::path::Path) -> u64 {
    let verdict = verify(folder);
    assert!(verdict.sound(), "{:#?}", verdict.faults);
    verdict.events
}

/// What a Python program with this module prints of a path, as JSON; `None`, and why, where there is no such module. Python
/// is the one in REGATTA_PYTHON, or python3.
fn python(module: &str, program: &str, path: &std::path::Path) -> Option<serde_json::Value> {
    let python = std::env::var("REGATTA_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", &format!("import {module}")]).output();
    if !has.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: {python} has no {module} (pip install {module}, or set REGATTA_PYTHON)");
        return None;
    }
    let read = Command::new(&python).args(["-c", program]).arg(path).output().expect("python starts");
    let (out, err) = (String::from_utf8_lossy(&read.stdout), String::from_utf8_lossy(&read.stderr));
    assert!(read.status.success(), "{err}");
    Some(serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}")))
}
