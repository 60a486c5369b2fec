//! Boxes in a tensor's index space: what a rank holds, what a piece on disk covers, what a reader wants. All of
//! resharding is intersecting two of them and copying the rows of the intersection.

use serde::{Deserialize, Serialize};

/// A box in a tensor: where it starts and how far it reaches, one number a dimension.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// The first index in each dimension.
    pub offset: Vec<u64>,
    /// The number of indices in each dimension.
    pub shape: Vec<u64>,
}

impl Region {
    /// A box from its corner and its extent.
    pub fn new(offset: impl Into<Vec<u64>>, shape: impl Into<Vec<u64>>) -> Self {
        Region { offset: offset.into(), shape: shape.into() }
    }

    /// All of a tensor.
    pub fn whole(shape: &[u64]) -> Self {
        Region { offset: vec![0; shape.len()], shape: shape.to_vec() }
    }

    /// The `index`-th of `count` nearly equal parts of a tensor along `dim`; the first ones are the larger.
    ///
    /// ```
    /// use regatta_checkpoint::Region;
    /// assert_eq!(Region::chunk(&[5, 2], 0, 0, 2), Region::new([0, 0], [3, 2]));
    /// assert_eq!(Region::chunk(&[5, 2], 0, 1, 2), Region::new([3, 0], [2, 2]));
    /// ```
    pub fn chunk(shape: &[u64], dim: usize, index: u64, count: u64) -> Self {
        let (base, extra) = (shape[dim] / count, shape[dim] % count);
        let mut region = Region::whole(shape);
        region.offset[dim] = index * base + index.min(extra);
        region.shape[dim] = base + u64::from(index < extra);
        region
    }

    /// The number of elements, or nothing if that overflows.
    pub fn volume(&self) -> Option<u64> {
        volume(&self.shape)
    }

    /// Whether it lies inside a tensor of this shape.
    pub fn fits(&self, shape: &[u64]) -> bool {
        self.offset.len() == shape.len()
            && self.shape.len() == shape.len()
            && (0..shape.len())
                .all(|d| self.offset[d].checked_add(self.shape[d]).is_some_and(|end| end <= shape[d]))
    }

    /// What two boxes of the same tensor share; nothing if that is empty.
    pub fn intersect(&self, other: &Region) -> Option<Region> {
        let mut shared = Region { offset: Vec::new(), shape: Vec::new() };
        for d in 0..self.shape.len() {
            let from = self.offset[d].max(other.offset[d]);
            let to = (self.offset[d] + self.shape[d]).min(other.offset[d] + other.shape[d]);
            if from >= to {
                return None;
            }
            shared.offset.push(from);
            shared.shape.push(to - from);
        }
        Some(shared)
    }

    /// Where, in elements, `part` lies in the memory of this box, if it lies there in one run.
    pub(crate) fn run_of(&self, part: &Region) -> Option<u64> {
        let mut spans = false;
        for d in 0..self.shape.len() {
            // Once a dimension is longer than one, all that follow have to be complete.
            if spans && part.shape[d] != self.shape[d] {
                return None;
            }
            spans |= part.shape[d] != 1;
        }
        Some(self.index_of(&part.offset))
    }

    fn index_of(&self, at: &[u64]) -> u64 {
        at.iter()
            .zip(&self.offset)
            .zip(&self.shape)
            .fold(0, |index, ((at, from), size)| index * size + (at - from))
    }
}

/// The number of elements of a shape, or nothing if that overflows.
pub(crate) fn volume(shape: &[u64]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size))
}

/// Copies `part` from the memory of box `from` to the memory of box `to`; both contain it.
pub(crate) fn copy_part(
    part: &Region,
    element: usize,
    (from, source): (&Region, &[u8]),
    (to, target): (&Region, &mut [u8]),
) {
    let rank = part.shape.len();
    // The longest tail of dimensions that both boxes hold completely is copied in one go.
    let mut run = element;
    let mut outer = rank;
    while outer > 0 {
        outer -= 1;
        run *= part.shape[outer] as usize;
        if part.shape[outer] != from.shape[outer] || part.shape[outer] != to.shape[outer] {
            break;
        }
    }
    let mut at = part.offset.clone();
    loop {
        let (source_at, target_at) =
            (from.index_of(&at) as usize * element, to.index_of(&at) as usize * element);
        target[target_at..target_at + run].copy_from_slice(&source[source_at..source_at + run]);
        let Some(d) = (0..outer).rev().find(|&d| at[d] + 1 < part.offset[d] + part.shape[d]) else { return };
        at[d] += 1;
        at[d + 1..outer].copy_from_slice(&part.offset[d + 1..outer]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_copied_between_boxes_of_any_shape() {
        let shape = [3u64, 4, 5];
        let whole = Region::whole(&shape);
        let source: Vec<u8> = (0..60).collect();
        let to = Region::new([1, 0, 1], [2, 3, 4]);
        let part = whole.intersect(&to).unwrap();
        let mut target = vec![0; 24];
        copy_part(&part, 1, (&whole, &source), (&to, &mut target));
        let mut expected = Vec::new();
        for i in 1..3 {
            for j in 0..3 {
                for k in 1..5 {
                    expected.push(i * 20 + j * 5 + k);
                }
            }
        }
        assert_eq!(target, expected);
        assert_eq!(whole.run_of(&to), None);
        assert_eq!(whole.run_of(&Region::new([1, 2, 0], [1, 2, 5])), Some(30));
        assert_eq!(whole.run_of(&Region::new([1, 2, 3], [1, 1, 2])), Some(33));
    }

    #[test]
    fn a_scalar_is_a_box_of_one() {
        let scalar = Region::whole(&[]);
        assert_eq!(scalar.volume(), Some(1));
        assert_eq!(scalar.intersect(&scalar), Some(scalar.clone()));
        let mut target = [0; 4];
        copy_part(&scalar, 4, (&scalar, &[1, 2, 3, 4]), (&scalar, &mut target));
        assert_eq!(target, [1, 2, 3, 4]);
    }
}
