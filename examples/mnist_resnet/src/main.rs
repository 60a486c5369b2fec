//! ResNet-18 on MNIST: `cargo run --release -p mnist_resnet -- train configs/mnist.ron`.

use std::path::PathBuf;
use std::process::ExitCode;

use mnist_resnet::{Images, Mnist, resnet18};
use regatta::prelude::*;

/// What a file sets under `config`, and the command line with `lr=0.01`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// A folder with the full set as IDX files; without it, the 10,000 images that come with the example.
    data: Option<PathBuf>,
    epochs: u64,
    /// Images of a worker's batch.
    batch_size: usize,
    /// The highest learning rate of the one-cycle schedule.
    lr: f64,
    /// Compute in bfloat16 where that is safe.
    bf16: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { data: None, epochs: 3, batch_size: 64, lr: 4e-3, bf16: false }
    }
}

#[regatta::trainable]
fn resnet(ctx: &mut TrainContext, cfg: Config) -> Result<f64> {
    let device = ctx.device();
    threads::flush_denormals(true)?; // an optimiser's moments fade to numbers that processors are slow at
    let mnist = match &cfg.data {
        Some(folder) => Mnist::load(folder)?,
        None => Mnist::shipped()?,
    };
    let vs = nn::VarStore::new(device);
    let net = resnet18(&vs.root(), 10);
    let model = ctx.data_parallel(&vs)?; // broadcasts, buckets, overlaps; for one worker it does nothing
    let mut data = ctx.loader(mnist.train.dataset()?, cfg.batch_size)?; // sharded, shuffled by seed, position saved
    let steps = cfg.epochs * data.len_batches().unwrap_or(1);
    let mut opt = Adam::new(&vs, cfg.lr);
    let mut schedule = Scheduler::new(Schedule::one_cycle(steps), &mut opt)?;
    let mut state = ctx.state().model(&vs).optimizer(&opt).schedule(&schedule).data(&data); // all that a resume needs
    ctx.restore(&mut state)?;
    let mut best = 0.0;
    for epoch in state.epochs(cfg.epochs) {
        let mut loss = Tensor::zeros([], (Kind::Float, device));
        for batch in data.epoch(epoch) {
            let (x, y) = batch?;
            loss = {
                let _autocast = cfg.bf16.then(|| amp::autocast(device, Kind::BFloat16)).transpose()?;
                net.forward_t(&x, true).cross_entropy_for_logits(&y)
            };
            opt.zero_grad()?;
            model.backward(&loss)?; // gradients are averaged while backward still runs
            opt.step()?;
            schedule.step(&mut opt)?;
            ctx.step(&state)?; // may save, and may end the loop
        }
        let accuracy = accuracy(&net, &mnist.test, ctx);
        ctx.report(metrics! { epoch, loss: mean(f64::try_from(&loss)?), accuracy: mean(accuracy) })
            .checkpoint(&state)?;
        best = accuracy.max(best);
    }
    Ok(best)
}

/// The share of this rank's part of the images that the network names rightly.
fn accuracy(net: &impl nn::ModuleT, images: &Images, ctx: &TrainContext) -> f64 {
    let each = images.len() / ctx.world_size() as i64;
    let mine = images.narrow(each * ctx.rank() as i64, each).to_device(ctx.device());
    tch::no_grad(|| net.forward_t(&mine.images, false).accuracy_for_logits(&mine.labels)).double_value(&[])
}

fn main() -> ExitCode {
    regatta::main()
}
