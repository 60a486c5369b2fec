//! `cargo xtask chaos`: breaks a long training at random and checks that nothing was lost.
//!
//! The training ([`soak`]) ends with an error when a sample is not counted exactly once an epoch or when ranks differ (I4, I1).
//! Here the committed step is watched (I2), every checkpoint left is verified (I3), every recovery has a deadline (I5), and in
//! the end nothing may be left behind (I6).

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::json;

use crate::soak::{self, RESUMABLE, Run, Settings};
use crate::{libtorch, sh};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// For how long
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// How many ranks train
    #[arg(long, default_value_t = 2)]
    ranks: usize,
    /// A fault about every so many seconds
    #[arg(long, default_value_t = 20.0)]
    every: f64,
    /// Draws the faults; taken from the clock otherwise, and printed
    #[arg(long)]
    seed: Option<u64>,
}

/// What is done to the run.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// A worker is killed with -9.
    KillWorker,
    /// A worker hangs, for longer than it takes to be declared dead.
    StopWorker,
    /// The controller is killed with -9, and the run resumed.
    KillController,
    /// The controller is asked to stop, and the run resumed.
    Stop,
    /// The disk is full for a few seconds.
    FillDisk,
    /// The controller is killed, and a byte of the newest checkpoint flips before the run is resumed.
    FlipByte,
}

const FAULTS: [Fault; 6] = [
    Fault::KillWorker,
    Fault::StopWorker,
    Fault::KillController,
    Fault::Stop,
    Fault::FillDisk,
    Fault::FlipByte,
];

/// No recovery may take longer (I5): a silent worker is dead after 5 s, and a start takes one.
const RECOVERY: Duration = Duration::from_secs(30);
/// How long the run is watched undisturbed, to know its speed.
const CALM: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &Args) -> Result<()> {
    let sound = args.minutes > 0.0 && args.ranks > 0 && args.every > 0.0;
    ensure!(sound, "--minutes, --ranks and --every must be more than 0");
    libtorch::setup(false)?;
    let program = soak::build()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = args.seed.unwrap_or(now.as_nanos() as u64);
    eprintln!("seed {seed}");
    let disk = Disk::new()?;
    let outcome = torment(args, &program, &disk, seed);
    if outcome.is_err() {
        eprintln!("what is left of it: {}", disk.keep()?.display());
    }
    outcome
}

fn torment(args: &Args, program: &Path, disk: &Disk, seed: u64) -> Result<()> {
    let before = left_behind();
    let settings = Settings { ranks: args.ranks, epochs: 1_000_000, step_ms: 20 };
    let mut run = Run::start(program, &disk.folder.join("runs"), &settings)?;
    run.wait_beyond(0, RECOVERY)?;
    let (watched, first) = (Instant::now(), run.step());
    std::thread::sleep(CALM);
    let rate = (run.step() - first) as f64 / watched.elapsed().as_secs_f64();

    let mut draw = Draw(seed);
    let (begun, from) = (Instant::now(), run.step());
    let (mut counts, mut slowest, mut committed) = (BTreeMap::<String, u64>::new(), Duration::ZERO, 0);
    while begun.elapsed().as_secs_f64() < args.minutes * 60.0 {
        std::thread::sleep(Duration::from_secs_f64(args.every * (0.5 + draw.below(1000) as f64 / 1000.0)));
        let fault = FAULTS[draw.below(FAULTS.len())];
        let (struck, step) = (Instant::now(), run.step());
        let context = || format!("{fault:?} at step {step}");
        strike(fault, &mut run, disk, &mut draw).with_context(context)?;
        run.wait_beyond(step, RECOVERY).with_context(|| format!("I5: after {}", context()))?;
        slowest = slowest.max(struck.elapsed());
        let newest = newest_commit(&run)?;
        ensure!(
            newest >= committed,
            "I2: the committed step went back from {committed} to {newest} after {fault:?}"
        );
        committed = newest;
        *counts.entry(format!("{fault:?}")).or_default() += 1;
        eprintln!(
            "{fault:?} at step {step}: a later step is reported after {:.1} s",
            struck.elapsed().as_secs_f64()
        );
    }
    let (useful, wall) = ((run.step() - from) as f64, begun.elapsed().as_secs_f64());
    let status = run.signal(Signal::TERM)?;
    ensure!(status.code() == Some(RESUMABLE), "I1 or I4, or it could not end: {status}");
    let verified = run.verify().context("I3")?;
    drop(run);
    let after = left_behind();
    ensure!(after == before, "I6: left behind: {after:?}; before there was {before:?}");
    let line = json!({"case": "chaos", "seed": seed, "minutes": wall / 60.0, "ranks": args.ranks, "faults": counts,
        "steps": useful, "goodput": useful / (rate * wall), "slowest_recovery_s": slowest.as_secs_f64(),
        "checkpoints_verified": verified});
    println!("{line}");
    Ok(())
}

fn strike(fault: Fault, run: &mut Run, disk: &Disk, draw: &mut Draw) -> Result<()> {
    match fault {
        Fault::KillWorker | Fault::StopWorker => {
            let workers = run.workers();
            ensure!(!workers.is_empty(), "the run has no workers");
            let worker = workers[draw.below(workers.len())];
            if matches!(fault, Fault::KillWorker) {
                kill_process(worker, Signal::KILL)?;
            } else {
                kill_process(worker, Signal::STOP)?;
                std::thread::sleep(Duration::from_secs(8));
                // It was declared dead and killed meanwhile, or else it goes on as a zombie that nobody listens to.
                let _ = kill_process(worker, Signal::CONT);
            }
        }
        Fault::Stop => {
            let status = run.signal(Signal::TERM)?;
            ensure!(status.code() == Some(RESUMABLE), "it ended with {status}");
            run.resume()?;
        }
        Fault::KillController => {
            run.signal(Signal::KILL)?;
            run.resume()?;
        }
        Fault::FillDisk => {
            disk.full_for(Duration::from_secs(4))?;
            // A run whose log has no room ends, and goes on from what is safe once there is some. It may report what it had done on its way
            // out: only later epochs show that it still runs.
            let going = run.step() + 100;
            if let Some(status) = run.ends_before(going, RECOVERY)? {
                ensure!(!soak::was_killed(status), "the full disk ended it with {status}");
                run.resume()?;
            }
        }
        Fault::FlipByte => {
            run.signal(Signal::KILL)?;
            flip(&run.folder().join("checkpoints"), draw)?;
            run.resume()?;
        }
    }
    Ok(())
}

/// The step of the newest checkpoint that the run knows.
fn newest_commit(run: &Run) -> Result<u64> {
    let shown = run.show()?;
    let steps = shown["checkpoints"].as_array().into_iter().flatten().filter_map(|row| row["step"].as_u64());
    Ok(steps.max().unwrap_or(0))
}

/// Flips a bit in a shard of the newest committed checkpoint.
fn flip(checkpoints: &Path, draw: &mut Draw) -> Result<()> {
    let mut committed: Vec<PathBuf> = fs::read_dir(checkpoints)?
        .flatten()
        .map(|e| e.path())
        .filter(|path| path.join("COMMIT").exists())
        .collect();
    committed.sort();
    let Some(newest) = committed.last() else { return Ok(()) };
    let mut shards: Vec<PathBuf> = fs::read_dir(newest)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "safetensors"))
        .collect();
    shards.sort();
    let shard = &shards[draw.below(shards.len())];
    let mut bytes = fs::read(shard)?;
    let at = draw.below(bytes.len());
    bytes[at] ^= 1 << draw.below(8);
    fs::write(shard, bytes).with_context(|| format!("cannot write {}", shard.display()))
}

/// What a run could leave on the machine: its processes, and names in shared memory.
fn left_behind() -> Vec<String> {
    let shared = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let mut found: Vec<String> =
        shared.map(|e| e.path().display().to_string()).filter(|p| p.contains("regatta")).collect();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("examples/soak") {
            found.push(format!("{} {line}", entry.file_name().to_string_lossy()));
        }
    }
    found.sort();
    found
}

/// A small disk of its own, if this process may mount one; else a folder that is never full.
struct Disk {
    folder: PathBuf,
    mounted: bool,
}

impl Disk {
    fn new() -> Result<Disk> {
        let folder = std::env::temp_dir().join(format!("regatta-chaos-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256m", "regatta-chaos"]).arg(&folder);
        let mounted = mount.status().is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("a disk of its own cannot be mounted here: it will not be full");
        }
        Ok(Disk { folder, mounted })
    }

    fn full_for(&self, time: Duration) -> Result<()> {
        if !self.mounted {
            return Ok(());
        }
        let ballast = self.folder.join("ballast");
        let mut file = fs::File::create(&ballast)?;
        let block = vec![1; 64 << 10];
        while file.write_all(&block).is_ok() {}
        std::thread::sleep(time);
        drop(file);
        Ok(fs::remove_file(ballast)?)
    }

    /// A copy of what lies there, for whoever wants to know what went wrong.
    fn keep(&self) -> Result<PathBuf> {
        let kept = self.folder.with_extension("kept");
        sh(Command::new("cp").arg("-a").arg(&self.folder).arg(&kept))?;
        Ok(kept)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Splitmix64: which fault, when and where must be the same again for the same seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}
