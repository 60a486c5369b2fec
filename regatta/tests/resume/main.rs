//! A training that is interrupted ends with the weights of one that is not, to the bit; the training (`examples/soak.rs`) itself
//! counts that each sample comes once an epoch, and that ranks are alike.

mod power;
mod run;

use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::run::{Run, shown};

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    let storage = tempfile::tempdir().unwrap();
    let storage = storage.path();
    let calm = Run::start(storage, "calm", 2).hash();

    let mut stopped = Run::start(storage, "stopped", 2);
    stopped.well_under_way(Duration::from_millis(20));
    assert_eq!(stopped.signal(Signal::TERM), Some(75));
    assert_eq!(stopped.resume(&[]).hash(), calm, "after SIGTERM");

    let mut wounded = Run::start(storage, "wounded", 2);
    wounded.well_under_way(Duration::from_millis(40));
    kill_process(wounded.worker(1), Signal::KILL).unwrap();
    assert_eq!(wounded.hash(), calm, "after a worker's death");

    let mut frozen = Run::start(storage, "frozen", 2);
    frozen.well_under_way(Duration::from_millis(30));
    kill_process(frozen.worker(1), Signal::STOP).unwrap();
    let folder = frozen.folder().to_owned();
    assert_eq!(frozen.hash(), calm, "after a worker stood still");
    let first = &shown(&folder)["attempts"][0]["row"]["cause"];
    let message = first["message"].as_str().unwrap();
    assert!(first["rank"] == 1 && message.contains("was not heard for 2"), "{first}");

    let mut beheaded = Run::start(storage, "beheaded", 2);
    beheaded.well_under_way(Duration::ZERO);
    assert_eq!(beheaded.signal(Signal::KILL), None);
    assert_eq!(beheaded.resume(&[]).hash(), calm, "after the controller's death");
}

#[test]
fn another_number_of_workers_goes_on_with_the_same_data() {
    let storage = tempfile::tempdir().unwrap();
    for (name, before, after) in [("fewer", 2, "1"), ("more", 1, "2")] {
        let mut run = Run::start(storage.path(), name, before);
        run.well_under_way(Duration::from_millis(30));
        assert_eq!(run.signal(Signal::TERM), Some(75));
        // Were a sample of the epoch under way left out, or taken twice, it would fail.
        assert!(!run.resume(&["--workers", after]).hash().is_empty());
    }
}
