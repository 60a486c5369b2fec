//! The sampler for those who have no preference.

use super::{Ask, CmaEs, End, Gp, Sampler, Suggestion, Tpe};
use crate::error::Result;
use crate::space::{Parameter, Space};

/// From so many complete trials on, a Gaussian process costs more than it gives.
const MANY: usize = 250;

/// Chooses by the study: [`Tpe`] where there are several objectives, or where the space grows; else [`Gp`] for the first 250
/// trials. After that [`CmaEs`] goes on from where they came to, as long as there are numbers to move and no constraints,
/// and [`Tpe`] where not. [`CmaEs`] also makes those of the first 250 suggestions, from the 30th trial on, before which the
/// process predicts the better half of the losses no better than by their own mean: what is too rough for it, it need not
/// model.
#[derive(Clone, Debug)]
pub struct Auto {
    tpe: Tpe,
    gp: Gp,
    /// For what is rough.
    rough: CmaEs,
    /// For what is long.
    long: CmaEs,
}

impl Default for Auto {
    fn default() -> Self {
        let warm = CmaEs::default().warm();
        Self { tpe: Tpe::default(), gp: Gp::default(), rough: warm.clone().aside(), long: warm }
    }
}

impl Sampler for Auto {
    fn suggest(&mut self, ask: &Ask<'_>) -> Result<Suggestion> {
        let told = ask.history.told();
        let several = told.iter().any(|t| t.losses.len() > 1);
        let complete = told.iter().filter(|t| t.end == End::Complete).count();
        let constrained = told.iter().any(|t| !t.constraints.is_empty());
        let evolves = !constrained && moves(ask.space);
        if several || ask.space.is_open() {
            self.tpe.suggest(ask)
        } else if complete < MANY && evolves {
            self.gp.knowing(ask).map_or_else(|| self.rough.suggest(ask), Ok)
        } else if complete < MANY {
            self.gp.suggest(ask)
        } else if evolves {
            self.long.suggest(ask)
        } else {
            self.tpe.suggest(ask)
        }
    }

    fn name(&self) -> &'static str {
        "auto"
    }
}

/// Whether there are numbers that every trial has.
fn moves(space: &Space) -> bool {
    let number = |p: &Parameter| p.parent.is_none() && !p.domain.is_category() && p.domain.count() != Some(1);
    space.parameters().iter().any(number)
}
