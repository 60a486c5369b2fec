//! Which tensor lies where: a pure function of their sizes and an order.
//!
//! All ranks must come to the same plan, so it depends on nothing else. Tensors of one bucket have one dtype, and lie 64 bytes apart
//! at least, so that kernels find them aligned and two of them never share a cache line.

use std::ops::Range;

use regatta_comm::DType;

const ALIGN: usize = 64;

/// What a plan needs to know of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) dtype: DType,
    pub(super) elements: usize,
}

impl Size {
    fn bytes(self) -> usize {
        (self.elements * self.dtype.size()).next_multiple_of(ALIGN)
    }
}

/// How large buckets may grow before the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caps {
    /// The first: small, so that communication begins early.
    pub(super) first: usize,
    /// All others.
    pub(super) rest: usize,
}

/// Tensors that are reduced together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) dtype: DType,
    /// The tensors by number, in the order in which they lie.
    pub(super) members: Vec<usize>,
    /// Bytes of the arena.
    pub(super) bytes: Range<usize>,
}

impl Bucket {
    /// Its place as elements of its dtype, counted from the arena's begin.
    pub(super) fn elements(&self) -> Range<usize> {
        self.bytes.start / self.dtype.size()..self.bytes.end / self.dtype.size()
    }
}

/// Where a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) bucket: usize,
    /// Bytes from the bucket's begin.
    pub(super) offset: usize,
}

/// The whole arrangement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// In the order in which they are launched.
    pub(super) buckets: Vec<Bucket>,
    /// By tensor; none for those that are left out.
    pub(super) slots: Vec<Option<Slot>>,
}

impl Plan {
    /// Fills buckets in `order`, which names each tensor at most once. A bucket is closed when it has reached its cap, and launched
    /// when its last member is ready: so they are numbered by that.
    pub(super) fn new(sizes: &[Size], order: &[usize], caps: Caps) -> Plan {
        let mut closed: Vec<(usize, DType, Vec<usize>)> = Vec::new();
        let mut open: Vec<(DType, Vec<usize>, usize, usize)> = Vec::new();
        for (position, &tensor) in order.iter().enumerate() {
            let size = sizes[tensor];
            let place = open.iter().position(|(dtype, ..)| *dtype == size.dtype).unwrap_or_else(|| {
                open.push((size.dtype, Vec::new(), 0, 0));
                open.len() - 1
            });
            let (_, members, bytes, last) = &mut open[place];
            members.push(tensor);
            *bytes += size.bytes();
            *last = position;
            let cap = if closed.is_empty() { caps.first } else { caps.rest };
            if *bytes >= cap {
                let (dtype, members, _, last) = open.remove(place);
                closed.push((last, dtype, members));
            }
        }
        closed.extend(open.into_iter().map(|(dtype, members, _, last)| (last, dtype, members)));
        closed.sort_by_key(|(last, ..)| *last);
        let mut plan = Plan { buckets: Vec::new(), slots: vec![None; sizes.len()] };
        let mut end = 0;
        for (_, dtype, members) in closed {
            let start = end;
            for &tensor in &members {
                plan.slots[tensor] = Some(Slot { bucket: plan.buckets.len(), offset: end - start });
                end += sizes[tensor].bytes();
            }
            plan.buckets.push(Bucket { dtype, members, bytes: start..end });
        }
        plan
    }

    /// How large an arena must be for any plan of these tensors.
    pub(super) fn arena(sizes: &[Size]) -> usize {
        sizes.iter().map(|size| size.bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(elements: &[usize]) -> Vec<Size> {
        elements.iter().map(|&elements| Size { dtype: DType::F32, elements }).collect()
    }

    #[test]
    fn buckets_close_at_their_caps_in_the_order_given() {
        let sizes = f32s(&[16, 32, 64, 16]);
        let plan = Plan::new(&sizes, &[3, 2, 1, 0], Caps { first: 64, rest: 384 });
        let members: Vec<_> = plan.buckets.iter().map(|b| b.members.clone()).collect();
        assert_eq!(members, [vec![3], vec![2, 1], vec![0]]);
        assert_eq!(plan.buckets[1].bytes, 64..448);
        assert_eq!(plan.slots[1], Some(Slot { bucket: 1, offset: 256 }));
        assert_eq!(plan.buckets[2].bytes.end, Plan::arena(&sizes));
    }

    #[test]
    fn dtypes_do_not_mix_and_the_bucket_that_is_ready_last_is_launched_last() {
        let mut sizes = f32s(&[4, 4, 4]);
        sizes[1].dtype = DType::F64;
        let plan = Plan::new(&sizes, &[0, 1, 2], Caps { first: 1 << 20, rest: 1 << 20 });
        let dtypes: Vec<_> = plan.buckets.iter().map(|b| (b.dtype, b.members.clone())).collect();
        // The f32 bucket waits for tensor 2, so the f64 bucket goes first.
        assert_eq!(dtypes, [(DType::F64, vec![1]), (DType::F32, vec![0, 2])]);
    }

    #[test]
    fn tensors_never_overlap_whatever_the_order() {
        let sizes = f32s(&[1, 17, 0, 300, 5]);
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
            let plan = Plan::new(&sizes, &order, Caps { first: 1, rest: 700 });
            let mut spans: Vec<_> = plan
                .slots
                .iter()
                .zip(&sizes)
                .map(|(slot, size)| {
                    let slot = slot.expect("all are in the order");
                    let start = plan.buckets[slot.bucket].bytes.start + slot.offset;
                    (start, start + size.elements * 4)
                })
                .collect();
            spans.sort();
            assert!(spans.windows(2).all(|w| w[0].1 <= w[1].0), "{spans:?}");
            assert!(spans.iter().all(|(start, _)| start % ALIGN == 0));
        }
    }

    #[test]
    fn what_the_order_leaves_out_has_no_place() {
        let plan = Plan::new(&f32s(&[8, 8]), &[1], Caps { first: 1, rest: 1 });
        assert_eq!((plan.slots[0], plan.buckets.len()), (None, 1));
    }
}
