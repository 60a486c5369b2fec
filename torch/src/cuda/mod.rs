//! CUDA, where there is any.
//!
//! Nothing here needs CUDA to build. `libtorch_cuda` is loaded when it lies beside libtorch; where it does not, or where no
//! device is visible, every call answers [`Error::NotAvailable`].

mod graph;
mod stream;

pub use graph::{GraphedStep, Mode};
pub use stream::{Event, Stream, StreamGuard};

use std::sync::OnceLock;

use tch::Device;

use crate::error::{Error, Result};
use crate::result::cuda as raw;

fn loaded() -> &'static Result<usize, String> {
    static LOADED: OnceLock<Result<usize, String>> = OnceLock::new();
    LOADED.get_or_init(|| raw::load().map_err(|error| error.to_string()))
}

/// Loads CUDA's half of libtorch and returns the number of devices.
///
/// Call it first thing in `main` of a program that is to use a GPU: libtorch looks for CUDA once, and what was not
/// loaded by then stays unseen. Everything in this crate that could make libtorch look calls this first.
pub fn load() -> Result<usize> {
    loaded().clone().map_err(|why| Error::NotAvailable { what: "CUDA", why })
}

pub(crate) fn load_if_present() {
    let _ = loaded();
}

/// Whether there is a CUDA device to use.
pub fn is_available() -> bool {
    loaded().is_ok()
}

/// The number of CUDA devices; zero where there is none.
pub fn device_count() -> usize {
    loaded().as_ref().copied().unwrap_or(0)
}

/// The first CUDA device, or the CPU.
pub fn best_device() -> Device {
    if is_available() { Device::Cuda(0) } else { Device::Cpu }
}
