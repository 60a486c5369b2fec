//! Distributed training and hyperparameter tuning in Rust: everything a user's program needs, under one name.
//!
//! A program is a training function, its configuration, and a `main` that is the command line. The processes it starts as
//! workers are the same program, and enter in `main` too:
//!
//! ```no_run
//! use regatta::prelude::*;
//!
//! #[derive(Clone, Serialize, Deserialize)]
//! struct Config {
//!     lr: f64,
//!     steps: u64,
//! }
//!
//! #[regatta::trainable]
//! fn line(ctx: &mut TrainContext, config: Config) -> Result<f64> {
//!     let vs = nn::VarStore::new(Device::Cpu);
//!     let net = nn::linear(vs.root(), 1, 1, Default::default());
//!     let mut optimizer = Adam::new(&vs, config.lr);
//!     let weight = Tracked::new(0.0f64);
//!     let mut state = ctx.state().with("weight", weight.clone());
//!     ctx.restore(&mut state)?;
//!     while state.step() < config.steps {
//!         let x = Tensor::rand([64, 1], (Kind::Float, vs.device()));
//!         let loss = (net.forward(&x) - 2.0 * &x).square().mean(Kind::Float);
//!         optimizer.zero_grad()?;
//!         regatta::torch::backward(&loss)?;
//!         optimizer.step()?;
//!         weight.set(net.ws.double_value(&[0, 0]));
//!         ctx.step(&state)?;                                          // may end the loop: stop, preempted
//!         ctx.report(metrics! { loss: loss.double_value(&[]) }).send()?;
//!     }
//!     Ok(weight.get())
//! }
//!
//! fn main() -> ExitCode {
//!     regatta::main() // train | resume | ls | show | ...
//! }
//! ```
//!
//! A program with a `main` of its own begins it with [`init`] and trains with [`Trainer`](train::Trainer):
//!
//! ```no_run
//! # use regatta::prelude::*;
//! # #[regatta::trainable]
//! # fn line(ctx: &mut TrainContext, steps: u64) -> Result<u64> { Ok(steps) }
//! fn main() -> Result<()> {
//!     regatta::init()?;
//!     let result = Trainer::new(line, 1000).workers(2).run("first").fit()?;
//!     println!("{:?}", result.metrics());
//!     Ok(())
//! }
//! ```

pub use regatta_cli::main;
pub use regatta_macros::trainable;

pub use regatta_cli as cli;
pub use regatta_torch as torch;
pub use regatta_train as train;
pub use tch;

/// First thing in a `main` of one's own: a process that was started as a worker becomes it here, and does not come back.
pub fn init() -> train::Result<()> {
    train::worker::enter();
    Ok(())
}

/// All that a training program names.
pub mod prelude {
    pub use std::process::ExitCode;

    pub use regatta_torch::optim::{Adam, AdamW, Optimizer, Sgd};
    pub use regatta_train::metrics::{max, mean, min, sum};
    pub use regatta_train::{
        BoxError, CheckpointConfig, Every, FailureConfig, Placement, Resources, RunConfig, ScalingConfig,
        State, Stateful, StopConfig, Tracked, TrainContext, Trainer, Workers, metrics,
    };
    pub use serde::{Deserialize, Serialize};
    pub use tch::nn::{self, Module, ModuleT};
    pub use tch::{Device, Kind, Tensor};

    /// The result of a training function: any error goes through `?`.
    pub type Result<T, E = BoxError> = std::result::Result<T, E>;
}

/// For the code that `#[trainable]` writes.
#[doc(hidden)]
pub mod __private {
    pub use regatta_train as train;
}
