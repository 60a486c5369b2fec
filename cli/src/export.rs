//! `regatta export`: a study's trials as a table for other programs, and its plots.

use std::io::Write;
use std::path::{Path, PathBuf};

use regatta_tune::plot;
use regatta_tune::results::Table;
use serde_json::json;

use crate::args::Export;
use crate::judge::Judged;
use crate::out;
use crate::problem::{Outcome, Problem};
use crate::which::{self, Subject};

/// What a table can be written as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Csv,
    Json,
    Parquet,
}

/// `regatta export STUDY [--csv|--json|--parquet] [FILE] [--plots DIR]`.
pub(crate) fn run(args: &Export, json: bool) -> Outcome {
    let study = match which::one(&args.study, &args.root)? {
        Subject::Study(study) => study,
        other => {
            let name = other.name();
            return Err(Problem::usage(format!(
                "{name} is no study; what a run reported is in its progress.csv and result.jsonl"
            )));
        }
    };
    let grid = Judged::grid(&args.judge, which::grid(&study)?)?;
    let mut written: Vec<PathBuf> = Vec::new();
    if let Some(folder) = &args.plots {
        std::fs::create_dir_all(folder).map_err(|error| cannot(folder, &error))?;
        for (name, svg) in plot::all(&grid)? {
            let path = folder.join(format!("{name}.svg"));
            save(&path, svg.as_bytes())?;
            written.push(path);
        }
    }
    let format = format(args, json)?;
    let file = args.file.as_deref().filter(|file| *file != Path::new("-"));
    match (format, file) {
        (Some(format), Some(path)) => {
            save(path, &bytes(&grid.table()?, format))?;
            written.push(path.to_owned());
        }
        // The plots were what was asked for.
        (Some(Format::Json), None) if json && args.plots.is_some() => {}
        (Some(Format::Json), None) => return out::json(json!({ "trials": grid.table()?.json() })),
        (Some(format), None) => return out::write(&bytes(&grid.table()?, format)),
        (None, None) if args.plots.is_some() => {}
        (None, _) => return out::write(&bytes(&grid.table()?, Format::Csv)),
    }
    if json && file.is_none() {
        return out::json(json!({ "written": written }));
    }
    let lines: String = written.iter().map(|path| format!("{}\n", path.display())).collect();
    out::text(&lines)
}

/// As it was typed, or as the file's ending tells.
fn format(args: &Export, json: bool) -> Outcome<Option<Format>> {
    let ending = args.file.as_deref().and_then(Path::extension).and_then(|ending| ending.to_str());
    match (args.csv, args.parquet, json, ending) {
        (true, ..) => Ok(Some(Format::Csv)),
        (_, true, ..) => Ok(Some(Format::Parquet)),
        (_, _, true, _) | (.., Some("json")) => Ok(Some(Format::Json)),
        (.., Some("csv")) => Ok(Some(Format::Csv)),
        (.., Some("parquet" | "pq")) => Ok(Some(Format::Parquet)),
        _ if args.file.is_none() => Ok(None),
        (.., ending) => Err(Problem::usage(format!(
            "in which format? `{}` does not tell: --csv, --json or --parquet",
            ending.unwrap_or("a name without an ending")
        ))),
    }
}

fn bytes(table: &Table, format: Format) -> Vec<u8> {
    match format {
        Format::Csv => table.csv().into_bytes(),
        Format::Json => format!("{:#}\n", table.json()).into_bytes(),
        Format::Parquet => table.parquet(),
    }
}

/// Whole or not at all: others may be reading the file that is there.
fn save(path: &Path, bytes: &[u8]) -> Outcome {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&part)?;
        file.write_all(bytes)?;
        std::fs::rename(&part, path)
    };
    write().map_err(|error| cannot(path, &error))
}

fn cannot(path: &Path, error: &std::io::Error) -> Problem {
    Problem::failed(format!("cannot write {}: {error}", path.display()))
}
