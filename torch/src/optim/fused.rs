//! What all fused optimisers share: parameters sorted into buckets, one call a step, state by name.

use tch::{Device, Kind as Dtype, Tensor};

use super::rules::Kind;
use super::{Group, OptimizerScalars, OptimizerState};
use crate::error::{Difference, Error, Result};
use crate::result::optim::RawOptim;
use crate::state::{self, NamedTensor};

#[derive(Debug)]
pub(super) struct Fused {
    pub(super) kind: Kind,
    pub(super) weight_decay: f64,
    pub(super) guard: bool,
    lr: f64,
    params: Vec<(String, Tensor)>,
    groups: Vec<Group>,
    built: Option<Built>,
}

/// The C++ side, made at the first use.
struct Built {
    raw: RawOptim,
    buckets: Vec<Bucket>,
}

/// Parameters that go through one kernel call: of one group, dtype and device.
#[derive(Debug)]
struct Bucket {
    key: (Option<usize>, Dtype, Device),
    lr_scale: f64,
    params: Vec<usize>,
}

impl std::fmt::Debug for Built {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.buckets.fmt(f)
    }
}

impl Fused {
    pub(super) fn new(kind: Kind, params: Vec<(String, Tensor)>, lr: f64, weight_decay: f64) -> Self {
        Fused { kind, weight_decay, guard: false, lr, params, groups: Vec::new(), built: None }
    }

    pub(super) fn add_group(&mut self, group: Group) {
        self.groups.push(group);
    }

    fn built(&mut self) -> Result<&mut Built> {
        let built = match self.built.take() {
            Some(built) => built,
            None => self.build()?,
        };
        Ok(self.built.insert(built))
    }

    fn build(&self) -> Result<Built> {
        self.check_settings()?;
        let mut buckets: Vec<Bucket> = Vec::new();
        for (index, (name, param)) in self.params.iter().enumerate() {
            let group = self.groups.iter().rposition(|group| (group.matches.0)(name));
            let key = (group, param.kind(), param.device());
            match buckets.iter_mut().find(|bucket| bucket.key == key) {
                Some(bucket) => bucket.params.push(index),
                None => {
                    let lr_scale = group.map_or(1.0, |group| self.groups[group].lr_scale);
                    buckets.push(Bucket { key, lr_scale, params: vec![index] });
                }
            }
        }
        let mut raw = RawOptim::new()?;
        for bucket in &buckets {
            let own = bucket.key.0.and_then(|group| self.groups[group].weight_decay);
            let rule = self.kind.raw(self.lr * bucket.lr_scale, own.unwrap_or(self.weight_decay));
            let params: Vec<_> = bucket.params.iter().map(|&index| &self.params[index].1).collect();
            raw.add(&rule, &params)?;
        }
        Ok(Built { raw, buckets })
    }

    fn check_settings(&self) -> Result<()> {
        for (name, param) in &self.params {
            if !param.defined() || !param.is_leaf() || !param.is_floating_point() {
                return Err(Error::Argument {
                    what: "an optimiser's parameters",
                    why: format!(
                        "{name} is not a floating-point leaf; give parameters, not what was computed from them"
                    ),
                });
            }
        }
        if let Kind::Sgd { momentum: 0.0, nesterov: true } = self.kind {
            return Err(Error::Argument {
                what: "Sgd",
                why: "Nesterov's form needs a momentum above zero".into(),
            });
        }
        Ok(())
    }

    pub(super) fn step(&mut self) -> Result<()> {
        let guard = self.guard;
        let built = self.built()?;
        if guard {
            built.raw.check_finite_if_unchecked()?;
        }
        built.raw.step()
    }

    pub(super) fn zero_grad(&mut self) -> Result<()> {
        self.built()?.raw.zero_grad(true)
    }

    pub(super) fn lr(&self) -> f64 {
        self.lr
    }

    pub(super) fn set_lr(&mut self, lr: f64) -> Result<()> {
        if !lr.is_finite() {
            return Err(Error::Argument { what: "set_lr", why: format!("{lr} is not a learning rate") });
        }
        self.lr = lr;
        if let Some(Built { raw, buckets }) = &mut self.built {
            for (index, bucket) in buckets.iter().enumerate() {
                raw.set_lr(index, lr * bucket.lr_scale)?;
            }
        }
        Ok(())
    }

    pub(super) fn clip_grad_norm(&mut self, max_norm: f64) -> Result<Tensor> {
        self.built()?.raw.clip(max_norm)
    }

    pub(super) fn unscale(&mut self, inverse_scale: &Tensor) -> Result<Tensor> {
        let raw = &mut self.built()?.raw;
        raw.check_finite(Some(inverse_scale))?;
        raw.found_inf()
    }

    pub(super) fn is_unscaled(&self) -> bool {
        self.built.as_ref().is_some_and(|built| built.raw.is_checked())
    }

    pub(super) fn skipped_steps(&self) -> Result<u64> {
        // A count, kept as a float on the device.
        self.built.as_ref().map_or(Ok(0), |built| Ok(built.raw.skipped()? as u64))
    }

    pub(super) fn state(&mut self) -> Result<OptimizerState> {
        let scalars = OptimizerScalars {
            rule: self.kind.name().into(),
            lr: self.lr,
            skipped_steps: self.skipped_steps()?,
        };
        Ok(OptimizerState { scalars, tensors: self.live_state()? })
    }

    /// The live tensors of the state, by name, in the parameters' order.
    fn live_state(&mut self) -> Result<Vec<NamedTensor>> {
        self.built()?;
        let Some(built) = &self.built else { return Ok(Vec::new()) };
        let mut placed = Vec::new();
        for (bucket, members) in built.buckets.iter().enumerate() {
            for (place, &param) in members.params.iter().enumerate() {
                for &(what, slot) in self.kind.slots() {
                    if let Some(tensor) = built.raw.state(bucket, place, slot)? {
                        let name = format!("{}.{what}", self.params[param].0);
                        placed.push((param, slot, NamedTensor::new(name, tensor)));
                    }
                }
            }
        }
        placed.sort_by_key(|&(param, slot, _)| (param, slot as u8));
        Ok(placed.into_iter().map(|(_, _, named)| named).collect())
    }

    pub(super) fn load_state(&mut self, state: &OptimizerState) -> Result<()> {
        let mut differences = Vec::new();
        if state.scalars.rule != self.kind.name() {
            differences.push(Difference::unlike("optimizer", self.kind.name(), &state.scalars.rule));
        }
        let live = self.live_state()?;
        differences.extend(state::differences(&live, &state.tensors));
        if !differences.is_empty() {
            return Err(Error::Mismatch { what: "the optimiser's state", differences });
        }
        state::copy_all(&live, &state.tensors)?;
        self.set_lr(state.scalars.lr)?;
        let skipped = state.scalars.skipped_steps;
        if skipped > 0 || self.skipped_steps()? > 0 {
            self.built()?.raw.set_skipped(skipped as f64)?;
        }
        Ok(())
    }
}
