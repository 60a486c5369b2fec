//! Ranks' reports become one: all ranks' n-th belong together, and each metric has its rule. Pure; the time is an input.
//!
//! What does not come is as wrong as what does not fit: a rank that leaves a report out is named, not waited for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use regatta_track::Metrics;

use crate::metrics::Merge;
use crate::wire::RankReport;
use crate::{Error, Result};

/// How many reports a rank may be ahead of another. Workers hold few that were not taken over, so none comes this far.
const AHEAD: usize = 10_000;

/// What all ranks reported together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Merged {
    /// Which report of the attempt, from 1.
    pub index: u64,
    /// The step.
    pub step: u64,
    /// The epoch under way, from 0.
    pub epoch: u64,
    /// The figures, in rank 0's order.
    pub metrics: Metrics,
    /// Seconds since the attempt's first step, by rank 0's clock.
    pub seconds: f64,
}

/// The reports of one index, as far as they are there.
struct Round {
    /// When the first came.
    since: Duration,
    parts: Vec<Option<RankReport>>,
}

/// Puts the reports of an attempt's ranks together.
pub struct Merger {
    deadline: Duration,
    world: usize,
    /// How many were put together.
    merged: u64,
    /// Those after it, in order.
    rounds: VecDeque<Round>,
    /// How many reports each rank made, and whether it is done.
    made: Vec<(u64, bool)>,
}

impl Merger {
    /// For so many ranks, none of which may report this much later than the first.
    pub fn new(world: usize, deadline: Duration) -> Self {
        Merger { deadline, world, merged: 0, rounds: VecDeque::new(), made: vec![(0, false); world] }
    }

    /// Takes a rank's report, and returns the merged one if it was the last that was missing.
    pub fn report(&mut self, now: Duration, rank: u32, report: RankReport) -> Result<Option<Merged>> {
        let (index, step, who) = (report.index, report.step, rank as usize);
        let wrong = |why: String| Err(Error::Report { index, step, why });
        let Some((made, _)) = self.made.get_mut(who) else {
            return wrong(format!("it comes from rank {rank}, and there are {} ranks", self.world));
        };
        if index != *made + 1 {
            return wrong(format!("rank {rank} made {made} reports before it, and this is not the next"));
        }
        *made = index;
        let place = (index - self.merged - 1) as usize;
        if place >= AHEAD {
            return wrong(format!("rank {rank} is {AHEAD} reports ahead of {}", self.missing(0)));
        }
        if place == self.rounds.len() {
            self.rounds.push_back(Round { since: now, parts: vec![None; self.world] });
        }
        self.rounds[place].parts[who] = Some(report);
        self.check_done()?;
        match self.rounds.front() {
            Some(round) if round.parts.iter().all(Option::is_some) => {}
            _ => return Ok(None),
        }
        let round = self.rounds.pop_front().map(|round| round.parts).unwrap_or_default();
        self.merged += 1;
        merge(round.into_iter().flatten().collect()).map(Some)
    }

    /// Takes notice that a rank is done and will report no more.
    pub fn done(&mut self, rank: u32) -> Result<()> {
        if let Some((_, done)) = self.made.get_mut(rank as usize) {
            *done = true;
        }
        self.check_done()
    }

    /// When to ask whether a rank is overdue.
    pub fn deadline(&self) -> Option<Duration> {
        self.rounds.front().map(|round| round.since + self.deadline)
    }

    /// Says who is missing once the deadline of a report is over.
    pub fn overdue(&self, now: Duration) -> Result<()> {
        match self.rounds.front() {
            Some(round) if now >= round.since + self.deadline => Err(self.error(
                0,
                format!("{} did not report within {:?} after the first", self.missing(0), self.deadline),
            )),
            _ => Ok(()),
        }
    }

    /// A rank that is done cannot make a report that others made.
    fn check_done(&self) -> Result<()> {
        let ahead = self.merged + self.rounds.len() as u64;
        let short = self.made.iter().position(|&(made, done)| done && made < ahead);
        let Some(rank) = short else { return Ok(()) };
        let made = self.made[rank].0;
        let place = (made - self.merged) as usize;
        let why = format!(
            "rank {rank} finished after {made} reports, and others made more: all ranks must report alike (outside of \
             `if ctx.rank() == 0`)"
        );
        Err(self.error(place, why))
    }

    /// The ranks that have not made the report at this place, in words.
    fn missing(&self, place: usize) -> String {
        let index = self.merged + 1 + place as u64;
        let ranks: Vec<String> =
            (0..self.world).filter(|&rank| self.made[rank].0 < index).map(|rank| rank.to_string()).collect();
        if ranks.len() == 1 { format!("rank {}", ranks[0]) } else { format!("ranks {}", ranks.join(", ")) }
    }

    fn error(&self, place: usize, why: String) -> Error {
        let step = self.rounds.get(place).and_then(|round| round.parts.iter().flatten().next());
        let step = step.map_or(0, |report| report.step);
        Error::Report { index: self.merged + 1 + place as u64, step, why }
    }
}

/// Merges all ranks' parts of a report.
fn merge(parts: Vec<RankReport>) -> Result<Merged> {
    let Some(first) = parts.first() else { return Ok(Merged::default()) };
    let wrong = |why: String| Err(Error::Report { index: first.index, step: first.step, why });
    for (rank, part) in parts.iter().enumerate().skip(1) {
        if part.step != first.step {
            return wrong(format!(
                "rank {rank} made it at step {}, rank 0 at step {}",
                part.step, first.step
            ));
        }
        if let Some(why) = difference(first, part) {
            return wrong(format!("rank {rank} {why}"));
        }
    }
    let mut metrics = Metrics::new();
    for (place, (name, value, rule)) in first.metrics.iter().enumerate() {
        let merged = match rule {
            Merge::Rank0 => *value,
            // Ranks name the same figures, and mostly in the same order.
            rule => rule.of(parts.iter().filter_map(|part| value_of(part, place, name))),
        };
        metrics.insert(name.clone(), merged);
    }
    let Some(first) = parts.into_iter().next() else { return Ok(Merged::default()) };
    let RankReport { index, step, epoch, seconds, .. } = first;
    Ok(Merged { index, step, epoch, metrics, seconds })
}

fn value_of(part: &RankReport, place: usize, name: &Arc<str>) -> Option<f64> {
    let here = part.metrics.get(place).filter(|(there, ..)| there == name);
    here.or_else(|| part.metrics.iter().find(|(there, ..)| there == name)).map(|(_, value, _)| *value)
}

/// How a rank's figures differ from rank 0's, apart from those that only rank 0 counts for.
fn difference(first: &RankReport, part: &RankReport) -> Option<String> {
    let rule_in = |report: &RankReport, name: &Arc<str>| {
        report.metrics.iter().find(|(there, ..)| there == name).map(|(_, _, rule)| *rule)
    };
    for (name, _, rule) in first.metrics.iter().filter(|(_, _, rule)| *rule != Merge::Rank0) {
        match rule_in(part, name) {
            None => return Some(format!("left out `{name}`, which rank 0 reported")),
            Some(other) if other != *rule => {
                return Some(format!("merges `{name}` by {other:?}, and rank 0 by {rule:?}"));
            }
            Some(_) => {}
        }
    }
    let stranger = part.metrics.iter().find(|(name, _, rule)| {
        *rule != Merge::Rank0 && rule_in(first, name).is_none_or(|r| r == Merge::Rank0)
    })?;
    Some(format!("reported `{}`, which rank 0 did not", stranger.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WAIT: Duration = Duration::from_secs(300);

    fn at(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn report(index: u64, metrics: &[(&str, f64, Merge)]) -> RankReport {
        let metrics = metrics.iter().map(|&(name, value, rule)| (name.into(), value, rule)).collect();
        RankReport { index, step: index * 10, epoch: 1, metrics, seconds: index as f64 }
    }

    fn text(result: Result<impl std::fmt::Debug>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn each_metric_by_its_rule() {
        use Merge::*;
        let mut merger = Merger::new(2, WAIT);
        let first = [("a", 1.0, Rank0), ("b", 1.0, Mean), ("c", 1.0, Sum), ("d", 1.0, Min), ("e", 1.0, Max)];
        let second = [("e", 3.0, Max), ("d", 3.0, Min), ("c", 3.0, Sum), ("b", f64::NAN, Mean)];
        assert_eq!(merger.report(at(0), 0, report(1, &first)).unwrap(), None);
        let merged = merger.report(at(1), 1, report(1, &second)).unwrap().unwrap();
        let values: Vec<(&str, f64)> = merged.metrics.iter().map(|(n, v)| (&**n, v)).collect();
        assert_eq!(values[0], ("a", 1.0));
        assert!(values[1].0 == "b" && values[1].1.is_nan());
        assert_eq!(values[2..], [("c", 4.0), ("d", 1.0), ("e", 3.0)]);
        assert_eq!((merged.step, merged.epoch, merged.seconds), (10, 1, 1.0));
    }

    #[test]
    fn who_is_missing_is_named() {
        let mut merger = Merger::new(3, WAIT);
        for rank in [0, 2] {
            merger.report(at(7), rank, report(1, &[])).unwrap();
        }
        assert_eq!(merger.deadline(), Some(at(307)));
        merger.overdue(at(306)).unwrap();
        assert_eq!(
            text(merger.overdue(at(307))),
            "report 1 (step 10): rank 1 did not report within 300s after the first"
        );
        let gone = text(merger.done(1));
        assert!(gone.starts_with("report 1 (step 10): rank 1 finished after 0 reports"), "{gone}");
    }

    #[test]
    fn what_differs_is_named() {
        let one = [("loss", 1.0, Merge::Mean)];
        let differ = |second: RankReport| {
            let mut merger = Merger::new(2, WAIT);
            merger.report(at(0), 0, report(1, &one)).unwrap();
            text(merger.report(at(0), 1, second))
        };
        assert!(
            differ(RankReport { step: 11, ..report(1, &one) })
                .contains("rank 1 made it at step 11, rank 0 at step 10")
        );
        assert!(differ(report(1, &[])).contains("rank 1 left out `loss`"));
        assert!(
            differ(report(1, &[("loss", 1.0, Merge::Sum)]))
                .contains("rank 1 merges `loss` by Sum, and rank 0 by Mean")
        );
        assert!(
            differ(report(1, &[one[0], ("x", 0.0, Merge::Sum)]))
                .contains("rank 1 reported `x`, which rank 0 did not")
        );
        assert!(differ(report(2, &one)).contains("this is not the next"));
    }

    proptest! {
        /// However the ranks' reports interleave, every index is merged once, in order, from all ranks.
        #[test]
        fn any_interleaving_merges_the_same(world in 1..5_usize, order in prop::collection::vec(0..5_usize, 0..60)) {
            let mut merger = Merger::new(world, WAIT);
            let mut made = vec![0_u64; world];
            let mut merged = 0;
            for rank in order.into_iter().filter(|&rank| rank < world) {
                made[rank] += 1;
                let metrics = [("sum", (rank + 1) as f64, Merge::Sum)];
                if let Some(all) = merger.report(at(0), rank as u32, report(made[rank], &metrics)).unwrap() {
                    merged += 1;
                    prop_assert_eq!(all.index, merged);
                    prop_assert_eq!(all.metrics.get("sum"), Some((world * (world + 1) / 2) as f64));
                }
                prop_assert_eq!(merged, *made.iter().min().unwrap());
                prop_assert_eq!(merger.deadline().is_some(), made.iter().any(|&n| n > merged));
            }
        }
    }
}
