//! Studies through the program: trials that are whole trainings, in processes, with all that may befall them.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{LIMIT, Place, came};

const RACE: &str = r#"(
    trainable: "race",
    failure: (max_failures: 0, grace_seconds: 20),
    tune: (
        metric: "loss", mode: Min, samples: 4, concurrent: 2,
        sampler: Random,
    ),
)"#;

fn place() -> Place {
    let place = Place::new();
    place.write("a.ron", RACE);
    place
}

/// The trials of a study, as its log has them.
fn trials(place: &Place, study: &str) -> Vec<regatta_tune::results::History> {
    let grid = regatta_tune::ResultGrid::open(place.path().join("runs/race").join(study)).unwrap();
    grid.trials().to_vec()
}

#[test]
fn a_sweep_runs_to_its_end_and_names_the_best() {
    let place = place();
    let ran = place.run(&["tune", "a.ron", "--name", "one", "--json", "epochs=3", "tune.samples=5"]).code(0);
    let told = ran.json();
    assert_eq!((&told["status"], &told["trials"], &told["done"]), (&"done".into(), &5.into(), &5.into()));
    assert!(told["best"]["config"]["lr"].is_f64(), "{told}");
    let ran = ran.says("study race/one").says("best loss").says("5 trials: 5 done");
    assert!(!ran.err.contains('\x1b'), "{}", ran.err);
    // Each trial is a run of its own.
    let folder = place.path().join("runs/race/one/trials/00003");
    assert!(folder.join("run.db").is_file() && folder.join("progress.csv").is_file());
    assert!(place.path().join("runs/race/one/study.journal").is_file());
    // And the file is one that trains, too.
    place.run(&["train", "a.ron", "--name", "alone", "epochs=1"]).code(0);
}

#[test]
fn what_is_wrong_with_a_section_is_said_with_its_place() {
    let place = place();
    place.write("b.ron", &RACE.replace("sampler: Random", "sampler: Rendom"));
    place.run(&["tune", "b.ron"]).code(2).says("b.ron:6:");
    place.write("b.ron", &RACE.replace("samples: 4", "sample: 4"));
    place.run(&["tune", "b.ron"]).code(2).says("sample");
    place.run(&["tune", "a.ron", "tune.samples=many"]).code(2).says("tune.samples");
    place.write("c.ron", "(trainable: \"race\")");
    place.run(&["tune", "c.ron"]).code(2).says("no `tune` section");
    place.write(
        "d.ron",
        &RACE.replace("sampler:", "space: { \"learning\": Float(low: 0, high: 1) }, sampler:"),
    );
    place.run(&["tune", "d.ron"]).code(2).says("learning");
}

/// Four trials of two workers on the CPUs there are, with halving: whole crews or none, so nobody waits for ever.
#[test]
fn crews_race_without_a_deadlock_through_a_stop_and_a_kill() {
    let place = place();
    let sweep = "tune: (metric: \"loss\", samples: 6, concurrent: 4, sampler: Random, scheduler: Asha(min: 1, max: 9)),\n)";
    let file = format!("{}{sweep}", &RACE[..RACE.find("tune:").unwrap()]);
    place.write("a.ron", &file);
    let resources = "scaling.resources.cpu=1";
    let args = ["tune", "a.ron", "--name", "two", "--workers", "2", resources, "millis=150"];
    let begin = |args: &[&str]| {
        let child = place.start(args);
        let begun = std::time::Instant::now();
        while reports(&place) < 2 {
            assert!(begun.elapsed() < LIMIT, "nothing was reported");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        child
    };
    let child = begin(&args);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    came(child).code(75).says("stopping: trials save and leave").says("resume two");
    let mut child = begin(&["resume", "two"]);
    child.kill().unwrap();
    child.wait().unwrap();
    place.run(&["resume", "two", "--json"]).code(0).says("resumed");
    let trials = trials(&place, "two");
    assert_eq!(trials.len(), 6);
    assert!(trials.iter().all(|trial| matches!(trial.state.as_str(), "done" | "stopped")), "{trials:?}");
    // Nobody was promoted past the end, and somebody came to it; what a restart repeated is not told twice.
    assert!(trials.iter().any(|trial| trial.values("loss").len() == 9));
    for trial in &trials {
        let steps: Vec<f64> = trial.values("iteration");
        assert_eq!(
            steps,
            (1..=steps.len()).map(|step| step as f64).collect::<Vec<_>>(),
            "trial {}",
            trial.number
        );
    }
}

/// How many reports the study has so far.
fn reports(place: &Place) -> usize {
    let folder = place.path().join("runs/race/two");
    let grid = regatta_tune::ResultGrid::open(folder);
    grid.map_or(0, |grid| grid.trials().iter().map(|trial| trial.values("loss").len()).sum())
}

#[test]
fn trials_that_fail_say_why_and_the_study_goes_on() {
    for (fault, why) in [
        ("Error", "the file is cut off"),
        ("Panic", "index out of bounds"),
        ("Exit", "exited with code 3"),
        ("Kill", "SIGKILL"),
        ("Nan", "loss is NaN"),
        ("Silence", "without reporting `loss`"),
    ] {
        let place = place();
        let name = format!("f{fault}").to_lowercase();
        let fault = format!("fault={fault}");
        let args =
            ["tune", "a.ron", "--name", &name, &fault, "above=0.02", "epochs=2", "--json", "--seed", "3"];
        let ran = place.run(&args).code(3);
        let told = ran.json();
        assert!(told["done"].as_u64() > Some(0) && told["failed"].as_u64() > Some(0), "{told}");
        let trials = trials(&place, &name);
        for trial in trials.iter().filter(|trial| trial.full["lr"].as_f64() >= Some(0.02)) {
            let error = trial.error.as_deref().unwrap_or_default();
            assert!(error.contains(why), "{fault}: {error}");
        }
    }
}

#[test]
fn the_first_failure_ends_the_study_where_that_is_wanted() {
    let place = place();
    let args = [
        "tune",
        "a.ron",
        "--name",
        "fast",
        "fault=Error",
        "tune.fail_fast=true",
        "tune.samples=50",
        "-j",
        "1",
    ];
    place.run(&args).code(1).says("fail_fast").says("the file is cut off");
    assert!(trials(&place, "fast").len() < 5);
}

#[test]
fn a_worker_that_dies_is_made_good_within_its_trial() {
    let place = place();
    place.write("b.sh", "");
    let args =
        ["tune", "a.ron", "--name", "good", "fault=Kill", "epochs=3", "failure.max_failures=1", "-n", "1"];
    // The fault strikes whenever the second epoch begins from its start, so it strikes twice: the budget is used up.
    place.run(&args).code(1);
    let failed = trials(&place, "good");
    assert_eq!(failed[0].attempts, 2, "{failed:?}");
}

#[test]
fn a_finished_study_is_extended_and_two_drivers_are_one_too_many() {
    let place = place();
    place.run(&["tune", "a.ron", "--name", "more", "epochs=2"]).code(0);
    let told = place.run(&["resume", "more", "--samples", "+3", "--json"]).code(0).json();
    assert_eq!(told["trials"], 7);
    let first = place.start(&["tune", "a.ron", "--name", "two", "millis=200"]);
    let begun = std::time::Instant::now();
    while reports(&place) < 1 {
        assert!(begun.elapsed() < LIMIT, "nothing was reported");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    place.run(&["resume", "two"]).code(1).says("process");
    place.run(&["tune", "a.ron", "--name", "two"]).code(2).says("exists already");
    came(first).code(0);
}

/// Members take over each other's checkpoints and go on with other configurations.
#[test]
fn a_population_clones_what_is_good() {
    let place = place();
    let sweep = "tune: (metric: \"loss\", samples: 4, concurrent: 4, sampler: Random, scheduler: Pbt(population: 4, interval: 2, max: 8)),\n)";
    let file = format!("{}{sweep}", &RACE[..RACE.find("tune:").unwrap()]);
    place.write("a.ron", &file);
    let args =
        ["tune", "a.ron", "--name", "pbt", "epochs=100", "scaling.resources.cpu=0.25", "checkpoint.keep=1"];
    place.run(&args).code(0);
    let trials = trials(&place, "pbt");
    let cloned: Vec<_> = trials.iter().filter(|trial| trial.cloned_from.is_some()).collect();
    assert!(!cloned.is_empty(), "{trials:?}");
    for trial in cloned {
        // What it has seen is what its donor saw, and then its own: not what its configuration alone would have come to.
        let seen = *trial.values("seen").last().unwrap();
        let alone = trial.full["lr"].as_f64().unwrap() * 8.0;
        assert!((seen - alone).abs() > 1e-9, "trial {}: {seen}", trial.number);
    }
}

#[test]
fn workers_go_from_trial_to_trial() {
    let place = place();
    let args =
        ["tune", "a.ron", "--name", "pool", "tune.reuse=true", "tune.samples=40", "epochs=2", "--json"];
    let told = place.run(&args).code(0).json();
    assert_eq!(told["done"], 40, "{told}");
    // Two processes did it all.
    let logs = std::fs::read_dir(place.path().join("runs/race/pool/logs")).unwrap().count();
    assert_eq!(logs, 2);
    // One that dies is another's successor, and its trial alone has failed.
    let args = [
        "tune",
        "a.ron",
        "--name",
        "dies",
        "tune.reuse=true",
        "tune.samples=12",
        "epochs=2",
        "fault=Exit",
        "above=0.1",
        "--json",
    ];
    let told = place.run(&args).code(3).json();
    assert_eq!(told["done"].as_u64().unwrap() + told["failed"].as_u64().unwrap(), 12, "{told}");
    assert!(told["failed"].as_u64() > Some(0), "{told}");
    let killed: Vec<Value> = trials(&place, "dies").iter().map(|trial| trial.full["lr"].clone()).collect();
    assert_eq!(killed.len(), 12);
}

#[test]
fn a_program_in_any_language_is_tuned() {
    let place = Place::new();
    place.write("p.sh", "echo \"regatta: {\\\"loss\\\": $1}\"\n");
    let file = r#"(
        trainable: Command("sh p.sh {x}"), config: (x: 0.5, other: 1),
        tune: (metric: "loss", samples: 3, concurrent: 1, space: { "x": Float(low: 0, high: 1) }, sampler: Sobol),
    )"#;
    place.write("a.ron", file);
    let told = place.run(&["tune", "a.ron", "--name", "sh", "--json"]).code(0).json();
    assert_eq!((&told["done"], &told["best"]["config"]["other"]), (&3.into(), &1.into()));
    assert_eq!(told["best"]["value"], told["best"]["config"]["x"]);
}
