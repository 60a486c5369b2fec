//! Models, optimisers, schedules, scalers and random state as components of a training state.

use std::borrow::Cow;

use regatta_checkpoint::{Dtype, Placement};
use regatta_train::{SavedPart, StateTensor, Stateful};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::amp::{GradScaler, GradScalerState};
use crate::error::{Error, Result};
use crate::optim::{Adam, AdamW, Optimizer, OptimizerScalars, OptimizerState, Sgd};
use crate::params;
use crate::result::host::HostBytes;
use crate::rng::{self, RngState};
use crate::schedule::{Scheduler, SchedulerState};
use crate::state::{self, NamedTensor};

/// The key of libtorch's random state, which is in every state.
pub(crate) const RNG: &str = "rng";

/// An error of this crate among the trainer's.
pub fn train_error(error: Error) -> regatta_train::Error {
    regatta_train::Error::other("libtorch", error)
}

/// What a rank draws from: the run's seed itself on rank 0 at the beginning, elsewhere and later numbers made from it.
pub(crate) fn seed_of(seed: u64, rank: usize, step: u64) -> u64 {
    // splitmix64's finaliser: bijective, so that different places never meet but by chance.
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    match (rank, step) {
        (0, 0) => seed,
        (rank, step) => mix(mix(seed ^ mix(rank as u64 + 1)).wrapping_add(step)),
    }
}

fn dtype(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Bool => Dtype::BOOL,
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Int16 => Dtype::I16,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::ComplexFloat => Dtype::C64,
        Kind::Float8e5m2 => Dtype::F8_E5M2,
        Kind::Float8e4m3fn => Dtype::F8_E4M3,
        Kind::Float8e5m2fnuz => Dtype::F8_E5M2FNUZ,
        Kind::Float8e4m3fnuz => Dtype::F8_E4M3FNUZ,
        other => {
            let why = format!("{other:?} tensors have no place in a checkpoint");
            return Err(Error::NotAvailable { what: "saving a tensor", why });
        }
    })
}

fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::C64 => Kind::ComplexFloat,
        Dtype::F8_E5M2 => Kind::Float8e5m2,
        Dtype::F8_E4M3 => Kind::Float8e4m3fn,
        Dtype::F8_E5M2FNUZ => Kind::Float8e5m2fnuz,
        Dtype::F8_E4M3FNUZ => Kind::Float8e4m3fnuz,
        _ => return None,
    })
}

/// A tensor to be saved: its own memory where that is contiguous on the CPU, else a copy.
pub(crate) fn saved_tensor(name: &str, tensor: &Tensor) -> Result<StateTensor<'static>> {
    Ok(StateTensor {
        name: Cow::Owned(name.to_owned()),
        dtype: dtype(tensor.kind())?,
        shape: tensor.size().iter().map(|&n| n as u64).collect(),
        placement: Placement::Replicated,
        data: Box::new(HostBytes::of(tensor)?),
    })
}

/// The tensors of a component as they were saved, on the CPU.
fn loaded(saved: &dyn SavedPart) -> regatta_train::Result<Vec<NamedTensor>> {
    let all = saved.list().into_iter();
    all.map(|(name, dtype, shape)| of_bytes(saved, &name, dtype, &shape, &saved.tensor(&name)?)).collect()
}

/// A tensor of these bytes, on the CPU.
pub(crate) fn of_bytes(
    saved: &dyn SavedPart,
    name: &str,
    dtype: Dtype,
    shape: &[u64],
    bytes: &[u8],
) -> regatta_train::Result<NamedTensor> {
    let kind =
        kind(dtype).ok_or_else(|| saved.misfit(format!("{name} is {dtype}, which libtorch has not")))?;
    let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    NamedTensor::from_bytes(name, kind, &shape, bytes).map_err(train_error)
}

/// What does not fit is said with all else that does not.
pub(crate) fn fits(saved: &dyn SavedPart, loaded: Result<()>) -> regatta_train::Result<()> {
    loaded.map_err(|error| match error {
        Error::Mismatch { .. } => saved.misfit(error.to_string()),
        other => train_error(other),
    })
}

fn to_json(value: &impl serde::Serialize) -> regatta_train::Result<Value> {
    serde_json::to_value(value).map_err(|error| regatta_train::Error::other("save a component", error))
}

fn from_json<T: serde::de::DeserializeOwned>(saved: &dyn SavedPart) -> regatta_train::Result<T> {
    serde_json::from_value(saved.values().clone()).map_err(|error| saved.misfit(error.to_string()))
}

/// A model's tensors by name. The handles are the model's own, so they follow it wherever it goes.
pub(crate) struct Model(Vec<(String, Tensor)>);

impl Model {
    pub(crate) fn of(vs: &VarStore) -> Self {
        Model(params::parameters(vs).into_iter().chain(params::buffers(vs)).collect())
    }
}

impl Stateful for Model {
    fn tensors(&self) -> regatta_train::Result<Vec<StateTensor<'_>>> {
        self.0.iter().map(|(name, tensor)| saved_tensor(name, tensor).map_err(train_error)).collect()
    }

    fn load(&mut self, saved: &dyn SavedPart) -> regatta_train::Result<()> {
        let loaded = loaded(saved)?;
        let live: Vec<_> =
            self.0.iter().map(|(name, tensor)| NamedTensor::new(name.as_str(), tensor.detach())).collect();
        fits(saved, state::load_into(&live, &loaded))
    }
}

/// An optimiser of which a state can keep a handle.
pub trait Keep {
    /// The handle.
    fn keep(&self) -> Box<dyn Optimizer>;
}

macro_rules! keep {
    ($($optimizer:ty),*) => { $(
        impl Keep for $optimizer {
            fn keep(&self) -> Box<dyn Optimizer> {
                Box::new(self.share())
            }
        }
    )* };
}
keep!(Sgd, Adam, AdamW);

/// An optimiser's state.
pub(crate) struct Moments(pub(crate) Box<dyn Optimizer>);

impl Stateful for Moments {
    fn tensors(&self) -> regatta_train::Result<Vec<StateTensor<'_>>> {
        let state = self.0.state().map_err(train_error)?;
        state
            .tensors
            .iter()
            .map(|tensor| saved_tensor(tensor.name(), tensor.tensor()).map_err(train_error))
            .collect()
    }

    fn values(&self) -> regatta_train::Result<Value> {
        to_json(&self.0.state().map_err(train_error)?.scalars)
    }

    fn load(&mut self, saved: &dyn SavedPart) -> regatta_train::Result<()> {
        let scalars: OptimizerScalars = from_json(saved)?;
        let tensors = loaded(saved)?;
        fits(saved, self.0.load_state(&OptimizerState { scalars, tensors }))
    }
}

impl Stateful for Scheduler {
    fn values(&self) -> regatta_train::Result<Value> {
        to_json(&self.state())
    }

    fn load(&mut self, saved: &dyn SavedPart) -> regatta_train::Result<()> {
        let state: SchedulerState = from_json(saved)?;
        // The learning rate itself comes back with the optimiser.
        self.resume(&state);
        Ok(())
    }
}

impl Stateful for GradScaler {
    fn values(&self) -> regatta_train::Result<Value> {
        to_json(&self.state().map_err(train_error)?)
    }

    fn load(&mut self, saved: &dyn SavedPart) -> regatta_train::Result<()> {
        let state: GradScalerState = from_json(saved)?;
        self.load_state(&state).map_err(|error| saved.misfit(error.to_string()))
    }
}

/// What libtorch draws from, on this rank.
pub(crate) struct Random {
    pub(crate) seed: u64,
    pub(crate) rank: usize,
}

impl Stateful for Random {
    fn values(&self) -> regatta_train::Result<Value> {
        to_json(&rng::state().map_err(train_error)?)
    }

    /// Goes on where this rank was. With another number of ranks there is no such place: each draws anew, from its own seed.
    fn load(&mut self, saved: &dyn SavedPart) -> regatta_train::Result<()> {
        if !saved.same_world() {
            return rng::seed_everything(seed_of(self.seed, self.rank, saved.step())).map_err(train_error);
        }
        let state: RngState = from_json(saved)?;
        rng::set_state(&state).map_err(|error| saved.misfit(error.to_string()))
    }
}
