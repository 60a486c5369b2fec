//! How a gang's workers are laid out over nodes, and why some gangs can never be.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::resource::Resources;

/// How workers are laid out over nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// On as few nodes as will hold them: the fastest for workers that talk.
    #[default]
    Pack,
    /// As evenly as free seats allow.
    Spread,
    /// On a single node, or not at all.
    StrictPack,
    /// Each on a node of its own, or not at all.
    StrictSpread,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pack => "pack",
            Self::Spread => "spread",
            Self::StrictPack => "strict_pack",
            Self::StrictSpread => "strict_spread",
        })
    }
}

/// Why a gang can never be seated, and what could.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Infeasible {
    /// The gang's name.
    pub gang: String,
    /// How few workers would have done.
    pub min_workers: usize,
    /// What each asked for.
    pub per_worker: Resources,
    /// How they were to be laid out.
    pub placement: Placement,
    /// How many such workers the cluster holds when nothing else runs.
    pub would_fit: usize,
    /// What is short, node by node, in words.
    pub detail: String,
}

impl fmt::Display for Infeasible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gang, min_workers, per_worker, placement, would_fit, detail } = self;
        write!(
            f,
            "gang `{gang}` can never run here: {min_workers} workers of {{{per_worker}}} ({placement}); even on an idle \
             cluster at most {would_fit} would fit. {detail}"
        )
    }
}
