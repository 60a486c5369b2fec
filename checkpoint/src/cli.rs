//! The commands on checkpoints, as a library, so that a larger command line can mount them: [`Command`] parses,
//! [`run`] does and writes to where it is told.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::catalog::{self, Listed, Status};
use crate::collect::{self, Policy, Torn};
use crate::error::{Error, Result};
use crate::export;
use crate::load::{Checkpoint, Verify};
use crate::names::CheckpointName;
use crate::retention::{Best, Mode, Retention};
use crate::store::{self, Store};

/// The version of what `--json` prints.
pub const JSON_SCHEMA: u32 = 1;

/// Look at checkpoints, check them, export them and clean up.
#[derive(Debug, clap::Parser)]
#[command(name = "ckpt")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the checkpoints of a run, the one to resume from first
    Ls {
        /// The run's folder or URL
        run: String,
    },
    /// Show what is in a checkpoint
    Show(Which),
    /// Check every byte of a checkpoint, or of all; exits with 1 if any is damaged
    Verify {
        /// The run's folder or URL
        run: String,
        /// The checkpoint's name, or the start of it; all if there is none
        name: Option<String>,
    },
    /// Compare two checkpoints tensor by tensor; exits with 1 if they differ
    Diff {
        /// The run's folder or URL
        run: String,
        /// One checkpoint
        a: String,
        /// The other one
        b: String,
        /// The other one's run, if it is not the same
        #[arg(long)]
        other: Option<String>,
    },
    /// Write the tensors as plain safetensors, with an index if it takes several files
    Export {
        #[command(flatten)]
        #[allow(missing_docs)]
        which: Which,
        /// The form to write; safetensors is the only one there is
        #[arg(long, default_value_t = true)]
        safetensors: bool,
        /// The folder to write into
        #[arg(long)]
        to: PathBuf,
        /// The size of a file, in bytes
        #[arg(long, default_value_t = 5_000_000_000)]
        max_bytes: u64,
    },
    /// Remove checkpoints that no rule keeps, and what is left of saves that never ended
    Gc {
        /// The run's folder or URL
        run: String,
        /// Say what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
        /// Keep the last few; without any rule, all are kept
        #[arg(long)]
        last: Option<usize>,
        /// Keep the best few by a metric: METRIC:min:COUNT or METRIC:max:COUNT
        #[arg(long, value_parser = best)]
        best: Option<Best>,
        /// Keep those whose step is a multiple of this
        #[arg(long)]
        every: Option<u64>,
        /// Remove an unfinished save when nothing was written to it for so many seconds
        #[arg(long, default_value_t = 86_400)]
        torn_after: u64,
    },
}

/// A checkpoint on the command line.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The run's folder or URL
    pub run: String,
    /// The checkpoint's name, or the start of it; the newest if there is none
    pub name: Option<String>,
}

fn best(text: &str) -> std::result::Result<Best, String> {
    let wrong = || format!("`{text}` is not METRIC:min:COUNT or METRIC:max:COUNT");
    let mut parts = text.rsplitn(3, ':');
    let count = parts.next().and_then(|count| count.parse().ok()).ok_or_else(wrong)?;
    let mode = match parts.next() {
        Some("min") => Mode::Min,
        Some("max") => Mode::Max,
        _ => return Err(wrong()),
    };
    let metric = parts.next().filter(|metric| !metric.is_empty()).ok_or_else(wrong)?.to_owned();
    Ok(Best { metric, mode, count })
}

/// Does it, writes the answer to `out`, and says whether all is well; the program's exit code follows.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let mut well = true;
    let (value, text) = match &args.command {
        Command::Ls { run } => ls(&*store::open_existing(run)?)?,
        Command::Show(which) => show(&find(&which.run, which.name.as_deref())?),
        Command::Verify { run, name } => {
            let (value, text, sound) = verify(run, name.as_deref())?;
            well = sound;
            (value, text)
        }
        Command::Diff { run, a, b, other } => {
            let b = find(other.as_deref().unwrap_or(run), Some(b))?;
            let (value, text, same) = diff(&find(run, Some(a))?, &b)?;
            well = same;
            (value, text)
        }
        Command::Export { which, to, max_bytes, .. } => {
            let checkpoint = find(&which.run, which.name.as_deref())?;
            let files = export::export(&checkpoint, to, *max_bytes)?;
            let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            (json!({ "checkpoint": checkpoint.name().to_string(), "files": files }), files.join("\n") + "\n")
        }
        Command::Gc { run, dry_run, last, best, every, torn_after } => {
            let retention = Retention { last: *last, best: best.clone(), every: *every };
            let policy = Policy {
                retention: &retention,
                torn: Torn::OlderThan(Duration::from_secs(*torn_after)),
                live: None,
            };
            let (value, text, done) = gc(&*store::open_existing(run)?, &policy, *dry_run)?;
            well = done;
            (value, text)
        }
    };
    let text = match args.json {
        false => text,
        true => {
            let mut value = value;
            value["schema"] = json!(JSON_SCHEMA);
            format!("{value}\n")
        }
    };
    out.write_all(text.as_bytes()).map_err(Error::io("write", "the answer"))?;
    Ok(well)
}

fn resolve(store: &dyn Store, name: Option<&str>) -> Result<CheckpointName> {
    let listed = catalog::list(store)?;
    let fits = |folder: &&Listed| match name {
        None => matches!(folder.status, Status::Committed(_)),
        Some(start) => folder.name.to_string().starts_with(start),
    };
    let found: Vec<&Listed> = listed.iter().filter(fits).collect();
    match (found.as_slice(), name) {
        ([], None) => Err(Error::NoCheckpoint { store: store.location(), damaged: Vec::new() }),
        ([], Some(name)) => Err(Error::Invalid(format!(
            "no checkpoint in {} begins with `{name}`: see `ckpt ls`",
            store.location()
        ))),
        ([first, ..], None) => Ok(first.name.clone()),
        ([only], _) => Ok(only.name.clone()),
        (several, Some(name)) => match several.iter().find(|folder| folder.name.to_string() == name) {
            Some(exact) => Ok(exact.name.clone()),
            None => Err(Error::Invalid(format!(
                "{} checkpoints begin with `{name}`: give more of it",
                several.len()
            ))),
        },
    }
}

fn find(run: &str, name: Option<&str>) -> Result<Checkpoint> {
    let store = store::open_existing(run)?;
    let name = resolve(&*store, name)?;
    Checkpoint::open(store, &name, Verify::OnRead)
}

fn ls(store: &dyn Store) -> Result<(Value, String)> {
    let listed = catalog::list(store)?;
    let mut rows =
        vec![["name", "status", "step", "ranks", "tensors", "size", "pins", "metrics"].map(str::to_owned)];
    let mut values = Vec::new();
    for folder in &listed {
        let manifest = match &folder.status {
            Status::Committed(manifest) => Some(&**manifest),
            _ => None,
        };
        let metrics: Vec<String> = manifest
            .iter()
            .flat_map(|manifest| manifest.metrics.iter().map(|(name, value)| format!("{name}={value:.6}")))
            .collect();
        let detail = match &folder.status {
            Status::Damaged(damage) => format!("{}: {}", damage.file, damage.detail),
            Status::Newer(schema) => format!("schema {schema}"),
            _ => metrics.join(" "),
        };
        let count = |count: Option<usize>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        rows.push([
            folder.name.to_string(),
            folder.status.word().to_owned(),
            folder.name.step.to_string(),
            count(manifest.map(|manifest| manifest.world_size as usize)),
            count(manifest.map(|manifest| manifest.tensors.len())),
            size(folder.bytes),
            folder.pins.join(","),
            detail.clone(),
        ]);
        values.push(json!({
            "name": folder.name.to_string(),
            "status": folder.status.word(),
            "step": folder.name.step,
            "generation": folder.name.generation,
            "bytes": folder.bytes,
            "pins": folder.pins,
            "world_size": manifest.map(|manifest| manifest.world_size),
            "tensors": manifest.map(|manifest| manifest.tensors.len()),
            "parent": manifest.and_then(|manifest| manifest.parent.clone()),
            "metrics": manifest.map(|manifest| manifest.metrics.iter().map(|(k, v)| (k.clone(), v.to_string())).collect::<std::collections::BTreeMap<_, _>>()),
            "detail": detail,
        }));
    }
    Ok((json!({ "checkpoints": values }), table(&rows)))
}

fn show(checkpoint: &Checkpoint) -> (Value, String) {
    let manifest = checkpoint.manifest();
    let mut text = format!(
        "{}\nstep {}  generation {}  ranks {}  size {}  parent {}\n",
        manifest.name,
        manifest.step,
        manifest.generation,
        manifest.world_size,
        size(manifest.total_bytes()),
        manifest.parent.as_deref().unwrap_or("-")
    );
    for (name, value) in &manifest.metrics {
        text += &format!("{name} = {value}\n");
    }
    let mut rows = vec![["tensor", "type", "shape", "size", "pieces"].map(str::to_owned)];
    rows.extend(manifest.tensors.iter().map(|(name, entry)| {
        [
            name.clone(),
            entry.dtype.to_string(),
            format!("{:?}", entry.shape),
            size(entry.bytes()),
            entry.pieces.len().to_string(),
        ]
    }));
    let value = serde_json::to_value(manifest).expect("it was read from JSON");
    (json!({ "manifest": value }), text + &table(&rows))
}

fn verify(run: &str, name: Option<&str>) -> Result<(Value, String, bool)> {
    let store: Arc<dyn Store> = store::open_existing(run)?;
    let names = match name {
        Some(name) => vec![resolve(&*store, Some(name))?],
        None => catalog::names(&*store)?,
    };
    let (mut text, mut values, mut sound) = (String::new(), Vec::new(), true);
    for checkpoint in names {
        let status = catalog::inspect(&*store, checkpoint.clone())?.status;
        let damage = match &status {
            Status::Committed(_) => {
                let opened = Checkpoint::open(store.clone(), &checkpoint, Verify::OnRead)?;
                let mut damage = opened.verify(0, 1);
                damage.extend(opened.verify_hashes());
                damage
            }
            Status::Damaged(damage) => vec![damage.clone()],
            _ => Vec::new(),
        };
        let word = match (&status, damage.is_empty()) {
            (Status::Committed(_), true) => "ok",
            (_, false) => "damaged",
            (other, true) => other.word(),
        };
        // A torn folder is nothing to worry about, unless it was asked for by name.
        sound &= damage.is_empty() && (name.is_none() || word == "ok");
        text += &format!("{checkpoint}: {word}\n");
        for one in &damage {
            text += &format!("  {}: {}\n", one.file, one.detail);
        }
        values.push(json!({ "name": checkpoint.to_string(), "status": word, "damage": damage }));
    }
    Ok((json!({ "checkpoints": values, "sound": sound }), text, sound))
}

fn diff(a: &Checkpoint, b: &Checkpoint) -> Result<(Value, String, bool)> {
    let (left, right) = (&a.manifest().tensors, &b.manifest().tensors);
    let mut rows = vec![["tensor", "difference"].map(str::to_owned)];
    let mut add = |name: &String, what: String| rows.push([name.clone(), what]);
    for (name, entry) in left {
        match right.get(name) {
            None => add(name, format!("only in {}", a.name())),
            Some(other) if (entry.dtype, &entry.shape) != (other.dtype, &other.shape) => {
                add(name, format!("{}{:?} and {}{:?}", entry.dtype, entry.shape, other.dtype, other.shape));
            }
            Some(_) => {
                let (here, there) = (a.tensor(name)?, b.tensor(name)?);
                if here != there {
                    let element = entry.dtype.size() as usize;
                    let differing =
                        here.chunks(element).zip(there.chunks(element)).filter(|(x, y)| x != y).count();
                    add(name, format!("{differing} of {} elements differ", here.len() / element));
                }
            }
        }
    }
    for name in right.keys().filter(|name| !left.contains_key(*name)) {
        add(name, format!("only in {}", b.name()));
    }
    let same = rows.len() == 1;
    let differences: Vec<Value> =
        rows[1..].iter().map(|[tensor, what]| json!({ "tensor": tensor, "difference": what })).collect();
    let text = if same { format!("the same {} tensors\n", left.len()) } else { table(&rows) };
    let value = json!({ "a": a.name().to_string(), "b": b.name().to_string(), "same": same, "differences": differences });
    Ok((value, text, same))
}

fn gc(store: &dyn Store, policy: &Policy<'_>, dry_run: bool) -> Result<(Value, String, bool)> {
    let decisions = collect::plan(store, policy)?;
    let failures: Vec<String> = match dry_run {
        true => Vec::new(),
        false => collect::carry_out(store, &decisions).failures.iter().map(ToString::to_string).collect(),
    };
    let word = |remove| match (remove, dry_run) {
        (false, _) => "keep",
        (true, true) => "would remove",
        (true, false) => "remove",
    };
    let mut rows = vec![["name", "", "size", "reason"].map(str::to_owned)];
    rows.extend(decisions.iter().map(|decision| {
        [
            decision.name.clone(),
            word(decision.remove).to_owned(),
            size(decision.bytes),
            decision.reason.clone(),
        ]
    }));
    let mut text = table(&rows);
    for failure in &failures {
        text += &format!("failed: {failure}\n");
    }
    let done = failures.is_empty();
    Ok((json!({ "dry_run": dry_run, "decisions": decisions, "failures": failures }), text, done))
}

fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// Columns as wide as they have to be.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}
