//! The optimisers as users see them: settings on top of what they share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;
use tch::nn::VarStore;

use super::fused::Fused;
use super::{Group, Optimizer, OptimizerState};
use crate::error::Result;
use crate::params;
use crate::result::optim::{Rule, Slot};

/// Which update a fused optimiser makes, and what it keeps for that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Sgd { momentum: f64, nesterov: bool },
    Adam(Moments),
    AdamW(Moments),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moments {
    beta1: f64,
    beta2: f64,
    eps: f64,
    amsgrad: bool,
}

const MOMENTS: Moments = Moments { beta1: 0.9, beta2: 0.999, eps: 1e-8, amsgrad: false };

impl Kind {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Kind::Sgd { .. } => "sgd",
            Kind::Adam(_) => "adam",
            Kind::AdamW(_) => "adamw",
        }
    }

    pub(super) fn slots(&self) -> &'static [(&'static str, Slot)] {
        const ADAM: [(&str, Slot); 4] = [
            ("step", Slot::Step),
            ("exp_avg", Slot::First),
            ("exp_avg_sq", Slot::Second),
            ("max_exp_avg_sq", Slot::Maximum),
        ];
        match self {
            Kind::Sgd { momentum: 0.0, .. } => &[],
            Kind::Sgd { .. } => &[("momentum_buffer", Slot::First)],
            Kind::Adam(m) | Kind::AdamW(m) => &ADAM[..if m.amsgrad { 4 } else { 3 }],
        }
    }

    pub(super) fn raw(&self, lr: f64, weight_decay: f64) -> Rule {
        let Moments { beta1, beta2, eps, amsgrad } = match self {
            Kind::Sgd { .. } => MOMENTS,
            Kind::Adam(m) | Kind::AdamW(m) => *m,
        };
        let (kind, momentum, nesterov) = match *self {
            Kind::Sgd { momentum, nesterov } => (0, momentum, nesterov),
            Kind::Adam(_) => (1, 0.0, false),
            Kind::AdamW(_) => (2, 0.0, false),
        };
        Rule { kind, nesterov, amsgrad, lr, weight_decay, momentum, beta1, beta2, eps }
    }
}

macro_rules! optimizer {
    ($(#[$doc:meta])* $name:ident, $kind:expr, $weight_decay:expr) => {
        $(#[$doc])*
        pub struct $name(Arc<Mutex<Fused>>);

        impl $name {
            /// For the trainable parameters of a model.
            pub fn new(vs: &VarStore, lr: f64) -> Self {
                Self::from_params(params::parameters(vs), lr)
            }

            /// For parameters of one's own choosing, by name.
            pub fn from_params(params: Vec<(String, Tensor)>, lr: f64) -> Self {
                $name(Arc::new(Mutex::new(Fused::new($kind, params, lr, $weight_decay))))
            }

            /// How strongly parameters are drawn to zero.
            pub fn weight_decay(self, weight_decay: f64) -> Self {
                self.fused().weight_decay = weight_decay;
                self
            }

            /// Gives some parameters settings of their own.
            pub fn group(self, group: Group) -> Self {
                self.fused().add_group(group);
                self
            }

            /// Looks at the gradients before every step and skips the step, where the gradients are and without
            /// waiting for them, if any is not finite.
            pub fn skip_nonfinite(self) -> Self {
                self.fused().guard = true;
                self
            }

            /// Another handle on the same optimiser: for a captured step, a checkpoint, or a schedule.
            pub fn share(&self) -> Self {
                $name(self.0.clone())
            }

            fn fused(&self) -> MutexGuard<'_, Fused> {
                self.0.lock().unwrap_or_else(PoisonError::into_inner)
            }
        }

        impl Optimizer for $name {
            fn step(&mut self) -> Result<()> {
                self.fused().step()
            }
            fn zero_grad(&mut self) -> Result<()> {
                self.fused().zero_grad()
            }
            fn lr(&self) -> f64 {
                self.fused().lr()
            }
            fn set_lr(&mut self, lr: f64) -> Result<()> {
                self.fused().set_lr(lr)
            }
            fn clip_grad_norm(&mut self, max_norm: f64) -> Result<Tensor> {
                self.fused().clip_grad_norm(max_norm)
            }
            fn unscale(&mut self, inverse_scale: &Tensor) -> Result<Tensor> {
                self.fused().unscale(inverse_scale)
            }
            fn is_unscaled(&self) -> bool {
                self.fused().is_unscaled()
            }
            fn skipped_steps(&self) -> Result<u64> {
                self.fused().skipped_steps()
            }
            fn state(&self) -> Result<OptimizerState> {
                self.fused().state()
            }
            fn load_state(&mut self, state: &OptimizerState) -> Result<()> {
                self.fused().load_state(state)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($name)).field(&*self.fused()).finish()
            }
        }
    };
}

optimizer!(
    /// Stochastic gradient descent, plain unless told otherwise.
    Sgd,
    Kind::Sgd { momentum: 0.0, nesterov: false },
    0.0
);
optimizer!(
    /// Adam; weight decay is added to the gradient.
    Adam,
    Kind::Adam(MOMENTS),
    0.0
);
optimizer!(
    /// Adam with weight decay apart from the gradient.
    AdamW,
    Kind::AdamW(MOMENTS),
    0.01
);

impl Sgd {
    /// How much of the last update goes into the next.
    pub fn momentum(self, momentum: f64) -> Self {
        if let Kind::Sgd { momentum: m, .. } = &mut self.fused().kind {
            *m = momentum;
        }
        self
    }

    /// Nesterov's form of momentum.
    pub fn nesterov(self, nesterov: bool) -> Self {
        if let Kind::Sgd { nesterov: n, .. } = &mut self.fused().kind {
            *n = nesterov;
        }
        self
    }
}

macro_rules! moments {
    ($name:ident) => {
        impl $name {
            /// How slowly the first and the second moment forget.
            pub fn betas(self, beta1: f64, beta2: f64) -> Self {
                self.with_moments(|m| (m.beta1, m.beta2) = (beta1, beta2))
            }

            /// Added to the denominator.
            pub fn eps(self, eps: f64) -> Self {
                self.with_moments(|m| m.eps = eps)
            }

            /// Divides by the largest second moment so far.
            pub fn amsgrad(self, amsgrad: bool) -> Self {
                self.with_moments(|m| m.amsgrad = amsgrad)
            }

            fn with_moments(self, change: impl FnOnce(&mut Moments)) -> Self {
                if let Kind::Adam(m) | Kind::AdamW(m) = &mut self.fused().kind {
                    change(m);
                }
                self
            }
        }
    };
}

moments!(Adam);
moments!(AdamW);
