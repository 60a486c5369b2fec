//! What sinks that write files share: one place for each trial, a bounded number of open files, atomic replacement, and
//! the mending of a file whose last line was cut.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::state::Scope;

/// Files open at once, however many trials there are.
const OPEN: usize = 128;

/// Where the files of the run or of a trial go.
pub(crate) fn folder_of(run: &Path, scope: Scope) -> PathBuf {
    match scope {
        None => run.into(),
        Some(trial) => run.join("trials").join(format!("{trial:05}")),
    }
}

/// Something open that can be made durable.
pub(crate) trait Output {
    fn sync(&mut self) -> Result<()>;
}

/// The outputs in use, by trial. The one that was not used for longest makes room for a new one.
pub(crate) struct Shelf<O> {
    open: HashMap<Scope, (O, u64)>,
    clock: u64,
}

impl<O> Default for Shelf<O> {
    fn default() -> Self {
        Shelf { open: HashMap::new(), clock: 0 }
    }
}

impl<O: Output> Shelf<O> {
    pub(crate) fn get(&mut self, scope: Scope, open: impl FnOnce() -> Result<O>) -> Result<&mut O> {
        self.clock += 1;
        if !self.open.contains_key(&scope) {
            if self.open.len() >= OPEN {
                let oldest = self.open.iter().min_by_key(|(_, (_, used))| *used).map(|(scope, _)| *scope);
                if let Some((mut output, _)) = oldest.and_then(|scope| self.open.remove(&scope)) {
                    output.sync()?;
                }
            }
            self.open.insert(scope, (open()?, 0));
        }
        let (output, used) = self.open.entry(scope).or_insert_with(|| unreachable!("it was just put there"));
        *used = self.clock;
        Ok(output)
    }

    pub(crate) fn sync(&mut self) -> Result<()> {
        self.open.values_mut().try_for_each(|(output, _)| output.sync())
    }

    pub(crate) fn clear(&mut self) {
        self.open = HashMap::new();
    }
}

/// Writes a file beside the place and moves it there, durably: readers see the old one or the new one.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
    let mut file = BufWriter::new(file);
    write(&mut file)
        .and_then(|()| file.into_inner().map_err(io::IntoInnerError::into_error))
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all())
        .map_err(Error::io("replace", path))
}

/// Opens a file of lines to append to, cuts an unfinished last line off, and returns the last whole one.
pub(crate) fn open_lines(path: &Path) -> Result<(File, Vec<u8>)> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let mut file =
        File::options().read(true).append(true).create(true).open(path).map_err(Error::io("open", path))?;
    let last = mend(&mut file).map_err(Error::io("mend", path))?;
    Ok((file, last))
}

fn mend(file: &mut File) -> io::Result<Vec<u8>> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut window = 64 << 10;
    loop {
        let start = length.saturating_sub(window);
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        let end = tail.iter().rposition(|b| *b == b'\n');
        let begin = end.and_then(|end| tail[..end].iter().rposition(|b| *b == b'\n').map(|i| i + 1));
        match (begin, end) {
            (Some(begin), Some(end)) => return cut(file, start + end as u64 + 1, length, &tail[begin..end]),
            (None, Some(end)) if start == 0 => return cut(file, end as u64 + 1, length, &tail[..end]),
            (_, None) if start == 0 => return cut(file, 0, length, &[]),
            _ => window *= 4,
        }
    }
}

fn cut(file: &mut File, whole: u64, length: u64, last: &[u8]) -> io::Result<Vec<u8>> {
    if whole < length {
        file.set_len(whole)?;
    }
    Ok(last.to_vec())
}
