//! A run that is saved, reloaded and continued gives the same bits as one never interrupted.

use regatta_torch::amp::{GradScaler, GradScalerState};
use regatta_torch::optim::{Adam, AdamW, Optimizer, OptimizerScalars, OptimizerState, Sgd};
use regatta_torch::schedule::{Schedule, Scheduler, SchedulerState};
use regatta_torch::state::{self, NamedTensor};
use regatta_torch::{Difference, DifferenceKind, Error, backward, rng};
use tch::{Device, Kind, nn};

use crate::{Net, alone, batch};

/// A run with all that has state: dropout, batch normalisation, optimiser, schedule, scaler.
struct Run {
    net: Net,
    opt: Box<dyn Optimizer>,
    scheduler: Scheduler,
    scaler: GradScaler,
}

/// What goes to disk: bytes and text only.
struct Saved {
    model: Vec<(String, Kind, Vec<i64>, Vec<u8>)>,
    optimizer: Vec<(String, Kind, Vec<i64>, Vec<u8>)>,
    text: String,
}

type Texts = (OptimizerScalars, SchedulerState, GradScalerState, rng::RngState);

fn dump(tensors: &[NamedTensor]) -> Vec<(String, Kind, Vec<i64>, Vec<u8>)> {
    let bytes = |t: &NamedTensor| (t.name().to_owned(), t.kind(), t.shape(), t.bytes().unwrap().into_owned());
    tensors.iter().map(bytes).collect()
}

fn read(stored: &[(String, Kind, Vec<i64>, Vec<u8>)]) -> Vec<NamedTensor> {
    stored
        .iter()
        .map(|(name, kind, shape, bytes)| NamedTensor::from_bytes(name, *kind, shape, bytes).unwrap())
        .collect()
}

impl Run {
    fn new(seed: i64, optimizer: &dyn Fn(&nn::VarStore) -> Box<dyn Optimizer>, schedule: Schedule) -> Self {
        let net = Net::new(seed, 0.3);
        let mut opt = optimizer(&net.vs);
        let scheduler = Scheduler::new(schedule, opt.as_mut()).unwrap();
        let config = regatta_torch::amp::GradScalerConfig { growth_interval: 3, ..Default::default() };
        let scaler = GradScaler::new(Device::Cpu, config).unwrap();
        Run { net, opt, scheduler, scaler }
    }

    fn steps(&mut self, count: usize) {
        // The data are the same every time, and drawn without touching the run's random state.
        let before = rng::state().unwrap();
        let (x, y) = batch();
        rng::set_state(&before).unwrap();
        for _ in 0..count {
            self.opt.zero_grad().unwrap();
            let loss = self.net.loss(&x, &y);
            backward(&self.scaler.scale(&loss)).unwrap();
            self.scaler.unscale(self.opt.as_mut()).unwrap();
            let _ = self.opt.clip_grad_norm(1.0).unwrap();
            self.scaler.step(self.opt.as_mut()).unwrap();
            self.scaler.update().unwrap();
            self.scheduler.step(self.opt.as_mut()).unwrap();
        }
    }

    fn save(&self) -> Saved {
        let OptimizerState { scalars, tensors } = self.opt.state().unwrap();
        let texts: Texts =
            (scalars, self.scheduler.state(), self.scaler.state().unwrap(), rng::state().unwrap());
        Saved {
            model: dump(&state::model(&self.net.vs)),
            optimizer: dump(&tensors),
            text: serde_json::to_string(&texts).unwrap(),
        }
    }

    fn load(&mut self, saved: &Saved) {
        let (scalars, schedule, scaler, random): Texts = serde_json::from_str(&saved.text).unwrap();
        state::load_model(&self.net.vs, &read(&saved.model)).unwrap();
        self.opt.load_state(&OptimizerState { scalars, tensors: read(&saved.optimizer) }).unwrap();
        self.scheduler.load_state(&schedule, self.opt.as_mut()).unwrap();
        self.scaler.load_state(&scaler).unwrap();
        rng::set_state(&random).unwrap();
    }
}

fn same(a: &Saved, b: &Saved) {
    assert_eq!(a.text, b.text);
    for (a, b) in a.model.iter().zip(&b.model).chain(a.optimizer.iter().zip(&b.optimizer)) {
        assert_eq!(a, b, "{} differs", a.0);
    }
}

fn resumes_to_the_bit(optimizer: &dyn Fn(&nn::VarStore) -> Box<dyn Optimizer>) {
    let _alone = alone();
    let schedules = [
        Schedule::Constant,
        Schedule::step(4, 0.5),
        Schedule::cosine(20, 0.1),
        Schedule::cosine(20, 0.0).after_warmup(9),
        Schedule::one_cycle(20),
    ];
    for schedule in schedules {
        let mut whole = Run::new(3, optimizer, schedule.clone());
        rng::seed_everything(11).unwrap();
        whole.steps(7);
        let saved = whole.save();
        whole.steps(7);
        let end = whole.save();

        // Another start, other random numbers, so that only what is loaded can make it equal.
        let mut resumed = Run::new(4, optimizer, schedule.clone());
        rng::seed_everything(12).unwrap();
        resumed.steps(2);
        resumed.load(&saved);
        same(&resumed.save(), &saved);
        resumed.steps(7);
        same(&resumed.save(), &end);
    }
}

#[test]
fn sgd_resumes_to_the_bit() {
    resumes_to_the_bit(&|vs| Box::new(Sgd::new(vs, 0.05)));
    resumes_to_the_bit(&|vs| Box::new(Sgd::new(vs, 0.05).momentum(0.9).nesterov(true).weight_decay(0.01)));
}

#[test]
fn adam_resumes_to_the_bit() {
    resumes_to_the_bit(&|vs| Box::new(Adam::new(vs, 0.01)));
    resumes_to_the_bit(&|vs| Box::new(Adam::new(vs, 0.01).amsgrad(true).weight_decay(0.01)));
}

#[test]
fn adamw_resumes_to_the_bit() {
    resumes_to_the_bit(&|vs| Box::new(AdamW::new(vs, 0.01).skip_nonfinite()));
}

#[test]
fn leaving_the_random_state_out_is_noticed() {
    let _alone = alone();
    let build = |vs: &nn::VarStore| -> Box<dyn Optimizer> { Box::new(Sgd::new(vs, 0.05)) };
    let mut run = Run::new(3, &build, Schedule::Constant);
    run.steps(2);
    let saved = run.save();
    run.steps(2);
    let end = run.save();
    run.load(&saved);
    rng::seed_everything(1234).unwrap();
    run.steps(2);
    assert_ne!(run.save().model, end.model, "dropout draws from the restored state");
}

#[test]
fn an_optimizer_state_that_does_not_fit_lists_everything_and_changes_nothing() {
    let _alone = alone();
    let net = Net::new(1, 0.0);
    let mut opt = AdamW::new(&net.vs, 0.01);
    let good = opt.state().unwrap();
    let mut tensors: Vec<_> = read(&dump(&good.tensors));
    let gone = tensors.remove(0);
    let shorter = NamedTensor::new(tensors[0].name(), tensors[0].tensor().flatten(0, -1).narrow(0, 0, 1));
    tensors[0] = shorter;
    tensors.push(NamedTensor::new("stranger", gone.tensor().copy()));
    let scalars = OptimizerScalars { rule: "adam".into(), lr: 7.0, skipped_steps: 3 };
    let Err(Error::Mismatch { differences, .. }) = opt.load_state(&OptimizerState { scalars, tensors })
    else {
        panic!("it should not fit");
    };
    let names: Vec<_> = differences.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["optimizer", "first.bias.step", "first.bias.exp_avg", "stranger"], "{differences:?}");
    assert!(matches!(differences[1], Difference { kind: DifferenceKind::Missing, .. }));
    assert!(matches!(differences[3], Difference { kind: DifferenceKind::Unexpected, .. }));
    assert_eq!((opt.lr(), opt.skipped_steps().unwrap()), (0.01, 0));
}

#[test]
fn random_state_is_read_restored_and_seeded() {
    let _alone = alone();
    let draw = || Vec::<f32>::try_from(tch::Tensor::randn([5], crate::F32)).unwrap();
    rng::seed_everything(5).unwrap();
    let first = draw();
    let state = rng::state().unwrap();
    let second = draw();
    assert_ne!(first, second);
    rng::set_state(&state).unwrap();
    assert_eq!(draw(), second);
    rng::seed_everything(5).unwrap();
    assert_eq!(draw(), first);
    assert!(!rng::is_deterministic());
    rng::set_deterministic(true).unwrap();
    assert!(rng::is_deterministic());
    rng::set_deterministic(false).unwrap();
    let damaged = serde_json::from_str("{\"cpu\":[1,2,3],\"cuda\":[]}").unwrap();
    let error = rng::set_state(&damaged).unwrap_err().to_string();
    assert!(error.contains("this one 3"), "{error}");
}
