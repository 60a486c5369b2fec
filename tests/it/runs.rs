//! Runs from their beginning to their end: trained, stopped, resumed, looked at; functions and commands alike.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Place, came};

const SUMS: &str =
    r#"(trainable: "sums", config: (steps: 20), failure: (grace_seconds: 20, backoff_seconds: 0))"#;

#[test]
fn a_run_is_trained_and_told_of() {
    let place = Place::new();
    place.write("a.ron", SUMS);
    let run = place
        .run(&["train", "a.ron", "--name", "first", "--workers", "2", "--json", "--progress", "plain"])
        .code(0);
    let told = run.json();
    assert_eq!((&told["status"], &told["value"], &told["step"]), (&"done".into(), &210.into(), &20.into()));
    assert_eq!(told["metrics"]["loss"], 0.05);
    let run = run.says("run sums/first  seed 42").says("2 x cpu, shm");
    assert!(!run.err.contains('\x1b'), "{}", run.err);

    let listed = place.run(&["ls", "--json"]).code(0).json();
    assert_eq!((&listed["runs"][0]["name"], &listed["runs"][0]["status"]), (&"first".into(), &"done".into()));
    let shown = place.run(&["show", "fir"]).code(0).out;
    assert!(shown.contains("sums/first  done  step 20") && shown.contains("loss"), "{shown}");
    let logs = place.run(&["logs", "first"]);
    assert!(matches!(logs.code, Some(0)), "{}", logs.err);
    let name = told["checkpoint"].as_str().unwrap();
    assert!(place.run(&["ckpt", "ls", "first"]).code(0).out.contains(name));
    place.run(&["ckpt", "verify", "first"]).code(0);
    place.run(&["show", "fist"]).code(2).says("did you mean `first`?");
}

#[test]
fn a_fast_dev_run_tries_training_saving_and_restoring() {
    let place = Place::new();
    place.write("a.ron", SUMS);
    let ran = place.run(&["train", "a.ron", "--fast-dev-run", "--workers", "2", "--json"]).code(0);
    let ran = ran.says("restored step-000002");
    let told = ran.json();
    assert_eq!((&told["status"], &told["value"], &told["step"]), (&"done".into(), &3.into(), &2.into()));
    assert_eq!(told["attempts"], 2, "the second only restores");
    // A program in another language is told, and what saves nothing has nothing to restore.
    place.write("b.ron", r#"(trainable: Command("sh fast.sh"))"#);
    place.write("fast.sh", r#"echo "regatta: {\"fast\": ${REGATTA_FAST_DEV_RUN:-0}}""#);
    let told = place.run(&["train", "b.ron", "--fast-dev-run", "--json"]).code(0).json();
    assert_eq!((&told["metrics"]["fast"], &told["attempts"]), (&1.0.into(), &1.into()));
    assert_eq!(place.run(&["train", "b.ron", "--json"]).code(0).json()["metrics"]["fast"], 0.0);
}

#[test]
fn a_line_is_drawn_over_where_one_asks_for_it_and_colours_are_the_users_choice() {
    let place = Place::new();
    place.write("a.ron", SUMS);
    let args = ["train", "a.ron", "--progress", "bar", "steps=60", "millis=20", "run.stop.steps=50"];
    let plain = place.run_with(&args, &[("NO_COLOR", "1")]).code(0);
    assert!(plain.err.contains("\r\x1b[2Kstep") || plain.err.contains("━"), "{:?}", plain.err);
    assert!(!plain.err.contains("\x1b[36m"), "{:?}", plain.err);
    let coloured = place.run_with(&args, &[("CLICOLOR_FORCE", "1")]).code(0);
    assert!(coloured.err.contains("\x1b[36m") && coloured.err.contains("step "), "{:?}", coloured.err);
    assert!(coloured.err.ends_with('\n'));
}

#[test]
fn workers_of_functions_find_torchruns_environment_too() {
    let place = Place::new();
    place.write("a.ron", r#"(trainable: "surroundings", scaling: (workers: 2))"#);
    let told = place.run(&["train", "a.ron", "--json"]).code(0).json();
    let value = |name: &str| told["value"][name].as_str().unwrap_or_default().to_owned();
    let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RESTART_COUNT"];
    assert_eq!(names.map(value), ["0", "2", "0", "127.0.0.1", "0"]);
    assert!(value("MASTER_PORT").parse::<u16>().is_ok_and(|port| port > 0), "{told}");
}

/// A rank that is ahead writes for the next save while rank 0 still clears up after the one before.
#[test]
fn saves_in_quick_succession_leave_each_other_alone() {
    let place = Place::new();
    place.write("a.ron", SUMS);
    let ran = place
        .run(&["train", "a.ron", "--workers", "2", "checkpoint.every=Steps(1)", "--name", "many", "steps=10"])
        .code(0);
    assert!(!ran.err.contains("could not be saved"), "{}", ran.err);
    let shown = place.run(&["show", "many", "--json"]).code(0).json();
    let steps: std::collections::BTreeSet<u64> =
        shown["checkpoints"].as_array().unwrap().iter().map(|c| c["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=10).collect(), "{shown}");
}

#[test]
fn a_stopped_run_says_how_to_resume_it_and_comes_to_the_same_end() {
    let place = Place::new();
    place.write("a.ron", SUMS);
    let args = ["train", "a.ron", "--name", "otter", "steps=150", "millis=20"];
    let child = place.start_until_step(&args, "otter");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    came(child).code(75).says("saved step-").says("resume: ").says("resume otter");
    let shown = place.run(&["show", "otter", "--json"]).code(0).json();
    assert_eq!(shown["status"], "resumable");
    let stopped_at =
        shown["checkpoints"].as_array().unwrap().iter().map(|c| c["step"].as_u64().unwrap()).max().unwrap();
    assert!(stopped_at < 150);

    let told = place.run(&["resume", "ott", "--json"]).code(0).says("restored step-").json();
    assert_eq!((&told["value"], &told["attempts"]), (&(150 * 151 / 2).into(), &2.into()));
}

#[test]
fn a_failed_run_tells_the_root_cause_last_and_a_failure_within_the_budget_is_made_good() {
    let place = Place::new();
    place.write("a.ron", SUMS);
    let args = ["train", "a.ron", "--name", "bad", "fail_at=7", "failure.max_failures=0"];
    let failed = place.run(&args).code(1);
    let last = failed.err.trim_end().lines().last().unwrap();
    assert!(last.contains("told to fail at step 7"), "{}", failed.err);
    assert_eq!(place.run(&["show", "bad", "--json"]).code(0).json()["status"], "failed");
    let told = place.run(&["train", "a.ron", "fail_at=7", "--json"]).code(0).json();
    assert_eq!((&told["value"], &told["attempts"]), (&210.into(), &2.into()));
}

/// A program in another language: it counts in a file, saves it every second step, and fails once if it is told to.
const PROGRAM: &str = r#"
count=0
if [ -n "$REGATTA_RESTORE_DIR" ]; then count=$(cat "$REGATTA_RESTORE_DIR/deep/count"); fi
echo "rank $RANK of $WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT from $count"
stopped=0
trap 'stopped=1' TERM
save() {
    # SIGTERM goes to the whole group: without this it ends mkdir, and with it the save.
    (trap '' TERM; mkdir -p "$REGATTA_CHECKPOINT_DIR/c$count/deep"); echo $count > "$REGATTA_CHECKPOINT_DIR/c$count/deep/count"
    : > "$REGATTA_CHECKPOINT_DIR/c$count/empty"
    echo "regatta: {\"checkpoint\": \"c$count\"}"
}
while [ $count -lt $1 ]; do
    count=$((count + 1)); sleep $2
    echo "regatta: {\"count\": $count, \"step\": $count, \"rate\": $3}"
    if [ $RANK = 0 ]; then if [ $((count % 2)) = 0 ] || [ $stopped = 1 ]; then save; fi; fi
    if [ $stopped = 1 ]; then exit 0; fi
    if [ $RANK = 0 ] && [ "$count" = "$4" ] && [ "$TORCHELASTIC_RESTART_COUNT" = 0 ]; then echo "cannot go on" >&2; exit 3; fi
done
"#;

const COMMAND: &str = r#"(
    trainable: Command("sh program.sh {steps} {sleep} {lr} {fail_at}"),
    config: (steps: 6, sleep: 0.01, lr: 0.5, fail_at: 0),
    failure: (backoff_seconds: 0, grace_seconds: 20),
)"#;

#[test]
fn a_program_in_any_language_is_a_trainable() {
    let place = Place::new();
    place.write("program.sh", PROGRAM);
    place.write("a.ron", COMMAND);
    let args = ["train", "a.ron", "--name", "sh", "fail_at=5", "lr=0.25", "--workers", "2", "--json"];
    let told = place.run(&args).code(0).json();
    assert_eq!((&told["status"], &told["attempts"]), (&"done".into(), &2.into()));
    assert_eq!((&told["metrics"]["count"], &told["metrics"]["rate"]), (&6.0.into(), &0.25.into()));
    assert_eq!(told["experiment"], "program");
    place.run(&["ckpt", "verify", "sh"]).code(0);
    let logs = place.run(&["logs", "sh", "1"]).code(0).out;
    assert!(logs.contains("rank 1 of 2 at 127.0.0.1:"), "{logs}");
    // Rank 0 said that it had saved this before it failed.
    assert!(logs.contains("from 4"), "{logs}");
    let folder = place.path().join("runs/program/sh");
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("incoming")), "{left:?}");
}

#[test]
fn the_program_that_comes_with_the_configurations_is_trained_as_the_readme_says() {
    let python = std::process::Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|python| python.status.success()) {
        eprintln!("skipped: there is no python3");
        return;
    }
    let place = Place::new();
    let checkout = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let storage = place.path().to_str().unwrap();
    let file = ["configs/command.ron", "lr=0.05", "epochs=4", "--workers", "1", "--storage", storage];
    let args = [&["train"], &file[..], &["--name", "plain", "--json"]].concat();
    let child =
        place.command(&args).current_dir(checkout).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let told = came(child.unwrap()).code(0).json();
    assert!(told["metrics"]["loss"].as_f64().unwrap() < 0.01, "{told}");
    assert_eq!((&told["step"], &told["attempts"]), (&400.into(), &1.into()));
    place.run(&["ckpt", "verify", &format!("{storage}/command/plain")]).code(0);
}

#[test]
fn a_program_is_asked_to_stop_and_goes_on_where_it_saved() {
    let place = Place::new();
    place.write("program.sh", PROGRAM);
    place.write("a.ron", COMMAND);
    let child = place.start_until_step(&["train", "a.ron", "--name", "sh", "steps=500", "sleep=0.02"], "sh");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    came(child).code(75).says("saved step-").says("resume sh");
    let shown = place.run(&["show", "sh", "--json"]).code(0).json();
    let step =
        shown["checkpoints"].as_array().unwrap().iter().map(|c| c["step"].as_u64().unwrap()).max().unwrap();
    // The run's own configuration is kept; it is stopped again at once, having begun where it was left.
    let child = place.start(&["resume", "sh", "--verbose"]);
    let pid = Pid::from_child(&child);
    let waiting = std::thread::spawn(move || came(child));
    let from = format!("from {step}");
    let begun = std::time::Instant::now();
    while !place.run(&["logs", "sh", "0", "--attempt", "2"]).out.contains(&from) {
        assert!(begun.elapsed() < crate::support::LIMIT, "it did not begin {from}");
    }
    kill_process(pid, Signal::TERM).unwrap();
    waiting.join().unwrap().code(75).says("restored step-");
}
