//! Bayesian optimisation with Gaussian processes: for trials that are expensive, up to a few hundred of them.

mod acquisition;
mod lanes;
mod lbfgs;
mod model;
mod search;
mod table;
mod warp;

use std::collections::BTreeMap;

use faer::{Mat, Side};
use serde::{Deserialize, Serialize};

use super::{Ask, End, Sampler, Suggestion, Told, random};
use crate::error::Result;
use crate::normal;
use crate::sampler::sobol;
use acquisition::Acquisition;
use model::{Hyper, Model};
use search::Hunt;
use table::Table;

/// Running trials are imagined to end in so many ways.
const FANTASIES: usize = 32;
/// No more running trials than this are imagined.
const IMAGINED: usize = 64;
/// Fewer losses than this do not tell a bad model from bad luck.
const TELLING: usize = 30;

/// Gaussian-process optimisation: Matern 5/2 with a length scale for each parameter, of losses that a power bends, all of
/// it fitted anew for every suggestion; and the logarithm of the expected improvement. Categories, integers, branches, constraints and running trials are
/// modelled; of several objectives it minimises a sum with weights that each trial draws (ParEGO).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gp {
    startup: usize,
    spread: usize,
    #[serde(skip)]
    fits: BTreeMap<Rung, Hyper>,
}

/// A fit that later ones start from: which of the values, how many trials, and what stands for them.
type Rung = (usize, usize, u64);

impl Default for Gp {
    fn default() -> Self {
        Self { startup: 10, spread: 2048, fits: BTreeMap::new() }
    }
}

impl Gp {
    /// How many trials are drawn at random before the model is believed (10).
    #[must_use]
    pub fn startup(mut self, trials: usize) -> Self {
        self.startup = trials.max(2);
        self
    }

    /// Among how many points spread over the space the climbs choose their starts (2,048).
    #[must_use]
    pub fn spread(mut self, points: usize) -> Self {
        self.spread = points.max(1);
        self
    }
}

impl Sampler for Gp {
    fn suggest(&mut self, ask: &Ask<'_>) -> Result<Suggestion> {
        Ok(self.unless(ask, |_, _| false).unwrap_or_else(|| Suggestion::new(random::point(ask))))
    }

    fn name(&self) -> &'static str {
        "gp"
    }
}

impl Gp {
    /// What it suggests, as long as its process knows something about good losses.
    pub(super) fn knowing(&mut self, ask: &Ask<'_>) -> Option<Suggestion> {
        self.unless(ask, |model, losses| losses.len() >= TELLING && model.knowledge(losses) < 0.0)
    }

    /// What it suggests, or nothing where the process of these losses is doubted.
    fn unless(&mut self, ask: &Ask<'_>, doubted: impl Fn(&Model, &[f64]) -> bool) -> Option<Suggestion> {
        let table = Table::new(ask.space);
        let told: Vec<&Told> =
            ask.history.told().iter().filter(|t| !matches!(t.end, End::Pruned { .. })).collect();
        let complete = told.iter().filter(|t| t.end == End::Complete).count();
        if complete < self.startup || table.is_empty() {
            return Some(Suggestion::new(random::point(ask)));
        }
        let mut stream = ask.stream("gp");
        let data = Data::new(&table, &told);
        let losses = data.losses(&told, &mut stream);
        let rank: Vec<f64> = (told.iter().zip(&losses))
            .map(|(t, loss)| if t.violation() > 0.0 || t.end == End::Failed { f64::INFINITY } else { *loss })
            .collect();
        let incumbent =
            (0..rank.len()).min_by(|a, b| rank[*a].total_cmp(&rank[*b])).filter(|i| rank[*i].is_finite());
        let mut acquisition = Acquisition { loss: None, constraints: vec![] };
        if let Some(incumbent) = incumbent {
            let hyper = self.fit(ask, &data, 0, &data.first(&told));
            let hyper = Model::fit(&data.rows, &losses, &table.category, &hyper, true);
            let losses = warp::bent(&losses, hyper.power).values;
            let known = Mat::from_fn(losses.len(), 1, |i, _| losses[i]);
            let model = Model::new(&data.rows, &known, &table.category, hyper);
            if doubted(&model, &losses) {
                return None;
            }
            let pending: Vec<Vec<f64>> = (ask.history.running().iter().take(IMAGINED))
                .filter(|(number, _)| **number != ask.number)
                .map(|(_, r)| table.row(&r.point))
                .collect();
            acquisition.loss = Some(match pending.is_empty() {
                true => (model, vec![losses[incumbent]]),
                false => {
                    let known = Known { rows: &data.rows, losses: &losses, best: losses[incumbent] };
                    imagine(&model, &known, pending, stream.bits())
                }
            });
        }
        for (which, raw) in data.constraints(&told).into_iter().enumerate() {
            let (values, shift, scale) = standardised(&raw);
            let hyper = self.fit(ask, &data, which + 1, &raw);
            let hyper = Model::fit(&data.rows, &values, &table.category, &hyper, false);
            let known = Mat::from_fn(values.len(), 1, |i, _| values[i]);
            acquisition
                .constraints
                .push((Model::new(&data.rows, &known, &table.category, hyper), -shift / scale));
        }
        let starts = incumbent.map(|i| data.rows[i].clone()).into_iter().collect();
        let hunt = Hunt { table: &table, acquisition: &acquisition, spread: self.spread };
        Some(Suggestion::new(search::best(&hunt, starts, &mut stream)))
    }

    /// Where the fit of all the data starts: from the fit of a part of the trials, and that from a smaller part's. The
    /// ladder does not depend on when somebody asked, so that a resumed study fits alike.
    fn fit(&mut self, ask: &Ask<'_>, data: &Data<'_>, which: usize, raw: &[f64]) -> Hyper {
        let total = data.rows.len();
        let mut hyper = Hyper::start(data.table.category.len());
        let mut rung = self.startup;
        while rung < total {
            let start = &hyper;
            let category = &data.table.category;
            let values = || standardised(&raw[..rung]).0;
            let fit = || Model::fit(&data.rows[..rung], &values(), category, start, which == 0);
            hyper = self.fits.entry((which, rung, data.print(rung, ask))).or_insert_with(fit).clone();
            rung += (rung / 8).max(2);
        }
        self.fits.retain(|(_, n, print), _| *n <= total && data.print(*n, ask) == *print);
        hyper
    }
}

/// The trials as numbers.
struct Data<'a> {
    table: &'a Table<'a>,
    rows: Vec<Vec<f64>>,
    objectives: usize,
}

impl<'a> Data<'a> {
    fn new(table: &'a Table<'a>, told: &[&Told]) -> Self {
        let objectives = told.iter().map(|t| t.losses.len()).max().unwrap_or(1);
        Self { table, rows: told.iter().map(|t| table.row(&t.point)).collect(), objectives }
    }

    /// Stands for the first `rows` trials and the space they are of.
    fn print(&self, rows: usize, ask: &Ask<'_>) -> u64 {
        let mut left = rows;
        let mut len = 0;
        for told in ask.history.told() {
            if left == 0 {
                break;
            }
            left -= usize::from(!matches!(told.end, End::Pruned { .. }));
            len += 1;
        }
        crate::stream::mix(ask.history.fingerprint(len) ^ self.table.category.len() as u64)
    }

    /// The first loss of every trial.
    fn first(&self, told: &[&Told]) -> Vec<f64> {
        told.iter().map(|t| if t.end == End::Failed { f64::NAN } else { t.loss() }).collect()
    }

    /// One standardised loss a trial. Several objectives are weighed by chance.
    fn losses(&self, told: &[&Told], stream: &mut crate::stream::Stream) -> Vec<f64> {
        let objective = |k: usize| {
            let value = |t: &&Told| {
                if t.end == End::Failed { f64::NAN } else { t.losses.get(k).copied().unwrap_or(f64::NAN) }
            };
            standardised(&told.iter().map(value).collect::<Vec<_>>()).0
        };
        if self.objectives <= 1 {
            return objective(0);
        }
        let draws: Vec<f64> = (0..self.objectives).map(|_| -(1.0 - stream.unit()).ln()).collect();
        let total: f64 = draws.iter().sum();
        let columns: Vec<Vec<f64>> = (0..self.objectives).map(objective).collect();
        let lowest: Vec<f64> =
            columns.iter().map(|c| c.iter().copied().fold(f64::INFINITY, f64::min)).collect();
        let scalar = |i: usize| {
            let weighed = (0..self.objectives).map(|k| draws[k] / total * (columns[k][i] - lowest[k]));
            weighed.clone().fold(f64::NEG_INFINITY, f64::max) + 0.05 * weighed.sum::<f64>()
        };
        standardised(&(0..told.len()).map(scalar).collect::<Vec<_>>()).0
    }

    /// The constraints' values, one list a constraint.
    fn constraints(&self, told: &[&Told]) -> Vec<Vec<f64>> {
        let count = told.iter().map(|t| t.constraints.len()).max().unwrap_or(0);
        let value = |t: &&Told, k: usize| t.constraints.get(k).copied().unwrap_or(f64::NAN);
        (0..count).map(|k| told.iter().map(|t| value(t, k)).collect()).collect()
    }
}

/// Values with mean 0 and deviation 1, and what was subtracted and divided by. What is not finite becomes the worst that
/// is.
fn standardised(values: &[f64]) -> (Vec<f64>, f64, f64) {
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    let (low, high) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    if low > high {
        return (vec![0.0; values.len()], 0.0, 1.0);
    }
    let clipped = || {
        values.iter().map(|v| {
            if *v == f64::NEG_INFINITY {
                low
            } else if v.is_finite() {
                *v
            } else {
                high
            }
        })
    };
    // By their largest first, so that squares of huge values stay finite.
    let unit = low.abs().max(high.abs()).max(f64::MIN_POSITIVE);
    let n = values.len() as f64;
    let mean = clipped().map(|v| v / unit).sum::<f64>() / n;
    let deviation = (clipped().map(|v| (v / unit - mean).powi(2)).sum::<f64>() / n).sqrt();
    let deviation = if deviation > 1e-12 { deviation } else { 1.0 };
    (clipped().map(|v| (v / unit - mean) / deviation).collect(), mean * unit, deviation * unit)
}

/// What a process has seen, and the best of it.
struct Known<'a> {
    rows: &'a [Vec<f64>],
    losses: &'a [f64],
    best: f64,
}

/// The process with running trials in it, each imagined to end as the process expects, in several ways; and the best loss
/// of each.
fn imagine(model: &Model, seen: &Known<'_>, pending: Vec<Vec<f64>>, seed: u64) -> (Model, Vec<f64>) {
    let Known { rows, losses, best } = *seen;
    let (means, mut covariance) = model.joint(&pending);
    let count = pending.len();
    for i in 0..count {
        covariance[(i, i)] += 1e-8 * model.hyper.scale + model.hyper.noise;
    }
    let spread =
        covariance.llt(Side::Lower).map(|f| f.L().to_owned()).unwrap_or_else(|_| Mat::zeros(count, count));
    let draw =
        |s: usize, i: usize| normal::quantile(sobol::coarse(seed, s as u64, i).clamp(1e-6, 1.0 - 1e-6));
    let draws = Mat::from_fn(count, FANTASIES, |i, s| draw(s, i));
    let imagined = Mat::from_fn(count, FANTASIES, |i, s| {
        means[i] + (0..=i).map(|j| spread[(i, j)] * draws[(j, s)]).sum::<f64>()
    });
    let all = Mat::from_fn(losses.len() + count, FANTASIES, |i, s| {
        if i < losses.len() { losses[i] } else { imagined[(i - losses.len(), s)] }
    });
    let lowest = |s: usize| (0..count).map(|i| imagined[(i, s)]).fold(best, f64::min);
    let best = (0..FANTASIES).map(lowest).collect();
    let rows: Vec<Vec<f64>> = rows.iter().cloned().chain(pending).collect();
    (Model::new(&rows, &all, model.category(), model.hyper.clone()), best)
}
