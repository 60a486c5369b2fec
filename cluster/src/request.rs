//! What is asked of an engine and what it gives: a gang's request, and the seats of a lease.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::placement::Placement;
use crate::resource::Resources;

/// A gang of equal workers, wanted all or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GangRequest {
    /// What people call it: stands in every message about it.
    pub name: String,
    /// How few workers will do.
    pub min_workers: usize,
    /// How many it can use; as many as are free when its turn comes, never waited for.
    pub max_workers: usize,
    /// What each worker needs.
    pub per_worker: Resources,
    /// How workers are laid out over nodes.
    pub placement: Placement,
    /// Nodes to avoid, by name: those that failed this gang before.
    pub excluded: BTreeSet<String>,
    /// How long to stand in the queue before giving up with [`Error::NoCapacity`](crate::Error::NoCapacity).
    pub patience: Duration,
}

impl GangRequest {
    /// Default of [`GangRequest::patience`]: long, since a queue of trials is normal, but not for ever.
    pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(24 * 3600);

    /// A gang of exactly so many workers, packed, that waits its turn for a day.
    #[must_use]
    pub fn new(name: impl Into<String>, workers: usize, per_worker: Resources) -> Self {
        Self {
            name: name.into(),
            min_workers: workers,
            max_workers: workers,
            per_worker,
            placement: Placement::default(),
            excluded: BTreeSet::new(),
            patience: Self::DEFAULT_PATIENCE,
        }
    }

    /// The same for anything from `min` to `max` workers.
    #[must_use]
    pub fn workers(mut self, workers: RangeInclusive<usize>) -> Self {
        (self.min_workers, self.max_workers) = (*workers.start(), *workers.end());
        self
    }

    /// The same laid out otherwise.
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// The same away from this node.
    #[must_use]
    pub fn exclude(mut self, node: impl Into<String>) -> Self {
        self.excluded.insert(node.into());
        self
    }

    /// The same, but giving up after this long.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// Names a lease on one spawner; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease {}", self.0)
    }
}

/// One worker's place: a node, and what it owns there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seat {
    /// The worker's place in the gang, counted from 0. Ranks are the controller's to give.
    pub slot: usize,
    /// The node's name.
    pub node: String,
    /// How many of the gang's seats on this node come before it.
    pub local_slot: usize,
    /// What it may use.
    pub resources: Resources,
    /// The node's CPUs it may run on, by the node's own count; the last is shared where a part was asked for.
    pub cpus: Vec<u32>,
    /// The node's GPUs it may use, by the node's own count.
    pub gpus: Vec<u32>,
}

/// Seats for a whole gang. Plain data: the spawner holds them until [`release`](crate::Spawner::release).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// The seats, by slot; those on one node stand together.
    pub seats: Vec<Seat>,
}

impl Lease {
    /// How many workers it holds.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.seats.len()
    }

    /// The nodes it stands on, in order of their first seat.
    #[must_use]
    pub fn nodes(&self) -> Vec<&str> {
        let mut nodes: Vec<&str> = Vec::new();
        for seat in &self.seats {
            if !nodes.contains(&seat.node.as_str()) {
                nodes.push(&seat.node);
            }
        }
        nodes
    }
}
