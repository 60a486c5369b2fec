//! How ranks agree to stop and to save: a tiny all-reduce of flags that is started at one step and waited for at the next, so that it
//! costs the step nothing and all ranks act at the same one.

use regatta_comm::{ProcessGroup, ReduceOp, Work};

use crate::{Result, StopReason};

/// What a rank wants, and then what all of them do: the largest of each counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// Why to stop, in the order of [`code`]; 0 for going on.
    pub(crate) stop: i32,
    /// Whether to save.
    pub(crate) save: bool,
}

impl Flags {
    fn to_wire(self) -> Vec<i32> {
        vec![self.stop, i32::from(self.save)]
    }

    fn from_wire(wire: &[i32]) -> Flags {
        Flags { stop: wire[0], save: wire[1] != 0 }
    }
}

/// What a reason is among flags; the more urgent is larger.
pub(crate) fn code(reason: &StopReason) -> i32 {
    match reason {
        StopReason::Reached(_) => 1,
        StopReason::Scheduler => 2,
        StopReason::Paused => 3,
        StopReason::User => 4,
        StopReason::Preempted => 5,
    }
}

/// The reason behind a flag, where it was not heard in words.
pub(crate) fn reason(code: i32) -> StopReason {
    match code {
        2 => StopReason::Scheduler,
        3 => StopReason::Paused,
        4 => StopReason::User,
        5 => StopReason::Preempted,
        _ => StopReason::Reached("a stop condition".into()),
    }
}

/// The agreement under way.
#[derive(Default)]
pub(crate) struct Agreement {
    pending: Option<Work<Vec<i32>>>,
}

impl Agreement {
    /// Offers this rank's flags, and returns what all ranks agreed on when this was last called. Alone, they count at once.
    pub(crate) fn exchange(&mut self, group: &ProcessGroup, mine: Flags) -> Result<Flags> {
        if group.world_size() == 1 {
            return Ok(mine);
        }
        let agreed = self.settle()?;
        self.pending = Some(group.start_all_reduce(mine.to_wire(), ReduceOp::Max)?);
        Ok(agreed.unwrap_or_default())
    }

    /// What all ranks agree on now: what is under way, or else these flags, waited for.
    pub(crate) fn now(&mut self, group: &ProcessGroup, mine: Flags) -> Result<Flags> {
        if group.world_size() == 1 {
            return Ok(mine);
        }
        if let Some(agreed) = self.settle()? {
            return Ok(agreed);
        }
        let mut wire = mine.to_wire();
        group.all_reduce(&mut wire, ReduceOp::Max)?;
        Ok(Flags::from_wire(&wire))
    }

    /// What all ranks agree on now, these flags included, whatever is under way.
    pub(crate) fn afresh(&mut self, group: &ProcessGroup, mine: Flags) -> Result<Flags> {
        let before = self.settle()?.unwrap_or_default();
        let mine = Flags { stop: mine.stop.max(before.stop), save: mine.save || before.save };
        self.now(group, mine)
    }

    /// Waits for what is under way.
    pub(crate) fn settle(&mut self) -> Result<Option<Flags>> {
        let Some(work) = self.pending.take() else { return Ok(None) };
        Ok(Some(Flags::from_wire(&work.wait()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_code_of_its_own_that_leads_back() {
        let reasons =
            [StopReason::Scheduler, StopReason::Paused, StopReason::User, StopReason::Preempted].map(Some);
        for known in reasons.iter().flatten() {
            assert_eq!(&reason(code(known)), known);
        }
        assert!(matches!(reason(code(&StopReason::Reached("x".into()))), StopReason::Reached(_)));
    }

    #[test]
    fn all_ranks_learn_of_a_flag_one_exchange_later() {
        let seen = regatta_comm::thread::run(3, |group| {
            let mut agreement = Agreement::default();
            let mut seen = Vec::new();
            for step in 1..=4 {
                let mine = Flags { stop: if step == 2 && group.rank() == 1 { 4 } else { 0 }, save: false };
                seen.push(agreement.exchange(&group, mine).unwrap().stop);
            }
            agreement.settle().unwrap();
            seen
        });
        assert_eq!(seen, vec![vec![0, 0, 4, 0]; 3]);
    }
}
