//! The driver's hand in the cluster: a process of the cluster's own Python that takes orders and tells events.
//!
//! Ray has no other interface to placement groups and actors that stays the same from version to version. It decides nothing.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use serde::Deserialize;
use serde_json::{Value, json};

use super::node::Node;
use super::{ENGINE, RayConfig};
use crate::error::{Error, Result};

const SOURCE: &str = include_str!("shim.py");
/// The shell beside each actor. It is told the worker's process group and name, and kills what is left of it when the actor
/// has gone without taking that back.
pub(super) const GUARD: &str = r#"exec 3<&0
{ while read -r group worker; do G=$group W=$worker; done
[ -n "$W" ] && kill -9 -"$G" $(grep -lszx "REGATTA_WORKER=$W" /proc/[0-9]*/environ | cut -d/ -f3); } <&3 >/dev/null 2>&1 &"#;
/// What Ray gave the driver for its own cluster connection.
const JOB_CONFIG: &str = "RAY_JOB_CONFIG_JSON_ENV_VAR";
/// How many of the last lines of its errors are told when it ends.
const LAST_LINES: usize = 12;

/// What it tells.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// The nodes changed; and by which address other nodes reach this one.
    Nodes { nodes: Vec<Node>, host: String },
    /// A placement group has its places, in the order of its bundles.
    Acquired { gang: u64, nodes: Vec<String> },
    /// A worker runs.
    Started { worker: u64, value: u32 },
    /// A worker's program could not be started.
    Refused { worker: u64, value: String },
    /// A worker wrote.
    Stdout { worker: u64, value: String },
    /// A worker wrote.
    Stderr { worker: u64, value: String },
    /// A worker and all it started are gone; negative is a signal.
    Exited { worker: u64, value: i32 },
    /// An order could not be carried out, or what it began failed later.
    Failed { op: String, value: String, gang: Option<u64>, worker: Option<u64> },
}

/// What is heard of it.
#[derive(Debug)]
pub(super) enum Heard {
    Event(Event),
    /// It has ended, and every worker with it.
    Gone(String),
}

/// The sending side. Dropped, it ends the process and with it every worker.
#[derive(Debug)]
pub(super) struct Shim {
    orders: mpsc::Sender<Vec<u8>>,
}

impl Shim {
    /// Starts it. `hear` is called on a thread of its own, with [`Heard::Gone`] at last.
    pub(super) fn start(config: &RayConfig, hear: impl FnMut(Heard) + Send + 'static) -> Result<Self> {
        let given = std::env::var(JOB_CONFIG).map_err(|_| Error::Environment {
            variable: JOB_CONFIG,
            problem: "is not set: this process is not the driver of a Ray job; submit it with the Ray engine"
                .into(),
        })?;
        let mut python = Command::new(&config.python);
        python.args(["-u", "-c", SOURCE]).env(JOB_CONFIG, job_config(&given).to_string());
        Self::run(python, hear)
    }

    fn run(mut python: Command, hear: impl FnMut(Heard) + Send + 'static) -> Result<Self> {
        python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Not in the driver's group: whoever kills that one leaves this one the time to take the workers down.
        python.process_group(0);
        let program = python.get_program().to_owned();
        let mut child = python.spawn().map_err(|source| Error::Launch {
            slot: 0,
            node: "the driver's node".into(),
            program,
            source,
        })?;
        let (orders, ordered) = mpsc::channel::<Vec<u8>>();
        let stdin = child.stdin.take();
        thread::spawn(move || {
            let Some(mut stdin) = stdin else { return };
            while let Ok(line) = ordered.recv() {
                if stdin.write_all(&line).is_err() {
                    return;
                }
            }
        });
        let listen = thread::Builder::new().name("regatta-ray".into()).spawn(move || listen(child, hear));
        listen.map_err(|source| Error::System { operation: "start a thread", source })?;
        Ok(Self { orders })
    }

    /// Sends an order; one that comes too late is not missed.
    pub(super) fn order(&self, order: &Value) {
        let mut line = order.to_string().into_bytes();
        line.push(b'\n');
        let _ = self.orders.send(line);
    }
}

/// The driver's variables and its grace are its own; of what Ray gave it, workers get the package. Ray would run them with
/// less right to the CPU than anything else.
fn job_config(given: &str) -> Value {
    let given: Value = serde_json::from_str(given).unwrap_or_default();
    let mut environment = json!({"env_vars": {"RAY_worker_niceness": "0"}});
    if let Some(package) = given["runtime_env"].get("working_dir") {
        environment["working_dir"] = package.clone();
    }
    let metadata = given.get("metadata").cloned().unwrap_or_else(|| json!({}));
    json!({"runtime_env": environment, "metadata": metadata})
}

fn listen(mut child: Child, mut hear: impl FnMut(Heard)) {
    let errors = child.stderr.take().map(|stderr| thread::spawn(move || last_lines(stderr)));
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::with_capacity(256 << 10, stdout).split(b'\n') {
            let Ok(line) = line else { break };
            match serde_json::from_slice(&line) {
                Ok(event) => hear(Heard::Event(event)),
                Err(error) => {
                    tracing::warn!(%error, line = %String::from_utf8_lossy(&line), "not understood");
                }
            }
        }
    }
    let status = child.wait();
    let said = errors.and_then(|errors| errors.join().ok()).unwrap_or_default();
    let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    hear(Heard::Gone(match said.is_empty() {
        true => format!("its connection to the cluster ended ({how})"),
        false => format!("its connection to the cluster ended ({how}): {said}"),
    }));
}

fn last_lines(stderr: impl Read) -> String {
    let mut last: VecDeque<String> = VecDeque::new();
    for line in BufReader::new(stderr).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        tracing::debug!(line, "ray");
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.extend(Some(line).filter(|line| !line.is_empty()));
    }
    Vec::from(last).join("\n")
}

pub(super) fn gone(cause: &str) -> Error {
    Error::SpawnerGone { engine: ENGINE, cause: cause.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_hand_in_the_cluster_stays_small() {
        let code = SOURCE.lines().filter(|line| !line.trim().is_empty()).count();
        assert!(code <= 100, "{code} lines of Python");
    }

    #[test]
    fn workers_get_the_package_and_nothing_that_is_the_drivers() {
        let given = r#"{"runtime_env": {"working_dir": "gcs://a.zip", "py_modules": ["gcs://secret.zip"],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}, "metadata": {"job_submission_id": "mnist-1"}}"#;
        let config = job_config(given);
        assert_eq!(config["runtime_env"]["working_dir"], "gcs://a.zip");
        assert_eq!(config["metadata"]["job_submission_id"], "mnist-1");
        assert!(!config.to_string().contains("secret") && !config.to_string().contains("STOP_WAIT"));
    }

    #[test]
    fn what_it_tells_is_understood_and_its_end_says_why() {
        let (sender, heard) = mpsc::channel();
        let mut python = Command::new("/bin/sh");
        let script = r#"read -r order; echo '{"event": "exited", "worker": 3, "value": -9}'; echo nonsense
            echo "$order" >&2; exit 4"#;
        python.args(["-c", script]);
        let shim = Shim::run(python, move |heard| sender.send(heard).unwrap()).unwrap();
        shim.order(&json!({"op": "say"}));
        let next = || heard.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(matches!(next(), Heard::Event(Event::Exited { worker: 3, value: -9 })));
        match next() {
            Heard::Gone(cause) => {
                assert!(cause.contains("status: 4") && cause.contains(r#"{"op":"say"}"#), "{cause}")
            }
            other => panic!("{other:?}"),
        }
    }

    /// The guard's script kills a group and whoever carries the name, and nobody once it was told that the worker has ended.
    #[test]
    fn a_guard_kills_what_an_actor_left_and_only_that() {
        let guarded = |ended: bool| {
            let name = format!("guard-{}-{ended}", std::process::id());
            let mut left = Command::new("sleep");
            let mut left = left.arg("1000").env("REGATTA_WORKER", &name).process_group(0).spawn().unwrap();
            let mut guard =
                Command::new("/bin/sh").arg("-c").arg(GUARD).stdin(Stdio::piped()).spawn().unwrap();
            // To wait for it closes what it reads, which its daemon reads on.
            let mut stdin = guard.stdin.take().unwrap();
            assert!(guard.wait().unwrap().success());
            // A group that is not there: by its name alone it is found.
            writeln!(stdin, "{} {name}", i32::MAX).unwrap();
            if ended {
                writeln!(stdin).unwrap();
            }
            drop(stdin);
            let since = std::time::Instant::now();
            let patience = Duration::from_secs(if ended { 1 } else { 60 });
            let killed = loop {
                match left.try_wait().unwrap() {
                    Some(_) => break true,
                    None if since.elapsed() > patience => break false,
                    None => thread::sleep(Duration::from_millis(5)),
                }
            };
            let _ = left.kill();
            let _ = left.wait();
            killed
        };
        assert!(guarded(false));
        assert!(!guarded(true));
    }
}
