//! Which checkpoints stay: a pure function of what there is and what is wanted, which gives its reasons.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::names::CheckpointName;

/// This many good checkpoints always stay: while the newest one is being read, or turns out to be damaged, there is
/// another.
pub const ALWAYS: usize = 2;

/// Whether a metric is better when it is small or when it is large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Small is good.
    Min,
    /// Large is good.
    Max,
}

/// The best few by a metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// The metric.
    pub metric: String,
    /// Which way it is good.
    pub mode: Mode,
    /// How many stay.
    pub count: usize,
}

/// Which checkpoints stay. One that any rule keeps stays, as do pinned ones and the last two good ones. Without any
/// rule, all stay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// The last few.
    pub last: Option<usize>,
    /// The best few. NaN, and no value, come last.
    pub best: Option<Best>,
    /// Those whose step is a multiple of this.
    pub every: Option<u64>,
}

impl Retention {
    /// Keeps the last few.
    pub fn last(count: usize) -> Self {
        Retention { last: Some(count), ..Self::default() }
    }

    fn keeps_all(&self) -> bool {
        *self == Self::default()
    }
}

/// A checkpoint to decide about.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub name: CheckpointName,
    /// Its metrics.
    pub metrics: BTreeMap<String, f64>,
    /// Whether it is committed and complete.
    pub good: bool,
    /// Who pinned it.
    pub pins: Vec<String>,
}

/// Decides for each candidate whether it stays and why; no reason means that it goes.
pub fn decide(candidates: &[Candidate], retention: &Retention) -> Vec<Option<String>> {
    let mut newest_first: Vec<usize> = (0..candidates.len()).filter(|&i| candidates[i].good).collect();
    newest_first.sort_by(|&a, &b| candidates[b].name.cmp(&candidates[a].name));
    let last = retention.last.unwrap_or(0);
    let best = best_of(candidates, &newest_first, retention);
    let mut reasons = vec![None; candidates.len()];
    for (index, candidate) in candidates.iter().enumerate() {
        let place = newest_first.iter().position(|&i| i == index);
        reasons[index] = if !candidate.good {
            // Not judged here: what is damaged is for a person to look at.
            Some("not readable".to_owned())
        } else if retention.keeps_all() {
            Some("no rule removes any".to_owned())
        } else if let Some(pin) = candidate.pins.first() {
            Some(format!("pinned by {pin}"))
        } else if place.is_some_and(|place| place < last) {
            Some(format!("one of the last {last}"))
        } else if best.contains(&index) {
            Some("one of the best".to_owned())
        } else if retention.every.is_some_and(|every| every > 0 && candidate.name.step.is_multiple_of(every))
        {
            Some(format!("its step is a multiple of {}", retention.every.unwrap_or(0)))
        } else if place.is_some_and(|place| place < ALWAYS) {
            Some(format!("one of the last {ALWAYS} good ones"))
        } else {
            None
        };
    }
    reasons
}

fn best_of(candidates: &[Candidate], newest_first: &[usize], retention: &Retention) -> Vec<usize> {
    let Some(best) = &retention.best else { return Vec::new() };
    let value = |index: usize| {
        let value = candidates[index].metrics.get(&best.metric).copied().unwrap_or(f64::NAN);
        if best.mode == Mode::Max { -value } else { value }
    };
    let mut order = newest_first.to_vec();
    // Stable, so that of equals the newest wins. The sign of a NaN must not make it the best.
    order.sort_by(|&a, &b| match (value(a), value(b)) {
        (a, b) if a.is_nan() || b.is_nan() => a.is_nan().cmp(&b.is_nan()),
        (a, b) => a.total_cmp(&b),
    });
    order.truncate(best.count);
    order
}
