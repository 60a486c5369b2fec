//! A history under a scheduler that cuts trials short: few of them run to their end, and a sampler that looked at those
//! alone would learn late and little. Results at different rungs cannot be compared as numbers. As ranks they can: trials
//! that came further settle among themselves who stands where, in the places that the rung below gave them.

use std::borrow::Cow;

use super::history::tried;
use super::{End, History, Told};
use crate::normal;
use crate::scheduler::Scheduler;
use crate::space::Point;

impl History {
    /// This history as a sampler should see it under a scheduler. A simulation and a runner both ask
    /// `sampler.suggest(&Ask { history: &history.judged_by(scheduler), .. })`; one that asks often keeps a [`Judge`].
    ///
    /// Where the scheduler compares trials at [`rungs`](Scheduler::rungs), each trial that has come to one, running, paused
    /// or over, counts as complete, with a loss that says where it stands among all: a standard normal score. Trials
    /// without a result at a rung run on. Those that have failed stay failed, and what another study found takes its place
    /// by its final loss. Otherwise, and with several objectives, the history is what it is.
    pub fn judged_by(&self, scheduler: &dyn Scheduler) -> Cow<'_, History> {
        let mut judge = Judge::default();
        if judge.judges(self, scheduler) { Cow::Owned(judge.judged) } else { Cow::Borrowed(self) }
    }
}

/// A history as a scheduler judges it, kept from one look to the next: most trials stay what they were, and only where they
/// stand is new.
#[derive(Debug, Default)]
pub struct Judge {
    judged: History,
}

impl Judge {
    /// What [`History::judged_by`] says.
    pub fn look<'a>(&'a mut self, history: &'a History, scheduler: &dyn Scheduler) -> &'a History {
        if self.judges(history, scheduler) { &self.judged } else { history }
    }

    /// Brings what is judged up to date, where there is anything to judge.
    fn judges(&mut self, history: &History, scheduler: &dyn Scheduler) -> bool {
        let rungs = scheduler.rungs();
        if rungs.iter().all(Vec::is_empty) || history.told().iter().any(|t| t.losses.len() > 1) {
            return false;
        }
        let trials = trials(history);
        let scores = scores(&trials, &rungs);
        let mut before = self.judged.drain().peekable();
        let mut judged = History::new();
        for (trial, score) in trials.into_iter().zip(scores) {
            let number = trial.number;
            while before.next_if(|(_, known)| known.number < number).is_some() {}
            let known = before.next_if(|(_, known)| known.number == number);
            let score = score.filter(|_| trial.ended.is_none_or(|t| t.end != End::Failed));
            let (end, loss) = match (score, trial.ended) {
                (Some(score), _) => (End::Complete, Some(score)),
                (None, Some(told)) => (told.end, told.losses.first().copied()),
                (None, None) => {
                    judged.start(number, trial.point.clone(), trial.note);
                    continue;
                }
            };
            let (print, mut told) = match known {
                Some((print, told)) if told.note == trial.note && told.point == *trial.point => (print, told),
                _ => {
                    let told = Told::complete(number, trial.point.clone(), vec![]);
                    let told = Told { note: trial.note, ..told };
                    (tried(&told), told)
                }
            };
            let constraints = trial.ended.map_or(&[][..], |t| &t.constraints);
            if told.constraints != constraints {
                told.constraints = constraints.to_vec();
            }
            told.end = end;
            told.losses.clear();
            told.losses.extend(loss);
            judged.push(print, told);
        }
        self.judged = judged;
        true
    }
}

/// A trial of a study that is to be judged.
struct Trial<'a> {
    number: u64,
    point: &'a Point,
    note: u64,
    ended: Option<&'a Told>,
}

/// The trials in the order of their numbers.
fn trials(history: &History) -> Vec<Trial<'_>> {
    let ended = history.told().iter();
    let ended = ended.map(|t| Trial { number: t.number, point: &t.point, note: t.note, ended: Some(t) });
    let run = history.running().iter();
    let run = run.map(|(number, r)| Trial { number: *number, point: &r.point, note: r.note, ended: None });
    let mut trials: Vec<Trial<'_>> = ended.chain(run).collect();
    trials.sort_by_key(|trial| trial.number);
    trials
}

/// Where the trials stand that came to a rung or to their end, as standard normal scores.
fn scores(trials: &[Trial<'_>], rungs: &[Vec<u32>]) -> Vec<Option<f64>> {
    let place = |number: u64| trials.binary_search_by_key(&number, |trial| trial.number).ok();
    let mut places: Vec<Vec<usize>> = (rungs.iter())
        .map(|rung| rung.iter().filter_map(|trial| place(u64::from(*trial))).collect())
        .collect();
    let complete = |i: &usize| trials[*i].ended.is_some_and(|t| t.end == End::Complete);
    let loss = |i: usize| trials[i].ended.map_or(f64::INFINITY, Told::loss);
    let mut complete: Vec<usize> = (0..trials.len()).filter(complete).collect();
    complete.sort_by(|a, b| loss(*a).total_cmp(&loss(*b)));
    places.push(complete);
    let order = order(&places, trials.len());
    let mut scores = vec![None; trials.len()];
    for (place, trial) in order.iter().enumerate() {
        scores[*trial] = Some(normal::quantile((place as f64 + 0.5) / order.len() as f64));
    }
    scores
}

/// All trials of some rungs in one order, out of `count` trials. Those of a rung that already have places, from lower
/// rungs, share these out anew; a trial whose first rung this is comes right behind the one that it is next to here.
fn order(rungs: &[Vec<usize>], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = vec![];
    let mut placed = vec![false; count];
    for rung in rungs {
        // The trials that already have places, each with the newcomers behind it; those before the first are `ahead`.
        let mut ahead: Vec<usize> = vec![];
        let mut blocks: Vec<Vec<usize>> = vec![];
        for trial in rung {
            match blocks.last_mut() {
                _ if placed[*trial] => blocks.push(vec![*trial]),
                Some(block) => block.push(*trial),
                None => ahead.push(*trial),
            }
        }
        if blocks.is_empty() {
            order = interleaved(&order, &ahead);
        } else {
            blocks[0].splice(0..0, ahead);
            let mut here = vec![false; count];
            rung.iter().for_each(|trial| here[*trial] = true);
            let (mut blocks, before) = (blocks.into_iter(), std::mem::take(&mut order));
            for trial in before {
                if here[trial] {
                    order.extend(blocks.next().unwrap_or_default());
                } else {
                    order.push(trial);
                }
            }
        }
        rung.iter().for_each(|trial| placed[*trial] = true);
    }
    order
}

/// Two orders that have no trial in common, as if both came from the same distribution.
fn interleaved(a: &[usize], b: &[usize]) -> Vec<usize> {
    let share = |order: &[usize], i: usize| (i as f64 + 0.5) / order.len() as f64;
    let places = |order: &[usize]| -> Vec<(f64, usize)> {
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
        let order = |rungs: &[&[usize]]| order(&rungs.iter().map(|r| r.to_vec()).collect::<Vec<_>>(), 10);
        let lowest: &[usize] = &[1, 2, 3, 4, 5, 6];
        assert_eq!(order(&[lowest]), lowest);
        // 6 was promoted early and turned out to be the best of three: it gets the best place of the three.
        assert_eq!(order(&[lowest, &[6, 1, 3]]), [6, 2, 1, 4, 5, 3]);
        assert_eq!(order(&[lowest, &[6, 1, 3], &[1, 6]]), [1, 2, 6, 4, 5, 3]);
        // 8 and 9 began a rung higher.
        assert_eq!(order(&[lowest, &[8, 2, 9, 5]]), [1, 8, 2, 9, 3, 4, 5, 6]);
        assert_eq!(order(&[&[1, 2], &[8, 9]]), [1, 8, 2, 9]);
    }
}
