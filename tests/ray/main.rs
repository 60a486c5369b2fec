//! The product on a real Ray, by its command line.
//!
//! Skipped unless `REGATTA_TEST_RAY` names the folder of a running cluster, as `cargo xtask test-engines ray` sets it up; it also
//! names the program of the example, `REGATTA_TEST_EXAMPLE`.

#[allow(dead_code, reason = "the cluster's own tests use all of it")]
#[path = "../../cluster/tests/ray_nodes/mod.rs"]
mod ray_nodes;
#[allow(dead_code, reason = "the tests of this host use all of it")]
#[path = "../it/support.rs"]
mod support;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use ray_nodes::{address, all_idle};
use support::{Place, came};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let here = std::env::var_os("REGATTA_TEST_RAY").is_some();
    let trial = |name: &str, test: fn()| {
        let run = move || -> Result<(), Failed> {
            all_idle(PATIENCE);
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(!here)
    };
    let trials = vec![
        trial("the_example_is_trained_on_two_nodes", example),
        trial("a_study_of_eight_trials_is_a_job", study),
        trial("what_can_never_run_is_refused_at_once", no_capacity),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// An experiment whose storage is where all nodes find it.
fn place(trainable: &str) -> Place {
    let place = Place::new();
    let (address, storage) = (address(), place.path().join("runs"));
    place.write(
        "a.ron",
        &format!(
            r#"(
                trainable: {trainable},
                scaling: (workers: 2, placement: strict_spread),
                run: (storage: {storage:?}, fast_dev_run: true),
                engine: Ray(address: {address:?}),
            )"#
        ),
    );
    place
}

fn example() {
    let program = PathBuf::from(std::env::var_os("REGATTA_TEST_EXAMPLE").expect("the example"));
    let place = place(r#""resnet", config: (epochs: 1, batch_size: 32, lr: 0.004)"#);
    let mut command = Command::new(program);
    command.args(["train", "a.ron", "--name", "mnist", "--json"]).current_dir(place.path());
    command.env_remove("REGATTA_LOG").stdin(Stdio::null());
    let told = came(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let told = told.code(0).says("2 x cpu on 2 nodes").json();
    assert_eq!((&told["status"], &told["job"]["engine"]), (&"done".into(), &"ray".into()));
}

/// Eight trials, three at once, one on each node.
fn study() {
    let tune = r#"tune: (metric: "loss", mode: Min, samples: 8, concurrent: 3, sampler: Random)"#;
    let place = place(&format!(r#""race", config: (epochs: 5, millis: 100), {tune}"#));
    let args =
        ["submit", "a.ron", "--name", "s", "--workers", "1", "run.fast_dev_run=false", "--attach", "--json"];
    let told = place.run(&args).code(0).says("study race/s  8 trials, 3 at once").json();
    assert_eq!((&told["status"], &told["trials"], &told["done"]), (&"done".into(), &8.into(), &8.into()));
    assert_eq!((&told["job"]["id"], &told["job"]["engine"]), (&"race-s".into(), &"ray".into()));
    assert!(told["best"]["config"]["lr"].is_f64(), "{told}");
}

fn no_capacity() {
    let place = place(r#""sums""#);
    let since = Instant::now();
    let told = place.run(&["submit", "a.ron", "--name", "x", "--workers", "9"]).code(2);
    assert!(told.err.contains("even on an idle cluster at most 3 would fit"), "{}", told.err);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}
