//! Independent draws: the baseline, and what the others start from.

use super::{Ask, Sampler, Suggestion, fill};
use crate::error::Result;
use crate::space::Point;

/// Draws every parameter from its distribution.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl Sampler for Random {
    fn suggest(&mut self, ask: &Ask<'_>) -> Result<Suggestion> {
        Ok(Suggestion::new(point(ask)))
    }

    fn name(&self) -> &'static str {
        "random"
    }
}

/// A random point, from the trial's own stream.
pub(crate) fn point(ask: &Ask<'_>) -> Point {
    let mut stream = ask.stream("random");
    fill(ask.space, |index| ask.space.parameters()[index].domain.raw(stream.unit()))
}
