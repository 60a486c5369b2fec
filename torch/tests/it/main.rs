//! The crate through its public API, on a machine without a GPU.

mod amp;
mod autograd;
mod context;
mod cuda;
mod loader;
mod memory;
mod optim;
mod resume;
mod schedule;
mod state;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::nn::{self, Module, ModuleT};
use tch::{Device, Kind, Tensor};

/// libtorch's random state, its thread count and our live counters are the process's: tests that meet in one process
/// take turns.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // Spinning worker threads of many test processes on few cores take seconds where one takes milliseconds.
    regatta_torch::threads::set(1).unwrap();
    tch::manual_seed(1);
    turn
}

pub(crate) const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// A small network with everything that makes resuming hard: dropout, batch normalisation, parameters of many shapes.
pub(crate) struct Net {
    pub(crate) vs: nn::VarStore,
    first: nn::Linear,
    norm: Option<nn::BatchNorm>,
    second: nn::Linear,
    dropout: f64,
}

impl Net {
    pub(crate) fn new(seed: i64, dropout: f64) -> Self {
        Self::build(seed, dropout, true)
    }

    /// Without batch normalisation: the gradient of a bias before one is nothing but rounding, which Adam blows up.
    pub(crate) fn plain(seed: i64) -> Self {
        Self::build(seed, 0.0, false)
    }

    fn build(seed: i64, dropout: f64, norm: bool) -> Self {
        // Ranks that are threads draw from one generator.
        static DRAWING: Mutex<()> = Mutex::new(());
        let _drawing = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
        tch::manual_seed(seed);
        let vs = nn::VarStore::new(Device::Cpu);
        let root = vs.root();
        let first = nn::linear(&root / "first", 12, 17, Default::default());
        let norm = norm.then(|| nn::batch_norm1d(&root / "norm", 17, Default::default()));
        let second = nn::linear(&root / "second", 17, 3, Default::default());
        Net { first, norm, second, vs, dropout }
    }

    pub(crate) fn loss(&self, x: &Tensor, y: &Tensor) -> Tensor {
        let hidden = self.first.forward(x);
        let hidden = self.norm.as_ref().map_or(hidden.shallow_clone(), |norm| hidden.apply_t(norm, true));
        let hidden = hidden.tanh().dropout(self.dropout, true);
        self.second.forward_t(&hidden, true).cross_entropy_for_logits(y)
    }

    pub(crate) fn weights(&self) -> Vec<(String, Tensor)> {
        let mut all: Vec<_> =
            self.vs.variables().into_iter().map(|(name, t)| (name, t.detach().copy())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

pub(crate) fn batch() -> (Tensor, Tensor) {
    tch::manual_seed(99);
    (Tensor::randn([32, 12], F32), Tensor::randint(3, [32], (Kind::Int64, Device::Cpu)))
}

pub(crate) fn largest_difference(a: &[(String, Tensor)], b: &[(String, Tensor)]) -> f64 {
    assert_eq!(a.len(), b.len());
    let each = a.iter().zip(b).map(|((name, a), (other, b))| {
        assert_eq!(name, other);
        (a - b).abs().max().double_value(&[])
    });
    each.fold(0.0, f64::max)
}
