//! A history under a scheduler that cuts trials short: few of them run to their end, and a sampler that looked at those
//! alone would learn late and little. Results at different rungs cannot be compared as numbers. As ranks they can: trials
//! that came further settle among themselves who stands where, in the places that the rung below gave them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::{End, History, Told};
use crate::normal;
use crate::scheduler::Scheduler;

impl History {
    /// This history as a sampler should see it under a scheduler. A simulation and a runner both ask
    /// `sampler.suggest(&Ask { history: &history.judged_by(scheduler), .. })`.
    ///
    /// Where the scheduler compares trials at [`rungs`](Scheduler::rungs), each trial that has come to one, running, paused
    /// or over, counts as complete, with a loss that says where it stands among all: a standard normal score. Trials
    /// without a result at a rung run on. Those that have failed stay failed, and what another study found takes its place
    /// by its final loss. Otherwise, and with several objectives, the history is what it is.
    pub fn judged_by(&self, scheduler: &dyn Scheduler) -> Cow<'_, History> {
        let mut rungs: Vec<Vec<u64>> =
            scheduler.rungs().into_iter().map(|rung| rung.into_iter().map(u64::from).collect()).collect();
        if rungs.iter().all(Vec::is_empty) || self.told().iter().any(|t| t.losses.len() > 1) {
            return Cow::Borrowed(self);
        }
        let told: BTreeMap<u64, &Told> = self.told().iter().map(|t| (t.number, t)).collect();
        let mut complete: Vec<&Told> = told.values().copied().filter(|t| t.end == End::Complete).collect();
        complete.sort_by(|a, b| a.loss().total_cmp(&b.loss()).then(a.number.cmp(&b.number)));
        rungs.push(complete.iter().map(|t| t.number).collect());
        let judged = order(&rungs);
        let count = judged.len() as f64;
        let score = |place: usize| normal::quantile((place as f64 + 0.5) / count);
        let scores: HashMap<u64, f64> =
            judged.into_iter().enumerate().map(|(place, trial)| (trial, score(place))).collect();

        let mut all: BTreeMap<u64, Option<Told>> = BTreeMap::new();
        for (number, t) in told {
            let judged = scores.get(&number).filter(|_| t.end != End::Failed);
            let losses = judged.map(|score| vec![*score]);
            let end = if losses.is_some() { End::Complete } else { t.end };
            let losses = losses.unwrap_or_else(|| t.losses.clone());
            all.insert(number, Some(Told { end, losses, ..t.clone() }));
        }
        for (number, running) in self.running() {
            let told = scores.get(number).map(|score| Told {
                note: running.note,
                ..Told::complete(*number, running.point.clone(), vec![*score])
            });
            all.insert(*number, told);
        }
        let mut history = History::new();
        for (number, told) in all {
            match (told, self.running().get(&number)) {
                (Some(told), _) => history.tell(told),
                (None, Some(running)) => history.start(number, running.point.clone(), running.note),
                (None, None) => {}
            }
        }
        Cow::Owned(history)
    }
}

/// All trials of some rungs in one order. Those of a rung that already have places, from lower rungs, share these out
/// anew; a trial whose first rung this is comes right behind the one that it is next to here.
fn order(rungs: &[Vec<u64>]) -> Vec<u64> {
    let mut order: Vec<u64> = vec![];
    for rung in rungs {
        let placed: HashSet<u64> = order.iter().copied().collect();
        // The trials that already have places, each with the newcomers behind it; those before the first are `ahead`.
        let mut ahead: Vec<u64> = vec![];
        let mut blocks: Vec<Vec<u64>> = vec![];
        for trial in rung {
            match blocks.last_mut() {
                _ if placed.contains(trial) => blocks.push(vec![*trial]),
                Some(block) => block.push(*trial),
                None => ahead.push(*trial),
            }
        }
        if blocks.is_empty() {
            order = interleaved(&order, &ahead);
            continue;
        }
        blocks[0].splice(0..0, ahead);
        let here: HashSet<u64> = rung.iter().copied().collect();
        let mut blocks = blocks.into_iter();
        order = (order.into_iter())
            .flat_map(|trial| match here.contains(&trial) {
                true => blocks.next().unwrap_or_default(),
                false => vec![trial],
            })
            .collect();
    }
    order
}

/// Two orders that have no trial in common, as if both came from the same distribution.
fn interleaved(a: &[u64], b: &[u64]) -> Vec<u64> {
    let share = |order: &[u64], i: usize| (i as f64 + 0.5) / order.len() as f64;
    let places = |order: &[u64]| -> Vec<(f64, u64)> {
        order.iter().enumerate().map(|(i, trial)| (share(order, i), *trial)).collect()
    };
    let mut all = [places(a), places(b)].concat();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    all.into_iter().map(|(_, trial)| trial).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_came_further_share_their_places_out_anew() {
        let lowest = vec![1, 2, 3, 4, 5, 6];
        assert_eq!(order(std::slice::from_ref(&lowest)), lowest);
        // 6 was promoted early and turned out to be the best of three: it gets the best place of the three.
        assert_eq!(order(&[lowest.clone(), vec![6, 1, 3]]), [6, 2, 1, 4, 5, 3]);
        assert_eq!(order(&[lowest.clone(), vec![6, 1, 3], vec![1, 6]]), [1, 2, 6, 4, 5, 3]);
        // 8 and 9 began a rung higher.
        assert_eq!(order(&[lowest.clone(), vec![8, 2, 9, 5]]), [1, 8, 2, 9, 3, 4, 5, 6]);
        assert_eq!(order(&[vec![1, 2], vec![8, 9]]), [1, 8, 2, 9]);
    }
}
