//! Running the program in a folder of its own.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

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

    fn start_with(&self, args: &[&str], env: &[(&str, &str)]) -> Child {
        let mut command = self.command(args);
        command.envs(env.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Starts a run and returns once its store tells of a step.
    pub(crate) fn start_until_step(&self, args: &[&str], run: &str) -> Child {
        let child = self.start(args);
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

/// Waits for its end, and reads what it said.
pub(crate) fn came(mut child: Child) -> Came {
    let mut pipes = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let err = std::thread::spawn(move || {
        let mut text = String::new();
        pipes.1.read_to_string(&mut text).unwrap();
        text
    });
    let out = std::thread::spawn(move || {
        let mut text = String::new();
        pipes.0.read_to_string(&mut text).unwrap();
        text
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("it did not end: {}", err.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
    Came { code: output.status.code(), out: out.join().unwrap(), err: err.join().unwrap() }
}
