//! A model's tensors by name, in the order of their definition.
//!
//! `tch` keeps names and order apart (a hash map and a list); everything that must agree between processes, or
//! between a file and a model, needs both.

use std::collections::{HashMap, HashSet};

use tch::Tensor;
use tch::nn::VarStore;

use crate::result::autograd::identity;

/// Trainable parameters in the order of their definition. Frozen ones are among them.
pub fn parameters(vs: &VarStore) -> Vec<(String, Tensor)> {
    let mut names: HashMap<usize, String> = HashMap::new();
    for (name, tensor) in vs.variables() {
        // Two names of one tensor: the smaller, so that all processes choose alike.
        let known = names.entry(identity(&tensor)).or_insert_with(|| name.clone());
        if name < *known {
            *known = name;
        }
    }
    let trainable = vs.trainable_variables();
    trainable
        .into_iter()
        .enumerate()
        .map(|(place, tensor)| {
            let name = names.remove(&identity(&tensor)).unwrap_or_else(|| format!("unnamed.{place}"));
            (name, tensor)
        })
        .collect()
}

/// What is not trained but belongs to the model (running means and variances), by name.
pub fn buffers(vs: &VarStore) -> Vec<(String, Tensor)> {
    let trainable: HashSet<usize> = vs.trainable_variables().iter().map(identity).collect();
    let mut buffers: Vec<_> =
        vs.variables().into_iter().filter(|(_, tensor)| !trainable.contains(&identity(tensor))).collect();
    buffers.sort_by(|a, b| a.0.cmp(&b.0));
    buffers
}
