//! Loading a part of a checkpoint into a model that is not quite the one saved: which saved tensor goes where, by rules,
//! with everything that does not fit listed at once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::tensor::Dtype;

/// A tensor the model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The name in the model.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its global shape.
    pub shape: Vec<u64>,
}

/// Renames saved tensors: the first rule whose `from` begins the name replaces that beginning by `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// What a saved name begins with.
    pub from: String,
    /// What the wanted name begins with instead.
    pub to: String,
}

/// What may differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// The renamings, the first that applies counts.
    pub rename: Vec<Rename>,
    /// Only saved tensors whose name begins with one of these are looked at; all if there is none.
    pub only: Vec<String>,
    /// Tensors of the model may be missing in the checkpoint.
    pub allow_missing: bool,
    /// Tensors of the checkpoint may be missing in the model.
    pub allow_unused: bool,
}

/// A tensor that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mismatch {
    /// The model has it, the checkpoint does not.
    Missing {
        /// Its name in the model.
        name: String,
    },
    /// The checkpoint has it, the model does not.
    Unused {
        /// Its name in the checkpoint.
        saved: String,
        /// Its name after renaming.
        name: String,
    },
    /// Both have it, differently.
    Differs {
        /// Its name in the model.
        name: String,
        /// What the model has.
        wanted: (Dtype, Vec<u64>),
        /// What was saved.
        saved: (Dtype, Vec<u64>),
    },
    /// Two saved tensors have this name after renaming.
    Ambiguous {
        /// The name in the model.
        name: String,
        /// The saved names.
        saved: [String; 2],
    },
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Mismatch::Missing { name } => write!(f, "{name}: not in the checkpoint"),
            Mismatch::Unused { saved, name } if saved == name => write!(f, "{saved}: not in the model"),
            Mismatch::Unused { saved, name } => write!(f, "{saved}: not in the model (as {name})"),
            Mismatch::Differs { name, wanted, saved } => {
                write!(
                    f,
                    "{name}: the model has {}{:?}, the checkpoint {}{:?}",
                    wanted.0, wanted.1, saved.0, saved.1
                )
            }
            Mismatch::Ambiguous { name, saved } => {
                write!(f, "{name}: both {} and {} go there", saved[0], saved[1])
            }
        }
    }
}

/// For each wanted tensor that is in the checkpoint, the name it has there; or everything that does not fit.
pub fn select(manifest: &Manifest, wanted: &[Wanted], rules: &Rules) -> Result<BTreeMap<String, String>> {
    let mut there: BTreeMap<String, &str> = BTreeMap::new();
    let mut wrong = Vec::new();
    for saved in manifest.tensors.keys() {
        if !rules.only.is_empty() && !rules.only.iter().any(|start| saved.starts_with(start)) {
            continue;
        }
        let name = renamed(saved, &rules.rename);
        if let Some(other) = there.insert(name.clone(), saved) {
            wrong.push(Mismatch::Ambiguous { name, saved: [other.to_owned(), saved.clone()] });
        }
    }
    let mut found = BTreeMap::new();
    for tensor in wanted {
        let Some(&saved) = there.get(&tensor.name) else {
            if !rules.allow_missing {
                wrong.push(Mismatch::Missing { name: tensor.name.clone() });
            }
            continue;
        };
        let entry = &manifest.tensors[saved];
        if (entry.dtype, &entry.shape) != (tensor.dtype, &tensor.shape) {
            wrong.push(Mismatch::Differs {
                name: tensor.name.clone(),
                wanted: (tensor.dtype, tensor.shape.clone()),
                saved: (entry.dtype, entry.shape.clone()),
            });
        }
        found.insert(tensor.name.clone(), saved.to_owned());
    }
    if !rules.allow_unused {
        let names: BTreeSet<&str> = wanted.iter().map(|tensor| tensor.name.as_str()).collect();
        let unused = there.iter().filter(|(name, _)| !names.contains(name.as_str()));
        wrong.extend(
            unused.map(|(name, saved)| Mismatch::Unused { saved: (*saved).to_owned(), name: name.clone() }),
        );
    }
    if wrong.is_empty() { Ok(found) } else { Err(Error::Mismatch(wrong)) }
}

fn renamed(saved: &str, rules: &[Rename]) -> String {
    let applied =
        rules.iter().find_map(|rule| saved.strip_prefix(&rule.from).map(|rest| format!("{}{rest}", rule.to)));
    applied.unwrap_or_else(|| saved.to_owned())
}
