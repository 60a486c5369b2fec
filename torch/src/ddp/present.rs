//! Which ranks still have data.

use regatta_comm::ProcessGroup;
use tch::{Tensor, no_grad};

use crate::error::Result;

/// Who takes part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Present {
    /// Whether this rank does.
    pub(super) here: bool,
    /// How many do.
    pub(super) count: usize,
    /// The first that does; rank 0 if none does.
    pub(super) first: usize,
}

impl Present {
    /// Everyone.
    pub(super) fn all(world: usize) -> Present {
        Present { here: true, count: world, first: 0 }
    }

    /// Asks all ranks.
    pub(super) fn ask(group: &ProcessGroup, here: bool) -> Result<Present> {
        let mut all = vec![0u8; group.world_size()];
        group.all_gather(&[u8::from(here)], &mut all)?;
        let count = all.iter().filter(|&&here| here == 1).count();
        Ok(Present { here, count, first: all.iter().position(|&here| here == 1).unwrap_or(0) })
    }

    /// Makes a mean over the world, to which the others have given zeros, the mean over those present.
    pub(super) fn rescale(&self, mean: &Tensor, world: usize) -> Result<()> {
        if self.count > 0 && self.count < world {
            let share = world as f64 / self.count as f64;
            let _ = no_grad(|| mean.shallow_clone().f_mul_scalar_(share))?;
        }
        Ok(())
    }
}
