//! Bad input: each kind with its exit code, the place, and what was probably meant.

use crate::support::Place;

const GOOD: &str = r#"// An experiment.
(
    trainable: "sums",
    config: (
        steps: 10,
        optim: Sgd(lr: 0.5),
    ),
    scaling: (workers: 1),
)
"#;

#[test]
fn unknown_keys_are_named_with_their_place_and_what_was_meant() {
    let place = Place::new();
    // The configuration's type has no deny_unknown_fields: serde alone would pass over it.
    place.write("a.ron", &GOOD.replace("steps: 10", "stpes: 10"));
    place
        .run(&["train", "a.ron"])
        .code(2)
        .says("a.ron:5:9: there is no key `stpes` in `config`")
        .says("did you mean `steps`?");
    place.write("b.ron", &GOOD.replace("workers: 1", "wrokers: 1"));
    place
        .run(&["train", "b.ron"])
        .code(2)
        .says("b.ron:8:15: there is no key `wrokers`")
        .says("did you mean `workers`?");
    place.write("c.ron", &GOOD.replace("Sgd(", "Sdg("));
    place
        .run(&["train", "c.ron"])
        .code(2)
        .says("c.ron:6:16: there is no variant `Sdg`")
        .says("did you mean `Sgd`?");
    assert!(!place.path().join("runs").exists(), "something was made");
}

#[test]
fn wrong_types_are_told_with_their_place() {
    let place = Place::new();
    place.write("a.ron", &GOOD.replace("steps: 10", "steps: \"ten\""));
    place.run(&["config", "check", "a.ron"]).code(2).says("a.ron:5:");
    place.write("b.ron", &GOOD.replace("workers: 1", "workers: 0"));
    place
        .run(&["config", "check", "b.ron"])
        .code(2)
        .says("b.ron:8:15")
        .says("scaling.workers")
        .says("at least one");
    place.write("c.ron", "(trainable: \"sums\", config: (");
    place.run(&["config", "check", "c.ron"]).code(2).says("c.ron:1:");
}

#[test]
fn bad_overrides_name_themselves() {
    let place = Place::new();
    place.write("a.ron", GOOD);
    let refused = |args: &[&str]| place.run(&[&["config", "check", "a.ron"], args].concat()).code(2);
    refused(&["steps=ten"]).says("command line steps=ten").says("config.steps");
    refused(&["setps=3"]).says("there is no key `setps`").says("did you mean `steps`?");
    refused(&["optim.momentum=3"]).says("no key `optim.momentum`");
    refused(&["steps"]).says("sets nothing");
    refused(&["scaling.wrkers=3"]).says("no key `scaling.wrkers`").says("did you mean `scaling.workers`?");
    refused(&["scaling.workers=0"]).says("command line scaling.workers=0").says("at least one");
    refused(&["checkpoint.every=Stepps(3)"]).says("Stepps");
    let env = [("REGATTA__config__steps", "many")];
    place.run_with(&["config", "check", "a.ron"], &env).code(2).says("environment REGATTA__config__steps");
}

#[test]
fn missing_files_and_unknown_trainables_are_usage() {
    let place = Place::new();
    place.run(&["train", "none.ron"]).code(2).says("none.ron").says("No such file");
    place.write("a.ron", "(trainable: \"smus\", config: ())");
    place
        .run(&["train", "a.ron"])
        .code(2)
        .says("a.ron:1:2: there is no trainable \"smus\"")
        .says("did you mean `sums`?");
    place.write("b.ron", "(trainable: Command(\"echo {lr}\"), config: (rate: 1))");
    place.run(&["train", "b.ron"]).code(2).says("b.ron:1:2").says("no `lr`").says("it has rate");
    place.run(&["tarin", "a.ron"]).code(2);
    place.run(&["show", "nobody"]).code(2).says("no run `nobody`");
}

#[test]
fn what_no_machine_has_is_refused_at_once() {
    let place = Place::new();
    place.write("a.ron", GOOD);
    for how in [&["--dry-run"][..], &[]] {
        let args = [&["train", "a.ron", "scaling.resources.cpu=100000"], how].concat();
        place.run(&args).code(2).says("cpu: 100000");
    }
    place.run(&["train", "a.ron", "scaling.resources=cpus: 1"]).code(2).says("did you mean `cpu`");
}

#[test]
fn a_storage_that_cannot_be_written_is_found_out_first() {
    let place = Place::new();
    place.write("a.ron", GOOD);
    place.write("file", "");
    place
        .run(&["train", "a.ron", "--storage", "file/runs"])
        .code(2)
        .says("run.storage")
        .says("file/runs")
        .says("--storage");
}

#[test]
fn a_name_in_use_is_refused() {
    let place = Place::new();
    place.write("a.ron", GOOD);
    place.run(&["train", "a.ron", "--name", "one"]).code(0);
    place.run(&["train", "a.ron", "--name", "one"]).code(2).says("one").says("resume it");
    place.run(&["train", "a.ron", "--name", "one", "--dry-run"]).code(2).says("resume it");
    place.run(&["train", "a.ron", "--name", "../x"]).code(2).says("run.name");
}

#[test]
fn a_second_controller_is_refused_and_told_who_has_the_run() {
    let place = Place::new();
    place.write("a.ron", GOOD);
    let args = ["train", "a.ron", "--name", "busy", "steps=100000", "millis=10"];
    let child = place.start_until_step(&args, "busy");
    place.run(&["resume", "busy"]).code(1).says(&format!("process {}", child.id()));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .unwrap();
    crate::support::came(child).code(75);
}
