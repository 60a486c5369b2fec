//! Safe calls to the shim: messages become errors, pointers become values, panics never cross.
//!
//! Nothing above this layer holds a raw pointer.

pub(crate) mod autograd;
pub(crate) mod context;
pub(crate) mod cuda;
pub(crate) mod ddp;
pub(crate) mod foreign;
pub(crate) mod host;
pub(crate) mod optim;

use std::ffi::{CStr, c_int};
use std::ptr;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::error::{Error, Result};
use crate::sys;

fn check(op: &'static str, message: sys::Message) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message that is not null is a C string from malloc, ours to read and to free once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        sys::rg_free(message);
        text
    };
    Err(Error::Torch { op, message: text })
}

/// Runs a call that writes a tensor.
fn tensor_from(
    op: &'static str,
    call: impl FnOnce(*mut *mut C_tensor) -> sys::Message,
) -> Result<Option<Tensor>> {
    let mut out = ptr::null_mut();
    check(op, call(&mut out))?;
    // SAFETY: the shim wrote a new at::Tensor that is ours, or null.
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) }))
}

fn some_tensor(op: &'static str, tensor: Option<Tensor>) -> Result<Tensor> {
    tensor.ok_or_else(|| Error::Torch { op, message: "no tensor came back".into() })
}

/// The device as the shim counts: -1 for the CPU, else CUDA's index.
pub(crate) fn device_code(device: Device) -> Result<c_int> {
    match device {
        Device::Cpu => Ok(-1),
        Device::Cuda(index) => c_int::try_from(index)
            .map_err(|_| Error::Argument { what: "device", why: format!("{index} is no CUDA device index") }),
        other => Err(Error::NotAvailable {
            what: "the device",
            why: format!("{other:?} is neither the CPU nor a CUDA device"),
        }),
    }
}

/// c10::ScalarType's numbers, for the kinds plain memory can hold.
pub(crate) fn kind_code(kind: Kind) -> Result<c_int> {
    Ok(match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::ComplexFloat => 9,
        Kind::ComplexDouble => 10,
        Kind::Bool => 11,
        Kind::BFloat16 => 15,
        Kind::Float8e5m2 => 23,
        Kind::Float8e4m3fn => 24,
        other => {
            return Err(Error::Argument {
                what: "dtype",
                why: format!("{other:?} cannot be viewed as plain memory; use a plain numeric dtype"),
            });
        }
    })
}
