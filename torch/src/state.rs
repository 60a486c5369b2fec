//! Tensors by name as plain bytes: how a model's state leaves libtorch and comes back.
//!
//! ```
//! use regatta_torch::state::{self, NamedTensor};
//! use tch::{Device, nn};
//!
//! let vs = nn::VarStore::new(Device::Cpu);
//! let _net = nn::linear(vs.root(), 3, 2, Default::default());
//! let mut stored = Vec::new();
//! for tensor in state::model(&vs) {
//!     stored.push((tensor.name().to_owned(), tensor.kind(), tensor.shape(), tensor.bytes()?.into_owned()));
//! }
//! let read: Result<Vec<_>, _> =
//!     stored.iter().map(|(name, kind, shape, bytes)| NamedTensor::from_bytes(name, *kind, shape, bytes)).collect();
//! state::load_model(&vs, &read?)?;
//! # Ok::<(), regatta_torch::Error>(())
//! ```

use std::borrow::Cow;
use std::collections::HashMap;

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::error::{Difference, Error, Result};
use crate::params;
use crate::result::{context, kind_code};

/// A tensor with a name.
#[derive(Debug)]
pub struct NamedTensor {
    name: String,
    tensor: Tensor,
}

impl NamedTensor {
    /// Names a tensor. The handle is kept, not a copy.
    pub fn new(name: impl Into<String>, tensor: Tensor) -> Self {
        NamedTensor { name: name.into(), tensor }
    }

    /// A CPU tensor with a copy of bytes in the machine's order, as [`NamedTensor::bytes`] gave them.
    pub fn from_bytes(name: impl Into<String>, kind: Kind, shape: &[i64], bytes: &[u8]) -> Result<Self> {
        let name = name.into();
        kind_code(kind)?;
        let elements = shape.iter().try_fold(1usize, |all, &n| all.checked_mul(usize::try_from(n).ok()?));
        let wanted = elements.and_then(|n| n.checked_mul(kind.elt_size_in_bytes()));
        if wanted != Some(bytes.len()) {
            let why =
                format!("{name}: a {kind:?} tensor of shape {shape:?} is not {} bytes long", bytes.len());
            return Err(Error::Argument { what: "NamedTensor::from_bytes", why });
        }
        Ok(NamedTensor { name, tensor: Tensor::f_from_data_size(bytes, shape, kind)? })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tensor itself.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The dtype.
    pub fn kind(&self) -> Kind {
        self.tensor.kind()
    }

    /// The shape.
    pub fn shape(&self) -> Vec<i64> {
        self.tensor.size()
    }

    /// The elements in row-major order, in the machine's byte order: the tensor's own memory where that is contiguous on
    /// the CPU, else a copy (which waits for a GPU).
    ///
    /// Do not change the tensor through another handle while the bytes are borrowed, as with a mapped file.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        if let Some(bytes) = context::bytes(&self.tensor)? {
            return Ok(Cow::Borrowed(bytes));
        }
        kind_code(self.kind())?;
        let copy = tch::no_grad(|| self.tensor.f_to_device(Device::Cpu)?.f_contiguous())?
            .resolve_conj()
            .resolve_neg();
        match context::bytes(&copy)? {
            Some(bytes) => Ok(Cow::Owned(bytes.to_vec())),
            None => {
                Err(Error::Torch { op: "copying to the CPU", message: "the copy is not contiguous".into() })
            }
        }
    }
}

/// A model's parameters, in the order of their definition, then its buffers by name. The tensors are the live ones.
pub fn model(vs: &VarStore) -> Vec<NamedTensor> {
    params::parameters(vs)
        .into_iter()
        .chain(params::buffers(vs))
        .map(|(name, tensor)| NamedTensor::new(name, tensor.detach()))
        .collect()
}

/// Copies a state into a model. If anything is missing, unexpected or unlike, all of that is listed and nothing is changed.
pub fn load_model(vs: &VarStore, state: &[NamedTensor]) -> Result<()> {
    load_into(&model(vs), state)
}

/// The same for tensors of a model that are at hand.
pub(crate) fn load_into(live: &[NamedTensor], state: &[NamedTensor]) -> Result<()> {
    let differences = differences(live, state);
    if !differences.is_empty() {
        return Err(Error::Mismatch { what: "the model's state", differences });
    }
    copy_all(live, state)
}

/// How `state` differs from `live` in names, dtypes and shapes.
pub(crate) fn differences(live: &[NamedTensor], state: &[NamedTensor]) -> Vec<Difference> {
    let mut loaded: HashMap<&str, &NamedTensor> = HashMap::new();
    let mut differences = Vec::new();
    for tensor in state {
        if loaded.insert(tensor.name(), tensor).is_some() {
            differences.push(Difference::unlike(tensor.name(), "one tensor", "several of this name"));
        }
    }
    let seen = |t: &NamedTensor| format!("{:?}{:?}", t.kind(), t.shape());
    for target in live {
        match loaded.remove(target.name()) {
            None => differences.push(Difference::missing(target.name())),
            Some(found) if found.kind() != target.kind() || found.shape() != target.shape() => {
                differences.push(Difference::unlike(target.name(), seen(target), seen(found)));
            }
            Some(_) => {}
        }
    }
    let mut unexpected: Vec<_> = loaded.into_keys().map(Difference::unexpected).collect();
    unexpected.sort_by(|a, b| a.name.cmp(&b.name));
    differences.extend(unexpected);
    differences
}

/// Copies by name; call it when [`differences`] found none.
pub(crate) fn copy_all(live: &[NamedTensor], state: &[NamedTensor]) -> Result<()> {
    let loaded: HashMap<&str, &NamedTensor> = state.iter().map(|tensor| (tensor.name(), tensor)).collect();
    for target in live {
        if let Some(source) = loaded.get(target.name()) {
            tch::no_grad(|| target.tensor.shallow_clone().f_copy_(&source.tensor))?;
        }
    }
    Ok(())
}
