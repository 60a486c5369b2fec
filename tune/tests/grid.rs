//! A study's results from its store: what its events add up to, and how they leave the house.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use regatta_track::event::{
    Cause, Objective, Outcome, Report, RunCreated, StudyConfigured, TrialCloned, TrialCreated, TrialFinished,
    TrialPaused, TrialResumed,
};
use regatta_track::{Draft, Metrics, Store, StoreConfig, Timestamp};
use regatta_tune::plot;
use regatta_tune::results::{Direction, ResultGrid, Scope, recorded};
use regatta_tune::space::{Space, branches, float, group, int};
use serde::Deserialize;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

fn space() -> Space {
    group()
        .with("lr", float(1e-4..=1.0).log())
        .with("layers", int(1..=4))
        .with("optim", branches().unit("adam").with("sgd", group().with("momentum", float(0.0..=1.0))))
        .build()
        .unwrap()
}

/// A study under way: its events are a second apart.
struct Study {
    folder: tempfile::TempDir,
    store: Store,
    at: i64,
}

impl Study {
    fn new(objectives: &[(&str, bool)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path(), StoreConfig::default()).unwrap();
        let mut study = Study { folder, store, at: 1_000_000_000 };
        study.put(RunCreated { experiment: "mnist".into(), name: "sweep".into() });
        let objective =
            |(metric, maximize): &(&str, bool)| Objective { metric: (*metric).into(), maximize: *maximize };
        let objectives = objectives.iter().map(objective).collect();
        study.put(StudyConfigured { objectives, parameters: recorded(&space()), plan: Value::Null });
        study
    }

    fn put(&mut self, draft: impl Into<Draft>) {
        self.at += 1_000_000;
        let draft: Draft = draft.into();
        self.store.append(draft.at(Timestamp(self.at))).unwrap().detach();
    }

    fn create(&mut self, trial: u32, config: Value) {
        self.put(Draft::new(TrialCreated { config, ..Default::default() }).trial(trial));
    }

    fn report(&mut self, trial: u32, step: u64, metrics: impl Into<Metrics>) {
        self.put(Draft::new(Report { step, metrics: metrics.into() }).trial(trial));
    }

    fn finish(&mut self, trial: u32, outcome: Outcome) {
        let cause =
            (outcome == Outcome::Failed).then(|| Cause { rank: Some(1), ..Cause::new("out of memory") });
        self.put(Draft::new(TrialFinished { outcome, cause }).trial(trial));
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn grid(&self) -> ResultGrid {
        self.store.flush(LONG).unwrap();
        ResultGrid::open(self.path()).unwrap()
    }
}

fn adam(lr: f64, layers: i64) -> Value {
    json!({ "lr": lr, "layers": layers, "optim": "adam" })
}

fn sgd(lr: f64, layers: i64, momentum: f64) -> Value {
    json!({ "lr": lr, "layers": layers, "optim": { "sgd": { "momentum": momentum } } })
}

/// Trials in every state.
fn mixed() -> Study {
    let mut study = Study::new(&[("acc", true)]);
    study.create(0, adam(0.1, 1));
    study.report(0, 1, [("acc", 0.5)]);
    study.create(1, sgd(0.2, 2, 0.9));
    study.report(0, 2, [("acc", 0.75), ("loss", 2.0)]);
    // It goes back to a checkpoint at step 1, and what it reported after that is repeated.
    study.report(0, 3, [("acc", 0.9)]);
    study.report(0, 2, [("acc", 0.625)]);
    study.finish(0, Outcome::Completed);
    study.report(1, 1, [("acc", 0.25)]);
    study.put(Draft::new(TrialPaused { checkpoint: Some("c".into()) }).trial(1));
    study.put(Draft::new(TrialResumed {}).trial(1));
    study.put(Draft::new(TrialCloned { from: 0, checkpoint: None, config: adam(0.3, 3) }).trial(1));
    study.report(1, 4, [("acc", 0.5)]);
    study.finish(1, Outcome::Stopped);
    study.create(2, adam(0.4, 4));
    study.report(2, 1, [("acc", 0.99)]);
    study.finish(2, Outcome::Failed);
    study.create(3, adam(0.5, 1));
    study.create(4, sgd(0.6, 2, 0.5));
    study.report(4, 1, [("acc", f64::NAN)]);
    study
}

#[test]
fn a_grid_is_what_the_events_add_up_to() {
    let study = mixed();
    let grid = study.grid();
    let states: Vec<&str> = grid.trials().iter().map(|trial| trial.state.as_str()).collect();
    assert_eq!(states, ["done", "stopped", "failed", "pending", "running"]);
    assert_eq!(grid.trial(0).unwrap().metrics["acc"], [(1, 0.5), (2, 0.625)]);
    assert_eq!(grid.trial(0).unwrap().metrics["loss"], [(2, 2.0)]);
    let one = grid.trial(1).unwrap();
    assert_eq!(
        (one.cloned_from, &one.config["lr"], &one.config["optim"]),
        (Some(0), &json!(0.3), &json!("adam"))
    );
    assert_eq!(one.spans, [(1005.0, Some(1011.0)), (1012.0, Some(1015.0))]);
    let four = grid.trial(4).unwrap();
    assert_eq!((&four.config["optim"], &four.config["optim.sgd.momentum"]), (&json!("sgd"), &json!(0.5)));
    assert_eq!(grid.trial(5), None);

    // The failed one had more, but it failed.
    let best = grid.best().unwrap();
    assert_eq!((best.number, best.value, best.config), (0, 0.625, &adam(0.1, 1)));
    assert_eq!(grid.clone().scope(Scope::Best).best().unwrap().value, 0.625);
    assert_eq!(grid.clone().by("acc", Direction::Minimize).best().unwrap().number, 1);
    assert_eq!(grid.clone().by("loss", Direction::Minimize).best().unwrap().value, 2.0);
    let errors: Vec<(u32, &str)> = grid.errors().map(|(trial, why)| (trial.number, why)).collect();
    assert_eq!(errors, [(2, "out of memory")]);
    assert_eq!(grid.trial(2).unwrap().cause.as_ref().unwrap().rank, Some(1));

    #[derive(Deserialize)]
    struct Config {
        lr: f64,
        layers: usize,
    }
    let config: Config = grid.best_config().unwrap();
    assert_eq!((config.lr, config.layers), (0.1, 1));
    #[derive(Debug, Deserialize)]
    struct Other {
        #[serde(rename = "layers")]
        _layers: String,
    }
    let wrong = grid.best_config::<Other>().unwrap_err().to_string();
    assert!(wrong.contains("`layers`"), "{wrong}");
}

#[test]
fn a_grid_without_a_best_says_why() {
    let mut study = Study::new(&[("acc", true)]);
    let wrong = study.grid().best().unwrap_err().to_string();
    assert!(wrong.contains("none of its 0 trials has a number for `acc`"), "{wrong}");
    study.create(0, adam(0.1, 1));
    study.finish(0, Outcome::Failed);
    let wrong = study.grid().best().unwrap_err().to_string();
    assert!(wrong.contains("1 failed, trial 0 with: out of memory"), "{wrong}");
    let nowhere = ResultGrid::open("/nowhere").unwrap_err().to_string();
    assert!(nowhere.contains("/nowhere"), "{nowhere}");
}

#[test]
fn several_objectives_have_a_front() {
    let mut study = Study::new(&[("loss", false), ("speed", true)]);
    for (trial, loss, speed) in
        [(0, 1.0, 1.0), (1, 2.0, 3.0), (2, 2.0, 2.0), (3, f64::NAN, 9.0), (4, 3.0, 9.0)]
    {
        study.create(trial, adam(0.1, 1));
        study.report(trial, 1, [("loss", loss), ("speed", speed)]);
        study.finish(trial, Outcome::Completed);
    }
    let grid = study.grid();
    let front: Vec<u32> = grid.pareto().iter().map(|trial| trial.number).collect();
    assert_eq!(front, [0, 1, 4]);
    assert!(plot::pareto(&grid).unwrap().contains("trial 4: 3, 9"));
}

/// Runs a program with the Python in REGATTA_PYTHON, or python3, and says where it lacks a module.
fn python(modules: &str, program: &str, folder: &Path) -> Option<Value> {
    let python = std::env::var("REGATTA_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    if !has.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: {python} lacks one of {modules} (pip install them, or set REGATTA_PYTHON)");
        return None;
    }
    let read = Command::new(&python).args(["-c", program]).arg(folder).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&read.stdout), String::from_utf8_lossy(&read.stderr));
    assert!(read.status.success(), "{err}");
    Some(serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}")))
}

const READ: &str = r#"
import json, sys, math, pandas, pyarrow.parquet
folder = sys.argv[1]
table = pyarrow.parquet.read_table(folder + "/trials.parquet")
frame = pandas.read_csv(folder + "/trials.csv")
again = pandas.read_parquet(folder + "/trials.parquet")
objects = pandas.read_json(folder + "/trials.json")
assert list(frame.columns) == list(again.columns) == table.column_names
# An object's fields have no order.
assert sorted(objects.columns) == sorted(frame.columns)
def same(a, b):
    missing = lambda v: v is None or v != v
    return (missing(a) and missing(b)) or a == b
for name in frame.columns:
    for row, (a, b) in enumerate(zip(frame[name], again[name])):
        assert same(a, b), (name, row, a, b)
def plain(value):
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
print(json.dumps({
    "types": {f.name: str(f.type) for f in table.schema},
    "rows": [{k: plain(v) for k, v in row.items()} for row in table.to_pylist()],
}))
"#;

#[test]
fn pandas_and_pyarrow_read_the_exports() {
    let study = mixed();
    let table = study.grid().table().unwrap();
    std::fs::write(study.path().join("trials.csv"), table.csv()).unwrap();
    std::fs::write(study.path().join("trials.parquet"), table.parquet()).unwrap();
    std::fs::write(study.path().join("trials.json"), table.json().to_string()).unwrap();
    let Some(seen) = python("pandas, pyarrow", READ, study.path()) else { return };
    let types = &seen["types"];
    assert_eq!(
        (&types["trial"], &types["acc"], &types["state"]),
        (&"int64".into(), &"double".into(), &"string".into())
    );
    assert_eq!((&types["config/layers"], &types["config/optim"]), (&"int64".into(), &"string".into()));
    let rows = seen["rows"].as_array().unwrap();
    let numbers: Vec<u64> = rows.iter().map(|row| row["trial"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 4, 2, 3], "by value, then those that failed or have none");
    assert_eq!(
        (&rows[0]["acc"], &rows[0]["loss"], &rows[0]["config/lr"]),
        (&json!(0.625), &json!(2.0), &json!(0.1))
    );
    assert_eq!((&rows[2]["acc"], &rows[4]["acc"]), (&json!("nan"), &Value::Null));
    assert_eq!((&rows[3]["error"], &rows[0]["error"]), (&json!("out of memory"), &Value::Null));
}

/// Many columns and rows, all types, and text that is not ASCII: more than one byte of everything in the format.
#[test]
fn pyarrow_reads_wide_and_long_tables() {
    use regatta_tune::results::Table;
    let columns: Vec<String> = (0..40).map(|c| format!("größe {c}")).collect();
    let cell = |row: usize, column: usize| match (column % 5, (row * 7 + column) % 11) {
        (_, 0) => Value::Null,
        (0, _) => json!(row as i64 - 500),
        (1, _) => json!(row as f64 / 8.0),
        (2, _) => json!(row.is_multiple_of(3)),
        (3, _) => json!(format!("zeile {row} “ü”")),
        _ => Value::Null,
    };
    let rows = (0..1003).map(|row| (0..40).map(|column| cell(row, column)).collect()).collect();
    let table = Table { columns, rows };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("wide.parquet"), table.parquet()).unwrap();
    let program = "import json, sys, pyarrow.parquet as p\n\
                   print(json.dumps(p.read_table(sys.argv[1] + '/wide.parquet').to_pylist()))";
    let Some(seen) = python("pyarrow", program, folder.path()) else { return };
    assert_eq!(seen, table.json());
}

const PARSE: &str = r#"
import json, pathlib, sys, xml.dom.minidom
print(json.dumps({p.stem: len(xml.dom.minidom.parse(str(p)).getElementsByTagName("*")) for p in pathlib.Path(sys.argv[1]).glob("*.svg")}))
"#;

#[test]
fn every_plot_is_there_with_no_trial_with_one_and_with_a_thousand() {
    for count in [0, 1, 1000] {
        let mut study = Study::new(&[("loss", false), ("size", false)]);
        for trial in 0..count {
            let part = f64::from(trial) * 0.618 % 1.0;
            let config = match trial % 2 {
                0 => adam(10f64.powf(-4.0 * part), i64::from(trial % 4) + 1),
                _ => sgd(10f64.powf(-4.0 * part), i64::from(trial % 4) + 1, part),
            };
            study.create(trial, config);
            for step in 1..=4 {
                let loss = if trial == 7 { f64::NAN } else { (1.0 + part) / step as f64 };
                study.report(trial, step, [("loss", loss), ("size", f64::from(trial % 10))]);
            }
            let outcome = [Outcome::Completed, Outcome::Stopped, Outcome::Failed][trial as usize % 3];
            study.finish(trial, outcome);
        }
        let plots = plot::all(&study.grid()).unwrap();
        assert_eq!(plots.len(), 7);
        for (name, svg) in &plots {
            assert!(svg.len() < 3 << 20, "{name} of {count} trials has {} bytes", svg.len());
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name} of {count} trials");
            std::fs::write(study.path().join(format!("{name}.svg")), svg).unwrap();
        }
        let Some(seen) = python("xml.dom.minidom", PARSE, study.path()) else { continue };
        for (name, _) in plots {
            let elements = seen[name].as_u64().unwrap();
            let least = if count == 1000 && name != "importance" { 500 } else { 4 };
            assert!(elements >= least, "{name} of {count} trials has {elements} elements");
        }
    }
}
