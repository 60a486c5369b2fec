//! CMA-ES: a normal distribution that learns its shape, for cheap trials of numbers.

mod rates;
mod state;

use serde::{Deserialize, Serialize};

use super::history::Seen;
use super::{Ask, End, History, Sampler, Suggestion, Told, Tpe};
use crate::error::{Error, Result};
use crate::space::Space;
use state::{Axis, Run, State};

/// The bit of a note that says whose it is, where two of these share a study.
const ASIDE: u64 = 1 << 62;

/// What happens when a run has converged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// It goes on as it is.
    Never,
    /// A new one starts elsewhere with twice the population.
    #[default]
    Ipop,
    /// New ones start, in turns with a growing population and with small ones of random width.
    Bipop,
}

/// The covariance matrix adaptation evolution strategy: active, with margin for integers and steps. It moves the numbers
/// that every trial has; categories and what is below branches are left to [`Tpe`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CmaEs {
    restart: Restart,
    population: Option<usize>,
    warm: bool,
    adaptive: bool,
    #[serde(skip)]
    aside: bool,
    #[serde(skip)]
    rest: Tpe,
    #[serde(skip)]
    cache: Option<Cache>,
}

impl CmaEs {
    /// What happens when a run has converged.
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// How many trials make a generation; 4 + 3 ln(parameters) without this.
    #[must_use]
    pub fn population(mut self, trials: usize) -> Self {
        self.population = Some(trials.max(4));
        self
    }

    /// Adapts the learning rates: for functions that are rugged or noisy, in place of a larger population.
    #[must_use]
    pub fn adaptive(mut self) -> Self {
        self.adaptive = true;
        self
    }

    /// Starts where the best of the trials so far are, rather than in the middle.
    #[must_use]
    pub fn warm(mut self) -> Self {
        self.warm = true;
        self
    }

    /// Knows its own trials from those of another in the same study that is not aside.
    pub(super) fn aside(mut self) -> Self {
        self.aside = true;
        self
    }

    fn mark(&self) -> u64 {
        if self.aside { ASIDE } else { 0 }
    }
}

impl Sampler for CmaEs {
    fn suggest(&mut self, ask: &Ask<'_>) -> Result<Suggestion> {
        if ask.history.told().iter().rev().find(|t| !t.losses.is_empty()).is_some_and(|t| t.losses.len() > 1)
        {
            let problem = "the study has several objectives: choose Tpe".into();
            return Err(Error::Sampler { sampler: "cma-es", problem });
        }
        let columns = columns(ask.space);
        let parameters = ask.space.parameters();
        let alone = columns.len() == parameters.iter().filter(|p| p.domain.count() != Some(1)).count();
        let mut suggestion = if alone {
            Suggestion::new(super::fill(ask.space, |i| parameters[i].domain.raw(0.5)))
        } else {
            // The others each on its own: nobody knows what their numbers will be.
            self.rest = std::mem::take(&mut self.rest).joint(false);
            self.rest.suggest(ask)?
        };
        if columns.is_empty() {
            return Ok(suggestion);
        }
        let mark = self.mark();
        let prefix = prefix(ask.history, mark);
        let cache = self.up_to_date(ask, &columns, prefix);
        let at = cache.state.sample(ask.seed, ask.number);
        for (column, unit) in columns.iter().zip(at) {
            suggestion.point.set(*column, Some(parameters[*column].domain.raw(unit)));
        }
        suggestion.note = mark | (prefix as u64) << 32 | (cache.state.generation + 1);
        Ok(suggestion)
    }

    fn name(&self) -> &'static str {
        "cma-es"
    }
}

/// What is kept between suggestions: a function of the history alone.
#[derive(Clone, Debug)]
struct Cache {
    seen: Seen,
    space: Space,
    prefix: usize,
    seed: u64,
    state: State,
    /// The current generation's trials that ended: where they were, and how they rank.
    ended: Vec<(Vec<f64>, [f64; 2])>,
}

impl CmaEs {
    fn up_to_date(&mut self, ask: &Ask<'_>, columns: &[usize], prefix: usize) -> &Cache {
        let fits = |c: &Cache| c.space == *ask.space && c.prefix == prefix && c.seed == ask.seed;
        let news = self.cache.as_mut().filter(|c| fits(c)).and_then(|c| c.seen.news(ask.history));
        let news = news.unwrap_or_else(|| {
            let mut seen = Seen::default();
            let all = seen.news(ask.history).unwrap_or(ask.history.told());
            let state = self.first(ask, columns, prefix);
            let space = ask.space.clone();
            self.cache = Some(Cache { seen, space, prefix, seed: ask.seed, state, ended: vec![] });
            all
        });
        let (restart, mark) = (self.restart, self.mark());
        let cache = self.cache.as_mut().expect("just made where it was missing");
        for told in news {
            if is_own(told.note, mark) && told.note & 0xffff_ffff == cache.state.generation + 1 {
                cache.ended.push((cache.state.sample(ask.seed, told.number), rank(told)));
                if cache.ended.len() == cache.state.population() {
                    cache.state.learn(std::mem::take(&mut cache.ended), restart, ask.seed);
                }
            }
        }
        cache
    }

    /// The state before the first generation.
    fn first(&self, ask: &Ask<'_>, columns: &[usize], prefix: usize) -> State {
        let parameters = ask.space.parameters();
        let axes: Vec<Axis> = columns.iter().map(|c| Axis::new(&parameters[*c].domain)).collect();
        let mut run = Run::new(axes.len(), self.population, self.adaptive);
        if self.warm {
            let mut known: Vec<&Told> = ask.history.told()[..prefix.min(ask.history.told().len())]
                .iter()
                .filter(|t| t.end == End::Complete && t.loss().is_finite())
                .collect();
            known.sort_by(|a, b| {
                let (a, b) = (rank(a), rank(b));
                a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1]))
            });
            known.truncate(known.len().div_ceil(10));
            let unit = |t: &Told, c: usize| t.point.get(c).map_or(0.5, |raw| parameters[c].domain.unit(raw));
            let rows: Vec<Vec<f64>> =
                known.iter().map(|t| columns.iter().map(|c| unit(t, *c)).collect()).collect();
            run.warm(&rows);
        }
        State::new(axes, run)
    }
}

/// The numbers that every trial has.
fn columns(space: &Space) -> Vec<usize> {
    let moves = |i: &usize| {
        let parameter = &space.parameters()[*i];
        let fixed = parameter.domain.count() == Some(1);
        parameter.parent.is_none() && !parameter.domain.is_category() && !fixed
    };
    (0..space.parameters().len()).filter(moves).collect()
}

/// How many trials had ended when this sampler was first asked: its first trial notes it.
fn prefix(history: &History, mark: u64) -> usize {
    let told = history.told().iter().map(|t| (t.number, t.note));
    let running = history.running().iter().map(|(number, r)| (*number, r.note));
    let first = told.chain(running).filter(|(_, note)| is_own(*note, mark)).min();
    first.map_or(history.told().len(), |(_, note)| ((note & !ASIDE) >> 32) as usize)
}

/// Whether a note is one of those with this mark.
fn is_own(note: u64, mark: u64) -> bool {
    note != 0 && note & ASIDE == mark
}

/// Feasible before infeasible, and those without a result last.
fn rank(told: &Told) -> [f64; 2] {
    let loss = if told.end == End::Failed { f64::INFINITY } else { told.loss() };
    [told.violation(), loss]
}
