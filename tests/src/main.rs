//! The program that the tests of the whole drive: a user's program without tensors. Its models are sums of numbers, so
//! every test knows what has to come out.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use regatta_macros::trainable;
use regatta_train::metrics::mean;
use regatta_train::{Error, Result, Stateful, Tracked, TrainContext, metrics};
use regatta_tune::SearchSpace;
use serde::{Deserialize, Serialize};

/// What an optimiser would be.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Optim {
    Sgd { lr: f64 },
    Adam { lr: f64, beta: f64 },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    steps: u64,
    /// Milliseconds of each step.
    millis: u64,
    optim: Optim,
    /// Fails at this step, in the first attempt.
    fail_at: Option<u64>,
    /// What befalls the last rank at which step of how many attempts.
    fault: Fault,
    at: u64,
    times: u32,
    /// Stays where it is.
    tags: Vec<String>,
}

/// What may befall a rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
enum Fault {
    #[default]
    None,
    Error,
    Panic,
    Exit,
    Kill,
    /// It takes ever more memory.
    Hog,
    /// It stays where it is, and its heart beats on.
    Hang,
    /// It reports what is no number.
    Nan,
    /// Nothing is reported.
    Silence,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            steps: 20,
            millis: 0,
            optim: Optim::Sgd { lr: 0.1 },
            fail_at: None,
            fault: Fault::None,
            at: 0,
            times: 1,
            tags: Vec::new(),
        }
    }
}

#[expect(clippy::exit, reason = "that is the fault")]
fn befall(fault: Fault) -> Result<()> {
    eprintln!("struck by {fault:?}");
    match fault {
        // What is reported is the trainable's.
        Fault::None | Fault::Nan | Fault::Silence => Ok(()),
        Fault::Error => Err(Error::other("read the data", "the file is cut off")),
        Fault::Panic => panic!("index out of bounds"),
        Fault::Exit => std::process::exit(3),
        Fault::Kill => {
            let me = std::process::id().to_string();
            std::process::Command::new("kill").args(["-KILL", &me]).status().ok();
            std::thread::sleep(Duration::from_secs(30));
            Ok(())
        }
        Fault::Hang => loop {
            std::thread::park();
        },
        Fault::Hog => {
            let mut taken = Vec::new();
            // An end of its own, should nobody make one.
            for _ in 0..256 {
                taken.push(vec![1u8; 8 << 20]);
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Error::other("take memory", format!("nobody minded {} pieces of 8 MiB", taken.len())))
        }
    }
}

/// Sums the steps; reports every fifth, and saves every 25th and the last.
#[trainable(crate = regatta_train)]
fn sums(ctx: &mut TrainContext, config: Config) -> Result<u64> {
    let sum = Tracked::new(0u64);
    let mut state = ctx.state().with("sum", keep(&sum));
    ctx.restore(&mut state)?;
    let lr = match config.optim {
        Optim::Sgd { lr } => lr,
        Optim::Adam { lr, beta } => lr * beta,
    };
    let steps = if ctx.fast_dev_run() { 2 } else { config.steps };
    while state.step() < steps {
        std::thread::sleep(Duration::from_millis(config.millis));
        let next = state.step() + 1;
        if ctx.attempt() == 1 && config.fail_at == Some(next) {
            return Err(Error::other("sums", format!("told to fail at step {next}")));
        }
        let due = config.at == next && ctx.attempt() <= config.times && std::env::var_os("MENDED").is_none();
        if due && ctx.rank() + 1 == ctx.world_size() {
            befall(config.fault)?;
        }
        sum.update(|sum| *sum += next);
        ctx.step(&state)?;
        let report = ctx.report(metrics! { loss: 1.0 / next as f64, lr });
        match (next.is_multiple_of(5), next.is_multiple_of(25) || next == steps) {
            (_, true) => report.checkpoint(&state)?,
            (true, false) => report.send()?,
            (false, false) => drop(report),
        }
    }
    Ok(sum.get())
}

#[derive(Debug, Clone, Serialize, Deserialize, SearchSpace)]
#[space(crate = "regatta_tune")]
#[serde(default, deny_unknown_fields)]
struct Racer {
    #[space(1e-4..=1.0, log)]
    lr: f64,
    #[space(choice = [16, 32, 64])]
    batch: usize,
    #[space(fixed)]
    epochs: u64,
    /// Milliseconds of each epoch.
    #[space(fixed)]
    millis: u64,
    #[space(fixed)]
    fault: Fault,
    /// The fault befalls learning rates from here on.
    #[space(fixed)]
    above: f64,
}

impl Default for Racer {
    fn default() -> Self {
        Racer { lr: 0.1, batch: 32, epochs: 9, millis: 0, fault: Fault::None, above: 0.0 }
    }
}

/// Reports how far its learning rate is from the best one, the better the longer it runs; every epoch is saved.
#[trainable(crate = regatta_train)]
fn race(ctx: &mut TrainContext, config: Racer) -> Result<f64> {
    let seen = Tracked::new(0.0f64);
    let mut state = ctx.state().with("seen", seen.clone());
    ctx.restore(&mut state)?;
    let struck = config.lr >= config.above && ctx.rank() + 1 == ctx.world_size();
    for epoch in state.epochs(config.epochs) {
        std::thread::sleep(Duration::from_millis(config.millis));
        if struck && epoch == 1 {
            befall(config.fault)?;
        }
        seen.update(|seen| *seen += config.lr);
        let nan = struck && config.fault == Fault::Nan && epoch == 1;
        let far = (config.lr.ln() + 4.0).abs() + 32.0 / config.batch as f64;
        let loss = if nan { f64::NAN } else { far + 1.0 / (epoch + 1) as f64 };
        match config.fault {
            Fault::Silence if struck => ctx.save(&state)?,
            _ => ctx.report(metrics! { loss: mean(loss), seen: seen.get() }).checkpoint(&state)?,
        }
    }
    Ok(seen.get())
}

fn keep(sum: &Tracked<u64>) -> impl Stateful + 'static {
    sum.clone()
}

/// A trainable without a configuration, and with any error that can be boxed.
#[trainable(crate = regatta_train, name = "nothing")]
fn takes_nothing(ctx: &mut TrainContext) -> anyhow::Result<usize> {
    anyhow::ensure!(ctx.world_size() > 0, "there is nobody");
    Ok(ctx.world_size())
}

/// What a worker finds in its environment.
#[trainable(crate = regatta_train)]
fn surroundings(_ctx: &mut TrainContext) -> Result<BTreeMap<String, String>> {
    Ok(std::env::vars().collect())
}

fn main() -> ExitCode {
    regatta_cli::main()
}
