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

/// Lays `min..=max` workers over nodes of which each could hold `fits[i]`: how many go to each, or `None` where too few fit.
///
/// ```
/// use regatta_cluster::{Placement, lay_out};
///
/// assert_eq!(lay_out(&[4, 2, 3], 3, 3, Placement::Pack), Some(vec![0, 0, 3])); // the tightest single node
/// assert_eq!(lay_out(&[4, 2, 3], 4, 4, Placement::Spread), Some(vec![2, 1, 1]));
/// assert_eq!(lay_out(&[4, 2, 3], 5, 5, Placement::StrictPack), None);
/// assert_eq!(lay_out(&[4, 2, 3], 2, 9, Placement::StrictSpread), Some(vec![1, 1, 1]));
/// ```
#[must_use]
pub fn lay_out(fits: &[usize], min: usize, max: usize, placement: Placement) -> Option<Vec<usize>> {
    let workers = most(fits, placement).min(max);
    if workers < min {
        return None;
    }
    let mut counts = vec![0; fits.len()];
    match placement {
        Placement::StrictPack => {
            let node = tightest(fits, &counts, workers)?;
            counts[node] = workers;
        }
        Placement::Pack => pack(fits, &mut counts, workers),
        Placement::Spread | Placement::StrictSpread => spread(fits, &mut counts, workers),
    }
    Some(counts)
}

/// The most workers of one shape that nodes with these fits hold under this placement.
pub(crate) fn most(fits: &[usize], placement: Placement) -> usize {
    match placement {
        Placement::Pack | Placement::Spread => fits.iter().sum(),
        Placement::StrictPack => fits.iter().copied().max().unwrap_or(0),
        Placement::StrictSpread => fits.iter().filter(|&&fit| fit > 0).count(),
    }
}

/// The node with the least room that still holds `workers` more, so that larger holes stay whole.
fn tightest(fits: &[usize], counts: &[usize], workers: usize) -> Option<usize> {
    (0..fits.len()).filter(|&i| fits[i] - counts[i] >= workers).min_by_key(|&i| fits[i] - counts[i])
}

/// The roomiest nodes first, and what is left over where it fits most tightly: the fewest nodes.
fn pack(fits: &[usize], counts: &mut [usize], mut workers: usize) {
    while workers > 0 {
        if let Some(node) = tightest(fits, counts, workers) {
            counts[node] += workers;
            return;
        }
        let roomiest = (0..fits.len()).rev().max_by_key(|&i| fits[i] - counts[i]);
        let Some(node) = roomiest.filter(|&i| fits[i] > counts[i]) else { return };
        let here = fits[node] - counts[node];
        counts[node] += here;
        workers -= here;
    }
}

/// One at a time to the node with the fewest, the roomier where several have as few.
fn spread(fits: &[usize], counts: &mut [usize], workers: usize) {
    for _ in 0..workers {
        let open = (0..fits.len()).filter(|&i| counts[i] < fits[i]);
        let Some(node) = open.min_by_key(|&i| (counts[i], usize::MAX - fits[i])) else { return };
        counts[node] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_takes_the_fewest_nodes() {
        assert_eq!(lay_out(&[2, 4, 3], 6, 6, Placement::Pack), Some(vec![2, 4, 0]));
        assert_eq!(lay_out(&[2, 4, 3], 9, 20, Placement::Pack), Some(vec![2, 4, 3]));
        assert_eq!(lay_out(&[2, 4, 3], 10, 20, Placement::Pack), None);
    }

    #[test]
    fn strict_placements_hold_or_refuse() {
        assert_eq!(lay_out(&[2, 4, 3], 1, 3, Placement::StrictPack), Some(vec![0, 0, 3]));
        assert_eq!(lay_out(&[2, 0, 3], 3, 3, Placement::StrictSpread), None);
        assert_eq!(lay_out(&[], 1, 1, Placement::StrictPack), None);
    }
}
