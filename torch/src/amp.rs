//! Mixed precision: autocast for the forward pass, a loss scale for f16 gradients.
//!
//! ```
//! use regatta_torch::amp;
//! use tch::{Device, Kind, Tensor};
//!
//! let a = Tensor::ones([8, 8], (Kind::Float, Device::Cpu));
//! let product = {
//!     let _autocast = amp::autocast(Device::Cpu, Kind::BFloat16)?;
//!     a.matmul(&a)
//! };
//! assert_eq!(product.kind(), Kind::BFloat16);
//! # Ok::<(), regatta_torch::Error>(())
//! ```

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::cuda;
use crate::error::{Error, Result};
use crate::optim::Optimizer;
use crate::result::{context, kind_code, optim as raw};

/// While it lives, this thread's operations that gain from it run in the lower precision. See [`autocast`].
#[must_use = "autocast ends when the guard is dropped"]
#[derive(Debug)]
pub struct AutocastGuard {
    before: context::Autocast,
    /// libtorch keeps the mode per thread.
    _thread: PhantomData<*const ()>,
}

/// Lets matrix products, convolutions and the like run in `kind` (bf16 or f16) on `device`, until the guard is dropped.
///
/// Wrap the forward pass and the loss, not the backward pass. Guards nest; drop them in the reverse order.
pub fn autocast(device: Device, kind: Kind) -> Result<AutocastGuard> {
    if !matches!(kind, Kind::BFloat16 | Kind::Half) {
        let why = format!("{kind:?} is no type for mixed precision; use BFloat16 or Half");
        return Err(Error::Argument { what: "autocast", why });
    }
    enter(device, true, kind)
}

/// Full precision within an [`autocast`].
pub fn without_autocast(device: Device) -> Result<AutocastGuard> {
    enter(device, false, Kind::BFloat16)
}

fn enter(device: Device, enabled: bool, kind: Kind) -> Result<AutocastGuard> {
    // c10::DeviceType's numbers.
    let device_type = match device {
        Device::Cpu => 0,
        Device::Cuda(_) => cuda::load().map(|_| 1)?,
        other => {
            return Err(Error::NotAvailable { what: "autocast", why: format!("not known for {other:?}") });
        }
    };
    let wanted = context::Autocast { device_type, enabled, kind: kind_code(kind)?, cache: true };
    Ok(AutocastGuard { before: context::autocast_enter(&wanted)?, _thread: PhantomData })
}

impl Drop for AutocastGuard {
    fn drop(&mut self) {
        if let Err(error) = context::autocast_leave(&self.before) {
            tracing::error!(%error, "autocast could not be ended");
        }
    }
}

/// Lets matrix products and convolutions of f32 tensors on CUDA use TF32: about three digits, several times faster.
pub fn allow_tf32(on: bool) -> Result<()> {
    context::allow_tf32(on)
}

/// How a [`GradScaler`] finds its scale.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradScalerConfig {
    /// The scale to begin with.
    pub init_scale: f64,
    /// What the scale is multiplied by after `growth_interval` good steps.
    pub growth_factor: f64,
    /// What the scale is multiplied by after a step with gradients that are not finite.
    pub backoff_factor: f64,
    /// Good steps until the scale grows.
    pub growth_interval: u32,
}

impl Default for GradScalerConfig {
    fn default() -> Self {
        GradScalerConfig {
            init_scale: 65536.0,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 2000,
        }
    }
}

/// Keeps f16 gradients away from zero: the loss is multiplied by a scale, the gradients divided by it again, a step with
/// gradients that are not finite skipped and the scale adapted, all without waiting for a GPU.
///
/// ```
/// # use regatta_torch::{amp::GradScaler, optim::{Optimizer, Sgd}};
/// # use tch::{Device, Kind, Tensor};
/// # let w = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// # let mut opt = Sgd::from_params(vec![("w".into(), w.shallow_clone())], 0.1);
/// let mut scaler = GradScaler::new(Device::Cpu, Default::default())?;
/// let loss = w.sum(Kind::Float);
/// opt.zero_grad()?;
/// regatta_torch::backward(&scaler.scale(&loss))?;
/// scaler.unscale(&mut opt)?; // only needed before clipping
/// opt.clip_grad_norm(1.0)?;
/// scaler.step(&mut opt)?;
/// scaler.update()?;
/// # Ok::<(), regatta_torch::Error>(())
/// ```
#[derive(Debug)]
pub struct GradScaler {
    config: GradScalerConfig,
    scale: Tensor,
    growth_tracker: Tensor,
    /// The marks of the optimisers unscaled since the last update.
    found_inf: Vec<Tensor>,
}

/// A [`GradScaler`]'s state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradScalerState {
    /// The scale.
    pub scale: f64,
    /// Good steps since it last changed.
    pub growth_tracker: i64,
}

impl GradScaler {
    /// A scaler for losses on `device`.
    pub fn new(device: Device, config: GradScalerConfig) -> Result<Self> {
        let good = config.init_scale > 0.0
            && config.growth_factor > 1.0
            && config.backoff_factor > 0.0
            && config.backoff_factor < 1.0
            && config.growth_interval > 0;
        if !good {
            let why = format!("{config:?} needs scale > 0, growth > 1, 0 < backoff < 1 and an interval > 0");
            return Err(Error::Argument { what: "GradScaler", why });
        }
        if device.is_cuda() {
            cuda::load()?;
        }
        let scale = Tensor::f_full([] as [i64; 0], config.init_scale, (Kind::Float, device))?;
        let growth_tracker = Tensor::f_zeros([] as [i64; 0], (Kind::Int, device))?;
        Ok(GradScaler { config, scale, growth_tracker, found_inf: Vec::new() })
    }

    /// Another handle on the same scale: for a checkpoint. What was unscaled through one is not known to the other.
    pub fn share(&self) -> Self {
        let (scale, growth_tracker) = (self.scale.shallow_clone(), self.growth_tracker.shallow_clone());
        GradScaler { config: self.config, scale, growth_tracker, found_inf: Vec::new() }
    }

    /// The loss times the scale.
    pub fn scale(&self, loss: &Tensor) -> Tensor {
        loss * &self.scale
    }

    /// Divides the optimiser's gradients by the scale, for clipping or inspection before [`GradScaler::step`]. At most
    /// once for an optimiser between two updates.
    pub fn unscale(&mut self, optimizer: &mut dyn Optimizer) -> Result<()> {
        // In double, as 1 / scale must be exact for powers of two of any size.
        let inverse =
            tch::no_grad(|| self.scale.f_to_kind(Kind::Double)?.f_reciprocal()?.f_to_kind(Kind::Float))?;
        let found = optimizer.unscale(&inverse)?;
        self.found_inf.push(found);
        Ok(())
    }

    /// A step of the optimiser that does nothing if a gradient is not finite.
    pub fn step(&mut self, optimizer: &mut dyn Optimizer) -> Result<()> {
        if !optimizer.is_unscaled() {
            self.unscale(optimizer)?;
        }
        optimizer.step()
    }

    /// Adapts the scale, once after the steps of all optimisers.
    pub fn update(&mut self) -> Result<()> {
        let found = std::mem::take(&mut self.found_inf);
        let mut marks = found.into_iter();
        let Some(first) = marks.next() else {
            let why = "no optimiser was unscaled or stepped since the last update".into();
            return Err(Error::Argument { what: "GradScaler::update", why });
        };
        let device = self.scale.device();
        let worst = tch::no_grad(|| {
            marks.try_fold(first.f_to_device(device)?, |worst, mark| {
                worst.f_maximum(&mark.f_to_device(device)?)
            })
        })?;
        let GradScalerConfig { growth_factor, backoff_factor, growth_interval, .. } = self.config;
        let settings = (growth_factor, backoff_factor, i64::from(growth_interval));
        raw::update_scale(&mut self.scale, &mut self.growth_tracker, &worst, settings)
    }

    /// The state, for a checkpoint. Waits for a GPU.
    pub fn state(&self) -> Result<GradScalerState> {
        let scale = self.scale.f_double_value(&[])?;
        Ok(GradScalerState { scale, growth_tracker: self.growth_tracker.f_int64_value(&[])? })
    }

    /// Goes on from a state.
    pub fn load_state(&mut self, state: &GradScalerState) -> Result<()> {
        if !(state.scale > 0.0 && state.scale.is_finite()) {
            let why = format!("{} is no loss scale", state.scale);
            return Err(Error::Argument { what: "GradScaler::load_state", why });
        }
        let _ = tch::no_grad(|| self.scale.f_fill_(state.scale))?;
        let _ = tch::no_grad(|| self.growth_tracker.f_fill_(state.growth_tracker))?;
        self.found_inf.clear();
        Ok(())
    }
}
