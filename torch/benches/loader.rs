//! What a loader costs a training loop: steps a second of a small network on bytes like MNIST's, by how batches are made,
//! against the same steps on one batch again and again. `cargo bench -p regatta-torch --bench loader`.
//!
//! Prints a line of JSON for each way: the median ratio over interleaved rounds, and the share of time spent waiting.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use regatta_torch::loader::{Loader, TensorDataset};
use regatta_torch::optim::{Adam, Optimizer};
use regatta_torch::{backward, threads};
use regatta_train::data::{LoaderConfig, Shard};
use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};

const SAMPLES: i64 = 60_000;
const BATCH: usize = 64;
const STEPS: usize = 150;
const ROUNDS: usize = 9;

type Step = Box<dyn FnMut(&Tensor, &Tensor)>;

/// A training step of a 784-128-10 network on bytes.
fn trainer() -> Step {
    let vs = VarStore::new(Device::Cpu);
    let net = nn::seq()
        .add(nn::linear(vs.root() / "first", 784, 128, Default::default()))
        .add_fn(|x| x.relu())
        .add(nn::linear(vs.root() / "second", 128, 10, Default::default()));
    let mut opt = Adam::new(&vs, 1e-3);
    Box::new(move |x, y| {
        let _keep = &vs;
        let x = x.to_kind(Kind::Float).view([-1, 784]) / 255.0;
        opt.zero_grad().expect("gradients");
        backward(&net.forward(&x).cross_entropy_for_logits(y)).expect("backward");
        opt.step().expect("step");
    })
}

fn loader(workers: usize) -> Loader<(Tensor, Tensor)> {
    let images = Tensor::randint(256, [SAMPLES, 1, 28, 28], (Kind::Uint8, Device::Cpu));
    let labels = Tensor::randint(10, [SAMPLES], (Kind::Int64, Device::Cpu));
    let dataset = TensorDataset::new((images, labels)).expect("a dataset");
    let config = LoaderConfig::batch_size(BATCH).workers(workers);
    Loader::new(dataset, config, Shard::whole(1), Device::Cpu).expect("a loader")
}

/// Seconds for `STEPS` steps on one batch, and on those of a loader.
fn round(step: &mut Step, data: &mut Loader<(Tensor, Tensor)>, epoch: u64) -> (f64, f64) {
    let (x, y) = data.epoch(u64::MAX).next().expect("a batch").expect("a good one");
    let begin = Instant::now();
    (0..STEPS).for_each(|_| step(&x, &y));
    let fixed = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    for batch in data.epoch(epoch).take(STEPS) {
        let (x, y) = batch.expect("a good batch");
        step(&x, &y);
    }
    (fixed, begin.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    threads::set(1).expect("threads");
    let mut step = trainer();
    let mut ways: Vec<_> = [0, 1, 2].map(|workers| (workers, loader(workers), Vec::new(), Vec::new())).into();
    for epoch in 0..=ROUNDS as u64 {
        for (_, data, ratios, waits) in &mut ways {
            let _ = data.data_wait();
            let (fixed, loaded) = round(&mut step, data, epoch);
            // The first round warms up.
            if epoch > 0 {
                ratios.push(fixed / loaded);
                waits.push(data.data_wait() * (fixed + loaded) / loaded);
            }
        }
    }
    for (workers, _, ratios, waits) in ways {
        let (ratio, wait) = (median(ratios), median(waits));
        println!(
            r#"{{"case":"loader_mlp","workers":{workers},"batch":{BATCH},"vs_no_loader":{ratio:.3},"data_wait":{wait:.3}}}"#
        );
    }
}
