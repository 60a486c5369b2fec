//! Our side of `cargo xtask bench step`: reads a case's name from stdin, measures one round of it, and prints the
//! figure (samples or steps a second) as one line. Both sides live through the whole run and take turns.
#![allow(clippy::print_stdout)]

use std::io::BufRead;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use mnist_resnet::{Images, Mnist, resnet18};
use regatta_torch::amp;
use regatta_torch::optim::{Adam, Optimizer};
use tch::nn::{self, ModuleT, OptimizerConfig, VarStore};
use tch::{Device, Kind, Tensor};

fn main() -> Result<()> {
    if let Some(threads) = std::env::var("OMP_NUM_THREADS").ok().and_then(|n| n.parse().ok()) {
        regatta_torch::threads::set(threads)?;
    }
    // As the example does; PyTorch can too, but does not unless told.
    regatta_torch::threads::flush_denormals(true)?;
    let mnist = Mnist::shipped()?;
    let mut f32 = ResNetStep::new(&mnist.train, false)?;
    let mut bf16 = ResNetStep::new(&mnist.train, true)?;
    let mut mlp = MlpStep::new(&mnist.train)?;
    let mut adam = OptimizerStep::new()?;
    for line in std::io::stdin().lock().lines() {
        let rate = match line.context("cannot read stdin")?.trim() {
            "resnet18_cpu_f32" => per_second(5, || f32.step())? * ResNetStep::BATCH as f64,
            "resnet18_cpu_bf16" => per_second(5, || bf16.step())? * ResNetStep::BATCH as f64,
            "mlp_cpu" => per_second(2000, || mlp.step())?,
            "adam_resnet18" => per_second(20, || Ok(adam.ours.step()?))?,
            "adam_resnet18_tch" => per_second(20, || {
                adam.tch.step();
                Ok(())
            })?,
            other => bail!("no case {other:?}"),
        };
        println!("{rate}");
    }
    Ok(())
}

fn per_second(steps: u32, mut step: impl FnMut() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    for _ in 0..steps {
        step()?;
    }
    Ok(f64::from(steps) / began.elapsed().as_secs_f64())
}

/// Batches in the order of the data, from the start again at the end.
struct Batches {
    images: Tensor,
    labels: Tensor,
    batch: i64,
    cursor: i64,
}

impl Batches {
    fn next(&mut self) -> (Tensor, Tensor) {
        if self.cursor + self.batch > self.labels.size()[0] {
            self.cursor = 0;
        }
        let from = self.cursor;
        self.cursor += self.batch;
        (self.images.narrow(0, from, self.batch), self.labels.narrow(0, from, self.batch))
    }
}

/// Forward, backward and Adam on ResNet-18.
struct ResNetStep {
    net: mnist_resnet::resnet::ResNet18,
    optimizer: Adam,
    batches: Batches,
    bf16: bool,
}

impl ResNetStep {
    const BATCH: i64 = 128;

    fn new(data: &Images, bf16: bool) -> Result<Self> {
        let vs = VarStore::new(Device::Cpu);
        let net = resnet18(&vs.root(), 10);
        let optimizer = Adam::new(&vs, 1e-3);
        let (images, labels) = (data.images.shallow_clone(), data.labels.shallow_clone());
        Ok(Self { net, optimizer, batches: Batches { images, labels, batch: Self::BATCH, cursor: 0 }, bf16 })
    }

    fn step(&mut self) -> Result<()> {
        let (x, y) = self.batches.next();
        let loss = {
            let _autocast = self.bf16.then(|| amp::autocast(Device::Cpu, Kind::BFloat16)).transpose()?;
            self.net.forward_t(&x, true).cross_entropy_for_logits(&y)
        };
        self.optimizer.zero_grad()?;
        regatta_torch::backward(&loss)?;
        Ok(self.optimizer.step()?)
    }
}

/// The same on a network so small that the overhead of the framework decides.
struct MlpStep {
    net: nn::Sequential,
    optimizer: Adam,
    batches: Batches,
}

impl MlpStep {
    fn new(data: &Images) -> Result<Self> {
        let vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let net = nn::seq()
            .add(nn::linear(&root / "hidden", 784, 128, Default::default()))
            .add_fn(|x| x.relu())
            .add(nn::linear(&root / "head", 128, 10, Default::default()));
        let optimizer = Adam::new(&vs, 1e-3);
        let (images, labels) = (data.images.flatten(1, -1).contiguous(), data.labels.shallow_clone());
        Ok(Self { net, optimizer, batches: Batches { images, labels, batch: 64, cursor: 0 } })
    }

    fn step(&mut self) -> Result<()> {
        let (x, y) = self.batches.next();
        let loss = self.net.forward_t(&x, true).cross_entropy_for_logits(&y);
        self.optimizer.zero_grad()?;
        regatta_torch::backward(&loss)?;
        Ok(self.optimizer.step()?)
    }
}

/// One optimiser step over ResNet-18's parameters: ours and tch's built-in one, each on a network of its own.
struct OptimizerStep {
    ours: Adam,
    tch: nn::Optimizer,
    _nets: [VarStore; 2],
}

impl OptimizerStep {
    fn new() -> Result<Self> {
        let stores = [(); 2].map(|()| {
            let vs = VarStore::new(Device::Cpu);
            let net = resnet18(&vs.root(), 10);
            (vs, net)
        });
        let ours = Adam::new(&stores[0].0, 1e-3);
        let tch = nn::Adam::default().build(&stores[1].0, 1e-3)?;
        for (_, net) in &stores {
            net.forward_t(&Tensor::randn([2, 1, 28, 28], (Kind::Float, Device::Cpu)), true)
                .sum(Kind::Float)
                .backward();
        }
        Ok(Self { ours, tch, _nets: stores.map(|(vs, _)| vs) })
    }
}
