//! Which bytes a rank writes, and where in its shard they go. Every rank works it out on its own from its own list: the
//! replicated tensors are the same everywhere, so no message is needed before the staging copy.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::header;
use crate::region::{Region, volume};
use crate::tensor::{Placement, Tensor};

/// A run of bytes of one tensor that goes into this rank's shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    /// The index of the tensor in the caller's list.
    pub(crate) tensor: usize,
    /// Which part of the global tensor it is.
    pub(crate) region: Region,
    /// Where it starts in the caller's bytes.
    pub(crate) from: usize,
    /// Where it starts in the shard.
    pub(crate) start: usize,
    /// How long it is.
    pub(crate) bytes: usize,
}

/// A shard before its bytes are there.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The head of the file.
    pub(crate) head: Vec<u8>,
    /// The pieces, in the order of the file, without gaps.
    pub(crate) pieces: Vec<Planned>,
    /// The length of the file.
    pub(crate) total: usize,
    /// The hash of the list of replicated tensors.
    pub(crate) replicated: String,
}

/// Who is asking, and how finely tensors may be cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    pub(crate) rank: u32,
    pub(crate) world: u32,
    /// No tensor is cut to gain less than this.
    pub(crate) min_bytes: u64,
}

/// Plans this rank's shard.
pub(crate) fn plan(tensors: &[Tensor<'_>], split: Split) -> Result<Plan> {
    let mut seen = HashSet::new();
    for tensor in tensors {
        check(tensor)?;
        if !seen.insert(tensor.name) {
            return Err(Error::Invalid(format!("tensor `{}` is given twice", tensor.name)));
        }
    }
    let mut replicated: Vec<usize> =
        (0..tensors.len()).filter(|&i| tensors[i].placement == Placement::Replicated).collect();
    replicated.sort_by_key(|&i| tensors[i].name);

    let mut pieces = shares(tensors, &replicated, split);
    for (index, tensor) in tensors.iter().enumerate() {
        if let Placement::Part(region) = &tensor.placement {
            pieces.push(piece(index, tensor, region.clone(), 0));
        }
    }
    // Widest elements first, as safetensors' own writer does, so that every tensor is aligned without gaps.
    pieces.sort_by(|a, b| {
        let key = |piece: &Planned| {
            (std::cmp::Reverse(tensors[piece.tensor].dtype.size()), tensors[piece.tensor].name)
        };
        key(a).cmp(&key(b))
    });
    layout(tensors, pieces, digest(tensors, &replicated))
}

fn check(tensor: &Tensor<'_>) -> Result<()> {
    let invalid = |reason: String| Err(Error::Invalid(format!("tensor `{}`: {reason}", tensor.name)));
    if tensor.name.is_empty() || tensor.name == "__metadata__" {
        return invalid("the name is empty or reserved".to_owned());
    }
    let region = tensor.region();
    if !region.fits(tensor.shape) {
        return invalid(format!("{region:?} does not lie in its shape {:?}", tensor.shape));
    }
    let whole = volume(tensor.shape).and_then(|volume| volume.checked_mul(tensor.dtype.size()));
    if whole.is_none() {
        return invalid(format!("the shape {:?} overflows", tensor.shape));
    }
    let bytes = region.volume().unwrap_or(0) * tensor.dtype.size();
    if bytes != tensor.data.len() as u64 {
        return invalid(format!(
            "{} bytes were given for {region:?} of {}, {bytes} expected",
            tensor.data.len(),
            tensor.dtype
        ));
    }
    Ok(())
}

/// Divides the replicated tensors, laid end to end, into equal shares, cutting between rows only.
fn shares(tensors: &[Tensor<'_>], replicated: &[usize], split: Split) -> Vec<Planned> {
    let total: u64 = replicated.iter().map(|&i| tensors[i].data.len() as u64).sum();
    let quota = total.div_ceil(u64::from(split.world));
    let (mut rank, mut used) = (0, 0);
    let mut mine = Vec::new();
    for &index in replicated {
        let tensor = &tensors[index];
        let bytes = tensor.data.len() as u64;
        // Rows are counted along the first dimension longer than one: such parts are runs of bytes.
        let dim = tensor.shape.iter().position(|&size| size > 1).unwrap_or(0);
        let rows = if bytes == 0 { 1 } else { tensor.shape.get(dim).copied().unwrap_or(1) };
        let row_bytes = bytes / rows;
        let mut row = 0;
        while row < rows {
            let last = rank + 1 >= split.world;
            let left = quota.saturating_sub(used);
            let rest = (rows - row) * row_bytes;
            let take = if last || rest <= left.saturating_add(split.min_bytes) {
                rows - row
            } else if left < split.min_bytes.max(row_bytes) && used > 0 {
                0
            } else {
                (left / row_bytes).max(1)
            };
            if take > 0 && rank == split.rank {
                let mut region = Region::whole(tensor.shape);
                if take < rows {
                    (region.offset[dim], region.shape[dim]) = (row, take);
                }
                mine.push(piece(index, tensor, region, (row * row_bytes) as usize));
            }
            row += take;
            used += take * row_bytes;
            if !last && (take == 0 || used >= quota) {
                (rank, used) = (rank + 1, 0);
            }
        }
    }
    mine
}

fn piece(index: usize, tensor: &Tensor<'_>, region: Region, from: usize) -> Planned {
    let bytes = (region.volume().unwrap_or(0) * tensor.dtype.size()) as usize;
    Planned { tensor: index, region, from, start: 0, bytes }
}

/// The name in the shard: the tensor's own if it is whole, else with its range in each dimension, so that a reader of
/// single shards cannot take a part for the whole.
fn stored_name(tensor: &Tensor<'_>, region: &Region) -> String {
    if region.shape == tensor.shape {
        return tensor.name.to_owned();
    }
    let ranges: Vec<String> = region
        .offset
        .iter()
        .zip(&region.shape)
        .map(|(from, size)| format!("{from}:{}", from + size))
        .collect();
    format!("{}@{}", tensor.name, ranges.join(","))
}

fn layout(tensors: &[Tensor<'_>], mut pieces: Vec<Planned>, replicated: String) -> Result<Plan> {
    let mut names = HashSet::new();
    let mut stored = Vec::with_capacity(pieces.len());
    for piece in &pieces {
        let tensor = &tensors[piece.tensor];
        let name = stored_name(tensor, &piece.region);
        if !names.insert(name.clone()) {
            return Err(Error::Invalid(format!(
                "a part of `{}` would be stored under the name of tensor `{name}`",
                tensor.name
            )));
        }
        stored.push((name, tensor.dtype, piece.region.shape.clone()));
    }
    let (head, starts) = header::encode(&stored).map_err(Error::Invalid)?;
    let mut total = head.len();
    for (piece, start) in pieces.iter_mut().zip(starts) {
        piece.start = start as usize;
        total = piece.start + piece.bytes;
    }
    Ok(Plan { head, pieces, total, replicated })
}

fn digest(tensors: &[Tensor<'_>], replicated: &[usize]) -> String {
    let mut hasher = blake3::Hasher::new();
    for &index in replicated {
        let tensor = &tensors[index];
        hasher.update(format!("{:?} {} {:?}\n", tensor.name, tensor.dtype, tensor.shape).as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn replicated_tensors_are_divided_by_bytes() {
        let (large, small) = (vec![0u8; 4000], vec![0u8; 40]);
        let tensors = [
            Tensor::replicated("a", Dtype::F32, &[1, 1000], &large),
            Tensor::replicated("b", Dtype::F32, &[10], &small),
            Tensor::replicated("c", Dtype::F32, &[100, 10], &large),
        ];
        let loads: Vec<usize> = (0..4)
            .map(|rank| {
                let plan = plan(&tensors, Split { rank, world: 4, min_bytes: 1 }).unwrap();
                plan.pieces.iter().map(|piece| piece.bytes).sum()
            })
            .collect();
        assert_eq!(loads.iter().sum::<usize>(), 8040);
        assert!(loads.iter().all(|&load| (1970..=2050).contains(&load)), "{loads:?}");
    }

    #[test]
    fn a_parts_name_cannot_be_taken_for_the_whole() {
        let data = vec![0u8; 8];
        let tensor = Tensor::part("w", Dtype::U8, &[4, 4], Region::new([0, 2], [4, 2]), &data);
        assert_eq!(stored_name(&tensor, &tensor.region()), "w@0:4,2:4");
    }
}
