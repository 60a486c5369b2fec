//! Runs as jobs of an engine, here of the one that every machine has: submitted, followed, left alone, cancelled, gone on with.

use std::io::Read;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{LIMIT, Place, came, until};

const SUMS: &str =
    r#"(trainable: "sums", config: (steps: 20), failure: (grace_seconds: 20, backoff_seconds: 0))"#;

const RACE: &str = r#"(
    trainable: "race", config: (epochs: 6, millis: 50),
    failure: (max_failures: 0, grace_seconds: 20), tune: (metric: "loss", mode: Min, samples: 4, sampler: Random),
)"#;

/// A run that goes on until it is told to leave.
const LONG: [&str; 2] = ["steps=100000", "millis=10"];

fn submitted(place: &Place, args: &[&str]) -> serde_json::Value {
    place.run(&[&["submit", "a.ron", "--json"], args].concat()).code(0).json()
}

/// Waits until the run has made a step.
fn stepping(place: &Place, run: &str) {
    let begun = Instant::now();
    loop {
        let shown = place.run(&["show", run, "--json"]);
        if shown.code == Some(0) && shown.json()["step"].as_u64().is_some() {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "run {run} made no step: {}", place.run(&["logs", run]).out);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_submitted_run_is_one_job_however_often_and_is_followed_to_its_end() {
    let place = Place::new();
    place.write("a.ron", SUMS);
    let args = ["--name", "One", "--workers", "2"];
    let first = submitted(&place, &args);
    assert_eq!(
        (&first["new"], &first["engine"], &first["run"]),
        (&true.into(), &"local".into(), &"sums/One".into())
    );
    let job = first["job"].as_str().unwrap();
    // Capital letters are no engine's; what was changed is told apart.
    assert!(job.starts_with("sums-one-"), "{job}");
    let followed = place.run(&["attach", "One", "--json"]).code(0).says("run sums/One  seed 42");
    let told = followed.json();
    assert_eq!((&told["status"], &told["value"], &told["step"]), (&"done".into(), &210.into(), &20.into()));
    assert_eq!(told["job"]["status"]["state"]["ended"], "succeeded");

    // The run is there now: another needs another name.
    place.run(&["submit", "a.ron", "--name", "One"]).code(2).says("exists already");
    let jobs = place.run(&["jobs", "--json"]).code(0).json();
    assert_eq!((jobs["jobs"].as_array().unwrap().len(), &jobs["jobs"][0]["job"]), (1, &job.into()));
    assert!(place.run(&["jobs"]).code(0).out.contains("succeeded"));
    assert!(place.run(&["jobs", "--active"]).code(0).out.contains("no jobs"));
    // What its driver wrote, by the job's name; what its ranks wrote, by the run's.
    assert!(place.run(&["logs", job, "-f"]).code(0).out.contains("run sums/One"));
    place.run(&["attach", "two"]).code(2).says("there is no job `two`");
}

#[test]
fn ctrl_c_leaves_the_job_alone_and_cancelling_saves_so_that_it_is_gone_on_with() {
    let place = Place::new();
    place.write("a.ron", SUMS);
    let first = submitted(&place, &[&["--name", "otter"][..], &LONG].concat());
    assert_eq!(first["job"], "sums-otter");
    stepping(&place, "otter");
    let again = submitted(&place, &["--name", "otter"]);
    assert_eq!((&again["job"], &again["new"]), (&"sums-otter".into(), &false.into()));

    let mut follower = place.start(&["attach", "otter"]);
    // It listens for signals before it shows anything.
    follower.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    kill_process(Pid::from_child(&follower), Signal::INT).unwrap();
    let left = came(follower).code(130);
    assert!(
        left.err.contains("detached: job sums-otter goes on") && left.err.contains("attach sums-otter"),
        "{}",
        left.err
    );
    let listed = place.run(&["jobs", "--active", "--json"]).code(0).json();
    assert_eq!(listed["jobs"][0]["state"], "running");

    let cancelled = place.run(&["cancel", "otter", "--json"]).code(0).json();
    assert_eq!(cancelled["status"]["state"]["ended"], "cancelled");
    let shown = place.run(&["show", "otter", "--json"]).code(0).json();
    assert_eq!(shown["status"], "resumable");
    let saved = shown["checkpoints"].as_array().unwrap().len();
    assert!(saved > 0, "{shown}");

    // Going on is another job of the same run, here with another end.
    let steps = format!("steps={}", shown["step"].as_u64().unwrap() + 20);
    let told = place
        .run(&["submit", "otter", &steps, "millis=0", "--attach", "--json"])
        .code(0)
        .says("restored step-");
    assert_eq!(told.json()["job"]["id"], "sums-otter-2");
    let shown = place.run(&["show", "otter", "--json"]).code(0).json();
    assert_eq!((&shown["status"], &shown["attempts"].as_array().unwrap().len()), (&"done".into(), &2));
}

#[test]
fn what_would_be_submitted_is_shown_and_what_cannot_be_is_said() {
    let place = Place::new();
    place.write("a.ron", SUMS);
    let rendered = place.run(&["render", "a.ron", "--name", "x"]).code(0).out;
    assert!(rendered.contains("regatta-tests' 'drive'"), "{rendered}");
    let slurm =
        r#"engine=Slurm(partition: "gpu", nodes: 2, spare: 1, time: "04:00:00", options: ["--nice=5"])"#;
    let rendered = place.run(&["render", "a.ron", "--name", "x", slurm]).code(0).out;
    for line in
        ["--job-name=sums-x", "--partition=gpu", "--nodes=3", "--time=240", "--nice=5", "--no-requeue"]
    {
        assert!(rendered.contains(&format!("#SBATCH {line}\n")), "{line} is not in\n{rendered}");
    }
    assert!(!place.path().join("runs/.jobs").exists(), "nothing was submitted");

    let text = SUMS.replace("failure:", "engine: Slurm(nodes: 2, time: \"4h\"),\n  failure:");
    place.write("b.ron", &text);
    place.run(&["config", "check", "b.ron"]).code(2).says("b.ron:1:").says("`4h` is no time of Slurm's");
    place.run(&["config", "check", "b.ron", "engine.time=90"]).code(0);
    place
        .run(&["train", "a.ron", "engine=Slurm(partitoin: \"gpu\")"])
        .code(2)
        .says("did you mean `partition`");
    place.run(&["drive"]).code(2).says("REGATTA_DRIVE is not set");
    // Without Slurm's tools it is said which is missing.
    place.run_with(&["submit", "a.ron", slurm], &[("PATH", "/nowhere")]).code(1).says("sbatch");
    // A driver outside of its job.
    place.run(&["train", "a.ron", "--here", slurm]).code(1).says("SLURM_JOB_ID");
}

#[test]
fn a_run_of_this_host_is_gone_on_with_as_a_job() {
    let place = Place::new();
    place.write("a.ron", SUMS);
    let child = place.start_until_step(&[&["train", "a.ron", "--name", "here"][..], &LONG].concat(), "here");
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    came(child);
    let told = place.run(&["submit", "here", "steps=50", "millis=0", "--attach", "--json"]).code(0).json();
    assert_eq!((&told["job"]["id"], &told["status"]), (&"sums-here".into(), &"done".into()));
}

#[test]
fn a_study_is_a_job_like_a_run_and_is_gone_on_with_as_another() {
    let place = Place::new();
    place.write("a.ron", RACE);
    let first = submitted(&place, &["--name", "s", "tune.concurrent=2"]);
    assert_eq!((&first["job"], &first["run"]), (&"race-s".into(), &"race/s".into()));
    let reports = || regatta_tune::ResultGrid::open(place.path().join("runs/race/s")).ok();
    until("a trial reports", || {
        reports().is_some_and(|grid| grid.trials().iter().any(|t| !t.metrics.is_empty()))
    });
    let cancelled = place.run(&["cancel", "s", "--json"]).code(0).json();
    assert_eq!(cancelled["status"]["state"]["ended"], "cancelled");

    // Another job goes on with it, here with one more trial.
    let ran = place.run(&["submit", "s", "tune.samples=5", "--attach", "--json"]).code(0);
    let told = ran.says("study race/s  resumed").json();
    assert_eq!((&told["job"]["id"], &told["status"]), (&"race-s-2".into(), &"done".into()));
    assert_eq!((&told["trials"], &told["done"]), (&5.into(), &5.into()));
    assert!(told["best"]["config"]["lr"].is_f64(), "{told}");

    // A trial that fails makes neither the study nor its job fail, and is told.
    let failing = ["fault=Error", "above=0.01", "tune.samples=8", "tune.concurrent=4", "epochs=2"];
    let some = place
        .run(&[&["submit", "a.ron", "--name", "f", "--attach", "--json"][..], &failing].concat())
        .code(3);
    let told = some.json();
    assert!(told["failed"].as_u64().unwrap() > 0 && told["done"].as_u64().unwrap() > 0, "{told}");
}

#[test]
fn a_study_asks_for_room_for_the_trials_it_runs_at_once() {
    let place = Place::new();
    place.write("a.ron", RACE);
    let slurm = "engine=Slurm(nodes: 2)";
    let args = ["render", "a.ron", "--name", "s", "--workers", "3", slurm];
    place.run(&args).code(2).says("tune.concurrent is not set");
    let rendered = place.run(&[&args[..], &["tune.concurrent=4"]].concat()).code(0).out;
    assert!(
        rendered.contains("#SBATCH --nodes=2\n") && rendered.contains("--cpus-per-task=6\n"),
        "{rendered}"
    );
    // A driver outside of its job.
    place.run(&["tune", "a.ron", "--here", slurm, "tune.concurrent=4"]).code(1).says("SLURM_JOB_ID");
}
