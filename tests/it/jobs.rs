//! Runs as jobs of an engine, here of the one that every machine has: submitted, followed, left alone, cancelled, gone on with.

use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{LIMIT, Place, came};

const SUMS: &str =
    r#"(trainable: "sums", config: (steps: 20), failure: (grace_seconds: 20, backoff_seconds: 0))"#;

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

    let follower = place.start(&["attach", "otter"]);
    // It listens for signals before it reads, and what it read it shows.
    let pid = Pid::from_child(&follower);
    let mut follower = Some(follower);
    let seen = wait_for_output(&mut follower);
    kill_process(pid, Signal::INT).unwrap();
    let left = came(seen).code(130);
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

/// Gives the child back once it has shown something.
fn wait_for_output(child: &mut Option<std::process::Child>) -> std::process::Child {
    use std::io::Read;
    let mut child = child.take().unwrap();
    let mut byte = [0];
    child.stderr.as_mut().unwrap().read_exact(&mut byte).unwrap();
    child
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
