//! What is ready in a backward pass, and which buckets may go: counting, without tensors or peers.
//!
//! DP-1: buckets are launched in the order of their numbers, each once, on every rank, whatever order gradients arrive in.
//! DP-2: a bucket is launched when all of its members are ready, and not before.

use std::ops::Range;

use super::plan::Plan;

/// The account of one pass.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Which bucket a tensor is in; none for those left out of the plan.
    bucket_of: Vec<Option<usize>>,
    /// Members of each bucket, and how many are still missing.
    members: Vec<usize>,
    pending: Vec<usize>,
    seen: Vec<bool>,
    /// In which order gradients became ready.
    arrived: Vec<usize>,
    /// The next bucket to go.
    next: usize,
}

impl Tally {
    pub(super) fn new(plan: &Plan) -> Tally {
        let members: Vec<_> = plan.buckets.iter().map(|b| b.members.len()).collect();
        Tally {
            bucket_of: plan.slots.iter().map(|slot| slot.map(|s| s.bucket)).collect(),
            pending: members.clone(),
            members,
            seen: vec![false; plan.slots.len()],
            arrived: Vec::with_capacity(plan.slots.len()),
            next: 0,
        }
    }

    /// Begins a new pass, whatever became of the last one.
    pub(super) fn reset(&mut self) {
        self.pending.clone_from(&self.members);
        self.seen.fill(false);
        self.arrived.clear();
        self.next = 0;
    }

    /// Notes that a tensor is ready. Answers which buckets may now go, or nothing at all for a tensor that was ready already.
    pub(super) fn ready(&mut self, tensor: usize) -> Option<Range<usize>> {
        if std::mem::replace(&mut self.seen[tensor], true) {
            return None;
        }
        self.arrived.push(tensor);
        let first = self.next;
        if let Some(bucket) = self.bucket_of[tensor] {
            self.pending[bucket] -= 1;
            while self.pending.get(self.next) == Some(&0) {
                self.next += 1;
            }
        }
        Some(first..self.next)
    }

    /// Tensors of the plan that are not ready, in the order of their numbers.
    pub(super) fn missing(&self) -> Vec<usize> {
        let planned = |t: &usize| self.bucket_of[*t].is_some();
        (0..self.seen.len()).filter(|t| !self.seen[*t]).filter(planned).collect()
    }

    /// The order in which tensors became ready.
    pub(super) fn arrived(&self) -> &[usize] {
        &self.arrived
    }
}

#[cfg(test)]
mod tests {
    use regatta_comm::DType;

    use super::super::plan::{Caps, Size};
    use super::*;

    /// Buckets {3}, {2, 1}, {0}.
    fn tally() -> Tally {
        let sizes = [16, 32, 64, 16].map(|elements| Size { dtype: DType::F32, elements });
        Tally::new(&Plan::new(&sizes, &[3, 2, 1, 0], Caps { first: 64, rest: 384 }))
    }

    #[test]
    fn in_order_each_bucket_goes_with_its_last_member() {
        let mut tally = tally();
        let went: Vec<_> = [3, 2, 1, 0].map(|t| tally.ready(t).unwrap()).into();
        assert_eq!(went, [0..1, 1..1, 1..2, 2..3]);
        assert!(tally.missing().is_empty());
    }

    #[test]
    fn a_bucket_that_is_complete_early_waits_for_those_before_it() {
        let mut tally = tally();
        assert_eq!(tally.ready(0), Some(0..0));
        assert_eq!(tally.ready(1), Some(0..0));
        assert_eq!(tally.ready(3), Some(0..1));
        assert_eq!(tally.missing(), [2]);
        assert_eq!(tally.ready(2), Some(1..3));
        assert_eq!(tally.arrived(), [0, 1, 3, 2]);
    }

    #[test]
    fn ready_twice_is_refused_and_a_new_pass_begins_from_nothing() {
        let mut tally = tally();
        assert_eq!(tally.ready(3), Some(0..1));
        assert_eq!(tally.ready(3), None);
        tally.reset();
        assert_eq!(tally.ready(3), Some(0..1));
        assert_eq!(tally.missing(), [0, 1, 2]);
    }

    /// Every order of arrival launches every bucket once, in order.
    #[test]
    fn all_orders_launch_the_same() {
        fn permutations(rest: &[usize], so_far: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
            if rest.is_empty() {
                all.push(so_far.clone());
            }
            for (i, &item) in rest.iter().enumerate() {
                let mut left = rest.to_vec();
                left.remove(i);
                so_far.push(item);
                permutations(&left, so_far, all);
                so_far.pop();
            }
        }
        let mut all = Vec::new();
        permutations(&[0, 1, 2, 3], &mut Vec::new(), &mut all);
        let mut tally = tally();
        for order in all {
            tally.reset();
            let launched: Vec<usize> = order.iter().flat_map(|&t| tally.ready(t).unwrap()).collect();
            assert_eq!(launched, [0, 1, 2], "{order:?}");
        }
    }
}
