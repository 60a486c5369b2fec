//! The commands, through the real program.

mod common;

use std::process::{Command, Output};

use common::*;
use regatta_checkpoint::*;
use serde_json::Value;

struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    fn new() -> Run {
        let folder = tempfile::tempdir().unwrap();
        let store = store::open(folder.path().to_str().unwrap()).unwrap();
        let mut savers = build_all(&config(), &store, group(2)).unwrap();
        for step in 1..=4 {
            save_all(&mut savers, step).into_iter().for_each(|outcome| drop(outcome.unwrap()));
        }
        Run { folder }
    }

    fn path(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    fn ckpt(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ckpt")).args(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ckpt(&[arguments, &["--json"]].concat());
        let value: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(value["schema"], 1);
        value
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn ls_and_show() {
    let run = Run::new();
    let listed = run.json(&["ls", run.path()]);
    let steps: Vec<u64> =
        listed["checkpoints"].as_array().unwrap().iter().map(|one| one["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [4, 3, 2, 1]);
    let table = text(&run.ckpt(&["ls", run.path()]));
    assert!(table.lines().count() == 5 && table.contains("loss=0.250000"), "{table}");
    let shown = text(&run.ckpt(&["show", run.path()]));
    assert!(shown.contains("step 4") && shown.contains("embed.weight  F32   [37, 8]"), "{shown}");
    assert_eq!(run.json(&["show", run.path(), "step-000002"])["manifest"]["step"], 2);
}

#[test]
fn verify_names_the_damage_and_exits_with_1() {
    let run = Run::new();
    assert_eq!(run.ckpt(&["verify", run.path()]).status.code(), Some(0));
    let name = run.json(&["ls", run.path()])["checkpoints"][1]["name"].as_str().unwrap().to_owned();
    let shard = run.folder.path().join("checkpoints").join(&name).join("shard-00001-of-00002.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let output = run.ckpt(&["verify", run.path()]);
    assert_eq!(output.status.code(), Some(1));
    let answer = text(&output);
    assert!(
        answer.contains(&format!("{name}: damaged")) && answer.contains("the CRC32C of tensor `"),
        "{answer}"
    );
    assert_eq!(answer.matches(": ok").count(), 3);
    assert_eq!(run.json(&["verify", run.path(), "step-000004"])["sound"], true);
}

#[test]
fn diff_counts_elements() {
    let run = Run::new();
    assert_eq!(run.ckpt(&["diff", run.path(), "step-000001", "step-000001"]).status.code(), Some(0));
    let output = run.ckpt(&["diff", run.path(), "step-000001", "step-000002"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("of 296 elements differ"), "{}", text(&output));
}

#[test]
fn export_writes_plain_safetensors_and_an_index() {
    let run = Run::new();
    let to = run.folder.path().join("out");
    let exported = run.json(&["export", run.path(), "--to", to.to_str().unwrap()]);
    assert_eq!(exported["files"].as_array().unwrap().len(), 1);
    let bytes = std::fs::read(to.join("model.safetensors")).unwrap();
    let stored = header::parse(&bytes).unwrap();
    assert_eq!(stored.len(), specs().len());
    for spec in specs() {
        let one = stored.iter().find(|one| one.name == spec.name).unwrap();
        assert_eq!(one.shape, spec.shape);
        assert!(
            bytes[one.start as usize..(one.start + one.bytes) as usize] == content(&spec, 4)[..],
            "{}",
            spec.name
        );
    }
    let to = run.folder.path().join("shards");
    let exported = run.json(&["export", run.path(), "--to", to.to_str().unwrap(), "--max-bytes", "1000"]);
    assert!(exported["files"].as_array().unwrap().len() > 2);
    let index: Value =
        serde_json::from_slice(&std::fs::read(to.join("model.safetensors.index.json")).unwrap()).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), specs().len());
    assert!(map.values().all(|file| to.join(file.as_str().unwrap()).exists()));
}

#[test]
fn gc_says_what_it_would_do_and_does_it() {
    let run = Run::new();
    let torn = run.folder.path().join("checkpoints/step-000009.g1.ffff");
    std::fs::create_dir(&torn).unwrap();
    std::fs::write(torn.join("shard-00000-of-00001.safetensors"), b"half").unwrap();
    let dry = run.json(&["gc", run.path(), "--last", "1", "--best", "loss:max:1", "--dry-run"]);
    let doomed: Vec<&str> = dry["decisions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["remove"] == true)
        .map(|one| &one["name"].as_str().unwrap()[..11])
        .collect();
    // The last two always stay, step 1 has the largest loss, and the unfinished save may be under way.
    assert_eq!(doomed, ["step-000002"]);
    assert_eq!(run.json(&["ls", run.path()])["checkpoints"].as_array().unwrap().len(), 5);
    let done = run.ckpt(&["gc", run.path(), "--last", "1", "--best", "loss:max:1", "--torn-after", "0"]);
    assert_eq!(done.status.code(), Some(0));
    assert!(!torn.exists(), "{}", text(&done));
    assert_eq!(run.json(&["ls", run.path()])["checkpoints"].as_array().unwrap().len(), 3);
}

#[test]
fn mistakes_are_explained_on_stderr_with_code_2() {
    let run = Run::new();
    let cases: [(&[&str], &str); 3] = [
        (&["show", run.path(), "step-9"], "no checkpoint in"),
        (&["show", run.path(), "step-"], "give more of it"),
        (&["ls", "/nowhere/at/all"], "open folder"),
    ];
    for (arguments, expected) in cases {
        let output = run.ckpt(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(output.stdout.is_empty() && error.contains(expected), "{error}");
    }
    assert!(!std::path::Path::new("/nowhere").exists());
}
