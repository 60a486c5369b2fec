//! A training on tensors through the trainer's context, stopped and resumed, ends with the same bits; and its checkpoint is one
//! that other tools read.

use std::sync::Arc;
use std::time::Duration;

use regatta_torch::amp::GradScaler;
use regatta_torch::context::{TorchContext, TorchState};
use regatta_torch::loader::TensorDataset;
use regatta_torch::optim::{AdamW, Optimizer};
use regatta_torch::schedule::{Schedule, Scheduler};
use regatta_torch::{amp, rng, state};
use regatta_train::crew::{Crew, CrewEvent, Saying};
use regatta_train::threads::ThreadCrew;
use regatta_train::wire::{Done, Restore, Start};
use regatta_train::{BoxError, TrainContext};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::{Net, alone, batch};

/// Everything that has state: dropout, batch normalisation, optimiser, schedule, scaler, data.
fn train(ctx: &mut TrainContext, _: Value) -> Result<Value, BoxError> {
    let (x, y) = batch();
    // What the model begins with differs from attempt to attempt, so that only what is restored can make them equal.
    let net = Net::new(i64::from(ctx.attempt()), 0.3);
    rng::seed_everything(ctx.seed() + u64::from(ctx.attempt() > 1))?;
    let model = ctx.data_parallel(&net.vs)?;
    let mut opt = AdamW::new(&net.vs, 0.01);
    let mut schedule = Scheduler::new(Schedule::cosine(20, 0.1), &mut opt)?;
    let config = amp::GradScalerConfig { growth_interval: 3, ..Default::default() };
    let mut scaler = GradScaler::new(Device::Cpu, config)?;
    let mut data = ctx.loader(TensorDataset::new((x, y))?, 8)?;
    let mut state =
        ctx.state().model(&net.vs).optimizer(&opt).schedule(&schedule).scaler(&scaler).data(&data);
    ctx.restore(&mut state)?;
    for epoch in state.epochs(3) {
        for batch in data.epoch(epoch) {
            let (x, y) = batch?;
            opt.zero_grad()?;
            model.backward(&scaler.scale(&net.loss(&x, &y)))?;
            scaler.step(&mut opt)?;
            scaler.update()?;
            schedule.step(&mut opt)?;
            ctx.step(&state)?;
        }
    }
    let random = Tensor::rand([4], (Kind::Float, Device::Cpu));
    let mut hash = vec![Vec::<f32>::try_from(random)?.iter().map(|x| x.to_bits()).collect::<Vec<_>>()];
    for tensor in state::model(&net.vs) {
        hash.push(tensor.bytes()?.iter().map(|&byte| u32::from(byte)).collect());
    }
    Ok(serde_json::to_value((hash, opt.lr(), scaler.state()?))?)
}

fn start(folder: &std::path::Path) -> Start {
    Start {
        experiment: "tests".into(),
        run: "run".into(),
        folder: folder.into(),
        storage: folder.to_str().unwrap().into(),
        attempt: 1,
        generation: 1,
        config: Value::Null,
        seed: 7,
        restore: Restore::Nothing,
        checkpoint: Default::default(),
        failure: Default::default(),
        stop: Default::default(),
        spent_seconds: 0.0,
        fast_dev_run: false,
        lockstep: false,
    }
}

fn play(body: fn(&mut TrainContext, Value) -> Result<Value, BoxError>, start: Start) -> Result<Done, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut crew = ThreadCrew::new(1, Arc::new(body));
        crew.launch(start).await.unwrap();
        let mut done = None;
        while let Some(event) = tokio::time::timeout(Duration::from_secs(60), crew.next()).await.unwrap() {
            match event {
                CrewEvent::Said { saying: Saying::Done(told), .. } => done = Some(told),
                CrewEvent::Failed(failure) => return Err(failure.to_string()),
                _ => {}
            }
        }
        Ok(done.unwrap())
    })
}

#[test]
fn a_training_that_is_stopped_anywhere_resumes_to_the_bit() {
    let _alone = alone();
    let whole = tempfile::tempdir().unwrap();
    let expected = play(train, start(whole.path())).unwrap();
    assert_eq!(expected.step, 12);
    for stop in [1, 4, 7, 11] {
        let folder = tempfile::tempdir().unwrap();
        let mut first = start(folder.path());
        first.stop.steps = Some(stop);
        let stopped = play(train, first).unwrap();
        assert_eq!(stopped.step, stop);
        let mut second = start(folder.path());
        (second.attempt, second.generation, second.restore) = (2, 2, Restore::Newest);
        assert_eq!(play(train, second).unwrap().value, expected.value, "stopped at {stop}");
    }
}

#[test]
fn a_checkpoint_has_the_models_own_names_and_another_model_is_refused_with_all_that_differs() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut first = start(folder.path());
    first.stop.steps = Some(2);
    let done = play(train, first).unwrap();
    let store = regatta_checkpoint::store::open_existing(folder.path().to_str().unwrap()).unwrap();
    let name = done.checkpoint.unwrap().parse().unwrap();
    let checkpoint =
        regatta_checkpoint::Checkpoint::open(store, &name, regatta_checkpoint::Verify::Full).unwrap();
    let names: Vec<&String> = checkpoint.manifest().tensors.keys().collect();
    assert!(names.iter().any(|name| *name == "first.weight"), "{names:?}");
    assert!(names.iter().any(|name| *name == "optimizer/first.weight.exp_avg"), "{names:?}");

    fn other(ctx: &mut TrainContext, _: Value) -> Result<Value, BoxError> {
        let vs = tch::nn::VarStore::new(Device::Cpu);
        let _net = tch::nn::linear(vs.root() / "first", 13, 17, Default::default());
        let opt = regatta_torch::optim::Sgd::new(&vs, 0.1);
        let mut state = ctx.state().model(&vs).optimizer(&opt);
        ctx.restore(&mut state)?;
        Ok(Value::Null)
    }
    let mut second = start(folder.path());
    (second.attempt, second.generation, second.restore) = (2, 2, Restore::Newest);
    let error = play(other, second).unwrap_err();
    for part in ["`model`", "first.weight", "norm.running_mean", "`optimizer`", "sgd", "component `scaler`"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}
