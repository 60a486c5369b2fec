//! The real Optuna reads `study.journal`: while it grows, when it is over, and after crashes of its writer. It is taken from
//! the Python in REGATTA_PYTHON, or python3; where that has none the test says so and is skipped.

use std::fs;
use std::path::Path;

use regatta_track::event::{
    Cause, Domain, Objective, Outcome, Parameter, Report, RunCreated, StudyConfigured, TrialCloned,
    TrialConfigured, TrialCreated, TrialFinished,
};
use regatta_track::sink::{OptunaJournal, Sink, SinkConfig, Sinks};
use regatta_track::{Draft, Envelope, Metrics, Query, Store, Timestamp};
use serde_json::{Value, json};

use crate::{LONG, new_store, python};

const READ: &str = r#"
import json, sys, optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(sys.argv[1])))
def number(value):
    return value if value is None or isinstance(value, (int, str, bool)) else repr(value)
def trial(t):
    return {
        "number": t.number, "state": t.state.name, "values": t.values and [number(v) for v in t.values],
        "params": t.params, "user": t.user_attrs, "start": t.datetime_start.astimezone().timestamp(),
        "distributions": {k: repr(v) for k, v in t.distributions.items()},
        "steps": {str(k): number(v) for k, v in t.intermediate_values.items()},
        "seconds": None if t.duration is None else t.duration.total_seconds(),
    }
print(json.dumps({
    "name": study.study_name, "directions": [d.name for d in study.directions], "names": study.metric_names,
    "best": study.best_trial.number if len(study.directions) == 1 else [t.number for t in study.best_trials],
    "trials": [trial(t) for t in study.trials],
}))
"#;

const SERVE: &str = r#"
import json, sys
from wsgiref.util import setup_testing_defaults
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna_dashboard import wsgi

app = wsgi(JournalStorage(JournalFileBackend(sys.argv[1])))
def get(path):
    environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET"}
    setup_testing_defaults(environ)
    status = []
    body = b"".join(app(environ, lambda said, *rest: status.append(said)))
    assert status[0].startswith("200"), (path, status, body)
    return json.loads(body)
[study] = get("/api/studies")["study_summaries"]
told = get("/api/studies/%d" % study["study_id"])
print(json.dumps({"name": told["name"], "states": [t["state"] for t in told["trials"]]}))
"#;

/// What Optuna makes of the journal in a folder, or `None` where there is no Optuna.
fn optuna(folder: &Path) -> Option<Value> {
    python("optuna", READ, &folder.join("study.journal"))
}

fn parameter(path: &str, domain: Domain, parent: Option<(usize, usize)>) -> Parameter {
    Parameter { path: path.into(), domain, parent }
}

fn study(objectives: &[(&str, bool)]) -> StudyConfigured {
    let objective =
        |(metric, maximize): &(&str, bool)| Objective { metric: (*metric).into(), maximize: *maximize };
    StudyConfigured {
        objectives: objectives.iter().map(objective).collect(),
        parameters: vec![
            parameter("lr", Domain::Float { low: 1e-5, high: 0.1, log: true, step: None }, None),
            parameter("drop", Domain::Float { low: 0.0, high: 0.95, log: false, step: Some(0.25) }, None),
            parameter("layers", Domain::Int { low: 1, high: 8, log: false, step: 3 }, None),
            parameter("optim", Domain::Category(vec!["adam".into(), "sgd".into()]), None),
            parameter(
                "optim.sgd.momentum",
                Domain::Float { low: 0.0, high: 1.0, log: false, step: None },
                Some((3, 1)),
            ),
            parameter(
                "shape",
                Domain::Category(vec![json!([1, 2]), json!([3]), Value::Null, true.into()]),
                None,
            ),
            parameter("batch", Domain::Grid(vec![16.0, 32.0, 64.0]), None),
        ],
        plan: json!({ "seed": 42 }),
    }
}

/// A trial's events, a second apart.
struct Trials<'a> {
    store: &'a Store,
    at: i64,
}

impl Trials<'_> {
    fn put(&mut self, trial: u32, draft: impl Into<Draft>) {
        self.at += 1_000_000;
        let draft: Draft = draft.into();
        self.store.append(draft.trial(trial).attempt(1).at(Timestamp(self.at))).unwrap().detach();
    }

    fn report(&mut self, trial: u32, step: u64, metrics: impl Into<Metrics>) {
        self.put(trial, Draft::new(Report { step, metrics: metrics.into() }).rank(0));
    }

    fn finish(&mut self, trial: u32, outcome: Outcome, cause: Option<&str>) {
        self.put(trial, TrialFinished { outcome, cause: cause.map(Cause::new) });
    }
}

fn begun(store: &Store, objectives: &[(&str, bool)]) {
    store.append(RunCreated { experiment: "mnist".into(), name: "a \"sweep\"".into() }).unwrap().detach();
    store.append(study(objectives)).unwrap().detach();
}

fn drain(store: &Store, folder: &Path) {
    store.flush(LONG).unwrap();
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(OptunaJournal::new(folder))];
    Sinks::start(store, sinks, SinkConfig::default()).unwrap().finish(LONG).unwrap();
}

fn created(config: Value) -> TrialCreated {
    TrialCreated { config, ..TrialCreated::default() }
}

fn sgd(lr: f64) -> Value {
    let optim = json!({ "sgd": { "momentum": 0.5 } });
    json!({ "lr": lr, "drop": 0.5, "layers": 4, "optim": optim, "shape": [3], "batch": 32, "epochs": 7 })
}

fn adam(lr: f64) -> Value {
    json!({ "lr": lr, "drop": 0.25, "layers": 7, "optim": "adam", "shape": null, "batch": 64.0, "epochs": 7 })
}

#[test]
fn optuna_agrees_on_every_trial() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    begun(&store, &[("acc", true)]);
    let mut trials = Trials { store: &store, at: 1_795_244_400_000_000 };
    trials.put(0, created(sgd(0.01)));
    trials.put(1, created(adam(0.02)));
    trials.report(0, 1, [("acc", 0.5), ("loss", 3.0)]);
    trials.report(1, 1, [("acc", f64::NAN)]);
    trials.report(1, 2, [("acc", f64::NEG_INFINITY)]);
    drain(&store, dir.path());
    // A reader sees it grow, and the writer goes on where it was.
    if let Some(seen) = optuna_running(dir.path()) {
        assert_eq!(
            (&seen["trials"][1]["state"], &seen["trials"][1]["steps"]["1"]),
            (&"RUNNING".into(), &"nan".into())
        );
    }
    trials.report(0, 2, [("loss", 2.0)]);
    trials.report(0, 3, [("acc", 0.75)]);
    trials.finish(0, Outcome::Completed, None);
    trials.finish(1, Outcome::Stopped, None);
    // A clone takes over what another had; a failure says why; who has no number has failed, as Optuna sees it.
    trials.put(2, created(adam(0.04)));
    trials.put(2, TrialCloned { from: 0, checkpoint: None, config: sgd(0.05) });
    trials.report(2, 4, [("acc", 0.9)]);
    trials.finish(2, Outcome::Completed, None);
    trials.put(3, created(adam(0.03)));
    trials.finish(3, Outcome::Failed, Some("out of \"memory\"\n"));
    trials.put(4, created(adam(0.03)));
    trials.report(4, 1, [("acc", f64::NAN)]);
    trials.finish(4, Outcome::Completed, None);
    // Interrupted trials go on later; one without any configuration gets it as it asks for it.
    trials.put(5, created(Value::Null));
    trials.put(5, TrialConfigured { config: json!({ "lr": 0.05, "optim.sgd.momentum": 0.25 }) });
    trials.finish(5, Outcome::Interrupted, None);
    // A number that the study left out.
    trials.put(7, created(adam(0.06)));
    drain(&store, dir.path());

    let Some(seen) = optuna(dir.path()) else { return };
    assert_eq!((&seen["name"], &seen["directions"]), (&"a \"sweep\"".into(), &json!(["MAXIMIZE"])));
    assert_eq!((&seen["names"], &seen["best"]), (&json!(["acc"]), &2.into()));
    let trial = |number: usize| &seen["trials"][number];
    let states: Vec<&str> = (0..8).map(|n| trial(n)["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["COMPLETE", "PRUNED", "COMPLETE", "FAIL", "FAIL", "RUNNING", "FAIL", "RUNNING"]);
    assert_eq!(
        trial(0)["params"],
        json!({ "lr": 0.01, "drop": 0.5, "layers": 4, "optim": "sgd", "optim.sgd.momentum": 0.5, "shape": "[3]", "batch": 32.0 })
    );
    assert_eq!(
        trial(1)["params"],
        json!({ "lr": 0.02, "drop": 0.25, "layers": 7, "optim": "adam", "shape": null, "batch": 64.0 })
    );
    let distributions = &trial(0)["distributions"];
    assert_eq!(distributions["lr"], "FloatDistribution(high=0.1, log=True, low=1e-05, step=None)");
    assert_eq!(distributions["drop"], "FloatDistribution(high=0.75, log=False, low=0.0, step=0.25)");
    assert_eq!(distributions["layers"], "IntDistribution(high=7, log=False, low=1, step=3)");
    assert_eq!(distributions["batch"], "CategoricalDistribution(choices=(16.0, 32.0, 64.0))");
    assert_eq!(
        (&trial(0)["values"], &trial(0)["steps"]),
        (&json!(["0.75"]), &json!({ "1": "0.5", "3": "0.75" }))
    );
    assert_eq!((&trial(1)["values"], &trial(1)["steps"]["1"]), (&json!(["-inf"]), &"nan".into()));
    assert_eq!((&trial(0)["start"], &trial(0)["seconds"]), (&1_795_244_401.0.into(), &7.0.into()));
    assert_eq!((&trial(2)["params"]["lr"], &trial(2)["user"]["cloned_from"]), (&0.05.into(), &0.into()));
    assert_eq!(
        (&trial(3)["values"], &trial(3)["user"]["error"]),
        (&Value::Null, &"out of \"memory\"\n".into())
    );
    assert_eq!(trial(5)["params"], json!({ "lr": 0.05, "optim.sgd.momentum": 0.25 }));

    let Some(served) = python("optuna_dashboard", SERVE, &dir.path().join("study.journal")) else { return };
    assert_eq!(served["name"], "a \"sweep\"");
    let states = ["Complete", "Pruned", "Complete", "Fail", "Fail", "Running", "Fail", "Running"];
    assert_eq!(served["states"], json!(states));
}

/// There is no best trial yet.
fn optuna_running(folder: &Path) -> Option<Value> {
    let read = READ.replace("study.best_trial.number if len(study.directions) == 1 else", "");
    python("optuna", &read, &folder.join("study.journal"))
}

#[test]
fn optuna_sees_several_objectives() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    begun(&store, &[("loss", false), ("speed", true)]);
    let mut trials = Trials { store: &store, at: 0 };
    for (trial, loss, speed) in [(0, 1.0, 5.0), (1, 2.0, 4.0), (2, 2.0, 9.0)] {
        trials.put(trial, created(adam(0.01)));
        trials.report(trial, 1, [("loss", loss)]);
        trials.report(trial, 1, [("speed", speed)]);
        trials.finish(trial, if trial == 1 { Outcome::Stopped } else { Outcome::Completed }, None);
    }
    drain(&store, dir.path());
    let Some(seen) = optuna(dir.path()) else { return };
    assert_eq!((&seen["directions"], &seen["best"]), (&json!(["MINIMIZE", "MAXIMIZE"]), &json!([0, 2])));
    assert_eq!(seen["trials"][2]["values"], json!(["2.0", "9.0"]));
    assert_eq!(seen["trials"][1]["state"], "PRUNED");
}

/// A sink that starts anew with nothing but its files, after any number of events, and with its last line cut anywhere.
#[test]
fn whatever_a_crash_leaves_the_journal_ends_as_if_there_had_been_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    begun(&store, &[("acc", true)]);
    let mut trials = Trials { store: &store, at: 0 };
    for trial in 0..6 {
        trials.put(trial, created(if trial % 2 == 0 { sgd(0.01) } else { adam(0.02) }));
        trials.report(trial, 1, [("acc", 0.1 * f64::from(trial))]);
        trials.put(trial, TrialCloned { from: 0, checkpoint: None, config: sgd(0.03) });
        trials.finish(trial, Outcome::Failed, Some("no"));
    }
    store.flush(LONG).unwrap();
    let mut reader = store.reader().unwrap();
    let events: Vec<Envelope> = reader.snapshot().unwrap().events(&Query::default()).unwrap();
    let write = |folder: &Path, from: usize, to: usize, save: bool| {
        let mut sink = OptunaJournal::new(folder);
        let regatta_track::sink::Start::After(after) = sink.resume().unwrap() else {
            panic!("it starts now")
        };
        assert!(after as usize <= from, "it must not skip what it has not seen");
        sink.write(&events[after as usize..to]).unwrap();
        if save {
            sink.save(to as u64).unwrap();
        }
    };
    write(dir.path(), 0, events.len(), true);
    let whole = fs::read(dir.path().join("study.journal")).unwrap();
    assert!(whole.len() > 5_000);
    for crash in 0..events.len() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("study.journal");
        write(folder.path(), 0, crash / 2, true);
        write(folder.path(), crash / 2, crash, false);
        let length = fs::metadata(&path).map_or(0, |file| file.len());
        if let Ok(file) = fs::File::options().write(true).open(&path) {
            file.set_len(length - (crash as u64 * 7) % length.clamp(1, 60)).unwrap();
        }
        write(folder.path(), crash / 2, events.len(), true);
        assert!(fs::read(&path).unwrap() == whole, "a crash after {crash} events");
    }
    // A journal that someone took away is written again.
    fs::remove_file(dir.path().join("study.journal")).unwrap();
    write(dir.path(), 0, events.len(), true);
    assert!(fs::read(dir.path().join("study.journal")).unwrap() == whole);
}
