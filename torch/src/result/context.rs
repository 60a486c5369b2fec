//! libtorch's settings of thread and process, and how tensors lie in memory.

use std::slice;

use tch::{Device, Tensor};

use super::{check, device_code, some_tensor, tensor_from};
use crate::error::Result;
use crate::sys;

pub(crate) use crate::sys::Autocast;

pub(crate) fn autocast_enter(wanted: &Autocast) -> Result<Autocast> {
    let mut before = Autocast::default();
    // SAFETY: both structs are alive for the call.
    check("entering autocast", unsafe { sys::rg_autocast_enter(wanted, &mut before) })?;
    Ok(before)
}

pub(crate) fn autocast_leave(before: &Autocast) -> Result<()> {
    // SAFETY: the struct is alive for the call.
    check("leaving autocast", unsafe { sys::rg_autocast_leave(before) })
}

pub(crate) fn rng_get(device: Device) -> Result<Tensor> {
    let (op, code) = ("reading random state", device_code(device)?);
    // SAFETY: the shim writes a tensor that is ours.
    some_tensor(op, tensor_from(op, |out| unsafe { sys::rg_rng_get(code, out) })?)
}

pub(crate) fn rng_set(device: Device, state: &Tensor) -> Result<()> {
    // SAFETY: the state is alive; libtorch checks its size.
    check("restoring random state", unsafe { sys::rg_rng_set(device_code(device)?, state.as_ptr()) })
}

pub(crate) fn seed(seed: u64) -> Result<()> {
    // SAFETY: takes a number.
    check("seeding", unsafe { sys::rg_seed(seed) })
}

pub(crate) fn deterministic(on: bool) -> Result<()> {
    // SAFETY: takes a flag.
    check("setting deterministic mode", unsafe { sys::rg_deterministic(on) })
}

pub(crate) fn is_deterministic() -> bool {
    // SAFETY: reads a flag.
    unsafe { sys::rg_is_deterministic() }
}

pub(crate) fn flush_denormals(on: bool) -> Result<bool> {
    let mut done = false;
    // SAFETY: the answer is written to a local.
    check("setting the treatment of denormal numbers", unsafe { sys::rg_flush_denormals(on, &mut done) })?;
    Ok(done)
}

pub(crate) fn allow_tf32(on: bool) -> Result<()> {
    // SAFETY: takes a flag.
    check("setting TF32", unsafe { sys::rg_allow_tf32(on) })
}

pub(crate) fn channels_last(tensor: &Tensor) -> Result<Tensor> {
    let op = "changing to channels-last";
    // SAFETY: the tensor is alive.
    some_tensor(op, tensor_from(op, |out| unsafe { sys::rg_channels_last(tensor.as_ptr(), out) })?)
}

pub(crate) fn is_channels_last(tensor: &Tensor) -> Result<bool> {
    let mut out = false;
    // SAFETY: the tensor is alive.
    check("asking for channels-last", unsafe { sys::rg_is_channels_last(tensor.as_ptr(), &mut out) })?;
    Ok(out)
}

/// The bytes of a contiguous CPU tensor as they lie, or `None` for any other.
pub(crate) fn bytes(tensor: &Tensor) -> Result<Option<&[u8]>> {
    let mut dense = false;
    // SAFETY: the tensor is alive.
    check("looking at a tensor's memory", unsafe { sys::rg_dense_cpu(tensor.as_ptr(), &mut dense) })?;
    if !dense {
        return Ok(None);
    }
    let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if length == 0 {
        return Ok(Some(&[]));
    }
    // SAFETY: the memory is on the CPU, contiguous and `length` long; it lives as long as the handle that is borrowed.
    // That nobody writes to it through another handle meanwhile is the caller's promise, as with a mapped file.
    Ok(Some(unsafe { slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), length) }))
}
