//! Distributed training and hyperparameter tuning, on libtorch.
//!
//! A training function takes a [`TrainContext`](prelude::TrainContext) and a configuration of its own type. Marked with
//! [`trainable`], it is run on a crew of worker processes by the command line that [`main`] is, or by a
//! [`Trainer`](prelude::Trainer) in code; the same function on one worker or many, from the beginning or from a checkpoint.
//!
//! ```no_run
//! use regatta::prelude::*;
//!
//! #[derive(Clone, Serialize, Deserialize)]
//! struct Config {
//!     lr: f64,
//!     epochs: u64,
//! }
//!
//! #[regatta::trainable]
//! fn line(ctx: &mut TrainContext, cfg: Config) -> Result<()> {
//!     let vs = nn::VarStore::new(ctx.device());
//!     let net = nn::linear(vs.root(), 1, 1, Default::default());
//!     let model = ctx.data_parallel(&vs)?;
//!     let x = Tensor::linspace(0.0, 1.0, 1000, (Kind::Float, Device::Cpu)).view([-1, 1]);
//!     let mut data = ctx.loader(TensorDataset::new((x.shallow_clone(), x * 3.0 + 1.0))?, 32)?;
//!     let mut opt = AdamW::new(&vs, cfg.lr);
//!     let mut state = ctx.state().model(&vs).optimizer(&opt).data(&data);
//!     ctx.restore(&mut state)?;
//!     for epoch in state.epochs(cfg.epochs) {
//!         let mut last = 0.0;
//!         for batch in data.epoch(epoch) {
//!             let (x, y) = batch?;
//!             let loss = net.forward(&x).mse_loss(&y, tch::Reduction::Mean);
//!             opt.zero_grad()?;
//!             model.backward(&loss)?;
//!             opt.step()?;
//!             last = f64::try_from(&loss)?;
//!             ctx.step(&state)?;
//!         }
//!         ctx.report(metrics! { epoch, loss: mean(last) }).checkpoint(&state)?;
//!     }
//!     Ok(())
//! }
//!
//! fn main() -> ExitCode {
//!     regatta::main() // train | resume | submit | attach | ls | show | logs | ckpt | ...; workers enter here too
//! }
//! ```
//!
//! A program with a `main` of its own calls [`init`] first thing, and then trains in code:
//!
//! ```no_run
//! # use regatta::prelude::*;
//! # #[derive(Clone, Serialize, Deserialize)]
//! # struct Config { lr: f64 }
//! # #[regatta::trainable]
//! # fn line(ctx: &mut TrainContext, cfg: Config) -> Result<()> { Ok(()) }
//! fn main() -> Result<()> {
//!     regatta::init()?;
//!     let result = Trainer::new(line, Config { lr: 0.1 }).workers(2).run("first").fit()?;
//!     println!("{:?}", result.metrics());
//!     Ok(())
//! }
//! ```

use std::process::ExitCode;

pub use regatta_cli as cli;
pub use regatta_macros::trainable;
pub use regatta_torch as torch;
pub use regatta_train as train;
pub use regatta_tune as tune;
pub use tch;

/// The whole of a program's `main`: the command line with its trainables in it, and, in the processes that are started as
/// workers, the worker.
pub fn main() -> ExitCode {
    find_cuda();
    regatta_cli::main()
}

/// To be called first thing in a `main` of one's own: a process that was started as a worker becomes it here, and does not
/// return.
pub fn init() -> train::Result<()> {
    find_cuda();
    train::worker::enter();
    Ok(())
}

/// libtorch looks for CUDA once, so it is loaded before anything else; in workers alone, as a controller computes nothing.
fn find_cuda() {
    if train::worker::is_worker() {
        // A machine without is none the worse.
        let _ = torch::cuda::load();
    }
}

/// What a training program uses.
pub mod prelude {
    pub use std::process::ExitCode;

    pub use regatta_macros::{SearchSpace, trainable};
    pub use regatta_torch::context::{TorchContext, TorchState};
    pub use regatta_torch::ddp::{DataParallel, DataParallelConfig};
    pub use regatta_torch::loader::{Loader, TensorDataset};
    pub use regatta_torch::optim::{Adam, AdamW, Group, Optimizer, Sgd};
    pub use regatta_torch::schedule::{Schedule, Scheduler};
    pub use regatta_torch::{amp, rng, threads};
    pub use regatta_train::data::{Dataset, LoaderConfig, Mode, from_fn};
    pub use regatta_train::metrics::{max, mean, min, sum};
    pub use regatta_train::{
        BoxError, CheckpointConfig, Every, FailureConfig, Placement, Resources, RunConfig, RunResult,
        ScalingConfig, State, Stateful, StopConfig, Tracked, TrainContext, Trainer, Workers, metrics,
    };
    pub use serde::{Deserialize, Serialize};
    pub use tch::nn::{Module, ModuleT};
    pub use tch::{Device, Kind, Tensor, nn};

    /// A result with any error in it.
    pub type Result<T, E = BoxError> = std::result::Result<T, E>;
}

/// For the code that the macros write.
#[doc(hidden)]
pub mod __private {
    pub use regatta_train as train;
}
