//! The way to train: a function, its configuration, and what the run needs.

use std::any::type_name;
use std::sync::Arc;

use regatta_cluster::engine::EngineConfig;
use regatta_cluster::{Allocator, WorkerCommand, WorkerConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::callback::Callback;
use crate::command::{self, CommandCrew, CommandPlan};
use crate::config::{
    CheckpointConfig, Experiment, FailureConfig, RunConfig, ScalingConfig, Trainable, Workers, short_name,
};
use crate::controller::Ending;
use crate::controller::drive::{NOT_A_WORKER, Parts, drive};
use crate::crew::Crew;
use crate::folder::{self, RunFolder};
use crate::gang::{GangCrew, GangPlan, Site};
use crate::handle::{Order, RunHandle};
use crate::registry::{self, Registration};
use crate::result::RunResult;
use crate::signals::Signals;
use crate::threads::{Body, ThreadCrew};
use crate::wire::Restore;
use crate::{BoxError, Error, Result, TrainContext};

/// What the ranks are.
enum Hands {
    /// Processes of this program.
    Processes,
    /// Threads of this process.
    Threads,
    /// Something else.
    Other(Box<dyn Crew>),
}

/// Trains a function on a crew of workers, and keeps at it.
///
/// ```no_run
/// use regatta_train::{Result, TrainContext, Trainer};
///
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Config { lr: f64 }
/// # fn resnet(ctx: &mut TrainContext, config: Config) -> Result<f64> { Ok(config.lr) }
/// # fn main() -> Result<()> {
/// let result = Trainer::new(resnet, Config { lr: 0.1 }).workers(2).run("mnist").fit()?;
/// println!("{:?} after {} attempts, in {}", result.metrics(), result.attempts(), result.path().display());
/// # Ok(())
/// # }
/// ```
///
/// The workers are processes of the same program, so `main` has to begin with `regatta::init()?` (or be
/// `regatta::main()`), and the function has to carry `#[regatta::trainable]`. [`Trainer::in_process`] trains on threads
/// instead, needs neither, and takes closures.
pub struct Trainer {
    experiment: Experiment<Value>,
    function: Option<Body>,
    entry: Option<&'static Registration>,
    /// What was wrong with what was given; said when training begins.
    problem: Option<Error>,
    hands: Hands,
    restore: Restore,
    resume: Option<String>,
    callbacks: Vec<Box<dyn Callback>>,
    handle: RunHandle,
    orders: mpsc::UnboundedReceiver<Order>,
    handle_signals: bool,
}

/// What names a run: a name, or all of a [`RunConfig`].
pub trait IntoRun {
    /// Puts it into a configuration.
    fn put(self, run: &mut RunConfig);
}

impl IntoRun for &str {
    fn put(self, run: &mut RunConfig) {
        run.name = Some(self.to_owned());
    }
}

impl IntoRun for String {
    fn put(self, run: &mut RunConfig) {
        run.name = Some(self);
    }
}

impl IntoRun for RunConfig {
    fn put(self, run: &mut RunConfig) {
        *run = self;
    }
}

impl Trainer {
    /// Trains this function with this configuration: one worker, under `./runs`, unless told otherwise.
    pub fn new<C, T, E, F>(function: F, config: C) -> Self
    where
        F: Fn(&mut TrainContext, C) -> Result<T, E> + Send + Sync + 'static,
        C: Serialize + DeserializeOwned,
        T: Serialize,
        E: Into<BoxError>,
    {
        let entry = registry::of(&function);
        let name = entry.map_or_else(|| short_name(type_name::<F>()), |entry| entry.name.to_owned());
        let (config, problem) = match serde_json::to_value(config) {
            Ok(config) => (config, None),
            Err(error) => {
                (Value::Null, Some(Error::config("config", format!("it cannot be written: {error}"))))
            }
        };
        let experiment = Experiment { trainable: Trainable::Function(name), config, ..Experiment::default() };
        let function: Body =
            Arc::new(move |context: &mut TrainContext, config| registry::run(&function, context, config));
        Trainer { function: Some(function), entry, problem, ..Self::bare(experiment) }
    }

    /// Trains what an experiment file says, with a function of this program.
    pub fn from_experiment(experiment: Experiment<Value>) -> Result<Self> {
        let mut trainer = Self::bare(experiment);
        if let Trainable::Function(name) = &trainer.experiment.trainable {
            let entry = registry::find(name)?;
            trainer.entry = Some(entry);
            trainer.function = Some(Arc::new(entry.run));
        }
        Ok(trainer)
    }

    /// Goes on with a run as it was configured: by its folder, its name, or `experiment/name`, under `./runs`.
    pub fn of_run(run: &str) -> Result<Self> {
        let found = RunFolder::find(run, &RunConfig::default())?;
        let experiment = folder::read_config(&found.path)?;
        Ok(Self::from_experiment(experiment)?.resume(found.path.to_string_lossy()))
    }

    fn bare(experiment: Experiment<Value>) -> Self {
        let (handle, orders) = RunHandle::new();
        Trainer {
            experiment,
            function: None,
            entry: None,
            problem: None,
            hands: Hands::Processes,
            restore: Restore::Nothing,
            resume: None,
            callbacks: Vec::new(),
            handle,
            orders,
            handle_signals: false,
        }
    }

    /// Trains on so many workers.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.experiment.scaling.workers = Workers::Fixed(workers);
        self
    }

    /// Sets how many workers there are and what each needs.
    #[must_use]
    pub fn scaling(mut self, scaling: ScalingConfig) -> Self {
        self.experiment.scaling = scaling;
        self
    }

    /// Names the run, or sets all of its [`RunConfig`].
    #[must_use]
    pub fn run(mut self, run: impl IntoRun) -> Self {
        run.put(&mut self.experiment.run);
        self
    }

    /// Sets what is saved when, and what stays.
    #[must_use]
    pub fn checkpoint(mut self, checkpoint: CheckpointConfig) -> Self {
        self.experiment.checkpoint = checkpoint;
        self
    }

    /// Sets how much may go wrong.
    #[must_use]
    pub fn failure(mut self, failure: FailureConfig) -> Self {
        self.experiment.failure = failure;
        self
    }

    /// Sets what places the workers. Other than on this host, the program has to run as a job of that engine: `regatta
    /// submit` sees to it.
    #[must_use]
    pub fn engine(mut self, engine: impl Into<EngineConfig>) -> Self {
        self.experiment.engine = engine.into();
        self
    }

    /// Sets where runs lie: a folder, or an object store's URL.
    #[must_use]
    pub fn storage(mut self, storage: impl Into<String>) -> Self {
        self.experiment.run.storage = storage.into();
        self
    }

    /// Sets the seed that all randomness is derived from.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.experiment.run.seed = seed;
        self
    }

    /// Trains on threads of this process: for tests and debuggers.
    #[must_use]
    pub fn in_process(mut self) -> Self {
        self.hands = Hands::Threads;
        self
    }

    /// Trains on another kind of crew.
    #[must_use]
    pub fn crew(mut self, crew: impl Crew + 'static) -> Self {
        self.hands = Hands::Other(Box::new(crew));
        self
    }

    /// Tells this what happens.
    #[must_use]
    pub fn callback(mut self, callback: impl Callback + 'static) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Goes on with this run, by its folder, its name, or `experiment/name`, as its next attempt and with the
    /// configuration given here. [`Trainer::of_run`] takes the run's own.
    #[must_use]
    pub fn resume(mut self, run: impl Into<String>) -> Self {
        self.resume = Some(run.into());
        self
    }

    /// Begins from this in place of the run's own newest checkpoint.
    #[must_use]
    pub fn restore(mut self, restore: Restore) -> Self {
        self.restore = restore;
        self
    }

    /// Whether [`Trainer::fit`] handles the process's signals: the first SIGINT or SIGTERM stops the run gracefully, the
    /// second ends it at once, and the preemption signal stops it as preempted. Off by default.
    #[must_use]
    pub fn handle_signals(mut self, handle: bool) -> Self {
        self.handle_signals = handle;
        self
    }

    /// Gives orders to the run while it is driven.
    pub fn handle(&self) -> RunHandle {
        self.handle.clone()
    }

    /// The experiment as it stands.
    pub fn experiment(&self) -> &Experiment<Value> {
        &self.experiment
    }

    /// Trains to the end. A failed run is an error; one that was stopped is not.
    pub fn fit(self) -> Result<RunResult> {
        if matches!(self.hands, Hands::Processes) && WorkerConfig::is_worker() {
            not_entered();
        }
        // A thread of its own, since the caller may be in a runtime.
        let training = std::thread::Builder::new().name("regatta-driver".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("regatta-control")
                .enable_all()
                .build()
                .map_err(|source| Error::io("start the controller's runtime", source))?;
            runtime.block_on(self.fit_here())
        });
        let training = training.map_err(|source| Error::io("start the controller's thread", source))?;
        match training.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    async fn fit_here(self) -> Result<RunResult> {
        self.experiment.check()?;
        let signals = match self.handle_signals {
            true => Some(Signals::pass_on(self.handle(), self.experiment.failure.preemption_signal)?),
            false => None,
        };
        let site = match self.hands {
            Hands::Processes => Some(Site::on(&self.experiment.engine).await?),
            _ => None,
        };
        let result = self.drive_on(site.as_ref()).await;
        drop(signals);
        result?.into_result()
    }

    /// Trains on a site that other runs may share. How the run ended is in the result, also if it failed; an error is that
    /// it could not be begun. Dropped, it leaves a run that can be resumed.
    pub async fn drive(self, site: &Site) -> Result<RunResult> {
        self.drive_on(Some(site)).await
    }

    async fn drive_on(mut self, site: Option<&Site>) -> Result<RunResult> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        self.experiment.check()?;
        let processes = matches!(self.hands, Hands::Processes);
        if let (true, Some(site)) = (processes, site) {
            self.check_room(site)?;
        }
        let resume = self.resume.is_some();
        let folder = self.place()?;
        let crew = self.crew_for(&folder, site)?;
        if !resume {
            folder.create()?;
        }
        self.experiment.run.experiment = Some(folder.experiment.clone());
        self.experiment.run.name = Some(folder.name.clone());
        std::fs::create_dir_all(&folder.path)
            .map_err(|source| Error::io(format!("make the folder {}", folder.path.display()), source))?;
        folder.write_config(&self.experiment)?;
        let Trainer { experiment, restore, callbacks, orders, .. } = self;
        let parts = Parts { experiment, folder: folder.clone(), resume, restore, crew, callbacks, orders };
        let Ending { status, error, value } = drive(parts).await?;
        RunResult::of_ending(&folder, status, error, value)
    }

    /// Finds the run that is resumed, or the place of a new one.
    fn place(&self) -> Result<RunFolder> {
        match &self.resume {
            Some(run) => RunFolder::find(run, &self.experiment.run),
            None => RunFolder::new(&self.experiment.run, &self.experiment.trainable.experiment_name()),
        }
    }

    /// What can never run is refused before anything is made.
    fn check_room(&self, site: &Site) -> Result<()> {
        let nodes = site.spawner.nodes().into_iter().map(|node| (node.name, node.total));
        let name = self.experiment.run.name.clone().unwrap_or_else(|| "run".into());
        Allocator::new(nodes)?.request(self.experiment.scaling.request(&name))?;
        Ok(())
    }

    fn crew_for(&mut self, folder: &RunFolder, site: Option<&Site>) -> Result<Box<dyn Crew>> {
        match std::mem::replace(&mut self.hands, Hands::Processes) {
            Hands::Other(crew) => Ok(crew),
            Hands::Threads => self.threads(),
            Hands::Processes => {
                let trainable = match &self.experiment.trainable {
                    Trainable::Function(trainable) => trainable,
                    Trainable::Command(line) => return self.commands(line, folder, site),
                };
                if self.entry.is_none() {
                    let why = format!(
                        "{trainable} is not registered, so worker processes could not find it: put #[regatta::trainable] \
                         above the function, or train .in_process()"
                    );
                    return Err(Error::config("trainable", why));
                }
                let Some(site) = site.cloned() else {
                    let why = "there is no site for worker processes".into();
                    return Err(Error::NotAvailable { what: "a crew of processes", why });
                };
                let command = WorkerCommand::myself()
                    .map_err(|source| Error::io("find this program, to run it again as a worker", source))?;
                let plan = GangPlan {
                    site,
                    command,
                    trainable: trainable.clone(),
                    scaling: self.experiment.scaling.clone(),
                    failure: self.experiment.failure.clone(),
                    logs: folder.path.join("logs"),
                };
                Ok(Box::new(GangCrew::new(plan)))
            }
        }
    }

    /// The crew of a program in any language.
    fn commands(&self, line: &str, folder: &RunFolder, site: Option<&Site>) -> Result<Box<dyn Crew>> {
        let Some(site) = site else {
            let why = "there is no site for its processes".into();
            return Err(Error::NotAvailable { what: "a command as a trainable", why });
        };
        command::check(&self.experiment)?;
        let scaling = &self.experiment.scaling;
        Ok(Box::new(CommandCrew::new(CommandPlan {
            spawner: site.spawner.clone(),
            line: line.to_owned(),
            request: scaling.request(&format!("{}/{}", folder.experiment, folder.name)),
            threads: scaling.threads,
            logs: folder.path.join("logs"),
        })))
    }

    fn threads(&self) -> Result<Box<dyn Crew>> {
        let Some(function) = self.function.clone() else {
            let why =
                "a command is a process: train it with the command line, or with a crew of its own".into();
            return Err(Error::NotAvailable { what: "training a command in this process", why });
        };
        Ok(Box::new(ThreadCrew::new(self.experiment.scaling.workers.max(), function)))
    }
}

/// This process is a worker, and its program came here in place of [`worker::enter`](crate::worker::enter). Going on
/// would train once more in each worker; whatever comes after `fit` in `main` must not run in a worker either.
fn not_entered() -> ! {
    eprintln!(
        "this process was started as a worker, but its main() went past Regatta's entry: call regatta::init()? first \
         thing in main(), or let main() be regatta::main()"
    );
    std::process::exit(NOT_A_WORKER)
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("experiment", &self.experiment)
            .field("resume", &self.resume)
            .finish_non_exhaustive()
    }
}
