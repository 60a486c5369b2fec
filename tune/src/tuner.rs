//! The way to tune: a training or a function, what to search, and who searches.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use regatta_cluster::Resources;
use regatta_cluster::local::LocalNode;
use regatta_track::Reader;
use regatta_train::config::{PreemptionSignal, ScalingConfig};
use regatta_train::environment::Environment;
use regatta_train::folder::{CONFIG, RunFolder, is_run};
use regatta_train::signals::{Signals, Wish};
use regatta_train::{Experiment, RunConfig, Site, Trainable, Trainer, registry};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::config::{Mode, Objective as Goal, SamplerConfig, TuneConfig};
use crate::error::{Error, Result};
use crate::results::ResultGrid;
use crate::runner::{
    Ending, Executor, Heard, IntoValues, Job, Objective, PoolExecutor, PoolPlan, Runner, RunningTrial,
    StudyCallback, StudyEvent, ThreadExecutor, TrainerExecutor,
};
use crate::sampler::Sampler;
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::space::{Known, Node, Space};
use crate::stopper::{Stopper, StopperConfig};
use crate::study::{Session, Setup, probe};

/// What a trial is.
enum Work {
    /// A run of its own.
    Training(Box<Trainer>),
    /// A call.
    Call(Objective),
}

/// Races many trials against each other.
///
/// ```
/// use regatta_tune::Tuner;
/// use regatta_tune::sampler::Tpe;
///
/// # let folder = tempfile::tempdir()?;
/// let grid = Tuner::objective(|trial| -> Result<f64, regatta_tune::Error> {
///     let (x, y) = (trial.float("x", -5.0..=5.0).get()?, trial.float("y", -5.0..=5.0).get()?);
///     Ok((x - 1.0).powi(2) + (y + 2.0).powi(2))
/// })
/// .minimize("loss")
/// .samples(50)
/// .concurrent(2)
/// .sampler(Tpe::default())
/// .storage(folder.path().to_str().unwrap())
/// .name("bowl")
/// .fit()?;
/// assert_eq!(grid.trials().len(), 50);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A training is tuned the same way, in worker processes and with checkpoints:
/// `Tuner::new(Trainer::new(resnet, Config::default()).workers(2)).maximize("accuracy")`; the space is then that of its
/// configuration's type, which derives [`SearchSpace`](crate::SearchSpace).
pub struct Tuner {
    work: Work,
    config: TuneConfig,
    space: Option<Space>,
    run: RunConfig,
    resume: Option<PathBuf>,
    allow_changed_space: bool,
    handle_signals: bool,
    grace: Duration,
    sampler: Option<Box<dyn Sampler>>,
    scheduler: Option<Box<dyn Scheduler>>,
    stopper: Option<Box<dyn Stopper>>,
    callbacks: Vec<Box<dyn StudyCallback>>,
    handle: StudyHandle,
    heard: Receiver<Heard>,
    problem: Option<Error>,
}

/// Gives orders to a study. May be cloned, sent, and kept beyond the study's end, when its orders have no effect.
#[derive(Clone)]
pub struct StudyHandle {
    to: Sender<Heard>,
}

impl StudyHandle {
    /// Asks the study to stop: trials save and leave, and it can be resumed. Asked again, it ends at once.
    pub fn stop(&self) {
        self.to.send(Heard::Stop).ok();
    }

    /// Ends the study at once. What its trials did since their last checkpoints is lost.
    pub fn kill(&self) {
        self.to.send(Heard::Kill).ok();
    }
}

impl Tuner {
    /// Tunes a training.
    pub fn new(trainer: Trainer) -> Self {
        let run = trainer.experiment().run.clone();
        let grace = trainer.experiment().failure.grace_seconds;
        let mut tuner = Self::bare(Work::Training(Box::new(trainer)), run);
        tuner.grace = Duration::try_from_secs_f64(grace).unwrap_or(tuner.grace);
        tuner
    }

    /// Tunes a function that is called on threads of this process: it returns a number, or one for each objective. It asks
    /// the trial for its parameters, or reads them from its configuration, if there is a [`space`](Self::space).
    pub fn objective<F, V>(function: F) -> Self
    where
        F: Fn(&mut RunningTrial) -> V + Send + Sync + 'static,
        V: IntoValues,
    {
        let objective: Objective = Arc::new(move |trial: &mut RunningTrial| function(trial).values());
        Self::bare(Work::Call(objective), RunConfig::default())
    }

    /// Tunes what an experiment file says, with a function of this program; `tune` is the file's section of that name.
    pub fn from_experiment(experiment: Experiment<Value>, tune: TuneConfig) -> Result<Self> {
        Ok(Self::new(Trainer::from_experiment(experiment)?).config(tune))
    }

    /// Goes on with a study of trainings as it was configured: by its folder, its name, or `experiment/name`, under `./runs`; or
    /// by its URL, from wherever it was driven.
    pub fn of_study(study: &str) -> Result<Self> {
        let folder = match study.contains("://") {
            true => fetch(study)?,
            false => RunFolder::find(study, &RunConfig::default())?.path,
        };
        let (experiment, tune) = read_study(&folder)?;
        Ok(Self::from_experiment(experiment, tune)?.resume(&folder))
    }

    fn bare(work: Work, run: RunConfig) -> Self {
        let (to, heard) = channel();
        Tuner {
            work,
            config: TuneConfig::default(),
            space: None,
            run,
            resume: None,
            allow_changed_space: false,
            handle_signals: false,
            grace: Duration::from_secs(30),
            sampler: None,
            scheduler: None,
            stopper: None,
            callbacks: Vec::new(),
            handle: StudyHandle { to },
            heard,
            problem: None,
        }
    }

    /// Sets all of the study's configuration.
    #[must_use]
    pub fn config(mut self, config: TuneConfig) -> Self {
        self.config = config;
        self
    }

    /// What is to be made small.
    #[must_use]
    pub fn minimize(mut self, metric: impl Into<String>) -> Self {
        (self.config.metric, self.config.mode) = (metric.into(), Mode::Min);
        self
    }

    /// What is to be made large.
    #[must_use]
    pub fn maximize(mut self, metric: impl Into<String>) -> Self {
        (self.config.metric, self.config.mode) = (metric.into(), Mode::Max);
        self
    }

    /// A further objective.
    #[must_use]
    pub fn also(mut self, objective: Goal) -> Self {
        self.config.also.push(objective);
        self
    }

    /// A metric that is to stay at or below zero.
    #[must_use]
    pub fn constraint(mut self, metric: impl Into<String>) -> Self {
        self.config.constraints.push(metric.into());
        self
    }

    /// How many trials: 10 unless told otherwise, or all points of a grid. More of them extend a study that is resumed.
    #[must_use]
    pub fn samples(mut self, samples: u64) -> Self {
        self.config.samples = Some(samples);
        self
    }

    /// How many trials at once.
    #[must_use]
    pub fn concurrent(mut self, trials: usize) -> Self {
        self.config.concurrent = Some(trials);
        self
    }

    /// What is searched.
    #[must_use]
    pub fn space(mut self, space: Space) -> Self {
        self.space = Some(space);
        self
    }

    /// Who chooses configurations.
    #[must_use]
    pub fn sampler(mut self, sampler: impl Into<SamplerConfig>) -> Self {
        self.config.sampler = sampler.into();
        self
    }

    /// A sampler of one's own. Whoever resumes the study gives it again.
    #[must_use]
    pub fn own_sampler(mut self, sampler: impl Sampler + 'static) -> Self {
        self.sampler = Some(Box::new(sampler));
        self
    }

    /// Who decides which trials go on.
    #[must_use]
    pub fn scheduler(mut self, scheduler: impl Into<SchedulerConfig>) -> Self {
        self.config.scheduler = scheduler.into();
        self
    }

    /// A scheduler of one's own. Whoever resumes the study gives it again.
    #[must_use]
    pub fn own_scheduler(mut self, scheduler: impl Scheduler + 'static) -> Self {
        self.scheduler = Some(Box::new(scheduler));
        self
    }

    /// When a trial or the study has had enough.
    #[must_use]
    pub fn stop(mut self, stop: StopperConfig) -> Self {
        self.config.stop = Some(stop);
        self
    }

    /// A rule of one's own for that, such as a closure. Whoever resumes the study gives it again.
    #[must_use]
    pub fn stop_when(mut self, stopper: impl Stopper + 'static) -> Self {
        self.stopper = Some(Box::new(stopper));
        self
    }

    /// Tries this configuration first; what it leaves out is drawn.
    #[must_use]
    pub fn enqueue(mut self, config: impl serde::Serialize) -> Self {
        match serde_json::to_value(config) {
            Ok(config) => self.config.enqueue.push(config),
            Err(error) => {
                self.problem = Some(Error::config("tune.enqueue", format!("it cannot be written: {error}")));
            }
        }
        self
    }

    /// Whether the first trial that fails ends the study.
    #[must_use]
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.config.fail_fast = fail_fast;
        self
    }

    /// Whether worker processes go from trial to trial: for many short trainings. Such trials have no run's folder of their
    /// own, only their checkpoints.
    #[must_use]
    pub fn reuse(mut self, reuse: bool) -> Self {
        self.config.reuse = reuse;
        self
    }

    /// Whether trials of calls and of workers that are kept write their metrics to folders of their own, too: as CSV, JSON
    /// lines, and for TensorBoard with their hyperparameters.
    #[must_use]
    pub fn files(mut self, files: bool) -> Self {
        self.config.files = files;
        self
    }

    /// What schedulers and stoppers count in, if that is not the number of reports.
    #[must_use]
    pub fn resource(mut self, metric: impl Into<String>) -> Self {
        self.config.resource = metric.into();
        self
    }

    /// The study's name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.run.name = Some(name.into());
        self
    }

    /// The experiment it belongs to.
    #[must_use]
    pub fn experiment(mut self, experiment: impl Into<String>) -> Self {
        self.run.experiment = Some(experiment.into());
        self
    }

    /// Where studies lie.
    #[must_use]
    pub fn storage(mut self, storage: impl Into<String>) -> Self {
        self.run.storage = storage.into();
        self
    }

    /// The seed that all randomness of the search is derived from.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.run.seed = seed;
        self
    }

    /// Trains on threads of this process: for tests and debuggers.
    #[must_use]
    pub fn in_process(mut self) -> Self {
        if let Work::Training(trainer) = self.work {
            self.work = Work::Training(Box::new(trainer.in_process()));
        }
        self
    }

    /// Goes on with the study in this folder.
    #[must_use]
    pub fn resume(mut self, folder: impl AsRef<Path>) -> Self {
        self.resume = Some(folder.as_ref().to_owned());
        self
    }

    /// Goes on in the space that is given now, though the study was begun in another. What it found there counts as far as
    /// it can be said in this one.
    #[must_use]
    pub fn allow_changed_space(mut self, allow: bool) -> Self {
        self.allow_changed_space = allow;
        self
    }

    /// Tells this what happens.
    #[must_use]
    pub fn callback(mut self, callback: impl StudyCallback + 'static) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Whether the process's signals are handled: the first SIGINT or SIGTERM stops the study gracefully, the second ends it
    /// at once. Off by default.
    #[must_use]
    pub fn handle_signals(mut self, handle: bool) -> Self {
        self.handle_signals = handle;
        self
    }

    /// Gives orders to the study while it runs.
    pub fn handle(&self) -> StudyHandle {
        self.handle.clone()
    }

    /// The study's configuration as it stands.
    pub fn tune_config(&self) -> &TuneConfig {
        &self.config
    }

    /// Runs the study to its end, or to where it is stopped. Trials that fail do not make it fail.
    pub fn fit(self) -> Result<ResultGrid> {
        self.drive().map(|(_, grid)| grid)
    }

    /// The same, with how it ended.
    pub fn drive(mut self) -> Result<(Ending, ResultGrid)> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        self.config.check()?;
        let space = self.searched()?;
        let place = self.place()?;
        let threads = 2;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("regatta-control")
            .enable_all()
            .build()
            .map_err(|source| regatta_train::Error::io("start the study's runtime", source))?;
        let signals = self.signals(&runtime)?;
        let (resumed, decides) = (self.resume.is_some(), self.decides());
        let setup = self.setup(space, &place)?;
        let session = match resumed {
            true => Session::open(setup)?,
            false => Session::create(setup)?,
        };
        self.write_config(&place)?;
        let concurrent = session.machine().opened().concurrent;
        let open = session.machine().space().is_open().then_some(self.run.seed);
        let (grace, callbacks) = (self.grace, std::mem::take(&mut self.callbacks));
        let (executor, heard) =
            self.executor(&place, runtime, Shape { concurrent, open, decides, epoch: session.epoch() })?;
        let mut runner = Runner::new(session, executor, heard);
        (runner.grace, runner.callbacks) = (grace, callbacks);
        let begun = StudyEvent::Begun {
            experiment: &place.experiment,
            name: &place.name,
            folder: &place.path,
            resumed,
        };
        runner.tell(&begun);
        let ending = runner.run();
        drop(signals);
        let ending = ending?;
        Ok((ending, ResultGrid::open(&place.path)?))
    }

    fn signals(&self, runtime: &Runtime) -> Result<Option<Signals>> {
        if !self.handle_signals {
            return Ok(None);
        }
        let _inside = runtime.enter();
        let handle = self.handle.clone();
        let signals = Signals::pass_on(PreemptionSignal::default(), move |wish| match wish {
            Wish::Stop(_) => handle.stop(),
            Wish::Kill => handle.kill(),
        })?;
        Ok(Some(signals))
    }

    /// Whether anything is decided at reports, so that trials wait after each.
    fn decides(&self) -> bool {
        let own = self.scheduler.is_some() || self.stopper.is_some();
        own || self.config.stop.is_some() || !matches!(self.config.scheduler, SchedulerConfig::Fifo(_))
    }

    /// What is searched: what was given, or what the configuration's type says; narrowed by the file.
    fn searched(&mut self) -> Result<Space> {
        let known = match &self.work {
            Work::Training(trainer) => trainer.config_type().and_then(Known::find),
            Work::Call(_) => None,
        };
        let own = match (self.space.take(), known) {
            (Some(space), _) => Some(space),
            (None, Some(node)) => Some(Space::new(node)?),
            (None, None) => None,
        };
        match (own, &self.config.space, &self.work) {
            (Some(space), Some(over), _) => space.narrow(&Node::Struct(over.clone())),
            (Some(space), None, _) => Ok(space),
            (None, Some(fields), _) => Space::new(Node::Struct(fields.clone())),
            (None, None, Work::Call(_)) => Ok(Space::open()),
            (None, None, Work::Training(_)) => Err(Error::config(
                "tune.space",
                "there is nothing to search: derive SearchSpace for the configuration, or say here what is searched, as in \
                 space: { \"lr\": Float(low: 1e-4, high: 0.1, log: true) }",
            )),
        }
    }

    fn place(&mut self) -> Result<RunFolder> {
        let name = match &self.work {
            Work::Training(trainer) => trainer.experiment().trainable.experiment_name(),
            Work::Call(_) => "study".into(),
        };
        let place = match &self.resume {
            Some(folder) => {
                let place = RunFolder::find(&folder.to_string_lossy(), &self.run)?;
                if place.is_remote() {
                    place.bring_back()?;
                }
                place
            }
            None => {
                let place = RunFolder::new(&self.run, &name)?;
                let taken = |folder| Err(Error::StudyExists { name: place.name.clone(), folder });
                if is_run(&place.path) {
                    return taken(place.path.display().to_string());
                }
                if place.has_copy()? {
                    return taken(place.storage.clone());
                }
                std::fs::create_dir_all(&place.path).map_err(|source| {
                    let what = format!("make the study's folder {}", place.path.display());
                    regatta_train::Error::io(what, source)
                })?;
                place
            }
        };
        (self.run.experiment, self.run.name) = (Some(place.experiment.clone()), Some(place.name.clone()));
        Ok(place)
    }

    fn setup(&mut self, space: Space, place: &RunFolder) -> Result<Setup> {
        let (base, concurrent, document) = match &self.work {
            Work::Training(trainer) => {
                let experiment = trainer.experiment();
                experiment.check()?;
                let base = experiment.config.clone();
                // A configuration that does not fit the trainable's type is found before anything is begun.
                if !trainer.is_in_process() {
                    let config = probe(&space, &base, self.run.seed)?;
                    registry::normalise_for(&experiment.trainable, config)?;
                }
                let mut document = json!(experiment);
                document["tune"] = json!(self.config);
                let room = if trainer.is_in_process() { processors() } else { room(&experiment.scaling) };
                (base, room, document)
            }
            Work::Call(_) => (Value::Null, processors(), json!({ "tune": self.config })),
        };
        let environment = match self.resume {
            None => serde_json::to_value(Environment::capture(self.run.seed)).unwrap_or_default(),
            Some(_) => Value::Null,
        };
        Ok(Setup {
            experiment: place.experiment.clone(),
            name: place.name.clone(),
            folder: place.path.clone(),
            remote: place.is_remote().then(|| place.storage.clone()),
            config: self.config.clone(),
            space,
            base,
            seed: self.run.seed,
            concurrent: self.config.concurrent.unwrap_or(concurrent),
            instant: matches!(self.work, Work::Call(_)),
            files: self.config.files && (matches!(self.work, Work::Call(_)) || self.config.reuse),
            sampler: self.sampler.take(),
            scheduler: self.scheduler.take(),
            stopper: self.stopper.take(),
            document,
            environment,
            allow_changed_space: self.allow_changed_space,
        })
    }

    fn write_config(&self, place: &RunFolder) -> Result<()> {
        let mut experiment = match &self.work {
            Work::Training(trainer) => trainer.experiment().clone(),
            Work::Call(_) => Experiment {
                trainable: Trainable::Function("objective".into()),
                config: Value::Object(serde_json::Map::new()),
                ..Experiment::default()
            },
        };
        experiment.run = self.run.clone();
        write_study(&place.path, &experiment, &self.config)
    }

    fn executor(
        self,
        place: &RunFolder,
        runtime: Runtime,
        Shape { concurrent, open, decides, epoch }: Shape,
    ) -> Result<(Box<dyn Executor>, Receiver<Heard>)> {
        let Tuner { work, config, handle, heard, .. } = self;
        let to = handle.to;
        let executor: Box<dyn Executor> = match work {
            Work::Call(objective) => {
                let metrics: Vec<String> = config.objectives().into_iter().map(|goal| goal.metric).collect();
                let job = Job { objective, metrics: metrics.into(), open, decides };
                Box::new(ThreadExecutor::start(job, concurrent, to, runtime)?)
            }
            Work::Training(trainer) => {
                let site = match trainer.is_in_process() {
                    true => None,
                    false => Some(runtime.block_on(Site::on(&trainer.experiment().engine))?),
                };
                if let (true, Some(site)) = (config.reuse, &site) {
                    let plan = PoolPlan {
                        trainer: *trainer,
                        lockstep: decides,
                        study: place.path.clone(),
                        storage: place.storage.clone(),
                        site: site.clone(),
                        workers: concurrent,
                        epoch,
                        to,
                    };
                    return Ok((Box::new(PoolExecutor::start(plan, runtime)?), heard));
                }
                Box::new(TrainerExecutor {
                    like: trainer.lockstep(decides),
                    study: place.path.clone(),
                    storage: place.storage.clone(),
                    resumed: epoch > 1,
                    decides,
                    site,
                    to,
                    runtime,
                    running: std::collections::BTreeMap::new(),
                })
            }
        };
        Ok((executor, heard))
    }
}

/// What an executor has to know of its study.
struct Shape {
    concurrent: usize,
    /// The seed of a study whose space is discovered.
    open: Option<u64>,
    /// Whether anything is decided at reports.
    decides: bool,
    /// How often the study was opened.
    epoch: u64,
}

/// Brings a run or a study here from its URL, with the configuration it was begun with; the folder it then has.
pub fn fetch(url: &str) -> Result<PathBuf> {
    let place = RunFolder::find(url, &RunConfig::default())?;
    let mut stored = Reader::open(&place.path)?.snapshot()?.run()?.unwrap_or_default().config;
    let Some(tune) = stored.as_object_mut().and_then(|document| document.remove("tune")) else {
        return Ok(place.path);
    };
    let unreadable = |error: serde_json::Error| {
        Error::config("config", format!("the study at {url} was configured by another build: {error}"))
    };
    let tune: TuneConfig = serde_json::from_value(tune).map_err(unreadable)?;
    let mut experiment: Experiment<Value> = serde_json::from_value(stored).map_err(unreadable)?;
    let storage = url.trim_end_matches('/').rsplitn(3, '/').nth(2).unwrap_or_default();
    experiment.run.storage = storage.to_owned();
    (experiment.run.experiment, experiment.run.name) = (Some(place.experiment), Some(place.name));
    write_study(&place.path, &experiment, &tune)?;
    Ok(place.path)
}

fn write_study(folder: &Path, experiment: &Experiment<Value>, tune: &TuneConfig) -> Result<()> {
    let text = tune.append_to(&registry::to_ron(experiment)?)?;
    let path = folder.join(CONFIG);
    let failed = |source| regatta_train::Error::io(format!("write {}", path.display()), source);
    Ok(std::fs::write(&path, text).map_err(failed)?)
}

/// The configuration and the `tune` section of a study's folder.
pub(crate) fn read_study(folder: &Path) -> Result<(Experiment<Value>, TuneConfig)> {
    let path = folder.join(CONFIG);
    let failed = |source| regatta_train::Error::io(format!("read {}", path.display()), source);
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let unreadable = |why: String| Error::config("config.ron", format!("{}: {why}", path.display()));
    let parsed = registry::read(&text).map_err(|error| unreadable(error.to_string()))?;
    let section =
        parsed.tune.ok_or_else(|| unreadable("it has no `tune` section: this is no study".into()))?;
    let tune = TuneConfig::read(&section).map_err(|error| unreadable(error.to_string()))?;
    Ok((parsed.experiment, tune))
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many trials this host has room for.
fn room(scaling: &ScalingConfig) -> usize {
    let host = LocalNode::this_host().resources;
    let workers = scaling.workers.min().max(1) as u64;
    let fits = |has: u64, each: u64| if each == 0 { u64::MAX } else { has / (each * workers) };
    let each: &Resources = &scaling.resources;
    let gpu = if scaling.gpu { each.gpu.thousandths().max(1_000) } else { each.gpu.thousandths() };
    let by_cpu = fits(host.cpu.thousandths(), each.cpu.thousandths());
    by_cpu.min(fits(host.gpu.thousandths(), gpu)).clamp(1, 1_024) as usize
}
