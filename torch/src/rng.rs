//! Random state of the CPU and of every CUDA device: seeded, read, restored; and deterministic mode.

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::cuda;
use crate::error::{Error, Result};
use crate::result::context;

/// Everything libtorch draws from.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngState {
    cpu: Vec<u8>,
    cuda: Vec<Vec<u8>>,
}

impl std::fmt::Debug for RngState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RngState(cpu: {} bytes, cuda devices: {})", self.cpu.len(), self.cuda.len())
    }
}

fn read(device: Device) -> Result<Vec<u8>> {
    let state = context::rng_get(device)?;
    Ok(context::bytes(&state)?.unwrap_or_default().to_vec())
}

/// Seeds the CPU and every CUDA device.
///
/// Other sources of randomness (Rust's own generators) are the program's to seed.
pub fn seed_everything(seed: u64) -> Result<()> {
    cuda::load_if_present();
    context::seed(seed)
}

/// The state of the CPU's generator and of every CUDA device's.
pub fn state() -> Result<RngState> {
    let devices = cuda::device_count();
    let cuda = (0..devices).map(|index| read(Device::Cuda(index))).collect::<Result<_>>()?;
    Ok(RngState { cpu: read(Device::Cpu)?, cuda })
}

/// Goes on from a state that [`state`] gave.
///
/// A state taken with more CUDA devices than there are restores those there are; one with fewer leaves the others alone.
pub fn set_state(state: &RngState) -> Result<()> {
    let size = read(Device::Cpu)?.len();
    if state.cpu.len() != size {
        let why = format!("the CPU's random state is {size} bytes long, this one {}", state.cpu.len());
        return Err(Error::Argument { what: "rng::set_state", why });
    }
    context::rng_set(Device::Cpu, &Tensor::from_slice(&state.cpu))?;
    for (index, bytes) in state.cuda.iter().take(cuda::device_count()).enumerate() {
        context::rng_set(Device::Cuda(index), &Tensor::from_slice(bytes))?;
    }
    Ok(())
}

/// Makes libtorch choose deterministic kernels, and fail where it has none.
///
/// On CUDA, cuBLAS also needs the environment variable `CUBLAS_WORKSPACE_CONFIG=:4096:8` from before the program's first
/// CUDA call; libtorch's error says so when it is missing.
pub fn set_deterministic(on: bool) -> Result<()> {
    context::deterministic(on)
}

/// Whether [`set_deterministic`] is on.
pub fn is_deterministic() -> bool {
    context::is_deterministic()
}
