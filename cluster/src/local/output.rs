//! A worker's output: cut into lines, written to its log file, the last of it kept for reports.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::spawner::Stream;

/// How many of the last lines of each output are kept for a report.
pub(crate) const TAIL_LINES: usize = 50;
/// Where a line is cut in events and tails, and where a line without end is taken for one.
pub(crate) const MAX_LINE: usize = 16 * 1024;

/// Turns reads into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes what was read and hands every complete line on, without its end.
    pub(crate) fn feed(&mut self, mut read: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(&read[..end]);
            line(&self.partial);
            self.partial.clear();
            read = &read[end + 1..];
        }
        self.partial.extend_from_slice(read);
        if self.partial.len() >= MAX_LINE {
            self.flush(line);
        }
    }

    /// Hands on what has no end yet.
    pub(crate) fn flush(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            line(&self.partial);
            self.partial.clear();
        }
    }
}

/// A line as text: without a carriage return, cut where it is very long.
pub(crate) fn text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]).into_owned()
}

/// The last lines of a worker, of each of its outputs: a flood on one must not wash away the error on the other.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    lines: [VecDeque<(u64, String)>; 2],
    count: u64,
}

impl Tail {
    pub(crate) fn push(&mut self, stream: Stream, line: String) {
        let lines = &mut self.lines[usize::from(stream == Stream::Stderr)];
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back((self.count, line));
        self.count += 1;
    }

    /// Both outputs' lines in the order they were read.
    pub(crate) fn take(&mut self) -> Vec<String> {
        let mut lines: Vec<_> = self.lines.iter_mut().flat_map(std::mem::take).collect();
        lines.sort_unstable_by_key(|(count, _)| *count);
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

/// One worker's log file.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
}

impl Log {
    /// Opens `attempt_<attempt>/rank_<slot>.log` under `folder` for appending.
    pub(crate) fn open(folder: &Path, attempt: u32, slot: usize) -> Result<Self> {
        let folder = folder.join(format!("attempt_{attempt}"));
        let path = folder.join(format!("rank_{slot}.log"));
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { operation, path, source }
        };
        fs::create_dir_all(&folder).map_err(failed("create the folder of the logs", &folder))?;
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok(Self { file: Some(file.map_err(failed("open the log", &path))?), path })
    }

    /// Writes a whole line. A full disk must not end the run: the log stops, with a warning, and the tail goes on.
    pub(crate) fn line(&mut self, line: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let mut whole = Vec::with_capacity(line.len() + 1);
        whole.extend_from_slice(line);
        whole.push(b'\n');
        if let Err(error) = file.write_all(&whole) {
            tracing::warn!(path = %self.path.display(), %error, "the log of a worker cannot be written and stops here");
            self.file = None;
        }
    }
}

/// What is kept of a worker's output for one gang.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) log: Option<Log>,
    pub(crate) tail: Tail,
}

impl Record {
    pub(crate) fn line(&mut self, stream: Stream, line: &[u8], text: String) {
        if let Some(log) = &mut self.log {
            log.line(line);
        }
        self.tail.push(stream, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_were_read() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for read in [&b"on"[..], b"e\ntwo\r\n\nth", b"ree"] {
            lines.feed(read, |line| seen.push(text(line)));
        }
        assert_eq!(seen, ["one", "two", ""]);
        lines.flush(|line| seen.push(text(line)));
        assert_eq!(seen.last().unwrap(), "three");
    }

    #[test]
    fn a_line_without_end_does_not_grow_for_ever() {
        let mut lines = Lines::default();
        let mut seen = 0;
        for _ in 0..100 {
            lines.feed(&[b'x'; 1024], |_| seen += 1);
        }
        assert_eq!(seen, 6);
    }

    #[test]
    fn the_tail_keeps_the_last_lines_of_both_outputs() {
        let mut tail = Tail::default();
        tail.push(Stream::Stderr, "the error".into());
        (0..TAIL_LINES + 5).for_each(|i| tail.push(Stream::Stdout, i.to_string()));
        tail.push(Stream::Stderr, "the end".into());
        let kept = tail.take();
        assert_eq!(kept.len(), TAIL_LINES + 2);
        assert_eq!([&kept[0], &kept[1], &kept[TAIL_LINES + 1]], ["the error", "5", "the end"]);
    }
}
