//! What users of libtorch need and the `tch` crate leaves out.
//!
//! - [`autograd`]: hooks that fire when a gradient is ready, the end of a backward pass, gradients that are views.
//! - [`ddp`]: gradients averaged over the ranks of a process group while backward runs.
//! - [`optim`]: SGD, Adam and AdamW on libtorch's fused kernels, with groups, clipping and state that can be saved.
//! - [`schedule`]: learning rates over time, as plain functions of the step.
//! - [`amp`]: autocast and a gradient scaler.
//! - [`rng`]: random state read and restored; seeding; deterministic mode.
//! - [`memory`] and [`threads`]: channels-last, pinned memory, tensors over foreign memory, worker threads.
//! - [`cuda`]: streams, events, and whole training steps as CUDA graphs.
//! - [`loader`]: datasets of tensors, and batches that are on the device before they are wanted.
//! - [`context`]: what a training function needs on its `TrainContext` and `State`: device, loader, model, optimiser.
//! - [`params`] and [`state`]: a model's tensors by name, in and out of plain bytes.
//!
//! Tensors are [`tch::Tensor`]s. One build serves machines with and without a GPU: where something is missing the same
//! call answers [`Error::NotAvailable`]. On a machine with CUDA, call [`cuda::load`] first thing in `main`.
//!
//! ```
//! use regatta_torch::optim::{Adam, Optimizer};
//! use tch::{Device, Kind, Tensor, nn, nn::Module};
//!
//! fn main() -> regatta_torch::Result<()> {
//!     regatta_torch::rng::seed_everything(7)?;
//!     let vs = nn::VarStore::new(Device::Cpu);
//!     let net = nn::linear(vs.root() / "layer", 4, 1, Default::default());
//!     let (x, y) = (Tensor::randn([64, 4], (Kind::Float, Device::Cpu)), Tensor::ones([64, 1], (Kind::Float, Device::Cpu)));
//!
//!     let mut opt = Adam::new(&vs, 1e-2).betas(0.9, 0.99);
//!     let loss_of = |net: &nn::Linear| net.forward(&x).mse_loss(&y, tch::Reduction::Mean);
//!     let before = loss_of(&net).double_value(&[]);
//!     for _ in 0..50 {
//!         opt.zero_grad()?;
//!         regatta_torch::backward(&loss_of(&net))?;
//!         opt.step()?;
//!     }
//!     assert!(loss_of(&net).double_value(&[]) < before / 2.0);
//!     Ok(())
//! }
//! ```

pub mod amp;
pub mod autograd;
mod components;
pub mod context;
pub mod cuda;
pub mod ddp;
mod error;
pub mod loader;
pub mod memory;
pub mod optim;
pub mod params;
mod result;
pub mod rng;
pub mod schedule;
pub mod state;
mod sys;
pub mod threads;

pub use autograd::backward;
pub use ddp::DataParallel;
pub use error::{BoxError, Difference, DifferenceKind, Error, Result};
