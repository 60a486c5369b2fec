//! A run of `examples/soak.rs`, driven through its command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longer than any of it takes on a machine that is overloaded.
const PATIENCE: Duration = Duration::from_secs(60);

/// A run with a controller at work.
pub(crate) struct Run {
    folder: PathBuf,
    controller: Child,
}

impl Run {
    /// A run of twenty epochs of 16 steps: seconds, so that there is time for the blow.
    pub(crate) fn start(storage: &Path, name: &'static str, workers: usize) -> Run {
        let file = storage.join(format!("{name}.ron"));
        let text = format!(
            "(trainable: \"soak\", config: (epochs: 20, step_ms: 10), scaling: (workers: {workers}),
              checkpoint: (every: Steps(7)), failure: (dead_seconds: 2))"
        );
        fs::write(&file, text).unwrap();
        let mut command = program();
        command.arg("train").arg(&file).args(["--experiment", "soak", "--name", name]);
        command.arg("--storage").arg(storage);
        Run { folder: storage.join("soak").join(name), controller: spawn(command) }
    }

    /// Goes on with a run whose controller is gone.
    pub(crate) fn of(folder: &Path, changes: &[&str]) -> Run {
        let mut command = program();
        command.arg("resume").arg(folder).args(changes);
        Run { folder: folder.into(), controller: spawn(command) }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn resume(self, changes: &[&str]) -> Run {
        Run::of(&self.folder, changes)
    }

    /// Waits until the first epoch was reported, and a little longer, so that the blow falls into the next.
    pub(crate) fn well_under_way(&mut self, later: Duration) {
        let begun = Instant::now();
        while fs::read_to_string(self.folder.join("progress.csv")).unwrap_or_default().lines().count() < 2 {
            assert!(begun.elapsed() < PATIENCE, "nothing was reported");
            assert!(!self.is_over(), "it ended already");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(later);
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.controller.try_wait().unwrap().is_some()
    }

    pub(crate) fn controller(&self) -> Pid {
        Pid::from_child(&self.controller)
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> Option<i32> {
        kill_process(self.controller(), signal).unwrap();
        self.controller.wait().unwrap().code()
    }

    /// The run's worker in this place.
    pub(crate) fn worker(&self, slot: u32) -> Pid {
        let variable = format!("REGATTA_SLOT={slot}");
        let of_this_run = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let parent = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = parent
                .rsplit(')')
                .next()
                .and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
            let is_worker = environment.split(|byte| *byte == 0).any(|line| line == variable.as_bytes());
            is_worker && parent == Some(self.controller.id())
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Pid::from_raw(pids.find(of_this_run).expect("a worker of the run")).unwrap()
    }

    /// The hash of the last weights.
    pub(crate) fn hash(self) -> String {
        let out = self.controller.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let told: Value = serde_json::from_slice(&out.stdout).unwrap();
        told["value"].as_str().unwrap().to_owned()
    }
}

/// What a run's store tells.
pub(crate) fn shown(folder: &Path) -> Value {
    let out = program().arg("show").arg(folder).arg("--json").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn program() -> Command {
    // Examples lie beside the tests' folder.
    let tests = std::env::current_exe().unwrap();
    Command::new(tests.ancestors().nth(2).unwrap().join("examples/soak"))
}

fn spawn(mut command: Command) -> Child {
    command.args(["--progress", "none", "--json"]).env("OMP_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}
