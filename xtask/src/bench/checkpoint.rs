//! `bench checkpoint`: what saving and loading 1 GB costs, against one memcpy, `dd`, torch.save, torch's distributed
//! checkpoint and torch.load, in 62 and in 10,000 tensors, all on the disk of the folder for temporary files.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{Args, Contestant, build, median, rounded};
use crate::{python, root};

/// A folder that goes when it is dropped: what is measured is gigabytes large.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Prints a JSON line a case. Every ratio is the median over the rounds of two times measured one right after the other:
/// `ratio` is ours by theirs, `vs_...` is theirs by ours, so that more is better.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder =
        Folder(std::env::temp_dir().join(format!("regatta-bench-checkpoint-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).context("cannot create a folder for the benchmark's files")?;
    let mut ours = Contestant::start("ours", build("regatta-checkpoint", "checkpoint")?.arg(&folder.0))?;
    let script = root().join("benches/peers/checkpoint.py");
    let mut torch =
        Contestant::start("PyTorch", Command::new(python::TORCH.python()?).arg(script).arg(&folder.0))?;
    for (pieces, suffix) in [("62", ""), ("10k", "_10k")] {
        let wanted = |case: &str| format!("{case}_1GB{suffix}").contains(&args.case);
        if wanted("blocked") {
            blocked(args, &mut ours, pieces, suffix)?;
        }
        if wanted("save") || wanted("load") {
            save_and_load(args, &mut ours, &mut torch, (pieces, suffix), &folder.0)?;
        }
    }
    Ok(())
}

fn blocked(args: &Args, ours: &mut Contestant, pieces: &str, suffix: &str) -> Result<()> {
    let (mut seconds, mut ratios) = (vec![], vec![]);
    for round in 0..=args.rounds {
        let memcpy = ours.number(&format!("memcpy_{pieces}"))?;
        let stopped = ours.number(&format!("blocked_{pieces}"))?;
        // The first round faults the memory in.
        if round > 0 {
            seconds.push(stopped);
            ratios.push(stopped / memcpy);
        }
    }
    let case = format!("blocked_1GB{suffix}");
    println!(
        "{}",
        json!({"case": case, "seconds": rounded(median(&seconds)), "ratio": rounded(median(&ratios))})
    );
    Ok(())
}

fn save_and_load(
    args: &Args,
    ours: &mut Contestant,
    torch: &mut Contestant,
    (pieces, suffix): (&str, &str),
    folder: &Path,
) -> Result<()> {
    // Columns: ours, then each peer.
    let (mut saves, mut loads) = (vec![], vec![]);
    for round in 0..=args.rounds {
        let save = [
            ours.number(&format!("save_{pieces}"))?,
            dd(&folder.join("dd"))?,
            torch.number(&format!("save_{pieces}"))?,
            torch.number(&format!("dcp_{pieces}"))?,
        ];
        // Ours are written past the page cache, torch's through it: both are read from it.
        ours.number(&format!("view_{pieces}"))?;
        let load = [
            ours.number(&format!("view_{pieces}"))?,
            ours.number(&format!("load_{pieces}"))?,
            torch.number(&format!("load_{pieces}"))?,
        ];
        if round > 0 {
            saves.push(save);
            loads.push(load);
        }
    }
    let middle = |of: &dyn Fn(usize) -> f64| rounded(median(&(0..args.rounds).map(of).collect::<Vec<_>>()));
    let versus = |column: usize| middle(&|round| saves[round][column] / saves[round][0]);
    println!(
        "{}",
        json!({"case": format!("save_1GB{suffix}"), "seconds": middle(&|round| saves[round][0]),
               "vs_dd": versus(1), "vs_torch_save": versus(2), "vs_dcp": versus(3)})
    );
    println!(
        "{}",
        json!({"case": format!("load_1GB{suffix}"), "seconds": middle(&|round| loads[round][0]),
               "vs_torch": middle(&|round| loads[round][2] / loads[round][0]),
               "copied_vs_torch": middle(&|round| loads[round][2] / loads[round][1])})
    );
    Ok(())
}

/// The same number of bytes as fast as the disk takes them.
fn dd(to: &Path) -> Result<f64> {
    let start = Instant::now();
    let status = Command::new("dd")
        .args(["if=/dev/zero", "bs=8000000", "count=125", "conv=fsync"])
        .arg(format!("of={}", to.display()))
        .stderr(Stdio::null())
        .status()
        .context("cannot start dd")?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("dd could not write {}: {status}", to.display());
    }
    std::fs::remove_file(to)?;
    Ok(seconds)
}
