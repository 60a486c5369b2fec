//! Files as checkpoints: each becomes a tensor of bytes, under its path. So they are verified, committed as a whole or not at
//! all, kept by the same rules, and come back from wherever checkpoints lie.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_checkpoint::{
    Checkpoint, CheckpointName, Dtype, Encoding, Retention, Save, Saver, SaverConfig, Solo, Tensor,
    TensorSource, Verify, catalog, recover, store,
};
use regatta_track::Metrics;

use crate::wire::{Committed, Restore, Start};
use crate::{Error, Result};

/// What the names of these tensors begin with.
const PREFIX: &str = "files/";

/// Where the program puts what is to be a checkpoint.
pub(super) fn incoming(start: &Start) -> PathBuf {
    start.folder.join(format!("incoming.g{}", start.generation))
}

fn restoring(start: &Start) -> PathBuf {
    start.folder.join(format!("restored.g{}", start.generation))
}

/// The files of a checkpoint that were brought back.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) folder: PathBuf,
    pub(super) name: String,
    pub(super) step: u64,
    pub(super) damaged: Vec<String>,
}

/// Clears what earlier attempts left, and brings back the files to begin from, if there are any.
pub(super) fn prepare(start: &Start) -> Result<Option<Restored>> {
    clear(&start.folder)?;
    let incoming = incoming(start);
    fs::create_dir_all(&incoming).map_err(|source| {
        Error::io(format!("make the folder for checkpoints {}", incoming.display()), source)
    })?;
    let Some((checkpoint, damaged)) = find(start)? else { return Ok(None) };
    let folder = restoring(start);
    unpack(&checkpoint, &folder)?;
    let (name, step) = (checkpoint.name().to_string(), checkpoint.manifest().step);
    Ok(Some(Restored { folder, name, step, damaged }))
}

/// Removes the folders of this and earlier attempts.
pub(super) fn clear(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("incoming.g") || name.starts_with("restored.g") {
            let path = entry.path();
            fs::remove_dir_all(&path)
                .map_err(|source| Error::io(format!("remove {}", path.display()), source))?;
        }
    }
    Ok(())
}

fn find(start: &Start) -> Result<Option<(Checkpoint, Vec<String>)>> {
    let named = |storage: &str, name: &str| -> Result<Option<(Checkpoint, Vec<String>)>> {
        let parsed: CheckpointName = name.parse().map_err(|()| Error::Restore {
            checkpoint: name.into(),
            why: "this is no checkpoint's name".into(),
        })?;
        Ok(Some((Checkpoint::open(store::open_existing(storage)?, &parsed, Verify::Full)?, Vec::new())))
    };
    match &start.restore {
        Restore::Nothing | Restore::Beginning => Ok(None),
        Restore::Named(name) => named(&start.storage, name),
        Restore::From { storage, checkpoint, .. } => named(storage, checkpoint),
        Restore::Newest => match recover::newest(store::open(&start.storage)?, Verify::Full) {
            Ok(found) => {
                let damaged =
                    found.damaged.iter().map(|d| format!("{}: {}: {}", d.checkpoint, d.file, d.detail));
                Ok(Some((found.checkpoint, damaged.collect())))
            }
            Err(regatta_checkpoint::Error::NoCheckpoint { damaged, .. }) if damaged.is_empty() => Ok(None),
            Err(error) => Err(error.into()),
        },
    }
}

fn unpack(checkpoint: &Checkpoint, folder: &Path) -> Result<()> {
    let misfit = |why: String| Error::Restore { checkpoint: checkpoint.name().to_string(), why };
    let mut any = false;
    for name in checkpoint.manifest().tensors.keys() {
        let Some(file) = name.strip_prefix(PREFIX) else { continue };
        any = true;
        let relative = Path::new(file);
        if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(misfit(format!("it holds {file:?}, which is no path below a folder")));
        }
        let path = folder.join(relative);
        let bytes = checkpoint.tensor(name)?;
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, &bytes))
            .map_err(|source| Error::io(format!("write {} from the checkpoint", path.display()), source))?;
    }
    match any {
        true => Ok(()),
        false => Err(misfit("it holds no files: it is of a trainable that is no command".into())),
    }
}

/// What is to be saved.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// What the program named: below the folder it was given, or whole.
    pub(super) folder: PathBuf,
    pub(super) step: u64,
    pub(super) metrics: Metrics,
}

/// Makes checkpoints of files, one at a time.
pub(super) struct Files {
    start: Start,
    saver: Option<Saver>,
}

impl Files {
    pub(super) fn new(start: Start) -> Self {
        Files { start, saver: None }
    }

    /// Makes one. A failure is told, and ends nothing.
    pub(super) fn save(&mut self, order: &Order) -> Committed {
        let begun = Instant::now();
        let seconds =
            |committed: Committed| Committed { seconds: begun.elapsed().as_secs_f64(), ..committed };
        match self.try_save(order) {
            Ok(committed) => seconds(committed),
            Err(error) => {
                let (step, error) = (order.step, Some(error.to_string()));
                seconds(Committed { step, metrics: order.metrics.clone(), error, ..Committed::default() })
            }
        }
    }

    fn try_save(&mut self, order: &Order) -> Result<Committed> {
        let home = incoming(&self.start);
        let folder = home.join(&order.folder);
        let files = below(&folder)?;
        if files.is_empty() {
            let why = "no file is in it: write the files first, then print the line";
            return Err(Error::other(format!("save {}", folder.display()), why));
        }
        let tensors: Vec<Tensor<'_>> = files
            .iter()
            .map(|file| Tensor::replicated(&file.name, Dtype::U8, &file.shape, &file.source))
            .collect();
        let limit = Duration::try_from_secs_f64(self.start.checkpoint.deadline_seconds)
            .unwrap_or(Duration::from_secs(1800));
        let mut save = Save::new(order.step, &tensors).state(1, &"files")?;
        for (name, value) in order.metrics.iter() {
            save = save.metric(&**name, value);
        }
        let store = store::open(&self.start.storage)?;
        let saver = match &mut self.saver {
            Some(saver) => saver,
            None => self.saver.insert(build(&self.start)?),
        };
        let before = catalog::names(&*store)?;
        let report = saver.save(&save)?.wait(limit)?;
        saver.finish(limit)?;
        let after = catalog::names(&*store)?;
        let name = report.map(|report| report.name).unwrap_or_default();
        // What is committed is the program's no more.
        if folder != home && folder.starts_with(&home) {
            let _ = fs::remove_dir_all(&folder);
        }
        let removed = before.iter().filter(|name| !after.contains(name)).map(ToString::to_string).collect();
        let bytes = files.iter().map(|file| file.source.len() as u64).sum();
        let metrics = order.metrics.clone();
        Ok(Committed { name, step: order.step, bytes, metrics, removed, ..Committed::default() })
    }
}

fn build(start: &Start) -> Result<Saver> {
    let checkpoint = &start.checkpoint;
    let config = SaverConfig {
        generation: Some(start.generation),
        deadline_seconds: checkpoint.deadline_seconds,
        retention: Retention { last: checkpoint.keep, best: checkpoint.best.clone(), every: None },
        encoding: if checkpoint.zstd { Encoding::Zstd } else { Encoding::Plain },
        ..SaverConfig::default()
    };
    Ok(config.build(store::open(&start.storage)?, Arc::new(Solo))?)
}

struct Found {
    name: String,
    shape: [u64; 1],
    source: Source,
}

/// A file's bytes, read when they are copied.
struct Source {
    file: fs::File,
    length: usize,
}

impl TensorSource for Source {
    fn copy_to(&self, offset: usize, to: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(to, offset as u64)
    }

    fn len(&self) -> usize {
        self.length
    }
}

/// All regular files below a folder, by name.
fn below(folder: &Path) -> Result<Vec<Found>> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<Found>) -> std::io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            // Links are followed, as by whoever reads the files; a loop of them ends in the system's own error.
            let meta = fs::metadata(&path)?;
            if meta.is_dir() {
                walk(root, &path, found)?;
                continue;
            }
            let name = path.strip_prefix(root).unwrap_or(&path);
            let name = name.to_str().ok_or_else(|| {
                std::io::Error::other(format!("the name of {} is not UTF-8: give it another", path.display()))
            })?;
            let source = Source { file: fs::File::open(&path)?, length: meta.len() as usize };
            found.push(Found { name: format!("{PREFIX}{name}"), shape: [meta.len()], source });
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found).map_err(|source| {
        Error::io(format!("read the checkpoint's files in {}", folder.display()), source)
    })?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
