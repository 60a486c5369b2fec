//! Data-parallel training through its public API. Ranks are threads, but where one of them has to die.
//!
//! libtorch's random state belongs to the process, so everything here is made of explicit values.

mod faults;
mod gradients;
mod training;
mod uneven;

use std::sync::{Mutex, PoisonError};

use regatta_comm::{ProcessGroup, thread};
use regatta_torch::ddp::{DataParallel, DataParallelConfig};
use regatta_torch::{Error, Result};
use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};

pub(crate) const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Values that look random and are always the same.
pub(crate) fn values(shape: &[i64], seed: i64) -> Tensor {
    let n: i64 = shape.iter().product();
    ((Tensor::arange(n, F32) + (seed * 7919) as f64) * 12.9898).sin().reshape(shape)
}

/// A perceptron whose weights are a function of `seed`.
pub(crate) struct Net {
    pub(crate) vs: VarStore,
    layers: [nn::Linear; 3],
}

impl Net {
    pub(crate) fn new(seed: i64) -> Net {
        let vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let mut place = 0;
        let mut layer = |name: &str, from: i64, to: i64| {
            let layer = nn::linear(&root / name, from, to, Default::default());
            let bias = layer.bs.as_ref().unwrap();
            for tensor in [&layer.ws, bias] {
                place += 1;
                tch::no_grad(|| tensor.shallow_clone().copy_(&(values(&tensor.size(), seed + place) * 0.3)));
            }
            layer
        };
        let layers = [layer("first", 12, 33), layer("second", 33, 17), layer("third", 17, 4)];
        Net { vs, layers }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let [first, second, third] = &self.layers;
        third.forward(&second.forward(&first.forward(x).tanh()).tanh())
    }

    pub(crate) fn loss(&self, x: &Tensor, y: &Tensor) -> Tensor {
        self.forward(x).cross_entropy_for_logits(y)
    }

    /// All bits of all weights.
    pub(crate) fn bits(&self) -> Vec<u8> {
        let mut all: Vec<_> = self.vs.variables().into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.iter().flat_map(|(_, t)| floats(t).into_iter().flat_map(|x| x.to_bits().to_le_bytes())).collect()
    }
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.detach().contiguous().reshape([-1])).unwrap()
}

/// The samples of one step: inputs and labels.
pub(crate) fn samples(n: i64, step: i64) -> (Tensor, Tensor) {
    let x = values(&[n, 12], step + 1);
    let y = ((values(&[n], step + 31) + 1.0) * 1.999).floor().to_kind(Kind::Int64);
    (x, y)
}

/// Small enough that even these models have several buckets.
pub(crate) fn config() -> DataParallelConfig {
    DataParallelConfig { first_bucket_bytes: 256, bucket_bytes: 2048, ..Default::default() }
}

/// Runs ranks as threads, with one thread of libtorch's each. Tests that meet in one process take turns: hooks of the tests' own cannot be
/// registered while another runs a backward pass.
pub(crate) fn ranks<R: Send>(world: usize, body: impl Fn(ProcessGroup) -> R + Sync) -> Vec<R> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    regatta_torch::threads::set(1).unwrap();
    thread::run(world, body)
}

/// Every rank's error, which must be the same text on all.
pub(crate) fn same_error<T>(outcomes: Vec<Result<T>>) -> Error {
    let mut errors: Vec<Error> = outcomes.into_iter().map(|o| o.err().expect("every rank fails")).collect();
    for error in &errors {
        assert_eq!(error.to_string(), errors[0].to_string(), "all ranks get the same error");
    }
    errors.remove(0)
}

pub(crate) fn parallel(net: &Net, group: ProcessGroup, config: DataParallelConfig) -> Result<DataParallel> {
    DataParallel::new(&net.vs, group, config)
}
