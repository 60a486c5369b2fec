//! Running the program in a folder of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// No test waits longer for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A folder in which the program is run.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

/// What came of it.
pub(crate) struct Came {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Came {
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "out: {}\nerr: {}", self.out, self.err);
        self
    }

    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.err.contains(text), "`{text}` is not in: {}", self.err);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let value: Value = serde_json::from_str(self.out.lines().last().unwrap_or_default())
            .unwrap_or_else(|error| panic!("{error}: {}\nerr: {}", self.out, self.err));
        assert_eq!(value["schema"], 1);
        value
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_regatta-tests"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null());
        command.env_remove("REGATTA_LOG").env_remove("CLICOLOR_FORCE");
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Came {
        self.run_with(args, &[])
    }

    pub(crate) fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Came {
        came(self.start_with(args, env))
    }

    pub(crate) fn start(&self, args: &[&str]) -> Child {
        self.start_with(args, &[])
    }

    pub(crate) fn start_with(&self, args: &[&str], env: &[(&str, &str)]) -> Child {
        let mut command = self.command(args);
        command.envs(env.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Starts a run and returns once its store tells of a step.
    pub(crate) fn start_until_step(&self, args: &[&str], run: &str) -> Child {
        self.start_until_step_with(args, run, &[])
    }

    pub(crate) fn start_until_step_with(&self, args: &[&str], run: &str, env: &[(&str, &str)]) -> Child {
        let child = self.start_with(args, env);
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            let shown = self.run(&["show", run, "--json"]);
            if shown.code == Some(0) && shown.json()["step"].as_u64().is_some() {
                return child;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("run {run} made no step: {:?}", came(child).err);
    }
}

/// Waits for something to come about, which nothing tells of but a look.
pub(crate) fn until(what: &str, come: impl Fn() -> bool) {
    let begun = Instant::now();
    while !come() {
        assert!(begun.elapsed() < LIMIT, "it did not come about: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for its end, and reads what it said.
pub(crate) fn came(child: Child) -> Came {
    Running::of(child).came()
}

/// A program that is heard while it runs.
pub(crate) struct Running {
    child: Child,
    out: JoinHandle<String>,
    /// What it says on standard error, line by line.
    lines: Receiver<String>,
    err: String,
}

impl Running {
    pub(crate) fn of(mut child: Child) -> Self {
        let (mut stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n') {
                let line = String::from_utf8(line.unwrap()).unwrap();
                // Nobody may listen any more.
                let _ = tell.send(line + "\n");
            }
        });
        let out = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        Running { child, out, lines, err: String::new() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it says this on standard error.
    pub(crate) fn until(&mut self, text: &str) {
        while !self.err.contains(text) {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) => self.err += &line,
                Err(_) => panic!("it never said `{text}`: {}", self.err),
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn came(mut self) -> Came {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > LIMIT {
                self.child.kill().unwrap();
                self.err.extend(self.lines.try_iter());
                panic!("it did not end: {}", self.err);
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        // Until the pipe's last writer is gone.
        self.err.extend(self.lines.iter());
        Came { code: status.code(), out: self.out.join().unwrap(), err: self.err }
    }
}

/// The worker processes of a controller, by their slots.
pub(crate) fn workers(controller: u32) -> Vec<Pid> {
    let slot = |pid: i32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent: u32 = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let slot = variables.find_map(|variable| variable.strip_prefix(b"REGATTA_SLOT="))?;
        (parent == controller).then(|| std::str::from_utf8(slot).ok()?.parse().ok())?
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<(u32, i32)> = pids.filter_map(|pid| Some((slot(pid)?, pid))).collect();
    found.sort_unstable();
    found.into_iter().filter_map(|(_, pid)| Pid::from_raw(pid)).collect()
}
