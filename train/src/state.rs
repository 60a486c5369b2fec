//! What a resume needs, put together from components: a model, an optimiser, a position in the data, anything of the user's.
//!
//! A component gives its tensors and its small values out and takes them back. It is kept by handle, so that a state can be
//! saved inside of the loop that changes it.

use std::borrow::Cow;

use regatta_checkpoint::{Dtype, Placement, TensorSource};
use serde_json::Value;

use crate::{Error, Result};

/// A tensor of a component.
pub struct StateTensor<'a> {
    /// Its name, unique in the component.
    pub name: Cow<'a, str>,
    /// Its element type.
    pub dtype: Dtype,
    /// Its global shape.
    pub shape: Vec<u64>,
    /// What of it is on this rank.
    pub placement: Placement,
    /// Its bytes, row-major and little-endian.
    pub data: Box<dyn TensorSource + 'a>,
}

/// What is saved of a component and comes back. Implemented by models, optimisers, loaders; implement it for what is yours,
/// or use a `Tracked` value.
pub trait Stateful: Send {
    /// The version of the form of [`Stateful::values`].
    fn version(&self) -> u32 {
        1
    }

    /// Its tensors as they are now.
    fn tensors(&self) -> Result<Vec<StateTensor<'_>>> {
        Ok(Vec::new())
    }

    /// Its small values as they are now, on this rank.
    fn values(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    /// Takes back what was saved. Called on all ranks.
    fn load(&mut self, saved: &dyn SavedPart) -> Result<()>;

    /// Whether this is a position in the data that is at the end of its epoch; `None` if it is no such thing.
    fn epoch_done(&self) -> Option<bool> {
        None
    }
}

/// What a checkpoint holds of one component.
pub trait SavedPart {
    /// The component's key in the state.
    fn key(&self) -> &str;

    /// The version its values were saved with.
    fn version(&self) -> u32;

    /// The values this rank saved; rank 0's, if there was no such rank or there were more ranks or fewer.
    fn values(&self) -> &Value;

    /// Whether as many ranks saved as restore now, so that the values are this rank's own.
    fn same_world(&self) -> bool;

    /// The names, element types and shapes of its tensors.
    fn list(&self) -> Vec<(String, Dtype, Vec<u64>)>;

    /// The bytes of a whole tensor.
    fn tensor(&self, name: &str) -> Result<Cow<'_, [u8]>>;

    /// An error about this component and checkpoint, which ought to list all that does not fit.
    fn misfit(&self, why: String) -> Error;
}
