//! Studies and runs beside one another: show, compare, diff, export. The studies are stores written here event by event, so
//! that every figure is known.

use std::time::Duration;

use regatta_track::event::{
    Cause, Objective, Outcome, Report, RunConfigured, RunCreated, RunEnvironment, RunFinished,
    StudyConfigured, TrialCreated, TrialFinished,
};
use regatta_track::{Draft, Metrics, Store, StoreConfig, Timestamp};
use regatta_tune::results::recorded;
use regatta_tune::space::{choice, float, group, int};
use serde_json::{Value, json};

use crate::support::Place;

/// A study of six trials over two learning rates and three seeds, and one that failed; they end at 10 * lr + seed.
fn study(place: &Place, name: &str, created: i64) {
    let folder = place.path().join("runs/sums").join(name);
    let store = Store::create(&folder, StoreConfig::default()).unwrap();
    let at = |seconds: i64| Timestamp((created + seconds) * 1_000_000);
    let put = |seconds: i64, draft: Draft| store.append(draft.at(at(seconds))).unwrap().detach();
    put(0, RunCreated { experiment: "sums".into(), name: name.into() }.into());
    put(0, RunConfigured { config: json!({ "trainable": "sums", "run": { "seed": created } }) }.into());
    put(0, RunEnvironment { env: json!({ "host": "here", "git": { "commit": name } }) }.into());
    let space = group().with("lr", choice([0.1, 0.2])).with("seed", int(0..=2)).with("x", float(0.0..=1.0));
    let objectives = vec![Objective { metric: "loss".into(), maximize: false }];
    let parameters = recorded(&space.build().unwrap());
    put(0, StudyConfigured { objectives, parameters, plan: Value::Null }.into());
    for trial in 0..7 {
        let (lr, seed) = (if trial % 2 == 0 { 0.1 } else { 0.2 }, trial / 2);
        let config = json!({ "lr": lr, "seed": seed % 3, "x": 0.5, "optim": { "name": "sgd" } });
        let second = i64::from(trial) * 10;
        put(second, Draft::new(TrialCreated { config, ..Default::default() }).trial(trial));
        for step in 1..=4 {
            let loss = 10.0 * lr + f64::from(seed) + if step == 3 { -0.5 } else { 4.0 - step as f64 };
            let metrics = Metrics::from([("loss", loss), ("acc", 0.5)]);
            put(second + step, Draft::new(Report { step: step as u64, metrics }).trial(trial));
        }
        let cause = (trial == 6).then(|| Cause { step: Some(4), rank: Some(1), ..Cause::new("loss is NaN") });
        let outcome = if trial == 6 { Outcome::Failed } else { Outcome::Completed };
        put(second + 5, Draft::new(TrialFinished { outcome, cause }).trial(trial));
    }
    put(80, RunFinished { outcome: Outcome::Completed, cause: None }.into());
    store.close().unwrap();
}

fn names(rows: &Value) -> Vec<&str> {
    rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

#[test]
fn a_study_is_shown_the_best_first_with_what_failed_and_why() {
    let place = Place::new();
    study(&place, "sweep", 1_000);
    let shown = place.run(&["show", "swe"]).code(0).out;
    assert!(shown.starts_with("study sums/sweep  done  7 trials: 6 done, 1 failed  took 1m20s\n"), "{shown}");
    assert!(shown.contains("minimize loss\nbest 1  trial 0  "), "{shown}");
    let rows: Vec<&str> =
        shown.lines().skip_while(|line| !line.starts_with("trial ")).skip(1).take(7).collect();
    let first: Vec<&str> = rows.iter().map(|row| row.split_whitespace().next().unwrap()).collect();
    assert_eq!(first, ["0", "1", "2", "3", "4", "5", "6"]);
    assert!(rows[0].contains("done    4     1") && rows[0].contains("█▆▁▂"), "{shown}");
    assert!(shown.contains("importance\n") && shown.contains("  lr\n"), "{shown}");
    assert!(shown.ends_with("failed\n  trial 6 on rank 1 at step 4: loss is NaN\n"), "{shown}");
    let few = place.run(&["show", "sweep", "-n", "2"]).code(0).out;
    assert!(few.contains("... 5 more: -n 7"), "{few}");

    let told = place.run(&["show", "sweep", "--json"]).code(0).json();
    assert_eq!((&told["best"], &told["status"]), (&0.into(), &"done".into()));
    assert_eq!(told["trials"][6]["cause"]["message"], "loss is NaN");
    assert_eq!(told["trials"][1]["value"], 2.0);
    let other = place.run(&["show", "sweep", "--mode", "max", "--by", "average", "--json"]).code(0).json();
    assert_eq!(other["best"], 5);
    place.run(&["show", "sweep", "--metric", "los"]).code(2).says("did you mean `loss`?");
    place.run(&["show", "sweep", "--by", "middle"]).code(2).says("last, best, average");

    let trial = place.run(&["show", "sweep/6"]).code(0).out;
    assert!(
        trial.contains("trial sweep/6 of sums  failed") && trial.contains("failed: loss is NaN"),
        "{trial}"
    );
    assert_eq!(place.run(&["show", "sweep/3", "--json"]).code(0).json()["config"]["lr"], 0.2);
    place.run(&["show", "sweep/9"]).code(2).says("has no trial 9: it has 0 to 6");
    place.run(&["logs", "sweep/6"]).code(2).says("no run of its own");
}

#[test]
fn trials_are_compared_over_seeds_and_with_runs() {
    let place = Place::new();
    study(&place, "sweep", 1_000);
    let told = place.run(&["compare", "sweep", "--json"]).code(0).json();
    assert_eq!((&told["metric"], &told["direction"]), (&"loss".into(), &"minimize".into()));
    let rows = &told["entries"];
    assert_eq!(names(rows), ["sweep/0", "sweep/1", "sweep/2", "sweep/3", "sweep/4", "sweep/5"]);
    assert_eq!(
        (&rows[1]["best"], &rows[1]["best_step"], &rows[1]["last"]),
        (&1.5.into(), &3.into(), &2.0.into())
    );
    assert_eq!((&rows[0]["behind"], &rows[1]["behind"]), (&0.0.into(), &1.0.into()));
    let groups = &told["groups"];
    assert_eq!(groups[0]["names"], json!(["sweep/0", "sweep/2", "sweep/4"]));
    assert_eq!(groups[0]["last"], json!({ "mean": 2.0, "deviation": 1.0 }));
    assert_eq!(groups[0]["best"], json!({ "mean": 1.5, "deviation": 1.0 }));
    assert_eq!((&groups[1]["behind"], &groups[1]["config"]["lr"]), (&1.0.into(), &0.2.into()));
    let shown = place.run(&["compare", "sweep"]).code(0).out;
    assert!(shown.starts_with("loss, lower is better, by its last value\n"), "{shown}");
    assert!(shown.contains("over `seed`: mean ± standard deviation") && shown.contains("2 ± 1"), "{shown}");
    let top = place.run(&["compare", "sweep", "--top", "2", "--by", "best", "--json"]).code(0).json();
    assert_eq!(names(&top["entries"]), ["sweep/0", "sweep/1"]);

    // With a run, whose configuration has the same names.
    place.write("a.ron", r#"(trainable: "sums", config: (steps: 5), failure: (backoff_seconds: 0))"#);
    place.run(&["train", "a.ron", "--name", "alone"]).code(0);
    let told = place.run(&["compare", "alone", "sweep", "1", "--metric", "loss", "--json"]).code(0).json();
    assert_eq!(names(&told["entries"]), ["alone", "sweep/1"], "{told}");
    assert_eq!(told["entries"][0]["last"], 0.2);
    place
        .run(&["compare", "alone", "--metric", "accuracy"])
        .code(2)
        .says("nothing reported a metric `accuracy`");
    place.run(&["compare", "nobody"]).code(2).says("there is no run `nobody`");
}

#[test]
fn a_diff_tells_what_is_not_the_same() {
    let place = Place::new();
    study(&place, "older", 1_000);
    study(&place, "sweep", 2_000);
    let told = place.run(&["diff", "sweep", "0", "3", "--json"]).code(0).json();
    assert_eq!(told["names"], json!(["sweep/0", "sweep/3"]));
    assert_eq!(told["differ"]["configuration"], json!({ "lr": [0.1, 0.2], "seed": [0, 1] }));
    assert_eq!(told["differ"]["result"], json!({ "loss": [1.0, 3.0] }));
    assert_eq!(told["differ"]["environment"], Value::Null, "one study has one environment");
    // Numbers alone are trials of the newest study.
    assert_eq!(
        place.run(&["diff", "0", "3", "--json"]).code(0).json()["names"],
        json!(["sweep/0", "sweep/3"])
    );
    let studies = place.run(&["diff", "older", "sweep"]).code(0).out;
    assert!(
        studies.contains("git.commit") && studies.contains("older") && studies.contains("run.seed"),
        "{studies}"
    );
    let same = place.run(&["diff", "sweep/1", "sweep/1"]).code(0).out;
    assert_eq!(same, "sweep/1 and sweep/1 do not differ\n");
    place.run(&["diff", "sweep"]).code(2).says("two things differ, not 1: sweep");
}

#[test]
fn a_study_leaves_as_a_table_and_as_plots() {
    let place = Place::new();
    study(&place, "sweep", 1_000);
    let read = |name: &str| std::fs::read(place.path().join(name)).unwrap();
    let csv = place.run(&["export", "sweep"]).code(0).out;
    assert!(csv.starts_with("trial,state,steps,loss,loss/best,loss/last,acc,config/lr,"), "{csv}");
    assert_eq!(csv.lines().count(), 8);
    let told = place.run(&["export", "sweep", "t.csv"]).code(0);
    assert_eq!((told.out.as_str(), read("t.csv")), ("t.csv\n", csv.clone().into_bytes()));
    place.run(&["export", "sweep", "--parquet", "table"]).code(0);
    assert!(read("table").starts_with(b"PAR1") && read("table").ends_with(b"PAR1"));
    place.run(&["export", "sweep", "--json", "t.txt"]).code(0);
    let rows: Value = serde_json::from_slice(&read("t.txt")).unwrap();
    assert_eq!((&rows[0]["loss"], &rows[6]["error"]), (&1.0.into(), &"loss is NaN".into()));
    assert_eq!(place.run(&["export", "sweep", "--json"]).code(0).json()["trials"], rows);
    place.run(&["export", "sweep", "t.xls"]).code(2).says("`xls` does not tell: --csv, --json or --parquet");

    let told = place.run(&["export", "sweep", "--plots", "plots", "--json"]).code(0).json();
    assert_eq!(told["written"].as_array().unwrap().len(), 6);
    for path in told["written"].as_array().unwrap() {
        let svg = String::from_utf8(read(path.as_str().unwrap())).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{path}");
    }
    place.write("a.ron", r#"(trainable: "sums", config: (steps: 5))"#);
    place.run(&["train", "a.ron", "--name", "alone"]).code(0);
    place.run(&["export", "alone"]).code(2).says("alone is no study");
}

/// A study that just began has nothing to judge by, and is shown all the same.
#[test]
fn a_study_without_reports_is_shown() {
    let place = Place::new();
    let folder = place.path().join("runs/sums/new");
    let store = Store::create(&folder, StoreConfig::default()).unwrap();
    store.append(RunCreated { experiment: "sums".into(), name: "new".into() }).unwrap().detach();
    store.append(StudyConfigured::default()).unwrap().detach();
    store
        .append(Draft::new(TrialCreated { config: json!({ "lr": 1 }), ..Default::default() }).trial(0))
        .unwrap()
        .detach();
    store.flush(Duration::from_secs(30)).unwrap();
    let shown = place.run(&["show", "new"]).code(0).out;
    assert!(shown.contains("1 trials: 1 pending") && shown.contains("no trial has a value yet"), "{shown}");
    place.run(&["compare", "new"]).code(2).says("nothing was reported yet");
    store.close().unwrap();
}
