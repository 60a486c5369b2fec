//! The optimiser object of the shim.

use std::ffi::c_int;
use std::ptr;

use tch::Tensor;

use super::{check, some_tensor, tensor_from};
use crate::error::Result;
use crate::sys;

pub(crate) use crate::sys::Rule;

/// A tensor of the optimiser's state for one parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Step = 0,
    First = 1,
    Second = 2,
    Maximum = 3,
}

/// The prepared lists of an optimiser; one call a step.
pub(crate) struct RawOptim(*mut sys::Optim);

// SAFETY: the object holds tensors, which are Send as tch's are, and is only reached through `&mut` or by its owner.
unsafe impl Send for RawOptim {}

impl RawOptim {
    pub(crate) fn new() -> Result<Self> {
        let mut out = ptr::null_mut();
        // SAFETY: writes an empty object that is ours.
        check("making an optimiser", unsafe { sys::rg_optim_new(&mut out) })?;
        Ok(RawOptim(out))
    }

    pub(crate) fn add(&mut self, rule: &Rule, params: &[&Tensor]) -> Result<()> {
        let pointers: Vec<_> = params.iter().map(|param| param.as_ptr()).collect();
        // SAFETY: the pointers are of live tensors; the shim copies the handles.
        check("adding parameters to an optimiser", unsafe {
            sys::rg_optim_add(self.0, rule, pointers.as_ptr(), pointers.len())
        })
    }

    pub(crate) fn set_lr(&mut self, bucket: usize, lr: f64) -> Result<()> {
        // SAFETY: the object is alive; the shim checks the index.
        check("setting the learning rate", unsafe { sys::rg_optim_set_lr(self.0, bucket, lr) })
    }

    pub(crate) fn zero_grad(&mut self, release: bool) -> Result<()> {
        // SAFETY: the object is alive.
        check("zeroing gradients", unsafe { sys::rg_optim_zero_grad(self.0, release) })
    }

    pub(crate) fn check_finite(&mut self, inverse_scale: Option<&Tensor>) -> Result<()> {
        let scale = inverse_scale.map_or(ptr::null(), Tensor::as_ptr);
        // SAFETY: the object and the scale are alive.
        check("looking for non-finite gradients", unsafe { sys::rg_optim_check(self.0, scale) })
    }

    /// As `check_finite`, unless the gradients at hand were looked at already.
    pub(crate) fn check_finite_if_unchecked(&mut self) -> Result<()> {
        // SAFETY: the object is alive.
        check("looking for non-finite gradients", unsafe { sys::rg_optim_guard(self.0) })
    }

    pub(crate) fn is_checked(&self) -> bool {
        // SAFETY: the object is alive and this only reads it.
        unsafe { sys::rg_optim_is_checked(self.0) }
    }

    pub(crate) fn found_inf(&mut self) -> Result<Tensor> {
        let op = "reading the non-finite mark";
        // SAFETY: the object is alive.
        some_tensor(op, tensor_from(op, |out| unsafe { sys::rg_optim_found_inf(self.0, out) })?)
    }

    pub(crate) fn clip(&mut self, max_norm: f64) -> Result<Tensor> {
        let op = "clipping gradients";
        // SAFETY: the object is alive.
        some_tensor(op, tensor_from(op, |out| unsafe { sys::rg_optim_clip(self.0, max_norm, out) })?)
    }

    pub(crate) fn step(&mut self) -> Result<()> {
        // SAFETY: the object is alive.
        check("an optimiser step", unsafe { sys::rg_optim_step(self.0) })
    }

    pub(crate) fn skipped(&self) -> Result<f64> {
        let mut out = 0.0;
        // SAFETY: the object is alive and this only reads it.
        check("counting skipped steps", unsafe { sys::rg_optim_skipped(self.0, &mut out) })?;
        Ok(out)
    }

    pub(crate) fn set_skipped(&mut self, skipped: f64) -> Result<()> {
        // SAFETY: the object is alive.
        check("restoring the count of skipped steps", unsafe { sys::rg_optim_set_skipped(self.0, skipped) })
    }

    /// The live tensor itself; `None` where the rule has no such state.
    pub(crate) fn state(&self, bucket: usize, index: usize, slot: Slot) -> Result<Option<Tensor>> {
        // SAFETY: the object is alive; the shim checks the indices and makes a handle of its own.
        tensor_from("reading an optimiser's state", |out| unsafe {
            sys::rg_optim_state(self.0, bucket, index, slot as c_int, out)
        })
    }
}

impl Drop for RawOptim {
    fn drop(&mut self) {
        // SAFETY: the object is ours and goes once.
        unsafe { sys::rg_optim_delete(self.0) }
    }
}

/// Grows or shrinks a loss scale where it lies.
pub(crate) fn update_scale(
    scale: &mut Tensor,
    growth_tracker: &mut Tensor,
    found_inf: &Tensor,
    (growth, backoff, interval): (f64, f64, i64),
) -> Result<()> {
    // SAFETY: the tensors are alive, and the two that change are borrowed alone.
    check("updating a loss scale", unsafe {
        sys::rg_scale_update(
            scale.as_mut_ptr(),
            growth_tracker.as_mut_ptr(),
            found_inf.as_ptr(),
            growth,
            backoff,
            interval,
        )
    })
}
