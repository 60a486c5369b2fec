//! A training that is interrupted ends with the weights of one that is not, to the bit; the training (`examples/soak.rs`) itself
//! counts that each sample comes once an epoch, and that ranks are alike.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longer than any of it takes on a machine that is overloaded.
const PATIENCE: Duration = Duration::from_secs(60);

struct Run {
    storage: PathBuf,
    name: &'static str,
    controller: Child,
}

impl Run {
    /// A run of twenty epochs of 16 steps: seconds, so that there is time for the blow.
    fn start(storage: &Path, name: &'static str, workers: usize) -> Run {
        let file = storage.join(format!("{name}.ron"));
        let text = format!(
            "(trainable: \"soak\", config: (epochs: 20, step_ms: 10), scaling: (workers: {workers}), checkpoint: (every: Steps(7)))"
        );
        fs::write(&file, text).unwrap();
        let mut command = program();
        command
            .arg("train")
            .arg(&file)
            .args(["--experiment", "soak", "--name", name])
            .arg("--storage")
            .arg(storage);
        Run { storage: storage.into(), name, controller: spawn(command) }
    }

    fn folder(&self) -> PathBuf {
        self.storage.join("soak").join(self.name)
    }

    fn resume(self, changes: &[&str]) -> Run {
        let mut command = program();
        command.arg("resume").arg(self.folder()).args(changes);
        Run { controller: spawn(command), ..self }
    }

    /// Waits until the first epoch was reported, and a little longer, so that the blow falls into the next.
    fn well_under_way(&mut self, later: Duration) {
        let begun = Instant::now();
        while fs::read_to_string(self.folder().join("progress.csv")).unwrap_or_default().lines().count() < 2 {
            assert!(begun.elapsed() < PATIENCE, "nothing was reported");
            assert!(self.controller.try_wait().unwrap().is_none(), "it ended already");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(later);
    }

    fn signal(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.controller), signal).unwrap();
        self.controller.wait().unwrap().code()
    }

    /// A process of the run's workers.
    fn worker(&self) -> Pid {
        let of_this_run = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let parent = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = parent
                .rsplit(')')
                .next()
                .and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
            let is_worker = environment.split(|byte| *byte == 0).any(|line| line == b"REGATTA_SLOT=1");
            is_worker && parent == Some(self.controller.id())
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Pid::from_raw(pids.find(of_this_run).expect("a worker of the run")).unwrap()
    }

    /// The hash of the last weights.
    fn hash(self) -> String {
        let out = self.controller.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let told: Value = serde_json::from_slice(&out.stdout).unwrap();
        told["value"].as_str().unwrap().to_owned()
    }
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

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    let storage = tempfile::tempdir().unwrap();
    let storage = storage.path();
    let calm = Run::start(storage, "calm", 2).hash();

    let mut stopped = Run::start(storage, "stopped", 2);
    stopped.well_under_way(Duration::from_millis(20));
    assert_eq!(stopped.signal(Signal::TERM), Some(75));
    assert_eq!(stopped.resume(&[]).hash(), calm, "after SIGTERM");

    let mut wounded = Run::start(storage, "wounded", 2);
    wounded.well_under_way(Duration::from_millis(40));
    kill_process(wounded.worker(), Signal::KILL).unwrap();
    assert_eq!(wounded.hash(), calm, "after a worker's death");

    let mut beheaded = Run::start(storage, "beheaded", 2);
    beheaded.well_under_way(Duration::ZERO);
    assert_eq!(beheaded.signal(Signal::KILL), None);
    assert_eq!(beheaded.resume(&[]).hash(), calm, "after the controller's death");
}

#[test]
fn another_number_of_workers_goes_on_with_the_same_data() {
    let storage = tempfile::tempdir().unwrap();
    for (name, before, after) in [("fewer", 2, "1"), ("more", 1, "2")] {
        let mut run = Run::start(storage.path(), name, before);
        run.well_under_way(Duration::from_millis(30));
        assert_eq!(run.signal(Signal::TERM), Some(75));
        // Were a sample of the epoch under way left out, or taken twice, it would fail.
        assert!(!run.resume(&["--workers", after]).hash().is_empty());
    }
}
