//! What a newcomer sees first: the example trained by two workers, interrupted, resumed and finished; then a small sweep.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{cargo, libtorch, root, sh};

const CONFIG: &str = "configs/mnist_2workers.ron";
const SWEEP: &str = "configs/mnist_sweep.ron";
/// What a run says that was stopped with a checkpoint to go on from.
const RESUMABLE: i32 = 75;

pub(crate) fn run() -> Result<()> {
    libtorch::setup(false)?;
    sh(cargo().args(["build", "--release", "--workspace", "--bin", "mnist_resnet"]))?;
    let name = format!("demo-{}", std::process::id());
    let folder = root().join("runs/mnist").join(&name);

    said(&["train", CONFIG, "--name", &name]);
    let mut first =
        example(&["train", CONFIG, "--name", &name]).spawn().context("cannot start the example")?;
    let reported = wait_for_report(&folder, &mut first)?;
    eprintln!("\n(the demo presses Ctrl-C after the first epoch)");
    let pid = Pid::from_child(&first);
    kill_process(pid, Signal::INT)?;
    let status = first.wait()?;
    ensure!(reported && status.code() == Some(RESUMABLE), "the interrupted training ended with {status}");

    said(&["resume", &name]);
    sh(&mut example(&["resume", &name]))?;
    said(&["show", &name]);
    sh(&mut example(&["show", &name]))?;

    let name = format!("sweep-{}", std::process::id());
    let sweep = ["tune", SWEEP, "--name", &name, "-n", "4", "-j", "2", "epochs=1"];
    said(&sweep);
    sh(&mut example(&sweep))?;
    said(&["show", &name]);
    sh(&mut example(&["show", &name]))
}

fn example(arguments: &[&str]) -> Command {
    let mut command = Command::new(root().join("target/release/mnist_resnet"));
    command.current_dir(root()).args(arguments);
    command
}

fn said(arguments: &[&str]) {
    eprintln!("\n$ mnist_resnet {}", arguments.join(" "));
}

/// Waits until the run has reported something; false if it ended before.
fn wait_for_report(folder: &Path, run: &mut Child) -> Result<bool> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(300) {
        let rows = std::fs::read_to_string(folder.join("progress.csv")).unwrap_or_default().lines().count();
        if rows > 1 {
            return Ok(true);
        }
        if run.try_wait()?.is_some() {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    run.kill().ok();
    bail!("the example reported nothing within five minutes; see {}", folder.join("logs").display())
}
