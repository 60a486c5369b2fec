//! The self-checking training (`regatta/examples/soak.rs`) as a process to be started, disturbed, resumed and asked.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{cargo, root, sh};

/// What a run says that was stopped with a checkpoint to go on from.
pub(crate) const RESUMABLE: i32 = 75;
const NAME: &str = "soak";
/// No end of a process is waited for longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the training is set.
pub(crate) struct Settings {
    pub(crate) ranks: usize,
    pub(crate) epochs: u64,
    pub(crate) step_ms: u64,
}

/// Builds the training in release.
pub(crate) fn build() -> Result<PathBuf> {
    sh(cargo().args(["build", "--release", "--quiet", "--workspace", "--example", NAME]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release/examples").join(NAME))
}

/// A run of it, in a storage folder of its own.
pub(crate) struct Run {
    program: PathBuf,
    storage: PathBuf,
    controller: Child,
}

impl Run {
    /// Starts one from the beginning.
    pub(crate) fn start(program: &Path, storage: &Path, settings: &Settings) -> Result<Run> {
        let Settings { ranks, epochs, step_ms } = settings;
        fs::create_dir_all(storage)?;
        let file = storage.join("soak.ron");
        let text = format!(
            "(trainable: \"soak\", config: (epochs: {epochs}, step_ms: {step_ms}), scaling: (workers: {ranks}), checkpoint: \
             (every: Steps(7), keep: 3), failure: (max_failures: 10000))"
        );
        fs::write(&file, text)?;
        let mut command = Command::new(program);
        command
            .arg("train")
            .arg(&file)
            .args(["--experiment", NAME, "--name", NAME])
            .arg("--storage")
            .arg(storage);
        let controller = spawn(&mut command, storage)?;
        Ok(Run { program: program.into(), storage: storage.into(), controller })
    }

    /// A run that is there already, begun elsewhere: goes on with it.
    pub(crate) fn found(program: &Path, storage: &Path) -> Result<Run> {
        let mut command = Command::new(program);
        command.arg("resume").arg(storage.join(NAME).join(NAME));
        let controller = spawn(&mut command, storage)?;
        Ok(Run { program: program.into(), storage: storage.into(), controller })
    }

    /// Goes on where the run was, which must not be running.
    pub(crate) fn resume(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("resume").arg(self.folder());
        self.controller = spawn(&mut command, &self.storage)?;
        Ok(())
    }

    /// The run's folder.
    pub(crate) fn folder(&self) -> PathBuf {
        self.storage.join(NAME).join(NAME)
    }

    /// The last step reported, 0 before any.
    pub(crate) fn step(&self) -> u64 {
        let text = fs::read_to_string(self.folder().join("result.jsonl")).unwrap_or_default();
        let last = text.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
        last.and_then(|line| line["step"].as_u64()).unwrap_or(0)
    }

    /// Waits until a step after this one is reported.
    pub(crate) fn wait_beyond(&mut self, step: u64, within: Duration) -> Result<()> {
        let begun = Instant::now();
        while self.step() <= step {
            if let Some(status) = self.controller.try_wait()? {
                bail!("the run ended with {status}{}", self.last_words());
            }
            ensure!(begun.elapsed() < within, "no step after {step} within {within:?}{}", self.last_words());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// How the controller ended, unless a step after this one is reported first.
    pub(crate) fn ends_before(&mut self, step: u64, within: Duration) -> Result<Option<ExitStatus>> {
        let begun = Instant::now();
        while begun.elapsed() < within && self.step() <= step {
            if let Some(status) = self.controller.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(self.controller.try_wait()?)
    }

    /// Sends the controller a signal and waits for its end.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<ExitStatus> {
        kill_process(Pid::from_child(&self.controller), signal)?;
        self.wait()
    }

    /// Waits for the controller's end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.controller.try_wait()? {
                return Ok(status);
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "the run has not ended within {PATIENCE:?}{}",
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the run's own end, and returns its value: the hash of the final weights.
    pub(crate) fn value(&mut self) -> Result<String> {
        let status = self.wait()?;
        ensure!(status.success(), "the run ended with {status}{}", self.last_words());
        let text = fs::read_to_string(self.storage.join("stdout"))?;
        let told: Value = serde_json::from_str(&text).context("what the run printed is not JSON")?;
        told["value"].as_str().map(str::to_owned).context("the run told no value")
    }

    /// The processes of its workers.
    pub(crate) fn workers(&self) -> Vec<Pid> {
        let program = fs::canonicalize(&self.program).unwrap_or_else(|_| self.program.clone());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let is_ours = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program);
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let is_worker =
                environment.split(|byte| *byte == 0).any(|line| line.starts_with(b"REGATTA_SLOT="));
            if is_ours && is_worker {
                found.extend(Pid::from_raw(pid));
            }
        }
        found
    }

    /// What `show --json` says of it.
    pub(crate) fn show(&self) -> Result<Value> {
        let out = Command::new(&self.program).arg("show").arg(self.folder()).arg("--json").output()?;
        ensure!(out.status.success(), "show failed: {}", String::from_utf8_lossy(&out.stderr));
        Ok(serde_json::from_slice(&out.stdout)?)
    }

    /// Verifies all checkpoints that are left; how many there are.
    pub(crate) fn verify(&self) -> Result<usize> {
        let out =
            Command::new(&self.program).args(["ckpt", "verify"]).arg(self.folder()).arg("--json").output()?;
        let text = String::from_utf8_lossy(&out.stdout);
        ensure!(out.status.success(), "ckpt verify: {text}{}", String::from_utf8_lossy(&out.stderr));
        Ok(self.show()?["checkpoints"].as_array().map_or(0, Vec::len))
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(self.storage.join("stderr")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().fold(String::new(), |all, line| all + "\n  | " + line)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.controller.kill();
        let _ = self.controller.wait();
    }
}

/// Whether a process was ended by SIGKILL.
pub(crate) fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}

fn spawn(command: &mut Command, storage: &Path) -> Result<Child> {
    let out = fs::File::create(storage.join("stdout"))?;
    let errors = fs::OpenOptions::new().create(true).append(true).open(storage.join("stderr"))?;
    command.args(["--progress", "none", "--json"]).env("OMP_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(out).stderr(errors).spawn().context("cannot start the training")
}
