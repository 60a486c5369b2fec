//! ResNet-18 on MNIST: `cargo run --release -p mnist_resnet -- --help`.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use mnist_resnet::{Images, Mnist, resnet18};
use regatta_torch::optim::{Adam, Optimizer};
use regatta_torch::schedule::{Schedule, Scheduler};
use regatta_torch::{amp, cuda, rng, threads};
use tch::nn::{ModuleT, VarStore};
use tch::{Device, Kind, Tensor};

/// Trains ResNet-18 on MNIST and prints its accuracy on images it has not seen.
#[derive(Parser)]
struct Args {
    /// A folder with the full set as IDX files; without it, the 10,000 images that come with the example
    #[arg(long)]
    data: Option<PathBuf>,
    #[arg(long, default_value_t = 3)]
    epochs: i64,
    #[arg(long, default_value_t = 64)]
    batch_size: i64,
    /// The highest learning rate of the one-cycle schedule
    #[arg(long, default_value_t = 4e-3)]
    lr: f64,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Threads of one operation; 0 is one a core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Compute in bfloat16 where that is safe
    #[arg(long)]
    bf16: bool,
}

fn main() -> ExitCode {
    match train(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn train(args: &Args) -> Result<()> {
    ensure!(args.epochs > 0 && args.batch_size > 0, "--epochs and --batch-size must be at least 1");
    let device = if cuda::load().is_ok() { Device::cuda_if_available() } else { Device::Cpu };
    threads::flush_denormals(true)?;
    rng::seed_everything(args.seed)?;
    if args.threads > 0 {
        threads::set(args.threads)?;
    }
    let mnist = match &args.data {
        Some(folder) => Mnist::load(folder).context("--data")?,
        None => Mnist::shipped()?,
    };
    let (train, test) = (mnist.train.to_device(device), mnist.test.to_device(device));
    let batches = train.len() / args.batch_size;
    ensure!(batches > 0, "--batch-size {} is larger than the {} images", args.batch_size, train.len());

    let vs = VarStore::new(device);
    let net = resnet18(&vs.root(), 10);
    let mut optimizer = Adam::new(&vs, args.lr);
    let mut schedule = Scheduler::new(Schedule::one_cycle((args.epochs * batches) as u64), &mut optimizer)?;

    println!("{} images to train on, {} held back, {device:?}, seed {}", train.len(), test.len(), args.seed);
    let started = Instant::now();
    for epoch in 1..=args.epochs {
        let order = Tensor::randperm(train.len(), (Kind::Int64, Device::Cpu)).to_device(device);
        let bar = progress(epoch, args.epochs, batches);
        let total = Tensor::zeros([], (Kind::Float, device));
        for batch in 0..batches {
            let (x, y) = train.select(&order.narrow(0, batch * args.batch_size, args.batch_size));
            let loss = {
                let _autocast = args.bf16.then(|| amp::autocast(device, Kind::BFloat16)).transpose()?;
                net.forward_t(&x, true).cross_entropy_for_logits(&y)
            };
            optimizer.zero_grad()?;
            regatta_torch::backward(&loss)?;
            optimizer.step()?;
            schedule.step(&mut optimizer)?;
            let _ = total.shallow_clone().g_add_(&loss.detach());
            bar.inc(1);
        }
        bar.finish_and_clear();
        let (loss, accuracy) =
            (f64::try_from(total / batches as f64)?, accuracy(&net, &test, args.batch_size));
        println!("epoch {epoch}/{}  loss {loss:.6}  accuracy {accuracy:.4}", args.epochs);
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{seconds:.1} s, {:.0} images a second", (args.epochs * train.len()) as f64 / seconds);
    Ok(())
}

/// The share of images that the network names rightly.
fn accuracy(net: &impl ModuleT, images: &Images, batch_size: i64) -> f64 {
    tch::no_grad(|| {
        let right: i64 = (0..images.len())
            .step_by(batch_size as usize)
            .map(|from| {
                let len = batch_size.min(images.len() - from);
                let guess = net.forward_t(&images.images.narrow(0, from, len), false).argmax(1, false);
                guess.eq_tensor(&images.labels.narrow(0, from, len)).sum(Kind::Int64).int64_value(&[])
            })
            .sum();
        right as f64 / images.len() as f64
    })
}

fn progress(epoch: i64, epochs: i64, batches: i64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg} {bar:30} {percent:>3}%  {pos}/{len} batches  {per_sec}  {eta}");
    ProgressBar::new(batches as u64)
        .with_style(style.expect("a valid template"))
        .with_message(format!("epoch {epoch}/{epochs}"))
}
