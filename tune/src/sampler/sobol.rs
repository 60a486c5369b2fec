//! Owen-scrambled Sobol points: they cover the space evenly, whatever their number.

use super::{Ask, Sampler, Suggestion, fill};
use crate::error::Result;
use crate::stream::{Stream, mix};

/// The sequence has this many points; after them it goes on with another scrambling.
const POINTS: u64 = 1 << 16;
/// It has this many dimensions; those beyond are random.
const DIMENSIONS: usize = 256;

/// Trial n gets the n-th point of a Sobol sequence that the study's seed scrambled. 65,536 points in 256 dimensions, and
/// then the next scrambling.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sobol;

impl Sampler for Sobol {
    fn suggest(&mut self, ask: &Ask<'_>) -> Result<Suggestion> {
        let mut extra = ask.stream("sobol");
        let point = fill(ask.space, |index| {
            let unit = unit(ask.seed, ask.number, index).unwrap_or_else(|| extra.unit());
            ask.space.parameters()[index].domain.raw(unit)
        });
        Ok(Suggestion::new(point))
    }

    fn name(&self) -> &'static str {
        "sobol"
    }
}

/// One coordinate of one point to 24 bits, for those who make thousands of points; random beyond the last dimension.
pub(crate) fn coarse(seed: u64, number: u64, dimension: usize) -> f64 {
    let scramble = mix(seed ^ mix(number / POINTS)) as u32;
    if dimension < DIMENSIONS {
        f64::from(sobol_burley::sample((number % POINTS) as u32, dimension as u32, scramble))
    } else {
        (mix(seed ^ mix(number ^ mix(dimension as u64))) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// One coordinate of one point; nothing beyond the last dimension.
pub(crate) fn unit(seed: u64, number: u64, dimension: usize) -> Option<f64> {
    if dimension >= DIMENSIONS {
        return None;
    }
    let coarse = coarse(seed, number, dimension);
    // 24 bits are the sequence's, those below them are random: a step of 6e-8 would show in a fine range.
    let fine = Stream::new(seed ^ 0x50b0, number, "sobol").bits() ^ mix(dimension as u64);
    Some(coarse + (mix(fine) >> 11) as f64 / (1u64 << 53) as f64 / f64::from(1 << 24))
}
