//! Jobs that were submitted: `jobs`, `attach`, `cancel`, and the drivers' logs.
//!
//! What was submitted where is written down beside the runs, in `<root>/.jobs/<job>/`, so that any client that sees the
//! folder can ask the right engine.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_cluster::Reason;
use regatta_cluster::engine::{self, Engine, EngineConfig, JobId, JobState, JobStatus};
use regatta_train::RunResult;
use regatta_tune::ResultGrid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::args::{Attach, Cancel, Jobs};
use crate::out::{self, table};
use crate::problem::{Outcome, Problem, advice, exit};
use crate::runs;
use crate::signals::Signals;
use crate::train;
use crate::tune;

/// The folder of jobs, beside the experiments.
const FOLDER: &str = ".jobs";
/// What was submitted where.
const RECORD: &str = "job.json";
/// How a job ended, once that is known: engines forget.
const ENDED: &str = "ended.json";
/// How long one look at a log waits for more.
const LOOK: Duration = Duration::from_secs(1);
/// How often a job that says nothing is asked what it waits for.
const ASK: Duration = Duration::from_secs(5);
/// How long an engine may fail to answer before a client gives up on it.
const DEAF: Duration = Duration::from_secs(120);

/// What was submitted where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) engine: EngineConfig,
    pub(crate) experiment: String,
    pub(crate) run: String,
    /// The how-manieth job of the run it is.
    pub(crate) number: u32,
}

impl Record {
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.experiment, self.run)
    }
}

/// A job, submitted or about to be.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) record: Record,
    root: PathBuf,
}

impl Job {
    pub(crate) fn new(root: &Path, id: JobId, record: Record) -> Outcome<Self> {
        // Jobs run in other folders than the client.
        let root = std::path::absolute(root)
            .map_err(|error| Problem::failed(format!("cannot find {}: {error}", root.display())))?;
        Ok(Job { id, record, root })
    }

    fn folder(&self) -> PathBuf {
        self.root.join(FOLDER).join(self.id.as_str())
    }

    pub(crate) fn engine(&self) -> Outcome<Arc<dyn Engine>> {
        Ok(engine::engine(&self.record.engine, &self.root.join(FOLDER))?)
    }

    /// How to say on a command line where it is.
    pub(crate) fn root_option(&self) -> String {
        match std::path::absolute(runs::ROOT).is_ok_and(|root| root == self.root) {
            true => String::new(),
            false => format!(" --root {}", self.root.display()),
        }
    }

    /// Writes down where it is submitted, before it is.
    pub(crate) fn remember(&self) -> Outcome {
        let folder = self.folder();
        let failed = |error: std::io::Error| {
            Problem::usage(format!(
                "cannot write down job {} in {}: {error}; choose another place for runs with --storage, or make this one \
                 writable",
                self.id,
                folder.display()
            ))
        };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        write_whole(&folder.join(RECORD), &json!(self.record)).map_err(failed)
    }

    /// How it stands. Once it is over, the engine is not asked any more.
    async fn status(&self, engine: &dyn Engine) -> regatta_cluster::Result<JobStatus> {
        let ended = self.folder().join(ENDED);
        if let Ok(text) = std::fs::read_to_string(&ended)
            && let Ok(status) = serde_json::from_str(&text)
        {
            return Ok(status);
        }
        let mut all = engine.describe(std::slice::from_ref(&self.id)).await?;
        let status = all.pop().ok_or(regatta_cluster::Error::Over { what: "the job" })?;
        self.keep(&status);
        Ok(status)
    }

    fn keep(&self, status: &JobStatus) {
        if matches!(status.state, JobState::Ended(_))
            && let Err(error) = write_whole(&self.folder().join(ENDED), &json!(status))
        {
            tracing::debug!(job = %self.id, %error, "its end could not be written down");
        }
    }

    /// Whether there is anything of it.
    pub(crate) async fn standing(&self) -> Outcome<Standing> {
        match self.status(&*self.engine()?).await {
            Ok(status) if status.state.is_over() => Ok(Standing::Over),
            Ok(_) => Ok(Standing::UnderWay),
            Err(regatta_cluster::Error::UnknownJob { .. }) => Ok(Standing::NotTaken),
            Err(error) => Err(error.into()),
        }
    }
}

/// What there is of a job that was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its engine refused it, or was never asked.
    NotTaken,
    UnderWay,
    Over,
}

fn write_whole(path: &Path, value: &Value) -> std::io::Result<()> {
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, format!("{value}\n"))?;
    std::fs::rename(&partial, path)
}

/// What commands that speak with engines run on.
pub(crate) fn runtime() -> Outcome<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Problem::failed(format!("cannot start the runtime: {error}")))
}

/// All jobs beside these runs, by run and number.
pub(crate) fn all(root: &Path) -> Vec<Job> {
    let entries = std::fs::read_dir(root.join(FOLDER)).into_iter().flatten().flatten();
    let job = |entry: std::fs::DirEntry| {
        let record = std::fs::read_to_string(entry.path().join(RECORD)).ok()?;
        let id = JobId::new(entry.file_name().to_string_lossy()).ok()?;
        Job::new(root, id, serde_json::from_str(&record).ok()?).ok()
    };
    let mut all: Vec<Job> = entries.filter_map(job).collect();
    all.sort_by_key(|job| (job.record.full_name(), job.record.number));
    all
}

/// The job that is meant: its name, its run's (then the last one), or the beginning of either that only one has.
pub(crate) fn find(what: &str, root: &Path) -> Outcome<Job> {
    let jobs = all(root);
    let named = |job: &&Job| job.id.as_str() == what;
    let of_run = |job: &&Job| job.record.run == what || job.record.full_name() == what;
    if let Some(job) = jobs.iter().find(named).or_else(|| jobs.iter().rfind(of_run)) {
        return Ok(job.clone());
    }
    let begins = |job: &&Job| {
        job.id.as_str().starts_with(what)
            || job.record.run.starts_with(what)
            || job.record.full_name().starts_with(what)
    };
    let mut found: Vec<&Job> = jobs.iter().filter(begins).collect();
    // Of a run's jobs the last is meant.
    found.reverse();
    found.dedup_by_key(|job| job.record.full_name());
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let names: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
            let root = root.display();
            let advice = advice(what, names);
            Err(Problem::usage(format!("there is no job `{what}` beside the runs under {root}{advice}")))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|job| job.id.as_str()).collect();
            Err(Problem::usage(format!("`{what}` may be {}: write more of it", names.join(" or "))))
        }
    }
}

/// `regatta jobs`.
pub(crate) fn list(args: &Jobs, json: bool) -> Outcome {
    let statuses: Vec<(Job, Outcome<JobStatus>)> = runtime()?.block_on(async {
        let mut statuses = Vec::new();
        for job in all(&args.root) {
            let status = match job.engine() {
                Ok(engine) => job.status(&*engine).await.map_err(Problem::from),
                Err(problem) => Err(problem),
            };
            statuses.push((job, status));
        }
        statuses
    });
    let mut rows = vec![["job", "engine", "state", "id", "nodes", "run"].map(str::to_owned)];
    let mut values = Vec::new();
    for (job, status) in statuses {
        let over = matches!(&status, Ok(status) if status.state.is_over());
        if args.active && over {
            continue;
        }
        let (engine, run) = (job.record.engine.name(), job.record.full_name());
        let (state, id, nodes) = match &status {
            Ok(status) => (words(&status.state), status.engine_id.clone(), status.nodes.clone()),
            Err(problem) => (format!("unknown: {problem}"), String::new(), String::new()),
        };
        values.push(json!({ "job": job.id, "engine": engine, "run": run, "engine_id": id, "nodes": nodes, "over": over,
                            "state": state, "status": status.ok() }));
        rows.push([job.id.to_string(), engine.into(), state, id, nodes, run]);
    }
    match json {
        true => out::json(json!({ "jobs": values })),
        false if rows.len() == 1 => {
            out::text(&format!("no jobs beside the runs under {}\n", args.root.display()))
        }
        false => out::text(&table(&rows)),
    }
}

/// Where a job stands, for people.
fn words(state: &JobState) -> String {
    match state {
        JobState::Queued(why) => format!("queued: {why}"),
        JobState::Running => "running".into(),
        JobState::Ended(Reason::Preempted) => "stopped, resumable".into(),
        JobState::Ended(reason) => reason.to_string(),
        JobState::Forgotten => "over; its engine has forgotten it".into(),
    }
}

/// `regatta attach JOB`.
pub(crate) fn attach(args: &Attach, json: bool) -> Outcome {
    let job = find(&args.job, &args.root)?;
    let engine = job.engine()?;
    follow(&job, &engine, json)
}

/// `regatta cancel JOB`.
pub(crate) fn cancel(args: &Cancel, json: bool) -> Outcome {
    let job = find(&args.job, &args.root)?;
    let grace = Duration::try_from_secs_f64(args.grace)
        .map_err(|_| Problem::usage(format!("--grace {} is no time: give seconds", args.grace)))?;
    let engine = job.engine()?;
    let status = runtime()?.block_on(engine.cancel(&job.id, grace))?;
    job.keep(&status);
    match json {
        true => out::json(json!({ "job": job.id, "status": status })),
        false => out::text(&format!("job {} {}\n", job.id, words(&status.state))),
    }
}

/// Prints what the driver wrote, and with `follow` goes on to the job's end.
pub(crate) fn driver_log(job: &Job, follow: bool) -> Outcome {
    let engine = job.engine()?;
    runtime()?.block_on(async {
        let (mut from, wait) = (0, if follow { LOOK } else { Duration::ZERO });
        loop {
            let part = engine.logs(&job.id, from, wait).await?;
            out::write(&part.bytes)?;
            if part.end || (!follow && part.bytes.is_empty()) {
                return Ok(());
            }
            from = part.next;
        }
    })
}

/// How following a job came to its end.
enum Left {
    Ended(JobStatus),
    Detached,
}

/// Shows what the driver writes until the job ends, and makes its end this command's. Ctrl-C leaves it alone.
pub(crate) fn follow(job: &Job, engine: &Arc<dyn Engine>, json: bool) -> Outcome {
    let status = match runtime()?.block_on(watch(job, engine))? {
        Left::Ended(status) => status,
        Left::Detached => {
            let (program, id, root) = (train::program(), &job.id, job.root_option());
            eprintln!(
                "\ndetached: job {id} goes on\nfollow it again: {program} attach {id}{root}\nend it:          {program} cancel \
                 {id}{root}"
            );
            return Err(Problem { code: exit::FORCED, message: String::new() });
        }
    };
    if json {
        // What `train` tells of a run, where its folder can be seen from here.
        let folder = job.root.join(&job.record.experiment).join(&job.record.run);
        let mut told = told(&folder);
        told["job"] = json!({ "id": job.id, "engine": job.record.engine.name(), "status": status });
        out::json(told)?;
    }
    let end = words(&status.state);
    match status.state {
        JobState::Ended(Reason::Succeeded) => Ok(()),
        // The driver has said it all, and how to go on.
        JobState::Ended(Reason::Preempted | Reason::Cancelled) => {
            eprintln!("job {} {end}", job.id);
            Err(Problem { code: exit::RESUMABLE, message: String::new() })
        }
        JobState::Ended(Reason::UserError { code }) if code == i32::from(exit::USAGE) => {
            Err(Problem::usage(format!("job {} {end}", job.id)))
        }
        // What failed of a study, its driver has said.
        JobState::Ended(Reason::UserError { code }) if code == i32::from(exit::SOME_FAILED) => {
            Err(Problem { code: exit::SOME_FAILED, message: String::new() })
        }
        _ => Err(Problem::failed(format!("job {} {end}", job.id))),
    }
}

/// What is told of a run or study, nothing where it cannot be seen from here.
fn told(folder: &Path) -> Value {
    let run = || Some(train::told(&RunResult::open(folder).ok()?));
    let study = || {
        let grid = ResultGrid::open(folder).ok()?;
        Some(tune::told(runs::status(grid.run(), folder), &grid))
    };
    if tune::is_study(folder) { study() } else { run() }.unwrap_or_else(|| json!({}))
}

async fn watch(job: &Job, engine: &Arc<dyn Engine>) -> Outcome<Left> {
    let mut signals = Signals::listen()?;
    tokio::select! {
        ended = pass_on(job, engine) => Ok(Left::Ended(ended?)),
        () = signals.next() => Ok(Left::Detached),
    }
}

/// Passes on what the driver writes, and what it waits for, to the job's end.
async fn pass_on(job: &Job, engine: &Arc<dyn Engine>) -> Outcome<JobStatus> {
    let (mut from, mut asked) = (0, None::<Instant>);
    let (mut told, mut deaf) = (String::new(), None::<Instant>);
    loop {
        match engine.logs(&job.id, from, LOOK).await {
            Ok(part) => {
                deaf = None;
                // The terminal may be gone; the job's end counts all the same.
                let _ = std::io::stderr().lock().write_all(&part.bytes);
                from = part.next;
                if part.end {
                    break;
                }
            }
            Err(error @ regatta_cluster::Error::UnknownJob { .. }) => return Err(error.into()),
            Err(error) => {
                let since = *deaf.get_or_insert_with(|| {
                    eprintln!("the engine does not answer ({error}); trying on");
                    Instant::now()
                });
                if since.elapsed() > DEAF {
                    let again = format!("{} attach {}{}", train::program(), job.id, job.root_option());
                    return Err(Problem::failed(format!(
                        "{error}; the job may go on all the same: try `{again}`"
                    )));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        if from == 0 && asked.is_none_or(|asked| asked.elapsed() >= ASK) {
            asked = Some(Instant::now());
            if let Ok(status) = job.status(&**engine).await
                && let JobState::Queued(_) = status.state
                && words(&status.state) != told
            {
                told = words(&status.state);
                eprintln!("{told}");
            }
        }
    }
    Ok(job.status(&**engine).await?)
}
