//! `bench resume`: the last weights of a training that was interrupted, against those of one that was not.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::json;

use super::Args;
use crate::libtorch;
use crate::soak::{self, RESUMABLE, Run, Settings};

/// Waits for a few steps at a time; a start takes a second.
const SOON: Duration = Duration::from_secs(60);

const WAYS: [&str; 4] = ["sigterm", "kill_worker", "kill_controller", "copied_folder"];

/// Prints `{"case":"bit_exact","equal":1,...}`: every way of interrupting, `--rounds` times at different steps.
pub(crate) fn run(args: &Args) -> Result<()> {
    libtorch::setup(false)?;
    let program = soak::build()?;
    let scratch = std::env::temp_dir().join(format!("regatta-resume-{}", std::process::id()));
    let outcome = compare(&program, &scratch, args.rounds);
    std::fs::remove_dir_all(&scratch).ok();
    outcome
}

fn compare(program: &Path, scratch: &Path, rounds: usize) -> Result<()> {
    let settings = Settings { ranks: 2, epochs: 6, step_ms: 40 };
    let calm =
        Run::start(program, &scratch.join("calm"), &settings)?.value().context("the undisturbed run")?;
    let mut hashes = BTreeMap::new();
    for round in 0..rounds {
        for way in WAYS {
            let storage = scratch.join(format!("{way}-{round}"));
            let context = || format!("{way}, round {round}");
            let hash = disturbed(program, &storage, &settings, way, round).with_context(context)?;
            hashes.insert(format!("{way}-{round}"), hash);
        }
    }
    let equal = hashes.values().all(|hash| *hash == calm);
    println!(
        "{}",
        json!({"case": "bit_exact", "equal": u8::from(equal), "calm": calm, "interrupted": hashes})
    );
    ensure!(equal, "an interrupted run ended with other weights");
    Ok(())
}

/// A run that is interrupted once in its middle, after a number of steps that differs from round to round.
fn disturbed(program: &Path, storage: &Path, settings: &Settings, way: &str, round: usize) -> Result<String> {
    let mut run = Run::start(program, storage, settings)?;
    // The reports come at the ends of epochs; the pause after one puts the blow somewhere into the next.
    run.wait_beyond(16 * (round as u64 % 4), SOON)?;
    std::thread::sleep(Duration::from_millis(13 * (round as u64 % 7)));
    match way {
        "sigterm" => {
            let status = run.signal(Signal::TERM)?;
            ensure!(status.code() == Some(RESUMABLE), "SIGTERM ended it with {status}");
            run.resume()?;
        }
        "kill_worker" => {
            let workers = run.workers();
            ensure!(!workers.is_empty(), "it has no workers");
            kill_process(workers[round % workers.len()], Signal::KILL)?;
        }
        "kill_controller" => {
            ensure!(soak::was_killed(run.signal(Signal::KILL)?), "it survived");
            run.resume()?;
        }
        _ => {
            // As a backup would find it: the files as they are at this moment, elsewhere.
            let copy = storage.with_extension("copy");
            let status = std::process::Command::new("cp").arg("-a").arg(storage).arg(&copy).status()?;
            ensure!(status.success(), "cp: {status}");
            drop(run);
            std::fs::remove_dir_all(storage)?;
            run = Run::found(program, &copy)?;
        }
    }
    run.value()
}
