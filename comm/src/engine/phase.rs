//! The phases of a call, for those who want to fail in the middle of one.

use std::fmt;
use std::sync::Arc;

/// How far a rank has come in a call. Faults are injected here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The call was checked; no other rank can see it yet.
    Submitted,
    /// This rank's values (or its arrival) are visible to the others.
    Published,
    /// All ranks' values are visible here, and this rank is about to combine or copy.
    Working,
    /// This rank has claimed a piece of work that the others wait for, and not done it.
    Claimed,
    /// This rank's piece is done and visible.
    Worked,
    /// The call is finished here.
    Finished,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Phase; 6] =
        [Phase::Submitted, Phase::Published, Phase::Working, Phase::Claimed, Phase::Worked, Phase::Finished];
}

/// Something that is told of every [`Phase`]. It runs on the calling thread, inside the call.
#[derive(Clone)]
pub struct Probe(Arc<dyn Fn(Phase) + Send + Sync>);

impl Probe {
    /// Of a function.
    pub fn new(f: impl Fn(Phase) + Send + Sync + 'static) -> Probe {
        Probe(Arc::new(f))
    }

    pub(crate) fn tell(&self, phase: Phase) {
        (self.0)(phase);
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}
