//! The commands that look: configuration, environment, completions, and how text is shown.

use crate::support::Place;
use serde_json::json;

const FILE: &str = r#"(
    trainable: "sums",
    config: (steps: 10, optim: Adam(lr: 0.5, beta: 0.9)),
    scaling: (workers: (min: 1, max: 2), resources: (cpu: 1, memory: "64MiB")),
    run: (stop: (steps: 1000, metrics: { "loss": AtMost(0.001) })),
    checkpoint: (every: Steps(5), keep: 2, best: (metric: "loss", mode: min, count: 1)),
)"#;

#[test]
fn a_printed_configuration_is_one_that_reads_the_same() {
    let place = Place::new();
    place.write("a.ron", FILE);
    let printed = place.run(&["config", "print", "a.ron", "lr=0.25"]).code(0);
    place.write("b.ron", &printed.out);
    let again = place.run(&["config", "print", "b.ron"]).code(0);
    assert_eq!(printed.out, again.out);
    let tree = place.run(&["config", "print", "b.ron", "--json"]).code(0).json();
    assert_eq!(tree["experiment"]["config"]["optim"], json!({ "Adam": { "lr": 0.25, "beta": 0.9 } }));
    assert_eq!(tree["experiment"]["scaling"]["workers"], json!({ "min": 1, "max": 2 }));
    assert_eq!(tree["experiment"]["checkpoint"]["keep"], json!(2));
}

#[test]
fn every_value_is_traced_to_who_set_it() {
    let place = Place::new();
    place.write("a.ron", FILE);
    let env = [("REGATTA__config__steps", "7"), ("REGATTA__run__seed", "9")];
    let args = ["config", "explain", "a.ron", "--json", "optim.lr=0.125", "scaling.workers=2", "run.seed=10"];
    let told = place.run_with(&args, &env).code(0).json();
    let from = |key: &str| {
        let values = told["values"].as_array().unwrap();
        let value =
            values.iter().find(|value| value["key"] == key).unwrap_or_else(|| panic!("{key}: {told}"));
        (value["value"].clone(), value["from"].as_str().unwrap().to_owned())
    };
    assert_eq!(from("config.steps"), (json!(7), "environment REGATTA__config__steps".into()));
    assert_eq!(from("config.optim.Adam.lr"), (json!(0.125), "command line optim.lr=0.125".into()));
    assert_eq!(from("config.optim.Adam.beta").0, json!(0.9));
    assert_eq!(from("config.millis"), (json!(0), "default".into()));
    assert_eq!(from("scaling.workers"), (json!(2), "command line scaling.workers=2".into()));
    // The command line wins over the environment.
    assert_eq!(from("run.seed"), (json!(10), "command line run.seed=10".into()));
    assert_eq!(from("checkpoint.keep"), (json!(2), "a.ron:6:35".into()));
}

#[test]
fn a_configuration_that_is_left_out_is_the_default_one() {
    let place = Place::new();
    place.write("a.ron", r#"(trainable: "sums")"#);
    let tree = place.run(&["config", "print", "a.ron", "--json"]).code(0).json();
    assert_eq!(tree["experiment"]["config"]["steps"], 20);
    let schema = place.run(&["config", "schema", "a.ron"]).code(0).json();
    assert_eq!(
        schema["properties"]["config"]["properties"]["steps"],
        json!({ "type": "integer", "default": 20 })
    );
    place.write("b.ron", r#"(trainable: "nothing")"#);
    place.run(&["config", "check", "b.ron"]).code(0);
}

#[test]
fn a_dry_run_tells_the_plan_and_makes_nothing() {
    let place = Place::new();
    place.write("a.ron", FILE);
    let plan = place.run(&["train", "a.ron", "--dry-run", "--workers", "1"]).code(0);
    assert!(
        plan.out.contains("steps: 10") && plan.out.contains("workers    1, each cpu: 1, memory: 64MiB"),
        "{}",
        plan.out
    );
    let plan =
        place.run(&["train", "a.ron", "--dry-run", "--name", "x", "--json", "--workers", "1"]).code(0).json();
    assert!(plan["plan"]["folder"].as_str().unwrap().ends_with("runs/sums/x"));
    assert!(!place.path().join("runs").exists());
}

#[test]
fn the_environment_and_completions_are_told() {
    let place = Place::new();
    let env = place.run(&["env", "--json"]).code(0).json();
    assert_eq!(env["trainables"], json!(["nothing", "race", "sums", "surroundings"]));
    assert!(env["environment"]["cpus"].as_u64().unwrap() >= 1);
    for shell in ["bash", "zsh", "fish"] {
        let text = place.run(&["completions", shell]).code(0).out;
        assert!(text.contains("regatta-tests") && text.contains("resume"), "{shell}");
    }
    place.run(&["--help"]).code(0);
    place.run(&[]).code(2);
    assert!(place.run(&["ls"]).code(0).out.contains("no runs"));
    assert_eq!(place.run(&["ls", "--json"]).code(0).json()["runs"], json!([]));
}

#[test]
fn what_cannot_be_said_ends_nothing() {
    let place = Place::new();
    place.write("a.ron", "(trainable: \"sums\", config: (steps: 10))");
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut train = place.command(&["train", "a.ron", "--name", "mute"]);
    let status = train.env("REGATTA_LOG", "debug").stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(place.run(&["show", "mute", "--json"]).code(0).json()["status"], "done");
    let status = place.command(&["show", "nothing-like-it"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(2));
}
