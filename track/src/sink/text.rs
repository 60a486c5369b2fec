//! `progress.csv` and `result.jsonl`: a line for each report, for the run in its folder and for each trial in
//! `trials/00007/`. Every line begins with its event's number, by which a repetition after a crash is recognised.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files::{Output, Shelf, folder_of, open_lines, replace};
use super::{Cursor, Sink, Start};
use crate::error::{Error, Result};
use crate::event::{Envelope, Event, Report};
use crate::metrics;
use crate::state::Scope;

/// What every line tells beside the metrics. A metric of such a name gets `metrics/` before it.
const FIXED: [&str; 4] = ["seq", "attempt", "step", "timestamp"];

/// The reports that count (those of rank 0 and the controller), by trial.
fn by_scope(events: &[Envelope]) -> BTreeMap<Scope, Vec<(&Envelope, &Report)>> {
    let mut scopes: BTreeMap<Scope, Vec<_>> = BTreeMap::new();
    for e in events.iter().filter(|e| e.rank.unwrap_or(0) == 0) {
        if let Event::Report(report) = &e.event {
            scopes.entry(e.trial).or_default().push((e, report));
        }
    }
    scopes
}

fn column(metric: &str) -> String {
    if FIXED.contains(&metric) { format!("metrics/{metric}") } else { metric.into() }
}

/// A file of lines, and how far it got.
struct Lines {
    path: PathBuf,
    file: BufWriter<File>,
    last: u64,
}

impl Lines {
    fn put(&mut self, line: &[u8]) -> Result<()> {
        self.file.write_all(line).map_err(Error::io("write", &self.path))
    }
}

impl Output for Lines {
    fn sync(&mut self) -> Result<()> {
        let file = &mut self.file;
        file.flush().and_then(|()| file.get_ref().sync_data()).map_err(Error::io("write", &self.path))
    }
}

/// `result.jsonl`: an object a line, the metrics beside `seq`, `attempt`, `step` and `timestamp`. A value that JSON cannot
/// say is `"NaN"`, `"Infinity"` or `"-Infinity"`.
pub struct ResultJsonl {
    folder: PathBuf,
    cursor: Cursor,
    open: Shelf<Lines>,
}

impl ResultJsonl {
    /// For the run in this folder.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        ResultJsonl {
            folder: folder.into(),
            cursor: Cursor::new(folder, "result.jsonl"),
            open: Shelf::default(),
        }
    }
}

impl Sink for ResultJsonl {
    fn name(&self) -> &str {
        "result.jsonl"
    }

    fn kinds(&self) -> &[&str] {
        &["report"]
    }

    fn resume(&mut self) -> Result<Start> {
        self.open.clear();
        Ok(Start::After(self.cursor.load().0))
    }

    fn write(&mut self, events: &[Envelope]) -> Result<()> {
        for (scope, reports) in by_scope(events) {
            let path = folder_of(&self.folder, scope).join("result.jsonl");
            let lines = self.open.get(scope, || {
                let (file, last) = open_lines(&path)?;
                let last = serde_json::from_slice::<Value>(&last).ok().and_then(|line| line["seq"].as_u64());
                Ok(Lines { path, file: BufWriter::new(file), last: last.unwrap_or(0) })
            })?;
            for (e, report) in reports {
                if e.seq <= lines.last {
                    continue;
                }
                let mut line = Map::new();
                line.insert("seq".into(), e.seq.into());
                line.insert("attempt".into(), e.attempt.into());
                line.insert("step".into(), report.step.into());
                line.insert("timestamp".into(), e.at.seconds().into());
                for (name, value) in report.metrics.iter() {
                    line.insert(column(name), metrics::to_json(value));
                }
                let mut line = Value::Object(line).to_string().into_bytes();
                line.push(b'\n');
                lines.put(&line)?;
                lines.last = e.seq;
            }
        }
        Ok(())
    }

    fn save(&mut self, upto: u64) -> Result<()> {
        self.open.sync()?;
        self.cursor.save(upto, Value::Null)
    }
}

/// `progress.csv`: a row a report, a column a metric. A metric that appears later gets its column then: the file is
/// written again and replaced in one step. A metric that a report lacks is an empty cell.
pub struct ProgressCsv {
    folder: PathBuf,
    cursor: Cursor,
    open: Shelf<Table>,
}

impl ProgressCsv {
    /// For the run in this folder.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        ProgressCsv {
            folder: folder.into(),
            cursor: Cursor::new(folder, "progress.csv"),
            open: Shelf::default(),
        }
    }
}

impl Sink for ProgressCsv {
    fn name(&self) -> &str {
        "progress.csv"
    }

    fn kinds(&self) -> &[&str] {
        &["report"]
    }

    fn resume(&mut self) -> Result<Start> {
        self.open.clear();
        Ok(Start::After(self.cursor.load().0))
    }

    fn write(&mut self, events: &[Envelope]) -> Result<()> {
        for (scope, reports) in by_scope(events) {
            let path = folder_of(&self.folder, scope).join("progress.csv");
            let table = self.open.get(scope, || Table::open(path))?;
            let new: Vec<_> = reports.into_iter().filter(|(e, _)| e.seq > table.lines.last).collect();
            table.widen(
                new.iter().flat_map(|(_, report)| report.metrics.iter().map(|(name, _)| column(name))),
            )?;
            for (e, report) in new {
                table.row(e, report)?;
            }
        }
        Ok(())
    }

    fn save(&mut self, upto: u64) -> Result<()> {
        self.open.sync()?;
        self.cursor.save(upto, Value::Null)
    }
}

/// An open `progress.csv`.
struct Table {
    lines: Lines,
    columns: Vec<String>,
}

impl Output for Table {
    fn sync(&mut self) -> Result<()> {
        self.lines.sync()
    }
}

impl Table {
    fn open(path: PathBuf) -> Result<Table> {
        let (file, last) = open_lines(&path)?;
        let first = String::from_utf8_lossy(&last).split(',').next().and_then(|n| n.parse().ok());
        let columns =
            File::open(&path).and_then(|f| header(BufReader::new(f))).map_err(Error::io("read", &path))?;
        Ok(Table { lines: Lines { path, file: BufWriter::new(file), last: first.unwrap_or(0) }, columns })
    }

    /// Adds the columns that are missing, to a file that has rows by writing it again.
    fn widen(&mut self, names: impl Iterator<Item = String>) -> Result<()> {
        let before = self.columns.len();
        for name in FIXED.into_iter().filter(|_| before == 0).map(String::from).chain(names) {
            if !self.columns.contains(&name) {
                self.columns.push(name);
            }
        }
        if self.columns.len() == before {
            return Ok(());
        }
        self.lines.sync()?;
        let path = self.lines.path.clone();
        let mut old = BufReader::new(File::open(&path).map_err(Error::io("read", &path))?);
        header(&mut old).map_err(Error::io("read", &path))?;
        let more = ",".repeat(self.columns.len() - before);
        let cells: Vec<String> = self.columns.iter().map(|c| quoted(c)).collect();
        replace(&path, |file| {
            writeln!(file, "{}", cells.join(","))?;
            for line in old.lines() {
                writeln!(file, "{}{more}", line?)?;
            }
            Ok(())
        })?;
        let (file, _) = open_lines(&path)?;
        self.lines.file = BufWriter::new(file);
        Ok(())
    }

    fn row(&mut self, e: &Envelope, report: &Report) -> Result<()> {
        use std::fmt::Write as _;
        let mut cells = vec![String::new(); self.columns.len()];
        let mut line = format!("{},{},{},{:.6}", e.seq, e.attempt, report.step, e.at.seconds());
        for (name, value) in report.metrics.iter() {
            let name = column(name);
            if let Some(place) = self.columns.iter().position(|c| *c == name) {
                cells[place] = value.to_string();
            }
        }
        for cell in &cells[FIXED.len().min(cells.len())..] {
            let Ok(()) = write!(line, ",{cell}") else { continue };
        }
        line.push('\n');
        self.lines.put(line.as_bytes())?;
        self.lines.last = e.seq;
        Ok(())
    }
}

/// A cell as CSV has it.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.into()
    }
}

/// Reads the first record, whose names may be quoted and hold line breaks.
fn header(mut file: impl std::io::BufRead) -> std::io::Result<Vec<String>> {
    let mut text = String::new();
    while file.read_line(&mut text)? > 0 && text.matches('"').count() % 2 == 1 {}
    let text = text.strip_suffix('\n').unwrap_or(&text);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let (mut cells, mut within) = (vec![String::new()], false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = cells.len() - 1;
        match c {
            '"' if within && chars.peek() == Some(&'"') => {
                chars.next();
                cells[last].push('"');
            }
            '"' => within = !within,
            ',' if !within => cells.push(String::new()),
            c => cells[last].push(c),
        }
    }
    Ok(cells)
}
