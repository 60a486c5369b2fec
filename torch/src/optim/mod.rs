//! Optimisers on libtorch's fused kernels.
//!
//! [`Sgd`], [`Adam`] and [`AdamW`] take a model's parameters by name, update all of them in one call a step, and give
//! their whole state out and in. Settings are given when building and fixed at the first use; the learning rate can
//! change at any time. A group gives some parameters settings of their own:
//!
//! ```
//! use regatta_torch::optim::{AdamW, Group, Optimizer};
//! # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
//! # let _net = tch::nn::linear(vs.root(), 4, 1, Default::default());
//! let mut opt = AdamW::new(&vs, 3e-4)
//!     .weight_decay(0.05)
//!     .group(Group::matching(|name| name.ends_with("bias")).weight_decay(0.0).lr_scale(2.0));
//! opt.set_lr(1e-4)?;
//! assert_eq!(opt.lr(), 1e-4);
//! # Ok::<(), regatta_torch::Error>(())
//! ```

mod fused;
mod rules;

pub use rules::{Adam, AdamW, Sgd};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::Result;
use crate::state::NamedTensor;

/// What training loops, schedules and checkpoints need of an optimiser.
pub trait Optimizer: Send {
    /// Updates every parameter that has a gradient.
    fn step(&mut self) -> Result<()>;

    /// Makes every gradient zero before the next backward pass.
    ///
    /// A gradient that anyone else can see (through another handle, a view, or memory that is not libtorch's) is
    /// zeroed in place, so that aliases hold. One that only its parameter holds is let go, and the next backward pass
    /// moves the new one in instead of adding to zeros.
    fn zero_grad(&mut self) -> Result<()>;

    /// The learning rate.
    fn lr(&self) -> f64;

    /// Changes the learning rate; a group's is a multiple of it.
    fn set_lr(&mut self, lr: f64) -> Result<()>;

    /// Scales all gradients down so that their common 2-norm is at most `max_norm`, and returns what it was.
    ///
    /// Does not wait for a GPU; reading the returned tensor does.
    fn clip_grad_norm(&mut self, max_norm: f64) -> Result<Tensor>;

    /// Multiplies all gradients by a scalar tensor and notes whether any is not finite: then the next step changes
    /// nothing, decided where the gradients are. Returns that mark, a scalar of zero or one.
    fn unscale(&mut self, inverse_scale: &Tensor) -> Result<Tensor>;

    /// Whether [`Optimizer::unscale`] has seen the gradients of the coming step.
    fn is_unscaled(&self) -> bool;

    /// How many steps were skipped for gradients that were not finite. Waits for a GPU.
    fn skipped_steps(&self) -> Result<u64>;

    /// Everything a resumed run needs. The tensors are the live ones: copy them before the next step.
    fn state(&self) -> Result<OptimizerState>;

    /// Takes over a state, by copying; if anything does not fit, all of that is listed and nothing is changed.
    fn load_state(&mut self, state: &OptimizerState) -> Result<()>;
}

/// An optimiser's state in parts that any store can hold.
#[derive(Debug)]
pub struct OptimizerState {
    /// What is no tensor.
    pub scalars: OptimizerScalars,
    /// Moments and counts, `<parameter>.<what>`.
    pub tensors: Vec<NamedTensor>,
}

/// What of an optimiser's state is no tensor. Settings given in code are not among it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerScalars {
    /// The kind of optimiser, which must be the same when loading.
    pub rule: String,
    /// The learning rate at the time.
    pub lr: f64,
    /// Steps skipped so far.
    pub skipped_steps: u64,
}

/// Parameters with settings of their own.
#[derive(Clone, Debug)]
pub struct Group {
    matches: Matcher,
    lr_scale: f64,
    weight_decay: Option<f64>,
}

#[derive(Clone)]
struct Matcher(std::sync::Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Matcher")
    }
}

impl Group {
    /// The parameters whose names satisfy a predicate. A later group wins over an earlier one.
    pub fn matching(matches: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Group { matches: Matcher(std::sync::Arc::new(matches)), lr_scale: 1.0, weight_decay: None }
    }

    /// The group's learning rate as a multiple of the optimiser's, so that one schedule drives all groups.
    pub fn lr_scale(mut self, scale: f64) -> Self {
        self.lr_scale = scale;
        self
    }

    /// The group's weight decay, instead of the optimiser's.
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = Some(weight_decay);
        self
    }
}
