//! Who may be told that what they said is safe. A rank's sayings are acknowledged in order, up to one whose event is not
//! on the disk yet, or that still waits for the other ranks' parts. Pure.

use std::collections::VecDeque;

/// What became of a saying.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// It waits for other ranks.
    Waiting,
    /// It is safe once the log is durable up to here; 0 is safe at once.
    Until(u64),
}

/// The sayings of an attempt's ranks that are not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    ranks: Vec<VecDeque<(u64, State)>>,
}

impl Receipts {
    fn rank(&mut self, rank: u32) -> &mut VecDeque<(u64, State)> {
        let rank = rank as usize;
        if self.ranks.len() <= rank {
            self.ranks.resize_with(rank + 1, VecDeque::new);
        }
        &mut self.ranks[rank]
    }

    /// A saying that is safe once the log is durable up to `until`.
    pub(super) fn stored(&mut self, rank: u32, sequence: u64, until: u64) {
        self.rank(rank).push_back((sequence, State::Until(until)));
    }

    /// A saying that waits for other ranks.
    pub(super) fn waiting(&mut self, rank: u32, sequence: u64) {
        self.rank(rank).push_back((sequence, State::Waiting));
    }

    /// The first waiting one of every rank was merged, and its event is at this place in the log.
    pub(super) fn merged(&mut self, until: u64) {
        for rank in &mut self.ranks {
            if let Some(first) = rank.iter_mut().find(|(_, state)| *state == State::Waiting) {
                first.1 = State::Until(until);
            }
        }
    }

    /// What may be acknowledged now: for each rank at most one number.
    pub(super) fn due(&mut self, committed: u64) -> Vec<(u32, u64)> {
        let mut due = Vec::new();
        for (rank, owed) in self.ranks.iter_mut().enumerate() {
            let mut last = None;
            while let Some((sequence, State::Until(until))) = owed.front().copied()
                && until <= committed
            {
                last = Some(sequence);
                owed.pop_front();
            }
            due.extend(last.map(|sequence| (rank as u32, sequence)));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_acknowledged_before_what_came_before_it() {
        let mut receipts = Receipts::default();
        receipts.waiting(0, 1);
        receipts.stored(0, 2, 0);
        receipts.stored(1, 1, 5);
        assert_eq!(receipts.due(4), []);
        assert_eq!(receipts.due(5), [(1, 1)]);
        receipts.waiting(1, 2);
        receipts.waiting(1, 4);
        receipts.merged(7);
        assert_eq!(receipts.due(6), []);
        assert_eq!(receipts.due(7), [(0, 2), (1, 2)]);
        assert_eq!(receipts.due(100), [], "the second of rank 1 still waits for rank 0");
    }
}
