//! Runs that are kept in an object store: they go on from their URL alone, and through a store that misbehaves.

use std::collections::BTreeSet;

use regatta_checkpoint_s3_tests::Server;

use crate::support::{Place, came, until};

const RUN: &str = r#"(
    trainable: "sums",
    config: (steps: 100, millis: 20),
    run: (name: "far", storage: "s3://bucket/runs"),
    checkpoint: (every: Steps(10)),
)"#;
const URL: &str = "s3://bucket/runs/sums/far";
const SUM: u64 = 100 * 101 / 2;

#[test]
fn a_run_that_lost_its_controller_and_its_folder_goes_on_from_its_url_elsewhere() {
    let (server, here) = (Server::start(), Place::new());
    let env = server.environment();
    here.write("a.ron", RUN);
    // It stays at a step until it is killed, however long that takes to be seen.
    let args = ["train", "a.ron", "--workers", "2", "fault=Hang", "at=35"];
    let mut child = here.start_until_step_with(&args, "far", &env);
    until("two checkpoints", || server.commits().len() >= 2);
    child.kill().unwrap();
    came(child);
    drop(here);

    // The copy of its store is from its beginning: it knows of no checkpoint, of no generation, and perhaps of no attempt, so
    // that the next would count as the first, which the fault befalls.
    let there = Place::new();
    let mended: Vec<(&str, &str)> = env.iter().copied().chain([("MENDED", "1")]).collect();
    let resumed = there.run_with(&["resume", URL, "--json"], &mended).code(0).says("restored step-0000");
    assert_eq!(resumed.json()["value"], SUM);
    let shown = there.run(&["show", "far", "--json"]).code(0).json();
    let steps: BTreeSet<u64> =
        shown["checkpoints"].as_array().unwrap().iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert!((10..=100).step_by(10).all(|step| steps.contains(&step)), "{shown}");
    let generations: BTreeSet<&str> =
        shown["checkpoints"].as_array().unwrap().iter().map(|row| generation(&row["name"])).collect();
    assert_eq!(generations, BTreeSet::from(["g1", "g2"]), "{shown}");
    let last = shown["attempts"].as_array().unwrap().last().unwrap();
    let restored = last["row"]["restored"].as_str().unwrap();
    assert!(restored.contains(".g1.") && restored >= "step-000020", "{shown}");
    let verified = there.run_with(&["ckpt", "verify", URL], &env).code(0).out;
    assert!(verified.matches(" ok").count() >= 10, "{verified}");
    for copied in ["progress.csv", "result.jsonl", "config.ron"] {
        assert!(there.path().join("runs/sums/far").join(copied).is_file(), "{copied}");
    }

    // At its end all of it was copied: a third machine finds nothing left to do.
    let third = Place::new();
    let again = third.run_with(&["resume", URL, "--json"], &env).code(0);
    assert_eq!((&again.json()["value"], &again.json()["attempts"]), (&SUM.into(), &3.into()));
    // And its name is in use, wherever one is.
    let fourth = Place::new();
    fourth.write("a.ron", RUN);
    fourth.run_with(&["train", "a.ron"], &env).code(2).says("s3://bucket/runs/sums/far").says("resume it");
    fourth.run_with(&["resume", "s3://bucket/runs/sums/nobody"], &env).code(2).says("no copy of a run");
    fourth.run_with(&["resume", "s3://bucket"], &env).code(2).says("/experiment/run");
}

fn generation(name: &serde_json::Value) -> &str {
    name.as_str().unwrap().split('.').nth(1).unwrap()
}

#[test]
fn a_store_that_misbehaves_costs_retries_and_not_the_run() {
    let (server, place) = (Server::start(), Place::new());
    let env = server.environment();
    place.write("a.ron", RUN);
    server.misbehave(7);
    let args = ["train", "a.ron", "--json", "steps=40", "millis=5", "checkpoint.every=Steps(20)"];
    let ran = place.run_with(&args, &env).code(0);
    server.misbehave(0);
    assert_eq!(ran.json()["value"], 40 * 41 / 2);
    assert!(!ran.err.contains("could not be saved"), "{}", ran.err);
    assert!(server.seen().len() > 3, "hardly any mischief came about: {:?}", server.seen());
    assert!(server.commits().values().all(|&count| count == 1), "{:?}", server.commits());
    place.run_with(&["ckpt", "verify", URL], &env).code(0);
    // The copy of the run's store was not given up either.
    let elsewhere = Place::new();
    let again = elsewhere.run_with(&["resume", URL, "--json"], &env).code(0).json();
    assert_eq!((&again["value"], &again["attempts"]), (&ran.json()["value"], &2.into()));
}

#[test]
fn a_stop_says_how_to_go_on_from_anywhere() {
    let (server, place) = (Server::start(), Place::new());
    let env = server.environment();
    place.write("a.ron", RUN);
    let child = place.start_until_step_with(&["train", "a.ron", "steps=1000"], "far", &env);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    came(child).code(75).says("saved step-").says(&format!("resume {URL}"));
}

const STUDY: &str = r#"(
    trainable: "race",
    config: (epochs: 6, millis: 60),
    run: (name: "far", storage: "s3://bucket/runs", seed: 11),
    failure: (grace_seconds: 20),
    tune: (metric: "loss", mode: Min, samples: 6, concurrent: 2, sampler: Random),
)"#;
const STUDY_URL: &str = "s3://bucket/runs/race/far";

/// The losses of each trial, as the study's log has them.
fn losses(place: &Place) -> Vec<Vec<f64>> {
    let grid = regatta_tune::ResultGrid::open(place.path().join("runs/race/far")).unwrap();
    grid.trials().iter().map(|trial| trial.values("loss")).collect()
}

#[test]
fn a_study_that_lost_its_driver_and_its_folder_goes_on_from_its_url_elsewhere() {
    let (server, here) = (Server::start(), Place::new());
    let env = server.environment();
    let undisturbed = Place::new();
    undisturbed.write("a.ron", STUDY);
    undisturbed.run(&["tune", "a.ron", "--storage", "runs", "millis=0"]).code(0);

    here.write("a.ron", STUDY);
    let mut child = here.start_with(&["tune", "a.ron"], &env);
    until("some checkpoints", || server.commits().len() >= 4);
    child.kill().unwrap();
    came(child);
    drop(here);

    // The copy of its log is from its beginning, and knows of no trial; those that there are begin anew.
    let there = Place::new();
    let args = ["resume", STUDY_URL, "--json"];
    let child = there.start_with(&args, &env);
    until("the study is here", || there.path().join("runs/race/far/trials/00001/run.db").is_file());
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    came(child).code(75).says(&format!("resume {STUDY_URL}"));
    drop(there);

    // Stopped in good order, all of it was copied: trials go on from their last checkpoints.
    let third = Place::new();
    let told = third.run_with(&args, &env).code(0).says("study race/far  resumed").json();
    assert_eq!((&told["trials"], &told["done"]), (&6.into(), &6.into()), "{told}");
    assert_eq!(losses(&third), losses(&undisturbed));

    let fourth = Place::new();
    let again = fourth.run_with(&args, &env).code(0).json();
    assert_eq!(again["best"], told["best"]);
    // Its name is in use, wherever one is.
    let fifth = Place::new();
    fifth.write("a.ron", STUDY);
    fifth.run_with(&["tune", "a.ron"], &env).code(2).says(STUDY_URL).says("resume");
}
