//! The real TensorBoard reads our event files: scalars, hyperparameters, and no zigzag after a resume.
//!
//! It is taken from the Python in REGATTA_PYTHON, or python3; where that has none the test says so and is skipped.

use std::path::Path;

use regatta_track::event::{Outcome, Report, RunFinished, TrialCreated, TrialFinished};
use regatta_track::sink::{Sink, SinkConfig, Sinks, TensorBoard};
use regatta_track::{Draft, Metrics, Store, StoreConfig};

use crate::{LONG, begin, new_store, python, report};

const READ: &str = r#"
import json, os, sys
from tensorboard.backend.event_processing import plugin_event_accumulator as ea
from tensorboard.plugins.hparams import plugin_data_pb2

def read(folder):
    acc = ea.EventAccumulator(folder, tensor_size_guidance={"scalars": 0})
    acc.Reload()
    scalars = {}
    for tag in acc.Tags()["tensors"]:
        if acc.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            scalars[tag] = [[e.step, repr(float(e.tensor_proto.float_val[0]))] for e in acc.Tensors(tag)]
    hparams = {}
    try:
        contents = acc.PluginTagToContent("hparams")
    except KeyError:
        contents = {}
    for content in contents.values():
        data = plugin_data_pb2.HParamsPluginData.FromString(content)
        if data.HasField("session_start_info"):
            start = data.session_start_info
            hparams["group"] = start.group_name
            hparams["values"] = {k: getattr(v, v.WhichOneof("kind")) for k, v in start.hparams.items()}
        if data.HasField("experiment"):
            hparams["columns"] = [[i.name, i.type] for i in data.experiment.hparam_infos]
            hparams["metrics"] = [i.name.tag for i in data.experiment.metric_infos]
        if data.HasField("session_end_info"):
            hparams["status"] = data.session_end_info.status
    return {"scalars": scalars, "hparams": hparams}

root = sys.argv[1]
out = {"": read(root)}
trials = os.path.join(root, "trials")
for name in sorted(os.listdir(trials)) if os.path.isdir(trials) else []:
    out[name] = read(os.path.join(trials, name))
print(json.dumps(out))
"#;

/// What TensorBoard makes of a folder, or `None` where there is no TensorBoard.
fn tensorboard(folder: &Path) -> Option<serde_json::Value> {
    python("tensorboard", READ, folder)
}

fn drain(store: &Store, folder: &Path) {
    store.flush(LONG).unwrap();
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(TensorBoard::new(folder))];
    Sinks::start(store, sinks, SinkConfig::default()).unwrap().finish(LONG).unwrap();
}

fn steps(scalar: &serde_json::Value) -> Vec<u64> {
    scalar.as_array().unwrap().iter().map(|p| p[0].as_u64().unwrap()).collect()
}

#[test]
fn tensorboard_reads_scalars_hparams_and_a_resume_without_zigzag() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    begin(&store);
    for step in 0..=150 {
        store.append(report(step, 1.0 + step as f64)).unwrap().detach();
    }
    let odd = Metrics::from([("val/acc", 0.5), ("nan", f64::NAN), ("inf", f64::INFINITY)]);
    store.append(Draft::new(Report { step: 150, metrics: odd }).attempt(1).rank(0)).unwrap().detach();
    drain(&store, dir.path());
    // The controller restarts, and training goes back to step 100: another process's file.
    store.close().unwrap();
    drop(store);
    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    for step in 100..=180 {
        store.append(report(step, 1000.0 + step as f64).attempt(2)).unwrap().detach();
    }
    // A worker fails and the same controller starts the next attempt from step 170: in the same file.
    for step in 170..=200 {
        store.append(report(step, 2000.0 + step as f64).attempt(3)).unwrap().detach();
    }
    store.append(RunFinished { outcome: Outcome::Completed, cause: None }).unwrap().detach();
    drain(&store, dir.path());

    let Some(seen) = tensorboard(dir.path()) else { return };
    let loss = &seen[""]["scalars"]["loss"];
    assert_eq!(steps(loss), (0..=200).collect::<Vec<u64>>(), "every step once, in order");
    let value = |step: usize| loss[step][1].as_str().unwrap().parse::<f64>().unwrap();
    assert_eq!(
        [value(99), value(100), value(169), value(170), value(200)],
        [100.0, 1100.0, 1169.0, 2170.0, 2200.0]
    );
    let hparams = &seen[""]["hparams"];
    assert_eq!(hparams["values"]["lr"], 0.1);
    assert_eq!(hparams["values"]["model.name"], "mlp");
    assert_eq!(hparams["values"]["model.wide"], true);
    assert_eq!((&hparams["status"], &hparams["group"]), (&1.into(), &"brisk".into()));
}

#[test]
fn tensorboard_sees_each_trial_as_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    begin(&store);
    for trial in 0..3 {
        let config = serde_json::json!({"lr": 0.1 * f64::from(trial + 1), "layers": [1, 2], "none": null});
        store
            .append(Draft::new(TrialCreated { config, ..Default::default() }).trial(trial))
            .unwrap()
            .detach();
        let metrics = Metrics::from([("acc", 0.25), ("nan", f64::NAN)]);
        for step in 1..=3 {
            let body = Report { step, metrics: metrics.clone() };
            store.append(Draft::new(body).attempt(1).rank(0).trial(trial)).unwrap().detach();
        }
        let outcome = if trial == 2 { Outcome::Failed } else { Outcome::Stopped };
        store.append(Draft::new(TrialFinished { outcome, cause: None }).trial(trial)).unwrap().detach();
    }
    store.append(RunFinished { outcome: Outcome::Completed, cause: None }).unwrap().detach();
    drain(&store, dir.path());
    let tuner_itself = std::fs::read_dir(dir.path()).unwrap().flatten();
    assert_eq!(tuner_itself.filter(|e| e.file_name().to_string_lossy().contains("tfevents")).count(), 0);

    let Some(seen) = tensorboard(dir.path()) else { return };
    for (trial, status) in [(0, 1), (1, 1), (2, 2)] {
        let name = format!("{trial:05}");
        let trial = &seen[name.as_str()];
        assert_eq!(steps(&trial["scalars"]["acc"]), [1, 2, 3]);
        assert_eq!(trial["scalars"]["nan"][0][1], "nan");
        assert_eq!(trial["hparams"]["group"], format!("trial_{name}"));
        assert_eq!(trial["hparams"]["status"], status);
        assert_eq!(trial["hparams"]["values"]["layers"], "[1,2]");
    }
}

/// What the HParams tab itself asks for: its columns, and a row a trial.
const TAB: &str = r#"
import json, sys
from google.protobuf import json_format
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

multiplexer = plugin_event_multiplexer.EventMultiplexer()
multiplexer.AddRunsFromDirectory(sys.argv[1])
multiplexer.Reload()
provider = data_provider.MultiplexerDataProvider(multiplexer, sys.argv[1])
context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
ctx = RequestContext()
experiment = get_experiment.Handler(ctx, context, "x", api_pb2.GetExperimentRequest()).run()
request = api_pb2.ListSessionGroupsRequest(
    start_index=0, slice_size=100,
    allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING, api_pb2.STATUS_UNKNOWN],
    col_params=[api_pb2.ColParams(metric=m.name) for m in experiment.metric_infos],
    aggregation_type=api_pb2.AGGREGATION_AVG)
groups = list_session_groups.Handler(ctx, context, "x", request).run().session_groups
plain = json_format.MessageToDict
print(json.dumps({
    "columns": [[i.name, plain(i).get("domainDiscrete") or plain(i).get("domainInterval")] for i in experiment.hparam_infos],
    "metrics": [m.name.tag for m in experiment.metric_infos],
    "rows": [{
        "name": g.name, "hparams": {k: plain(v) for k, v in g.hparams.items()},
        "metrics": {m.name.tag: m.value for m in g.metric_values},
    } for g in sorted(groups, key=lambda g: g.name)],
}))
"#;

#[test]
fn the_hparams_tab_has_a_column_a_parameter_and_a_row_a_trial() {
    use regatta_track::event::{Domain, Objective, Parameter, RunCreated, StudyConfigured};
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    store.append(RunCreated { experiment: "mnist".into(), name: "sweep".into() }).unwrap().detach();
    let parameter = |path: &str, domain| Parameter { path: path.into(), domain, parent: None };
    let names = ["adam", "sgd"].map(serde_json::Value::from).to_vec();
    let study = StudyConfigured {
        objectives: vec![Objective { metric: "acc".into(), maximize: true }],
        parameters: vec![
            parameter("lr", Domain::Float { low: 1e-4, high: 0.5, log: true, step: None }),
            parameter("optim", Domain::Category(names)),
        ],
        plan: serde_json::Value::Null,
    };
    store.append(study).unwrap().detach();
    for trial in 0..3 {
        let optim = if trial == 1 { "adam".into() } else { serde_json::json!({"sgd": {"momentum": 0.5}}) };
        let config = serde_json::json!({"lr": 0.25 / f64::from(trial + 1), "optim": optim});
        store
            .append(Draft::new(TrialCreated { config, ..Default::default() }).trial(trial))
            .unwrap()
            .detach();
        for step in 1..=2 {
            let metrics =
                Metrics::from([("acc", 0.25 * f64::from(trial) + 0.0625 * step as f64), ("loss", 1.0)]);
            store.append(Draft::new(Report { step, metrics }).rank(0).trial(trial)).unwrap().detach();
        }
        let end = TrialFinished { outcome: Outcome::Completed, cause: None };
        store.append(Draft::new(end).trial(trial)).unwrap().detach();
    }
    drain(&store, dir.path());
    let Some(seen) = python("tensorboard", TAB, dir.path()) else { return };
    let interval = serde_json::json!({"minValue": 1e-4, "maxValue": 0.5});
    assert_eq!(seen["columns"], serde_json::json!([["lr", interval], ["optim", ["adam", "sgd"]]]));
    assert_eq!(seen["metrics"], serde_json::json!(["acc"]));
    for (trial, optim) in ["sgd", "adam", "sgd"].into_iter().enumerate() {
        let row = &seen["rows"][trial];
        assert_eq!(row["name"], format!("trial_0000{trial}"));
        assert_eq!(
            (&row["hparams"]["lr"], &row["hparams"]["optim"]),
            (&(0.25 / (trial + 1) as f64).into(), &optim.into())
        );
        assert_eq!(row["metrics"]["acc"], 0.25 * trial as f64 + 0.125);
    }
}
