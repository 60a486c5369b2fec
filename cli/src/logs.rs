//! `regatta logs`: the ranks' own lines, each after its rank where there are several; with `-f` as they are written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use regatta_track::Reader;
use regatta_track::state::Status;

use crate::args::Logs;
use crate::jobs;
use crate::out;
use crate::problem::{Outcome, Problem};
use crate::runs;

/// How often files are looked at again.
const LOOK: Duration = Duration::from_millis(200);

/// One rank's file, read up to a point.
struct Tail {
    rank: u32,
    path: PathBuf,
    read: u64,
    partial: Vec<u8>,
}

impl Tail {
    /// The lines that were added, whole ones only unless `all`.
    fn more(&mut self, all: bool) -> Outcome<Vec<Vec<u8>>> {
        let failed =
            |error: std::io::Error| Problem::failed(format!("cannot read {}: {error}", self.path.display()));
        let mut file = File::open(&self.path).map_err(failed)?;
        file.seek(SeekFrom::Start(self.read)).map_err(failed)?;
        self.read += file.read_to_end(&mut self.partial).map_err(failed)? as u64;
        let mut lines: Vec<Vec<u8>> = Vec::new();
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let rest = self.partial.split_off(end + 1);
            lines.push(std::mem::replace(&mut self.partial, rest));
        }
        if all && !self.partial.is_empty() {
            let mut last = std::mem::take(&mut self.partial);
            last.push(b'\n');
            lines.push(last);
        }
        Ok(lines)
    }
}

fn numbered(folder: &Path, prefix: &str, suffix: &str) -> BTreeMap<u32, PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect()
}

/// `regatta logs RUN [RANK] [-f]`.
pub(crate) fn run(args: &Logs, json: bool) -> Outcome {
    let found = match (runs::find(&args.run, &args.root), jobs::find(&args.run, &args.root)) {
        (Ok(found), _) => found,
        // Of a job there is what its driver wrote, before there is a run and where its folder is elsewhere.
        (Err(_), Ok(job)) => return jobs::driver_log(&job, args.follow),
        (Err(problem), Err(_)) => return Err(problem),
    };
    let logs = found.folder.join("logs");
    let attempts = numbered(&logs, "attempt_", "");
    let attempt = match args.attempt {
        Some(wanted) => wanted,
        None => match attempts.keys().last() {
            Some(last) => *last,
            None => {
                return Err(Problem::usage(format!("run {} has no logs in {}", found.name, logs.display())));
            }
        },
    };
    let Some(folder) = attempts.get(&attempt) else {
        let known: Vec<String> = attempts.keys().map(u32::to_string).collect();
        let known = known.join(", ");
        return Err(Problem::usage(format!(
            "run {} has no logs of attempt {attempt}; it has of {known}",
            found.name
        )));
    };
    let mut tails: Vec<Tail> = Vec::new();
    loop {
        // Asked before the files are read: what was written before the end is read after it.
        let over = !args.follow || is_over(&found.folder);
        for (rank, path) in numbered(folder, "rank_", ".log") {
            let wanted = args.rank.is_none_or(|wanted| wanted == rank);
            if wanted && tails.iter().all(|tail| tail.rank != rank) {
                tails.push(Tail { rank, path, read: 0, partial: Vec::new() });
            }
        }
        if tails.is_empty() && over {
            let rank = args.rank.map_or(String::new(), |rank| format!(" of rank {rank}"));
            return Err(Problem::usage(format!(
                "run {} has no log{rank} in {}",
                found.name,
                folder.display()
            )));
        }
        tails.sort_by_key(|tail| tail.rank);
        let several = args.rank.is_none() && tails.len() > 1;
        for tail in &mut tails {
            for line in tail.more(over)? {
                print(tail.rank, several, json, &line)?;
            }
        }
        if over {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

fn print(rank: u32, several: bool, json: bool, line: &[u8]) -> Outcome {
    if json {
        let text = String::from_utf8_lossy(line);
        return out::json(serde_json::json!({ "rank": rank, "line": text.trim_end_matches('\n') }));
    }
    if several {
        out::text(&format!("[{rank}] "))?;
    }
    out::write(line)
}

/// Whether no more lines will come: the run has ended, or its controller has.
fn is_over(folder: &Path) -> bool {
    if !runs::is_driven(folder) {
        return true;
    }
    let status = Reader::open(folder).and_then(|mut reader| reader.snapshot()?.run());
    matches!(status, Ok(Some(run)) if matches!(run.status, Status::Ended(_)))
}
