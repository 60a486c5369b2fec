//! The tree-structured Parzen estimator: sample where good trials are dense and others are not.
//!
//! As Optuna 5 has it: all parameters together, those below a branch as a group of their own, running trials among the
//! bad ones. Unlike there, nothing is worked out again that has not changed.

mod crowd;
mod lanes;
mod order;
mod parzen;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::{Seen, tried};
use super::{Ask, History, Sampler, Suggestion, Told, complete, random};
use crate::error::{Error, Result};
use crate::space::{Condition, Point, Space};
use crate::stream::mix;
use crowd::Crowd;
use order::Order;
use parzen::{Axis, Parzen};

/// Tree-structured Parzen estimation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tpe {
    startup: usize,
    candidates: usize,
    joint: Option<bool>,
    #[serde(skip)]
    pool: Option<Arc<[Point]>>,
    #[serde(skip)]
    cache: Option<Cache>,
}

impl Default for Tpe {
    fn default() -> Self {
        Self { startup: 10, candidates: 24, joint: None, pool: None, cache: None }
    }
}

impl Tpe {
    /// How many trials are drawn at random before the model is believed (10).
    #[must_use]
    pub fn startup(mut self, trials: usize) -> Self {
        self.startup = trials;
        self
    }

    /// Among how many candidates the best is looked for (24).
    #[must_use]
    pub fn candidates(mut self, candidates: usize) -> Self {
        self.candidates = candidates.max(1);
        self
    }

    /// Whether parameters are modelled together rather than each on its own. Without this, they are where there is one
    /// objective.
    #[must_use]
    pub fn joint(mut self, joint: bool) -> Self {
        self.joint = Some(joint);
        self
    }

    /// Chooses among these points only, and none of them twice: for tables of trials, and for candidates that somebody
    /// else has made. Each suggestion looks at a random part of them, as many as there are
    /// [`candidates`](Self::candidates). A study of more trials than there are points is an error.
    #[must_use]
    pub fn among(mut self, points: impl IntoIterator<Item = Point>) -> Self {
        self.pool = Some(points.into_iter().collect());
        self
    }
}

impl Sampler for Tpe {
    fn suggest(&mut self, ask: &Ask<'_>) -> Result<Suggestion> {
        let several = ask
            .history
            .told()
            .iter()
            .rev()
            .find(|t| !t.losses.is_empty())
            .is_some_and(|t| t.losses.len() > 1);
        let joint = self.joint.unwrap_or(!several);
        let cache = Cache::up_to_date(&mut self.cache, ask, joint);
        if let Some(pool) = &self.pool {
            let drawn = draw(ask, pool, self.candidates)?;
            let model = cache.order.finished() >= self.startup;
            let best = if model { cache.choose(&drawn, several) } else { 0 };
            return Ok(Suggestion::new(drawn[best].clone()));
        }
        if cache.order.finished() < self.startup {
            return Ok(Suggestion::new(random::point(ask)));
        }
        let mut known = Point::empty(ask.space.parameters().len());
        let candidates = self.candidates;
        let point = complete(ask.space, Point::empty(ask.space.parameters().len()), |index, _| {
            if known.get(index).is_none() {
                cache.sample(ask, index, candidates, several, &mut known);
            }
            known.get(index).unwrap_or_else(|| ask.space.parameters()[index].domain.raw(0.5))
        });
        Ok(Suggestion::new(point))
    }

    fn name(&self) -> &'static str {
        "tpe"
    }
}

/// Parameters that always occur together, and their trials.
#[derive(Clone, Debug)]
struct Group {
    members: Vec<usize>,
    crowd: Crowd,
}

impl Group {
    /// A trial's coordinates, where it has all of the group's parameters.
    fn coordinates(&self, point: &Point) -> Option<Vec<f64>> {
        let axes = self.crowd.axes().iter();
        self.members.iter().zip(axes).map(|(p, axis)| point.get(*p).map(|raw| axis.coordinate(raw))).collect()
    }

    /// The density of the good trials.
    fn good<'a>(&self, axes: &'a [Axis], best: &BTreeSet<u64>, several: bool) -> Parzen<'a> {
        let rows = best.iter().filter_map(|number| self.crowd.coordinates(*number));
        Parzen::new(axes, &rows.collect::<Vec<_>>(), several)
    }

    /// By how much the good trials are denser than the others at some points: a logarithm.
    fn gains(&mut self, good: &Parzen<'_>, points: &[Vec<f64>]) -> Vec<f64> {
        let bad = self.crowd.log_density(points);
        points.iter().zip(bad).map(|(point, bad)| good.log_density(point) - bad).collect()
    }
}

/// What is kept between suggestions: a function of the history alone.
#[derive(Clone, Debug)]
struct Cache {
    seen: Seen,
    shape: Vec<Vec<usize>>,
    space: Space,
    signatures: Vec<u64>,
    groups: Vec<Group>,
    /// The numbers of the trials that were taken in, in order, each with what stands for what it tried.
    trials: Vec<(u64, u64)>,
    order: Order,
    best: BTreeSet<u64>,
}

impl Cache {
    fn new(space: &Space, shape: Vec<Vec<usize>>) -> Self {
        let group = |members: &Vec<usize>| {
            let axes = members.iter().map(|p| Axis::new(&space.parameters()[*p].domain)).collect();
            Group { members: members.clone(), crowd: Crowd::new(axes) }
        };
        Self {
            seen: Seen::default(),
            groups: shape.iter().map(group).collect(),
            shape,
            space: space.clone(),
            signatures: vec![],
            trials: vec![],
            order: Order::default(),
            best: BTreeSet::new(),
        }
    }

    /// The cache with everything in it that the history says.
    fn up_to_date<'a>(slot: &'a mut Option<Self>, ask: &Ask<'_>, joint: bool) -> &'a mut Self {
        let known = slot.take().filter(|cache| same_space(&cache.space, ask.space));
        let mut signatures = known.as_ref().map(|c| c.signatures.clone()).unwrap_or_default();
        let mut known = known.and_then(|mut cache| cache.news(ask.history).map(|news| (cache, news)));
        if ask.space.is_open() {
            match &known {
                Some((_, news)) => sign(&mut signatures, ask.space, news.iter().copied()),
                None => {
                    signatures.clear();
                    sign(&mut signatures, ask.space, ask.history.told().iter());
                }
            }
        }
        let shape = shape(ask.space, joint, &signatures);
        known = known.filter(|(cache, _)| cache.shape == shape);
        let (mut cache, news) = known.unwrap_or_else(|| {
            let mut fresh = Self::new(ask.space, shape);
            let all = fresh.news(ask.history).unwrap_or_default();
            (fresh, all)
        });
        cache.signatures = signatures;
        cache.take(&news);
        cache.follow(ask.history, ask.number);
        slot.insert(cache)
    }

    /// The trials that have ended since last time, while the order of all is brought up to date; `None` where the history
    /// is another one. In one that is judged anew for every suggestion the losses are others every time, and trials
    /// come in between: what was tried still holds.
    fn news<'h>(&mut self, history: &'h History) -> Option<Vec<&'h Told>> {
        if let Some(news) = self.seen.news(history) {
            news.iter().for_each(|told| self.order.push(told));
            return Some(news.iter().collect());
        }
        let told = history.told();
        let mut known = self.trials.iter().copied().peekable();
        let is_new = |(index, told): &(usize, &'h Told)| {
            known.next_if_eq(&(told.number, history.tried(*index))).is_none()
        };
        let news: Vec<&Told> = told.iter().enumerate().filter(is_new).map(|(_, told)| told).collect();
        if known.peek().is_some() {
            return None;
        }
        self.order = Order::default();
        told.iter().for_each(|told| self.order.push(told));
        self.seen.news(history);
        Some(news)
    }

    /// Takes in trials that ended.
    fn take(&mut self, news: &[&Told]) {
        for told in news {
            let place = self.trials.partition_point(|(number, _)| *number < told.number);
            self.trials.insert(place, (told.number, tried(told)));
            for group in &mut self.groups {
                group.crowd.stop(told.number);
                if let Some(coordinates) = group.coordinates(&told.point) {
                    group.crowd.push(told.number, &coordinates);
                    group.crowd.set(told.number, true);
                }
            }
        }
        let best = self.order.best();
        for (trials, present) in [(self.best.difference(&best), true), (best.difference(&self.best), false)] {
            for number in trials {
                self.groups.iter_mut().for_each(|group| group.crowd.set(*number, present));
            }
        }
        self.best = best;
    }

    /// Counts the running trials among the bad ones, so that nobody follows them.
    fn follow(&mut self, history: &History, asking: u64) {
        for group in &mut self.groups {
            let gone: Vec<u64> =
                group.crowd.running().filter(|n| !history.running().contains_key(n)).collect();
            gone.into_iter().for_each(|number| group.crowd.stop(number));
            let known: BTreeSet<u64> = group.crowd.running().collect();
            for (number, running) in history.running() {
                if *number != asking
                    && !known.contains(number)
                    && let Some(coordinates) = group.coordinates(&running.point)
                {
                    group.crowd.start(*number, coordinates);
                }
            }
        }
    }

    /// Chooses the values of the group that a parameter belongs to.
    fn sample(
        &mut self,
        ask: &Ask<'_>,
        parameter: usize,
        candidates: usize,
        several: bool,
        into: &mut Point,
    ) {
        let Some(group) = self.groups.iter_mut().find(|g| g.members.contains(&parameter)) else { return };
        let mut stream = ask.stream(&format!("tpe {}", ask.space.parameters()[group.members[0]].path));
        let axes = group.crowd.axes().to_vec();
        let good = group.good(&axes, &self.best, several);
        let points: Vec<Vec<f64>> = (0..candidates).map(|_| good.sample(&mut stream)).collect();
        let best = &points[highest(&group.gains(&good, &points))];
        for ((member, axis), at) in group.members.iter().zip(&axes).zip(best) {
            into.set(*member, Some(axis.raw(*at)));
        }
    }

    /// Which of some points promises most.
    fn choose(&mut self, points: &[Point], several: bool) -> usize {
        let mut gains = vec![0.0; points.len()];
        for group in &mut self.groups {
            let axes = group.crowd.axes().to_vec();
            let good = group.good(&axes, &self.best, several);
            let (places, coordinates): (Vec<usize>, Vec<Vec<f64>>) = (points.iter().enumerate())
                .filter_map(|(place, point)| Some((place, group.coordinates(point)?)))
                .unzip();
            for (place, gain) in places.into_iter().zip(group.gains(&good, &coordinates)) {
                gains[place] += gain;
            }
        }
        highest(&gains)
    }
}

/// The first of the largest.
fn highest(gains: &[f64]) -> usize {
    let mut best = (f64::NEG_INFINITY, 0);
    for (place, gain) in gains.iter().enumerate() {
        if *gain > best.0 {
            best = (*gain, place);
        }
    }
    best.1
}

/// So many points of a pool, none of which was tried.
fn draw(ask: &Ask<'_>, pool: &[Point], count: usize) -> Result<Vec<Point>> {
    let tried: HashSet<Vec<u64>> = (ask.history.told().iter().map(|t| &t.point))
        .chain(ask.history.running().values().map(|r| &r.point))
        .map(bits)
        .collect();
    let mut free: Vec<&Point> = pool.iter().filter(|point| !tried.contains(&bits(point))).collect();
    if free.is_empty() {
        let problem = format!("all {} points were tried: end the study here", pool.len());
        return Err(Error::Sampler { sampler: "tpe", problem });
    }
    let mut stream = ask.stream("tpe among");
    let count = count.min(free.len());
    for place in 0..count {
        let other = place + stream.below(free.len() - place);
        free.swap(place, other);
    }
    Ok(free[..count].iter().map(|point| (*point).clone()).collect())
}

fn bits(point: &Point) -> Vec<u64> {
    point.iter().flat_map(|(index, raw)| [index as u64, raw.to_bits()]).collect()
}

/// An open space grows, and its cache with it; any other change means starting over.
fn same_space(a: &Space, b: &Space) -> bool {
    a.parameters().len() == b.parameters().len() && a.parameters() == b.parameters()
}

/// Parameters that occur in the same trials get the same signature.
fn sign<'a>(signatures: &mut Vec<u64>, space: &Space, told: impl Iterator<Item = &'a Told>) {
    signatures.resize(space.parameters().len(), 0);
    for trial in told {
        for (parameter, _) in trial.point.iter() {
            signatures[parameter] = signatures[parameter].wrapping_add(mix(trial.number));
        }
    }
}

/// Which parameters are modelled together. Those of a single value are left out.
fn shape(space: &Space, joint: bool, signatures: &[u64]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<(Option<Condition>, u64, usize), Vec<usize>> = BTreeMap::new();
    for (index, parameter) in space.parameters().iter().enumerate() {
        if parameter.domain.count() == Some(1) {
            continue;
        }
        let signature = signatures.get(index).copied().unwrap_or(0);
        let alone = if joint { 0 } else { index };
        groups.entry((parameter.parent, signature, alone)).or_default().push(index);
    }
    groups.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{choice, float, group, int};

    /// Figures of Optuna 5.0.0: `_ParzenEstimator(..).log_pdf` of the good trials less that of the others, with the
    /// parameters that its sampler has by default. The constant that they have in addition is taken out.
    #[test]
    fn gains_are_those_of_optuna() {
        let space = (group().with("a", float(-5.0..=5.0)).with("b", float(1e-4..=1.0).log()))
            .with("c", int(1..=400))
            .with("d", choice(["x", "y", "z"]))
            .build()
            .expect("a space");
        let mut bits = 1u64;
        let mut unit = || {
            bits = bits.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (bits >> 11) as f64 / (1u64 << 53) as f64
        };
        let point = |raws: [f64; 4]| {
            let mut point = Point::empty(4);
            raws.iter().enumerate().for_each(|(index, raw)| point.set(index, Some(*raw)));
            point
        };
        let mut history = History::new();
        for number in 0..60 {
            let a = -5.0 + 10.0 * unit();
            let b = (1e-4f64.ln() + unit() * 1e4f64.ln()).exp();
            // No integer comes twice: which of two equal kernels is next to the others is a matter of sorting.
            let (c, d) = (1.0 + ((number * 7 + 3) % 400) as f64, (unit() * 3.0).floor());
            let loss = (a - 1.0).powi(2) + (b.log10() + 2.0).abs() + 0.01 * c + d;
            history.tell(Told::complete(number, point([a, b, c, d]), vec![loss]));
        }
        let ask = Ask { space: &space, history: &history, number: 60, seed: 0 };
        let mut slot = None;
        let cache = Cache::up_to_date(&mut slot, &ask, true);
        assert_eq!(cache.best, BTreeSet::from([6, 11, 26, 35, 57, 59]));
        let points =
            [[1.0, 0.01, 30.0, 0.0], [-4.0, 0.5, 390.0, 2.0], [2.5, 0.002, 1.0, 1.0], [0.3, 0.03, 55.0, 0.0]];
        let group = &mut cache.groups[0];
        let axes = group.crowd.axes().to_vec();
        let coordinates: Vec<Vec<f64>> =
            points.iter().map(|p| group.coordinates(&point(*p)).expect("all four")).collect();
        let good = group.good(&axes, &cache.best, false);
        let gains = group.gains(&good, &coordinates);
        let expected = [6.831153671557226, 1.7620062158415628, 4.1082285681675295, 6.131865274086261];
        for (gain, expected_gain) in gains.iter().zip(expected) {
            let (a, b) = (gain - gains[0], expected_gain - expected[0]);
            assert!((a - b).abs() < 1e-9, "{gains:?}");
        }
    }
}
