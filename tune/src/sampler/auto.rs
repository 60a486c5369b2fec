//! The sampler for those who have no preference.

use super::{Ask, CmaEs, End, Gp, Sampler, Suggestion, Tpe};
use crate::error::Result;

/// From so many complete trials on, a Gaussian process costs more than it gives.
const MANY: usize = 250;

/// Chooses by the study: [`Tpe`] where there are categories, branches or several objectives; else [`Gp`] for the first
/// 250 trials, and [`CmaEs`] from where it came to after that.
#[derive(Clone, Debug)]
pub struct Auto {
    tpe: Tpe,
    gp: Gp,
    cma: CmaEs,
}

impl Default for Auto {
    fn default() -> Self {
        Self { tpe: Tpe::default(), gp: Gp::default(), cma: CmaEs::default().warm() }
    }
}

impl Sampler for Auto {
    fn suggest(&mut self, ask: &Ask<'_>) -> Result<Suggestion> {
        let told = ask.history.told();
        let numbers = ask.space.parameters().iter().all(|p| p.parent.is_none() && !p.domain.is_category());
        let several = told.iter().any(|t| t.losses.len() > 1);
        let complete = told.iter().filter(|t| t.end == End::Complete).count();
        let constrained = told.iter().any(|t| !t.constraints.is_empty());
        if !numbers || several || ask.space.is_open() {
            self.tpe.suggest(ask)
        } else if complete < MANY {
            self.gp.suggest(ask)
        } else if constrained {
            self.tpe.suggest(ask)
        } else {
            self.cma.suggest(ask)
        }
    }

    fn name(&self) -> &'static str {
        "auto"
    }
}
