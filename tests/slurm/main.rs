//! The product on a real Slurm, by its command line: trained, broken, cancelled, preempted, gone on with elsewhere.
//!
//! Skipped unless `REGATTA_TEST_SLURM` names the folder of a running cluster, as `cargo xtask test-engines slurm` sets it up;
//! it also names the programs with tensors in them, `REGATTA_TEST_EXAMPLE` and `REGATTA_TEST_SOAK`.

#[path = "../../cluster/tests/nodes/mod.rs"]
mod nodes;
#[allow(dead_code, reason = "the tests of this host use all of it")]
#[path = "../it/support.rs"]
mod support;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Failed, Trial};
use nodes::{Node, environment_of, eventually, pids};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Came, Place, came};

const CLUSTER: &str = "REGATTA_TEST_SLURM";
const PATIENCE: Duration = Duration::from_secs(60);
/// From a failure to the first step of the new gang, with a heartbeat deadline of three seconds.
const RECOVERED: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let here = std::env::var_os(CLUSTER).is_some();
    let trial = |name: &str, test: fn()| {
        let run = move || -> Result<(), Failed> {
            nodes::settle(PATIENCE);
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(!here)
    };
    let trials = vec![
        trial("the_first_line_comes_soon", latency),
        trial("the_example_is_trained_on_two_nodes", example),
        trial("a_killed_worker_is_replaced", worker_killed),
        trial("a_killed_node_is_replaced", || node_fails(Node::kill)),
        trial("a_node_that_hangs_is_replaced", || node_fails(Node::stop)),
        trial("a_run_outlives_its_driver", driver_killed),
        trial("a_cancelled_run_is_saved", cancelled),
        trial("a_preempted_run_is_saved_and_goes_on", preempted),
        trial("a_run_begun_here_ends_there_to_the_bit", across),
        trial("a_study_of_eight_trials_is_a_job", study),
        trial("storage_that_is_not_shared_is_said_first", not_shared),
        trial("what_can_never_run_is_refused_at_once", no_capacity),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// An experiment for two nodes, one worker on each, that goes on until it is told otherwise.
const SUMS: &str = r#"(
    trainable: "sums",
    config: (steps: 100000, millis: 10),
    scaling: (workers: 2, placement: strict_spread),
    failure: (dead_seconds: 3, backoff_seconds: 0, grace_seconds: 20),
    engine: Slurm(),
)"#;

fn place(text: &str) -> Place {
    let place = Place::new();
    place.write("a.ron", text);
    place
}

fn submit(place: &Place, name: &str, changes: &[&str]) -> Value {
    place.run(&[&["submit", "a.ron", "--json", "--name", name], changes].concat()).code(0).json()
}

fn shown(place: &Place, run: &str) -> Option<Value> {
    let shown = place.run(&["show", run, "--json"]);
    (shown.code == Some(0)).then(|| shown.json())
}

fn attempts(shown: &Value) -> usize {
    shown["attempts"].as_array().map_or(0, Vec::len)
}

fn saved(shown: &Value) -> bool {
    shown["checkpoints"].as_array().is_some_and(|all| !all.is_empty())
}

/// Waits until this attempt has reported.
fn stepping(place: &Place, run: &str, attempt: usize) -> Value {
    let mut before = None;
    eventually(PATIENCE, || {
        let shown = shown(place, run)?;
        let reports = shown["reports"].as_u64()?;
        // The reports of the attempt before count too.
        match attempts(&shown) {
            now if now < attempt => None,
            _ if attempt == 1 => (reports > 0).then_some(shown),
            _ => {
                let before = *before.get_or_insert(reports);
                (reports != before).then_some(shown)
            }
        }
    })
}

/// A process of the run's with this variable in its environment.
fn process(place: &Place, what: &str) -> i32 {
    eventually(PATIENCE, || processes(place, |variable| variable == what).pop())
}

/// The program's processes in this place that have such a variable in their environment.
fn processes(place: &Place, what: impl Fn(&str) -> bool) -> Vec<i32> {
    let cwd = |pid: i32| std::fs::read_link(format!("/proc/{pid}/cwd")).ok();
    let here = std::fs::canonicalize(place.path()).unwrap();
    let of_run = |pid: &i32| {
        let environment = environment_of(*pid);
        environment.split('\0').any(&what)
            && std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.trim() == "regatta-tests")
            && cwd(*pid).as_ref() == Some(&here)
    };
    pids().into_iter().filter(of_run).collect()
}

/// The process that drives a run.
fn driver(place: &Place, run: &str) -> i32 {
    let lock = place.path().join("runs/sums").join(run).join("run.db.lock");
    let lock = std::fs::read_to_string(lock).unwrap();
    lock.split(' ').nth(1).and_then(|pid| pid.parse().ok()).expect("its process")
}

fn node_of(pid: i32) -> Option<String> {
    let environment = environment_of(pid);
    let node = environment.split('\0').find_map(|variable| variable.strip_prefix("SLURMD_NODENAME="));
    node.map(str::to_owned)
}

/// Ends what a test leaves running.
fn end(place: &Place, run: &str) {
    place.run(&["cancel", run, "--grace", "20"]).code(0);
}

fn status(place: &Place, job: &str) -> String {
    let jobs = place.run(&["jobs", "--json"]).code(0).json();
    let all = jobs["jobs"].as_array().unwrap();
    let one = all.iter().find(|one| one["job"] == job).unwrap_or_else(|| panic!("{job} is not in {jobs}"));
    one["state"].as_str().unwrap().to_owned()
}

fn example() {
    let program = PathBuf::from(std::env::var_os("REGATTA_TEST_EXAMPLE").expect("the example"));
    let place = place(
        r#"(
        trainable: "resnet",
        config: (epochs: 1, batch_size: 32, lr: 0.004),
        scaling: (workers: 2, placement: strict_spread),
        run: (fast_dev_run: true),
        engine: Slurm(),
    )"#,
    );
    let args = ["train", "a.ron", "--name", "mnist", "--json"];
    let told = with(&program, &place, &args).code(0).says("2 x cpu on 2 nodes");
    let told = told.json();
    assert_eq!((&told["status"], &told["job"]["engine"]), (&"done".into(), &"slurm".into()));
}

/// Runs another program than this crate's own in the place.
fn with(program: &std::path::Path, place: &Place, args: &[&str]) -> Came {
    let mut command = Command::new(program);
    command.args(args).current_dir(place.path()).env_remove("REGATTA_LOG");
    came(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

fn worker_killed() {
    let place = place(SUMS);
    submit(&place, "w", &[]);
    stepping(&place, "w", 1);
    let pid = process(&place, "REGATTA_SLOT=1");
    nodes::signal(pid, Signal::KILL);
    let since = Instant::now();
    let shown = stepping(&place, "w", 2);
    let took = since.elapsed();
    eprintln!("a killed worker: stepping again after {took:?}");
    let cause = shown["attempts"][0]["row"]["cause"]["message"].as_str().unwrap().to_owned();
    end(&place, "w");
    assert!(cause.contains("was killed by signal 9"), "{cause}");
    assert!(took < RECOVERED, "{took:?}");
}

fn node_fails(how: fn(&Node)) {
    let place = place(SUMS);
    submit(&place, "n", &["engine=Slurm(spare: 1)"]);
    stepping(&place, "n", 1);
    let (driver, worker) = (driver(&place, "n"), process(&place, "REGATTA_SLOT=1"));
    let name = node_of(worker).expect("it is on a node");
    assert_ne!(node_of(driver).as_ref(), Some(&name), "the driver is on it too");
    let node = Node::find(&name);
    how(&node);
    let since = Instant::now();
    stepping(&place, "n", 2);
    let took = since.elapsed();
    eprintln!("a broken node: stepping again after {took:?}");
    let new = process(&place, "REGATTA_ATTEMPT=2");
    let elsewhere = node_of(new).is_some_and(|node| node != name);
    node.restore();
    end(&place, "n");
    assert!(elsewhere, "it is on {name} again");
    assert!(took < RECOVERED, "{took:?}");
}

fn driver_killed() {
    let place = place(SUMS);
    submit(&place, "d", &[]);
    eventually(PATIENCE, || saved(&shown(&place, "d")?).then_some(()));
    let ranks = ["REGATTA_SLOT=0", "REGATTA_SLOT=1"].map(|slot| process(&place, slot));
    nodes::signal(driver(&place, "d"), Signal::KILL);
    place.run(&["attach", "d"]).code(1).says("exit code 137");
    nodes::gone(&ranks, PATIENCE);
    let from = shown(&place, "d").unwrap()["step"].as_u64().unwrap();
    let steps = format!("steps={}", from + 10);
    let told =
        place.run(&["submit", "d", &steps, "--attach", "--json"]).code(0).says("restored step-").json();
    let sum = (from + 10) * (from + 11) / 2;
    assert_eq!((&told["job"]["id"], &told["value"]), (&"sums-d-2".into(), &sum.into()));
}

fn cancelled() {
    let place = place(SUMS);
    submit(&place, "c", &[]);
    stepping(&place, "c", 1);
    let ranks = ["REGATTA_SLOT=0", "REGATTA_SLOT=1"].map(|slot| process(&place, slot));
    place.run(&["cancel", "c", "--grace", "30"]).code(0);
    assert_eq!(status(&place, "sums-c"), "was cancelled");
    nodes::gone(&ranks, PATIENCE);
    let shown = shown(&place, "c").unwrap();
    assert_eq!(shown["status"], "resumable");
    assert!(saved(&shown), "{shown}");
}

fn preempted() {
    let place = place(SUMS);
    submit(&place, "p", &[]);
    stepping(&place, "p", 1);
    // Whole nodes, so that there is no room beside the other.
    let urgent =
        ["engine=Slurm(partition: \"urgent\")", "steps=5", "--workers", "3", "scaling.resources.cpu=2"];
    submit(&place, "u", &urgent);
    let left = place.run(&["attach", "p"]).code(75);
    assert!(left.err.contains("preempted") && left.err.contains("saved step-"), "{}", left.err);
    place.run(&["attach", "u"]).code(0);
    let from = shown(&place, "p").unwrap()["step"].as_u64().unwrap();
    let steps = format!("steps={}", from + 10);
    let told = place.run(&["submit", "p", &steps, "--attach", "--json"]).code(0).says("restored step-");
    let told = told.json();
    let sum = (from + 10) * (from + 11) / 2;
    assert_eq!((&told["job"]["id"], &told["value"]), (&"sums-p-2".into(), &sum.into()));
}

/// Begun on this host, killed, and ended on Slurm: the same weights to the bit as without any of it.
fn across() {
    let program = PathBuf::from(std::env::var_os("REGATTA_TEST_SOAK").expect("the soak"));
    let place = place(
        r#"(
        trainable: "soak",
        config: (epochs: 4, step_ms: 10),
        scaling: (workers: 2),
        checkpoint: (every: Steps(7)),
    )"#,
    );
    let whole = with(&program, &place, &["train", "a.ron", "--name", "whole", "--json"]).code(0).json();

    let mut command = Command::new(&program);
    command.args(["train", "a.ron", "--name", "broken"]).current_dir(place.path());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let progress = place.path().join("runs/soak/broken/progress.csv");
    let rows = || std::fs::read_to_string(&progress).unwrap_or_default().lines().count();
    eventually(PATIENCE, || (rows() > 1).then_some(()));
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    came(child);
    let engine = "Slurm(nodes: 2)";
    let ended = with(&program, &place, &["resume", "broken", "--engine", engine, "--json"]).code(0);
    let ended = ended.says("restored step-").says("2 x cpu on 2 nodes").json();
    assert!(whole["value"].as_str().is_some_and(|hash| hash.len() == 64), "{whole}");
    assert_eq!(ended["value"], whole["value"]);
    assert_eq!((&ended["attempts"], &ended["job"]["engine"]), (&2.into(), &"slurm".into()));
}

/// Eight trials, four at once, two on each of two nodes.
fn study() {
    let place = place(
        r#"(
        trainable: "race",
        config: (epochs: 5, millis: 100),
        tune: (metric: "loss", mode: Min, samples: 8, concurrent: 4, sampler: Random),
        engine: Slurm(nodes: 2),
    )"#,
    );
    submit(&place, "s", &[]);
    let mut nodes = std::collections::BTreeSet::new();
    eventually(PATIENCE, || {
        let workers = processes(&place, |variable| variable.starts_with("REGATTA_SLOT="));
        nodes.extend(workers.into_iter().filter_map(node_of));
        (nodes.len() == 2).then_some(())
    });
    let told = place.run(&["attach", "s", "--json"]).code(0).says("study race/s  8 trials, 4 at once").json();
    assert_eq!((&told["status"], &told["trials"], &told["done"]), (&"done".into(), &8.into(), &8.into()));
    assert_eq!((&told["job"]["id"], &told["job"]["engine"]), (&"race-s".into(), &"slurm".into()));
    assert!(told["best"]["config"]["lr"].is_f64(), "{told}");
}

fn not_shared() {
    // The third node has a file system of its own there.
    let private = PathBuf::from(std::env::var_os(CLUSTER).unwrap()).join("private");
    let place = place(SUMS);
    let storage = private.join(format!("runs-{}", std::process::id()));
    let args = ["train", "a.ron", "--name", "s", "--workers", "3", "--storage", storage.to_str().unwrap()];
    let since = Instant::now();
    let told = place.run(&args).code(1);
    eprintln!("storage that is not shared: said after {:?}", since.elapsed());
    let said = &told.err;
    assert!(said.contains("the run's storage is not shared: rank 2 on node `n3`"), "{said}");
    assert!(said.contains("set run.storage to a folder on a file system that all nodes mount"), "{said}");
    let root = ["--root", storage.to_str().unwrap()];
    let shown = place.run(&[&["show", "s", "--json"][..], &root].concat()).code(0).json();
    assert_eq!((attempts(&shown), &shown["reports"]), (1, &0.into()), "it is not tried again");
}

fn no_capacity() {
    let place = place(SUMS);
    let since = Instant::now();
    let told = place.run(&["submit", "a.ron", "--name", "x", "--workers", "9"]).code(1);
    assert!(told.err.contains("its partition has not so many nodes"), "{}", told.err);
    let told = place.run(&["train", "a.ron", "--name", "x", "engine=Slurm(partition: \"none\")"]).code(1);
    assert!(told.err.contains("nvalid partition") && told.err.contains("sinfo -s"), "{}", told.err);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert!(nodes::tool("squeue", &["-h", "-o", "%j"]).lines().all(|name| !name.starts_with("sums-x")));
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

/// From `submit` to the first line of a worker, beyond what Slurm itself takes, side by side.
fn latency() {
    let place = place(
        r#"(
        trainable: Command("sh first.sh"),
        scaling: (workers: 2, placement: strict_spread),
        engine: Slurm(),
    )"#,
    );
    place.write("first.sh", "date +first%s%3N\n");
    let script = "#!/bin/sh\nsrun -N2 -n2 --export=NONE /bin/sh -c 'date +first%s%3N'\n";
    place.write("bare.sh", script);
    let first = |path: PathBuf| {
        eventually(PATIENCE, || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            text.lines().find_map(|line| line.strip_prefix("first")?.parse::<u128>().ok())
        })
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let (since, log) = (now(), place.path().join(format!("bare-{round}")));
        let bare = place.path().join("bare.sh");
        let (bare, out) = (bare.to_str().unwrap(), log.to_str().unwrap());
        nodes::tool("sbatch", &["-N2", "--ntasks-per-node=1", "-c1", "-o", out, bare]);
        theirs.push(first(log.clone()).saturating_sub(since));
        nodes::all_idle(PATIENCE);
        let (since, name) = (now(), format!("r{round}"));
        submit(&place, &name, &[]);
        let log = place.path().join("runs/first").join(&name).join("logs/attempt_1/rank_0.log");
        ours.push(first(log).saturating_sub(since));
        nodes::all_idle(PATIENCE);
    }
    ours.sort_unstable();
    theirs.sort_unstable();
    let added = ours[2].saturating_sub(theirs[2]);
    eprintln!(
        "submit to the first line of a worker: {} ms; of a bare srun: {} ms; added: {added} ms",
        ours[2], theirs[2]
    );
    // The promise is 500 ms on an idle machine; the figure is printed. How far from idle it is, the bare srun tells.
    assert!(added < 1000 + 3 * theirs[2], "{added} ms");
}
