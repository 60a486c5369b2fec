//! The driver as a process of this host that outlives whoever submitted it.
//!
//! A small shell stands over it and writes down its exit code, so that any later client learns it. The driver ends with the
//! host; nothing restarts it, and a resume is a new job.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};

use super::folder::{self, JobFolder};
use super::{Caps, Engine, JobId, JobSpec, JobState, JobStatus, LogPart, Submitted, shell};
use crate::error::{Error, Result};
use crate::spawner::Reason;

const ENGINE: &str = "local";
/// How long the shell over the driver may take to say that it runs.
const START: Duration = Duration::from_secs(20);
/// How long a driver may still be there after SIGKILL.
const KILLED: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);

/// Waits for the driver and writes down how it ended. It ignores SIGHUP, and the driver with it: a terminal that is closed
/// must not end the run. The driver's line in /proc is its name for ever, where its process id alone is not.
const SHELL: &str = r#"
trap '' HUP
trap : TERM INT USR1 USR2
folder=$1
shift
/bin/sh -c 'read -r line < /proc/$$/stat; echo "$line" > "$0/pid.partial"; mv "$0/pid.partial" "$0/pid"; exec "$@"' "$folder" "$@"
echo $? > "$folder/exit.partial"
mv "$folder/exit.partial" "$folder/exit"
"#;

/// Drivers as processes of this host.
#[derive(Clone, Debug)]
pub struct LocalEngine {
    folder: PathBuf,
}

/// A driver's process: its id, and when it was started, by the kernel's count.
struct Driver {
    pid: Pid,
    start: u64,
}

impl LocalEngine {
    /// An engine that keeps its jobs in this folder.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn start(&self, spec: &JobSpec) -> Result<Submitted> {
        let job = JobFolder::of(&self.folder, &spec.id);
        let _claim = job.claim()?;
        if let Some(engine_id) = job.engine_id() {
            return Ok(Submitted { engine_id, new: false });
        }
        job.set_labels(&spec.labels)?;
        let program = &spec.command.program;
        let failed =
            |source| Error::Launch { slot: 0, node: "this host".into(), program: program.clone(), source };
        let log_path = job.file("driver.log");
        let log = OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.map_err(|source| Error::File { operation: "open the log", path: log_path, source })?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SHELL, "sh"]).arg(job.file("")).arg(program).args(&spec.command.args);
        command.env_clear().envs(shell::environment(&spec.command));
        command.envs(spec.command.cwd.iter().map(|cwd| ("PWD", cwd)));
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log).process_group(0);
        if let Some(cwd) = &spec.command.cwd {
            command.current_dir(cwd);
        }
        let mut shell = command.spawn().map_err(failed)?;
        let since = Instant::now();
        while !job.has("pid") {
            if since.elapsed() > START {
                let _ = shell.kill();
                return Err(Error::Timeout {
                    operation: "the start of the driver",
                    waited: START,
                    detail: format!(": its log is {}", job.file("driver.log").display()),
                });
            }
            std::thread::sleep(LOOK);
        }
        std::thread::spawn(move || shell.wait());
        let engine_id =
            driver(&job).map_or_else(String::new, |driver| driver.pid.as_raw_nonzero().to_string());
        job.write("engine_id", OsStr::new(&engine_id))?;
        Ok(Submitted { engine_id, new: true })
    }

    fn status(&self, id: &JobId) -> Result<JobStatus> {
        let (job, engine_id) = JobFolder::existing(&self.folder, id, ENGINE)?;
        // In this order: between the two looks the driver may end, but not come back.
        let runs = driver(&job).is_some_and(|driver| driver.runs());
        let exit = std::fs::read_to_string(job.file("exit"));
        let code: Option<i32> = exit.ok().and_then(|code| code.trim().parse().ok());
        let (state, word) = match (code, runs) {
            (Some(code), _) => (JobState::Ended(reason(code, job.has("cancelled"))), format!("exit {code}")),
            (None, true) => (JobState::Running, "running".into()),
            (None, false) if job.has("cancelled") => (JobState::Ended(Reason::Cancelled), "gone".into()),
            (None, false) if shell_may_still_write(&job) => (JobState::Running, "ending".into()),
            (None, false) => {
                let why = "the driver is gone and left no exit code: it ended with its host".to_owned();
                (JobState::Ended(Reason::EngineError(why)), "gone".into())
            }
        };
        let labels = job.labels();
        Ok(JobStatus { id: id.clone(), engine_id, state, word, nodes: String::new(), labels })
    }

    async fn ended(&self, id: &JobId, within: Duration) -> Result<Option<JobStatus>> {
        let since = tokio::time::Instant::now();
        loop {
            let status = self.status(id)?;
            if status.state.is_over() {
                return Ok(Some(status));
            }
            if since.elapsed() >= within {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// How a driver with this exit code ended. 128 and more is a signal, as shells count.
pub(crate) fn reason(code: i32, cancelled: bool) -> Reason {
    match code {
        0 => Reason::Succeeded,
        super::EXIT_RESUMABLE | 130 | 137 | 143 if cancelled => Reason::Cancelled,
        super::EXIT_RESUMABLE => Reason::Preempted,
        code => Reason::UserError { code },
    }
}

/// Between the driver's end and the shell's note of it lies a moment; after this long it was not a moment.
fn shell_may_still_write(job: &JobFolder) -> bool {
    let written = std::fs::metadata(job.file("driver.log")).and_then(|meta| meta.modified());
    let start = std::fs::metadata(job.file("pid")).and_then(|meta| meta.modified());
    let last = written.into_iter().chain(start).max();
    last.and_then(|last| last.elapsed().ok()).is_none_or(|ago| ago < Duration::from_secs(2))
}

fn driver(job: &JobFolder) -> Option<Driver> {
    let line = std::fs::read_to_string(job.file("pid")).ok()?;
    let pid = Pid::from_raw(line.split(' ').next()?.parse().ok()?)?;
    Some(Driver { pid, start: start_of(&line)? })
}

/// The start time in a line of `/proc/<pid>/stat`, whose second field may hold anything in its brackets.
fn start_of(stat: &str) -> Option<u64> {
    stat[stat.rfind(')')? + 1..].split_whitespace().nth(19)?.parse().ok()
}

impl Driver {
    fn runs(&self) -> bool {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero())).unwrap_or_default();
        let state = stat.rfind(')').and_then(|end| stat[end + 1..].trim_start().chars().next());
        start_of(&stat) == Some(self.start) && !matches!(state, None | Some('Z' | 'X'))
    }

    fn signal(&self, signal: Signal) {
        if self.runs() {
            kill_process(self.pid, signal).ok();
        }
    }
}

#[async_trait]
impl Engine for LocalEngine {
    fn name(&self) -> &'static str {
        ENGINE
    }

    fn caps(&self) -> Caps {
        Caps { queues: false, preempts: false, many_hosts: false, time_limits: false }
    }

    fn render(&self, spec: &JobSpec) -> Result<String> {
        let command = &spec.command;
        let words = std::iter::once(&command.program).chain(&command.args).map(|word| word.as_os_str());
        Ok(format!("{}\n", shell::words(words).to_string_lossy()))
    }

    async fn submit(&self, spec: &JobSpec) -> Result<Submitted> {
        let (engine, spec) = (self.clone(), spec.clone());
        let started = tokio::task::spawn_blocking(move || engine.start(&spec)).await;
        started.unwrap_or_else(|error| Err(Error::SpawnerGone { engine: ENGINE, cause: error.to_string() }))
    }

    async fn describe(&self, ids: &[JobId]) -> Result<Vec<JobStatus>> {
        ids.iter().map(|id| self.status(id)).collect()
    }

    async fn logs(&self, id: &JobId, from: u64, wait: Duration) -> Result<LogPart> {
        let (job, _) = JobFolder::existing(&self.folder, id, ENGINE)?;
        let since = tokio::time::Instant::now();
        loop {
            // Its end first: what is read after it is all there is.
            let over = self.status(id)?.state.is_over();
            let (bytes, next) = job.log(from)?;
            if !bytes.is_empty() || over || since.elapsed() >= wait {
                return Ok(LogPart { end: over && bytes.is_empty(), bytes, next });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn cancel(&self, id: &JobId, grace: Duration) -> Result<JobStatus> {
        let (job, _) = JobFolder::existing(&self.folder, id, ENGINE)?;
        if let Some(status) = self.ended(id, Duration::ZERO).await? {
            return Ok(status);
        }
        job.write("cancelled", OsStr::new(""))?;
        let driver = driver(&job);
        driver.iter().for_each(|driver| driver.signal(Signal::TERM));
        if let Some(status) = self.ended(id, grace).await? {
            return Ok(status);
        }
        driver.iter().for_each(|driver| driver.signal(Signal::KILL));
        let ended = self.ended(id, KILLED).await?;
        ended.ok_or(Error::Timeout {
            operation: "the end of a killed driver",
            waited: KILLED,
            detail: String::new(),
        })
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<JobStatus>> {
        self.describe(&folder::all(&self.folder, labels)?).await
    }
}
