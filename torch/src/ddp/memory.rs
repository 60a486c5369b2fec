//! What compressed gradients leave behind, as a component of a training state: without it a resumed run differs from one that
//! was not interrupted.
//!
//! The right factors are the same on all ranks and saved once. What a rank could not send is its own: the ranks' parts are
//! saved as one tensor, a row a rank. Where the number of ranks changes nobody's part fits, and all begin with nothing.

use std::borrow::Cow;

use regatta_checkpoint::{Placement, Region};
use regatta_train::{Result, SavedPart, StateTensor, Stateful};
use serde_json::Value;

use super::{CompressionMemory, CompressionState, lock};
use crate::components::{self, saved_tensor, train_error};

/// How the names of what is a rank's own begin.
const OWN: &str = "error.";

impl CompressionMemory {
    fn state(&self) -> CompressionState {
        let alone = || CompressionState { step: *lock(&self.alone_steps), tensors: Vec::new() };
        self.reducer.as_ref().and_then(|reducer| lock(reducer).compression_state()).unwrap_or_else(alone)
    }
}

impl Stateful for CompressionMemory {
    fn tensors(&self) -> Result<Vec<StateTensor<'_>>> {
        let mut all = Vec::new();
        for tensor in self.state().tensors {
            let mut saved = saved_tensor(tensor.name(), tensor.tensor()).map_err(train_error)?;
            if tensor.name().starts_with(OWN) {
                let (row, whole) = (self.row(&saved.shape), [&[self.world][..], &saved.shape].concat());
                (saved.placement, saved.shape) = (Placement::Part(row), whole);
            }
            all.push(saved);
        }
        Ok(all)
    }

    fn values(&self) -> Result<Value> {
        Ok(self.state().step.into())
    }

    fn load(&mut self, saved: &dyn SavedPart) -> Result<()> {
        let step = saved.values().as_u64().ok_or_else(|| saved.misfit("it is no number of passes".into()))?;
        let Some(reducer) = &self.reducer else {
            *lock(&self.alone_steps) = step;
            return Ok(());
        };
        let mut tensors = Vec::new();
        for (name, dtype, mut shape) in saved.list() {
            let own = name.starts_with(OWN);
            if own && !shape.is_empty() {
                shape.remove(0);
            }
            let bytes = match own {
                true if saved.same_world() => saved.region(&name, &self.row(&shape))?,
                true => Cow::Owned(vec![0; (shape.iter().product::<u64>() * dtype.size()) as usize]),
                false => saved.tensor(&name)?,
            };
            tensors.push(components::of_bytes(saved, &name, dtype, &shape, &bytes)?);
        }
        let state = CompressionState { step, tensors };
        components::fits(saved, lock(reducer).load_compression_state(&state))
    }
}

impl CompressionMemory {
    /// This rank's row of what all ranks have of a shape.
    fn row(&self, shape: &[u64]) -> Region {
        let mut offset = vec![0; shape.len() + 1];
        offset[0] = self.rank;
        Region::new(offset, [&[1][..], shape].concat())
    }
}
