//! Who is in a group: splitting one into parts, and going on with the survivors of one that has failed.

use crate::group::ProcessGroup;
use crate::rendezvous::Rendezvous;
use crate::store::{ScopedStore, Store};
use crate::{Error, Result};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often a rank looks whether the others have come.
const LOOK: Duration = Duration::from_millis(2);

/// With whom a group goes on after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reform {
    /// Fewer survivors than this are none.
    pub at_least: usize,
    /// How long nobody new must have come before those who have not are given up, dead or not. Ranks known to be
    /// dead are not waited for.
    pub settle: Duration,
    /// How long the survivors may take to connect, before another try without those who did not.
    pub join: Duration,
    /// How many tries.
    pub tries: u32,
}

impl Default for Reform {
    /// With anybody, after one second.
    fn default() -> Reform {
        Reform { at_least: 1, settle: Duration::from_secs(1), join: Duration::from_secs(5), tries: 3 }
    }
}

/// Whether to stop waiting for more survivors, and why. Pure: the times and the facts are inputs.
fn settled(present: &[bool], lost: &[usize], quiet: Duration, policy: &Reform) -> Option<&'static str> {
    let waiting = (0..present.len()).filter(|r| !present[*r] && !lost.contains(r)).count();
    match waiting {
        0 => Some("all others are here or dead"),
        _ if quiet >= policy.settle => Some("nobody new came in the settling time"),
        _ => None,
    }
}

impl ProcessGroup {
    fn origin(&self, what: &'static str) -> Result<&Rendezvous> {
        let why = || "the group was made by hand, not by a rendezvous".to_string();
        self.origin.as_deref().ok_or_else(|| Error::NotAvailable { what, why: why() })
    }

    /// Makes groups of those with one color, ordered by key, then by rank. All ranks call this; those without a color get none. The old
    /// group goes on beside the parts.
    pub fn split(&self, color: Option<u64>, key: u64) -> Result<Option<ProcessGroup>> {
        let origin = self.origin("split")?;
        let number = self.splits.fetch_add(1, Ordering::Relaxed);
        let own = [i64::from(color.is_some()), color.unwrap_or(0) as i64, key as i64];
        let mut all = vec![0; 3 * self.world_size()];
        self.all_gather(&own, &mut all)?;
        let Some(color) = color else { return Ok(None) };
        let mut members: Vec<(u64, usize)> = (0..self.world_size())
            .filter(|r| all[3 * r] == 1 && all[3 * r + 1] as u64 == color)
            .map(|r| (all[3 * r + 2] as u64, r))
            .collect();
        members.sort_unstable();
        let rank = members.iter().position(|m| m.1 == self.rank()).unwrap_or(0);
        let part = Rendezvous {
            rank,
            world_size: members.len(),
            name: format!("{}/g{}/s{number}/c{color}", origin.name, origin.generation),
            within: self.deadline(),
            ..origin.clone()
        };
        part.join().map(Some)
    }

    /// Goes on with the survivors: a new group of the next generation, in which the ranks keep their order. The old group is over, if it
    /// was not before; its buckets are not used again.
    ///
    /// All survivors agree on one list, by the store, which must have survived. Whoever comes later gets [`Error::Excluded`].
    pub fn reform(&self, policy: &Reform) -> Result<ProcessGroup> {
        let origin = self.origin("reform")?;
        if self.health().over.is_none() {
            self.abort(&format!("rank {} asks to reform the group", self.rank()));
        }
        let mut last = None;
        for attempt in 0..policy.tries.max(1) {
            let members = self.agree(origin, attempt, policy)?;
            let generation = origin.generation + 1 + u64::from(attempt);
            let excluded = |why: String| Error::Excluded { rank: self.rank(), generation, why };
            if members.len() < policy.at_least {
                return Err(excluded(format!(
                    "{} survived, at least {} are needed",
                    members.len(),
                    policy.at_least
                )));
            }
            let Some(rank) = members.iter().position(|m| *m == self.rank()) else {
                return Err(excluded(format!("ranks {members:?} went on")));
            };
            let next = Rendezvous {
                rank,
                world_size: members.len(),
                generation,
                within: policy.join,
                ..origin.clone()
            };
            match next.join() {
                Ok(group) => {
                    // The rendezvous of the next reform has the usual deadline again.
                    let usual = Rendezvous { within: origin.within, ..group.origin("reform")?.clone() };
                    return Ok(group.with_origin(usual).within(self.deadline()));
                }
                Err(e) => {
                    tracing::debug!("generation {generation} did not come together: {e}");
                    last = Some(e);
                }
            }
        }
        Err(last.expect("at least one try was made"))
    }

    /// The old ranks that go on, the same list on every survivor.
    fn agree(&self, origin: &Rendezvous, attempt: u32, policy: &Reform) -> Result<Vec<usize>> {
        let store = ScopedStore::new(origin.scope(), format!("reform{attempt}"));
        let here = |rank: usize| format!("here/{rank}");
        store.set(&here(self.rank()), b"1", self.deadline())?;
        let mut present = vec![false; self.world_size()];
        let mut changed = Instant::now();
        loop {
            if let Some(list) = store.get("members", self.deadline())? {
                return decode(&list);
            }
            for (rank, present) in present.iter_mut().enumerate() {
                if !*present && store.get(&here(rank), self.deadline())?.is_some() {
                    (*present, changed) = (true, Instant::now());
                }
            }
            if let Some(why) = settled(&present, &self.health().lost, changed.elapsed(), policy) {
                let members: Vec<u8> = (0..present.len())
                    .filter(|r| present[*r])
                    .flat_map(|r| (r as u32).to_le_bytes())
                    .collect();
                // Only the first proposal counts; all others take it over.
                let list = decode(&store.compare_set("members", None, &members, self.deadline())?)?;
                tracing::debug!(rank = self.rank(), ?list, "reforming: {why}");
                return Ok(list);
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn decode(list: &[u8]) -> Result<Vec<usize>> {
    if !list.len().is_multiple_of(4) {
        let why = format!("{} bytes are no list of ranks", list.len());
        return Err(Error::Corrupt { peer: "the store".into(), what: "the list of survivors", why });
    }
    Ok(list.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]) as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_the_living_until_they_are_quiet() {
        let policy = Reform { settle: Duration::from_secs(1), ..Reform::default() };
        let (soon, late) = (Duration::from_millis(10), Duration::from_secs(1));
        assert_eq!(settled(&[true, false, true], &[], soon, &policy), None);
        assert!(settled(&[true, false, true], &[1], soon, &policy).is_some());
        assert!(settled(&[true, false, true], &[], late, &policy).is_some());
        assert!(settled(&[true, true, true], &[], soon, &policy).is_some());
    }
}
