//! Writing the tensors of a checkpoint as plain safetensors: one file, or several with the index that Hugging Face's
//! loaders read. Memory stays small: a tensor at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::header;
use crate::load::Checkpoint;

/// Writes all tensors into `folder`: `model.safetensors`, or, if one file would grow beyond `max_bytes`,
/// `model-00001-of-0000N.safetensors` and `model.safetensors.index.json`. Returns the files, which appear only when
/// they are complete.
pub fn export(checkpoint: &Checkpoint, folder: &Path, max_bytes: u64) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).map_err(Error::io("create folder", folder.display().to_string()))?;
    let groups = divide(checkpoint, max_bytes.max(1));
    let count = groups.len();
    let mut files = Vec::new();
    let mut index = BTreeMap::new();
    for (number, group) in groups.iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        index.extend(group.iter().map(|tensor| (tensor.to_string(), name.clone())));
        files.push(write(folder, &name, |to| write_group(checkpoint, group, to))?);
    }
    if count > 1 {
        let total: u64 = checkpoint.manifest().tensors.values().map(|tensor| tensor.bytes()).sum();
        let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": index });
        files.push(write(folder, "model.safetensors.index.json", |to| {
            serde_json::to_writer_pretty(to, &index).map_err(|error| Error::Invalid(error.to_string()))
        })?);
    }
    Ok(files)
}

fn divide(checkpoint: &Checkpoint, max_bytes: u64) -> Vec<Vec<&str>> {
    let mut names: Vec<(&str, u64, u64)> = checkpoint
        .manifest()
        .tensors
        .iter()
        .map(|(name, entry)| (name.as_str(), entry.dtype.size(), entry.bytes()))
        .collect();
    names.sort_by_key(|&(name, element, _)| (std::cmp::Reverse(element), name));
    let mut groups = vec![Vec::new()];
    let mut used = 0;
    for (name, _, bytes) in names {
        if used > 0 && used + bytes > max_bytes {
            groups.push(Vec::new());
            used = 0;
        }
        used += bytes;
        groups.last_mut().expect("there is always a group").push(name);
    }
    groups
}

fn write_group(checkpoint: &Checkpoint, group: &[&str], to: &mut dyn Write) -> Result<()> {
    let mut tensors = Vec::with_capacity(group.len());
    for name in group {
        let entry = checkpoint.entry(name)?;
        tensors.push((name.to_string(), entry.dtype, entry.shape.clone()));
    }
    let (head, _) = header::encode(&tensors).map_err(Error::Invalid)?;
    to.write_all(&head).map_err(Error::io("write", "the export"))?;
    for name in group {
        to.write_all(&checkpoint.tensor(name)?).map_err(Error::io("write", "the export"))?;
    }
    Ok(())
}

fn write(folder: &Path, name: &str, content: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<PathBuf> {
    let (path, temporary) = (folder.join(name), folder.join(format!(".{name}.{}.tmp", std::process::id())));
    let io = |operation| Error::io(operation, path.display().to_string());
    let written = (|| {
        let mut to = BufWriter::with_capacity(1 << 20, File::create(&temporary).map_err(io("create"))?);
        content(&mut to)?;
        let file = to.into_inner().map_err(|error| io("write")(error.into_error()))?;
        file.sync_all().map_err(io("sync"))?;
        std::fs::rename(&temporary, &path).map_err(io("rename"))
    })();
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(path)
}
