//! Benchmarks side by side with their peers: both contestants live through the whole run and take turns, because the
//! speed of a shared machine drifts, and only a ratio within one window says something.

mod checkpoint;
mod cluster;
mod comm;
mod cost;
mod resume;
mod step;
mod train;
mod trials;
mod tune;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benchmark
    name: Name,
    /// How many interleaved rounds a case gets; medians are printed
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Only the cases whose name contains this
    #[arg(long, default_value = "")]
    case: String,
    /// With `tune`: how good the samplers' suggestions are, rather than what they cost
    #[arg(long)]
    quality: bool,
    /// With `--quality`: over how many seeds
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// With `--quality`: over how many of them Optuna's Gaussian process is run, at half a minute each
    #[arg(long, default_value_t = 5)]
    gp_seeds: u64,
    /// With `--quality`: a folder of tables of learning curves, in place of made-up ones
    #[arg(long)]
    tables: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Saving and loading 1 GB, against memcpy, dd and PyTorch
    Checkpoint,
    /// What a gang of workers, a report and a stored event cost
    Cluster,
    /// All-reduce between processes of this host, against gloo and OpenMPI
    Comm,
    /// The last weights of a training that was interrupted, against those of one that was not
    Resume,
    /// A training step in one process, against PyTorch and tch
    Step,
    /// Two workers in step, against PyTorch's DDP and twice one worker
    Train,
    /// A suggestion of TPE and of a Gaussian process, against Optuna's; a trial, against Ray Tune's
    Tune,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.rounds == 0 {
        bail!("--rounds must be at least 1");
    }
    match args.name {
        Name::Checkpoint => checkpoint::run(args),
        Name::Cluster => cluster::run(),
        Name::Comm => comm::run(args),
        Name::Resume => resume::run(args),
        Name::Step => step::run(args),
        Name::Train => train::run(args).and_then(|()| cost::run(args)),
        Name::Tune if args.quality => tune::quality(args),
        Name::Tune => tune::run(args).and_then(|()| trials::run(args)),
    }
}

/// A process that measures on request: it reads a case's name from stdin and answers with one line of JSON, the figure.
/// It waits without using the processor in between.
pub(crate) struct Contestant {
    name: String,
    child: Child,
    ask: ChildStdin,
    answers: Receiver<String>,
}

impl Contestant {
    /// Starts one. Its stderr is this process's.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}: {:?}", command.get_program()))?;
        let (send, answers) = channel();
        let out = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let ask = child.stdin.take().expect("piped");
        Ok(Self { name: name.into(), child, ask, answers })
    }

    /// One round of a case. Ten minutes is longer than any round.
    pub(crate) fn ask(&mut self, case: &str) -> Result<Value> {
        let context = || format!("{} ended before it answered {case}", self.name);
        writeln!(self.ask, "{case}").and_then(|()| self.ask.flush()).with_context(context)?;
        let line = self
            .answers
            .recv_timeout(Duration::from_secs(600))
            .with_context(|| format!("{} gave no answer to {case}", self.name))?;
        serde_json::from_str(&line).with_context(|| format!("{} answered {case} with {line:?}", self.name))
    }

    /// One round of a case whose figure is a number.
    pub(crate) fn number(&mut self, case: &str) -> Result<f64> {
        let value = self.ask(case)?;
        value.as_f64().with_context(|| format!("{} answered {case} with {value}, not a number", self.name))
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds a crate's benchmark in release and says how to start it. Features are those of the whole workspace, as everywhere here: a
/// selection of its own for each would have half of the dependencies built again.
pub(crate) fn build(package: &str, bench: &str) -> Result<Command> {
    let mut cargo = crate::cargo();
    cargo.args(["bench", "--no-run", "--message-format=json-render-diagnostics"]);
    let out = cargo
        .args(["--workspace", "--bench", bench])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !out.status.success() {
        bail!("{package}'s benchmark {bench} does not build: {}", out.status);
    }
    let messages = String::from_utf8_lossy(&out.stdout);
    let executable = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == bench)
        .filter(|message| message["package_id"].as_str().is_some_and(|id| id.contains(package)))
        .find_map(|message| message["executable"].as_str().map(str::to_owned))
        .with_context(|| format!("cargo named no executable for {bench}"))?;
    Ok(Command::new(executable))
}

/// The middle of the figures.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Four significant digits: more would claim a precision that a shared machine has not.
pub(crate) fn rounded(figure: f64) -> f64 {
    if figure == 0.0 || !figure.is_finite() {
        return figure;
    }
    let scale = 10f64.powi(3 - figure.abs().log10().floor() as i32);
    (figure * scale).round() / scale
}
