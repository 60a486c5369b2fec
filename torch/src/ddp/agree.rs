//! Whether the ranks hold the same model: asked before the first step by names and shapes, and later by the parameters' hashes.
//!
//! Everybody sees everybody's answer, so all ranks come to the same error and none is left waiting.

use regatta_comm::ProcessGroup;
use tch::Tensor;

use crate::error::{Error, Result};
use crate::state::NamedTensor;

/// A line that all ranks must have alike: what it speaks of, and what is said.
pub(super) type Line = (String, String);

/// Describes a tensor by everything that must be the same on all ranks.
pub(super) fn describe(name: &str, tensor: &Tensor, role: &str) -> Line {
    let (shape, strides) = (tensor.size(), tensor.stride());
    // The stride of a dimension of one element means nothing, and differs by how the tensor was made.
    let strides: Vec<_> = shape.iter().zip(strides).map(|(n, s)| if *n == 1 { 0 } else { s }).collect();
    let device = if tensor.device().is_cuda() { "a GPU" } else { "the CPU" };
    let what = format!("{role} {:?} {shape:?} with strides {strides:?} on {device}", tensor.kind());
    (name.escape_debug().to_string(), what)
}

/// Checks that all ranks have the same lines as rank 0.
pub(super) fn same_model(group: &ProcessGroup, lines: &[Line]) -> Result<()> {
    let text: String = lines.iter().map(|(name, what)| format!("{name}\t{what}\n")).collect();
    let mine = [hash(text.as_bytes()), text.len() as i64];
    let mut all = vec![0i64; 2 * group.world_size()];
    group.all_gather(&mine, &mut all)?;
    if all.chunks(2).all(|theirs| theirs == &all[..2]) {
        return Ok(());
    }
    // Somebody differs: now all of the text goes round, so that the difference can be named.
    let longest = all.chunks(2).map(|c| c[1] as usize).max().unwrap_or(0);
    let mut padded = text.into_bytes();
    padded.resize(longest, 0);
    let mut texts = vec![0u8; longest * group.world_size()];
    group.all_gather(&padded, &mut texts)?;
    let texts: Vec<_> = (texts.chunks(longest).zip(all.chunks(2)))
        .map(|(bytes, head)| String::from_utf8_lossy(&bytes[..head[1] as usize]).into_owned())
        .collect();
    match (1..texts.len()).find_map(|rank| Some((rank, first_difference(&texts[0], &texts[rank])?))) {
        Some((rank, (parameter, why))) => Err(Error::Replica { rank, parameter, why }),
        None => Ok(()),
    }
}

/// The first line that differs, and how.
fn first_difference(ours: &str, theirs: &str) -> Option<(String, String)> {
    let lines = |text: &str| -> Vec<Line> {
        text.lines().filter_map(|l| l.split_once('\t')).map(|(n, w)| (n.to_owned(), w.to_owned())).collect()
    };
    let (ours, theirs) = (lines(ours), lines(theirs));
    let has = |all: &[Line], name: &str| all.iter().any(|(n, _)| n == name);
    for place in 0..ours.len().max(theirs.len()) {
        match (ours.get(place), theirs.get(place)) {
            (Some(a), Some(b)) if a == b => {}
            (Some((name, a)), Some((other, b))) if name == other => {
                return Some((name.clone(), format!("it is {b} there, {a} on rank 0")));
            }
            (Some((name, a)), _) if !has(&theirs, name) => {
                return Some((name.clone(), format!("it does not exist there; on rank 0 it is {a}")));
            }
            (_, Some((name, b))) if !has(&ours, name) => {
                return Some((name.clone(), format!("it is {b} there, and does not exist on rank 0")));
            }
            (Some((name, _)), Some((other, _))) => {
                return Some((name.clone(), format!("{other} stands in its place there")));
            }
            (Some((name, _)), None) | (None, Some((name, _))) => {
                return Some((name.clone(), "it is there a different number of times".into()));
            }
            (None, None) => {}
        }
    }
    None
}

/// Checks that all ranks hold the same values as rank 0.
pub(super) fn same_values(group: &ProcessGroup, tensors: Vec<(String, Tensor)>) -> Result<()> {
    let (mut names, mut hashes) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        let tensor = NamedTensor::new(name, tensor.detach());
        hashes.push(hash(&tensor.bytes()?));
        names.push(tensor.name().to_owned());
    }
    let mut all = vec![0i64; hashes.len() * group.world_size()];
    group.all_gather(&hashes, &mut all)?;
    for place in 0..names.len() {
        for rank in 1..group.world_size() {
            let (theirs, first) = (all[rank * names.len() + place], all[place]);
            if theirs != first {
                let why = format!("its values hash to {theirs:016x} there, to {first:016x} on rank 0");
                return Err(Error::Replica { rank, parameter: names[place].clone(), why });
            }
        }
    }
    Ok(())
}

fn hash(bytes: &[u8]) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    i64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    fn difference(ours: &str, theirs: &str) -> String {
        first_difference(ours, theirs).map(|(name, why)| format!("{name}: {why}")).unwrap_or_default()
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(difference("a\tx\nb\ty\n", "a\tx\nb\ty\n"), "");
        assert_eq!(difference("a\tx\nb\ty\n", "a\tx\nb\tz\n"), "b: it is z there, y on rank 0");
        assert_eq!(difference("a\tx\nb\ty\n", "b\ty\n"), "a: it does not exist there; on rank 0 it is x");
        assert_eq!(difference("b\ty\n", "a\tx\nb\ty\n"), "a: it is x there, and does not exist on rank 0");
        assert_eq!(difference("a\tx\nb\ty\n", "b\ty\na\tx\n"), "a: b stands in its place there");
        assert_eq!(difference("a\tx\n", "a\tx\nc\tw\n"), "c: it is w there, and does not exist on rank 0");
    }
}
