//! `regatta submit` and `regatta render`: a run or a study as a job of its engine.
//!
//! A job is named after its experiment and run, and numbered where the run was submitted before, so submitting twice is
//! submitting once, and going on with a run is a job of its own.

use std::path::Path;
use std::sync::Arc;

use regatta_cluster::WorkerCommand;
use regatta_cluster::engine::{Engine, EngineConfig, JobId, JobSpec};
use regatta_train::folder::{self, RunFolder};
use regatta_train::{Error, Experiment};
use serde_json::{Value, json};

use crate::args::{Source, Submit};
use crate::configure;
use crate::drive::{ORDER, Order, Study};
use crate::jobs::{self, Job, Record, Standing};
use crate::out;
use crate::problem::{Outcome, Problem};
use crate::runs;
use crate::train;
use crate::tune;

/// The longest order: what Linux lets one variable hold, less what it is called.
const LONGEST_ORDER: usize = 120 << 10;

/// A job before it is submitted.
pub(crate) struct Planned {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) job: Job,
    spec: JobSpec,
    /// Whether it was submitted before and is not over.
    is_under_way: bool,
}

/// `regatta submit WHAT`.
pub(crate) fn submit(args: &Submit, json: bool) -> Outcome {
    let runtime = jobs::runtime()?;
    let planned = runtime.block_on(plan(args))?;
    let new = runtime.block_on(planned.submit())?;
    if args.attach {
        return jobs::follow(&planned.job, &planned.engine, json);
    }
    let Job { id, record, .. } = &planned.job;
    let program = train::program();
    let root = planned.job.root_option();
    match json {
        true => out::json(
            json!({ "job": id, "new": new, "engine": record.engine.name(), "run": record.full_name() }),
        ),
        false => {
            let was = if new { "submitted" } else { "was submitted before" };
            out::text(&format!(
                "job {id} {was}, to {}, for run {}\nfollow it: {program} attach {id}{root}\nend it:    {program} cancel {id}{root}\n",
                record.engine.name(),
                record.full_name(),
            ))
        }
    }
}

/// `regatta render WHAT`.
pub(crate) fn render(args: &Submit) -> Outcome {
    let planned = jobs::runtime()?.block_on(plan(args))?;
    out::text(&planned.engine.render(&planned.spec)?)
}

/// A new run or study of a file, or one to go on with.
async fn plan(args: &Submit) -> Outcome<Planned> {
    let found = match args.what.is_file() {
        true => None,
        false => Some(runs::find(&args.what.to_string_lossy(), &args.root)?.folder),
    };
    let file = found.as_ref().map_or_else(|| args.what.clone(), |folder| folder.join(folder::CONFIG));
    let (source, changes) = tune::split(&Source { file, overrides: args.overrides.clone() })?;
    let settings = configure::load(&source, train::options(&args.common))?;
    let study = match settings.tune().is_some() || !changes.is_empty() {
        true => Some(tune::section(&settings, &changes)?.into()),
        false => None,
    };
    let experiment = settings.experiment().clone();
    match found {
        None => fresh(experiment, study).await,
        Some(folder) => again(experiment, study, &folder).await,
    }
}

/// The job of a new run or study.
async fn fresh(mut experiment: Experiment<Value>, study: Option<Study>) -> Outcome<Planned> {
    let trained = experiment.trainable.experiment_name();
    experiment.run.name.get_or_insert_with(folder::draw_name);
    let place = RunFolder::new(&experiment.run, &trained)?;
    experiment.run.experiment = Some(place.experiment.clone());
    if experiment.engine.shares_files() {
        train::writable(&experiment.run.storage)?;
    }
    let root = runs::root_of(&experiment.run.storage);
    let planned = Planned::new(Order { experiment, study, resume: None }, &place, &root).await?;
    if folder::is_run(&place.path) && !planned.is_under_way {
        let folder = place.path.display().to_string();
        return Err(Error::RunExists { name: place.name, folder }.into());
    }
    Ok(planned)
}

/// The job that goes on with a run or study.
async fn again(experiment: Experiment<Value>, study: Option<Study>, run: &Path) -> Outcome<Planned> {
    let place = RunFolder::find(&run.to_string_lossy(), &experiment.run)?;
    let root = place.path.parent().and_then(Path::parent).unwrap_or(&place.path).to_owned();
    let order = Order { experiment, study, resume: Some(place.path.clone()) };
    Planned::new(order, &place, &root).await
}

impl Planned {
    async fn new(order: Order, place: &RunFolder, root: &Path) -> Outcome<Self> {
        let record = Record {
            engine: order.experiment.engine.clone(),
            experiment: place.experiment.clone(),
            run: place.name.clone(),
            number: 1,
        };
        let name = record.full_name();
        let last = jobs::all(root).into_iter().rfind(|job| job.record.full_name() == name);
        let standing = match &last {
            Some(last) => last.standing().await?,
            None => Standing::NotTaken,
        };
        let record = match (last, standing) {
            (Some(last), Standing::Over) => Record { number: last.record.number + 1, ..record },
            // It is where it was submitted, whatever is said now.
            (Some(last), Standing::UnderWay) => last.record,
            (Some(last), Standing::NotTaken) => Record { number: last.record.number, ..record },
            (None, _) => record,
        };
        let job = Job::new(root, job_id(&record)?, record)?;
        let room = order.experiment.scaling.request(&name);
        let spec = JobSpec::new(job.id.clone(), command(&order)?, room)
            .gangs(gangs(&order)?)
            .label("experiment", &place.experiment)
            .label("run", &place.name);
        Ok(Planned { engine: job.engine()?, job, spec, is_under_way: standing == Standing::UnderWay })
    }

    /// Submits it; `false` if it was before.
    pub(crate) async fn submit(&self) -> Outcome<bool> {
        self.job.remember()?;
        Ok(self.engine.submit(&self.spec).await?.new)
    }
}

/// How many gangs there will be at once: one, or one for each of a study's trials.
fn gangs(order: &Order) -> Outcome<usize> {
    let Some(study) = &order.study else { return Ok(1) };
    let engine = &order.experiment.engine;
    match study.tune.concurrent {
        Some(trials) => Ok(trials),
        None if !is_elsewhere(engine) => Ok(1),
        None => Err(Problem::usage(format!(
            "tune.concurrent is not set: say how many trials run at once, for {} is asked for room for so many",
            engine.name()
        ))),
    }
}

/// This program as the driver.
fn command(order: &Order) -> Outcome<WorkerCommand> {
    let text = serde_json::to_string(order)
        .map_err(|error| Problem::failed(format!("cannot write the driver's order: {error}")))?;
    if text.len() > LONGEST_ORDER {
        let bytes = text.len();
        return Err(Problem::usage(format!(
            "the experiment takes {bytes} bytes, and a job can be told {LONGEST_ORDER}: let the configuration name a file \
             for what is long in it"
        )));
    }
    let myself = WorkerCommand::myself()
        .map_err(|error| Problem::failed(format!("cannot find this program to submit it: {error}")))?;
    Ok(myself.arg("drive").env(ORDER, text))
}

/// A name that every engine carries, of one run and one number.
fn job_id(record: &Record) -> Outcome<JobId> {
    let name = format!("{}-{}", record.experiment, record.run);
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let mut id: String = name.chars().map(plain).collect();
    if id != name || id.len() > 50 {
        // What was changed or cut off of it tells it from others.
        id.truncate(41);
        id = format!("{}-{:08x}", id.trim_end_matches('-'), fingerprint(&name));
    }
    if record.number > 1 {
        id = format!("{id}-{}", record.number);
    }
    Ok(JobId::new(id)?)
}

/// FNV-1a: the same in every build, and enough to tell a user's runs apart.
fn fingerprint(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Trains or tunes by a job, and follows it: what `train`, `tune` and `resume` do for an engine other than this host.
pub(crate) fn submit_and_follow(order: Order, json: bool) -> Outcome {
    let runtime = jobs::runtime()?;
    let planned = runtime.block_on(async {
        let planned = match &order.resume {
            Some(folder) => again(order.experiment, order.study, folder).await?,
            None => fresh(order.experiment, order.study).await?,
        };
        planned.submit().await?;
        Ok::<_, Problem>(planned)
    })?;
    let Job { id, record, .. } = &planned.job;
    eprintln!("job {id}, on {}, for run {}", record.engine.name(), record.full_name());
    jobs::follow(&planned.job, &planned.engine, json)
}

/// Whether a job has to be made of it.
pub(crate) fn is_elsewhere(engine: &EngineConfig) -> bool {
    *engine != EngineConfig::Local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids_are_of_one_run_and_one_number() {
        let id = |experiment: &str, run: &str, number| {
            let record = Record {
                engine: EngineConfig::Local,
                experiment: experiment.into(),
                run: run.into(),
                number,
            };
            job_id(&record).unwrap().to_string()
        };
        assert_eq!(id("mnist", "brisk-otter-4f2a", 1), "mnist-brisk-otter-4f2a");
        assert_eq!(id("mnist", "brisk-otter-4f2a", 3), "mnist-brisk-otter-4f2a-3");
        assert_ne!(id("mnist", "a.b", 1), id("mnist", "a_b", 1));
        assert_ne!(id("mnist", "A", 1), id("mnist", "a", 1));
        let (one, other) = (format!("{}1", "x".repeat(99)), format!("{}2", "x".repeat(99)));
        assert_ne!(id("mnist", &one, 999_999), id("mnist", &other, 999_999));
        assert!(id("mnist", "x_", 1).starts_with("mnist-x-"));
    }
}
