//! The head of a safetensors file: how a shard is laid out, and how to read the head of any such file safely.

use std::collections::HashMap;

use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};

use crate::tensor::Dtype;

/// Data starts at a multiple of this, so that mapped tensors are aligned for any element and vector type.
const ALIGN: usize = 64;

/// A tensor in a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The name it has in the file.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape in the file.
    pub shape: Vec<u64>,
    /// Where its bytes start in the file.
    pub start: u64,
    /// How many there are.
    pub bytes: u64,
}

/// The head of a file that is to hold these tensors (name, element type, shape) one after the other, and where each
/// one's bytes start. The metadata say `{"format": "pt"}`, which the readers of Hugging Face and PyTorch look for.
pub fn encode(tensors: &[(String, Dtype, Vec<u64>)]) -> Result<(Vec<u8>, Vec<u64>), String> {
    let mut infos = Vec::with_capacity(tensors.len());
    let mut starts = Vec::with_capacity(tensors.len());
    let mut end = 0u64;
    for (name, dtype, shape) in tensors {
        let bytes = crate::region::volume(shape).and_then(|volume| volume.checked_mul(dtype.size()));
        let next =
            bytes.and_then(|bytes| end.checked_add(bytes)).ok_or_else(|| format!("`{name}` is too large"))?;
        starts.push(end);
        infos.push((
            name.clone(),
            TensorInfo {
                dtype: dtype.to_safetensors(),
                shape: shape.iter().map(|&size| size as usize).collect(),
                data_offsets: (end as usize, next as usize),
            },
        ));
        end = next;
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(metadata), infos).map_err(|error| error.to_string())?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
    json.resize((json.len() + 8).next_multiple_of(ALIGN) - 8, b' ');
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.append(&mut json);
    for start in &mut starts {
        *start += head.len() as u64;
    }
    Ok((head, starts))
}

/// Reads the head of a whole safetensors file. Never panics, and allocates in proportion to the head's own length
/// whatever numbers stand in it.
pub fn parse(file: &[u8]) -> Result<Vec<Stored>, String> {
    let (head, metadata) = SafeTensors::read_metadata(file).map_err(|error| error.to_string())?;
    let data = (head + 8) as u64;
    let mut tensors: Vec<Stored> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let dtype = Dtype::from_safetensors(info.dtype).ok_or_else(|| {
                format!("`{name}` has elements of type {:?}, which are not whole bytes", info.dtype)
            })?;
            let (from, to) = info.data_offsets;
            let shape = info.shape.iter().map(|&size| size as u64).collect();
            Ok(Stored { name, dtype, shape, start: data + from as u64, bytes: (to - from) as u64 })
        })
        .collect::<Result<_, String>>()?;
    tensors.sort_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_parsed() {
        let tensors = vec![
            ("b".to_owned(), Dtype::F64, vec![2, 3]),
            ("a".to_owned(), Dtype::U8, vec![]),
            ("empty".to_owned(), Dtype::F32, vec![0, 4]),
        ];
        let (mut file, starts) = encode(&tensors).unwrap();
        assert_eq!(file.len() % ALIGN, 0);
        file.resize(file.len() + 49, 7);
        let parsed = parse(&file).unwrap();
        for ((name, dtype, shape), start) in tensors.iter().zip(starts) {
            let stored = parsed.iter().find(|stored| stored.name == *name).unwrap();
            assert_eq!((stored.dtype, &stored.shape, stored.start), (*dtype, shape, start));
        }
    }
}
