//! Every combination, once.

use super::{Ask, Sampler, Suggestion};
use crate::error::{Error, Result};
use crate::space::{Point, Space};

/// Tries all points of a countable space: trial n gets the n-th, in the order of the space with the last parameter
/// turning fastest. Below a branch that is not taken nothing is turned, so that no point comes twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grid;

impl Grid {
    /// How many points the space has; an error names a parameter that cannot be counted.
    pub fn size(space: &Space) -> Result<u64> {
        size_from(space, 0, &Point::empty(space.parameters().len()))
    }
}

impl Sampler for Grid {
    fn suggest(&mut self, ask: &Ask<'_>) -> Result<Suggestion> {
        let space = ask.space;
        let total = Grid::size(space)?;
        if ask.number >= total {
            let problem = format!("all {total} points of the grid were tried: end the study here");
            return Err(Error::Sampler { sampler: "grid", problem });
        }
        let mut point = Point::empty(space.parameters().len());
        let mut rest = ask.number;
        for index in 0..space.parameters().len() {
            if !space.active(index, &point) {
                continue;
            }
            for k in 0..count(space, index)? {
                point.set(index, Some(nth(space, index, k)));
                let below = size_from(space, index + 1, &point)?;
                if rest < below {
                    break;
                }
                rest -= below;
            }
        }
        Ok(Suggestion::new(point))
    }

    fn name(&self) -> &'static str {
        "grid"
    }
}

/// How many points there are with the parameters before `from` as they are in `point`.
fn size_from(space: &Space, from: usize, point: &Point) -> Result<u64> {
    let mut product: u64 = 1;
    let mut point = point.clone();
    for index in from..space.parameters().len() {
        if !space.active(index, &point) {
            continue;
        }
        let count = count(space, index)?;
        if space.parameters().iter().any(|p| p.parent.is_some_and(|c| c.parameter == index)) {
            let mut sum: u64 = 0;
            for k in 0..count {
                point.set(index, Some(nth(space, index, k)));
                sum = sum.saturating_add(size_from(space, index + 1, &point)?);
            }
            return Ok(product.saturating_mul(sum));
        }
        product = product.saturating_mul(count);
    }
    Ok(product)
}

fn count(space: &Space, index: usize) -> Result<u64> {
    let parameter = &space.parameters()[index];
    parameter.domain.count().ok_or_else(|| Error::Sampler {
        sampler: "grid",
        problem: format!(
            "`{}` is {}, which cannot be counted: give it a step, a grid or a fixed value",
            parameter.path, parameter.domain
        ),
    })
}

/// The k-th value of a countable domain.
fn nth(space: &Space, index: usize, k: u64) -> f64 {
    use crate::space::Domain;
    match &space.parameters()[index].domain {
        Domain::Float { low, high, step, .. } => step.map_or(*low, |step| (low + k as f64 * step).min(*high)),
        Domain::Int { low, step, .. } => (low + k as i64 * step) as f64,
        _ => k as f64,
    }
}
