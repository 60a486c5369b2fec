//! A study under somebody else's control: it says what to try and remembers what came of it; running it is the caller's.
//!
//! ```
//! use regatta_tune::sampler::Tpe;
//! use regatta_tune::space::{float, group};
//! use regatta_tune::study::Study;
//!
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let space = group().with("x", float(-5.0..=5.0)).build()?;
//! let mut study = Study::builder(space).minimize("loss").sampler(Tpe::default()).seed(7).create(folder)?;
//! for _ in 0..20 {
//!     let trial = study.ask()?; // it is on the disk that this trial was given out
//!     let x = trial.config["x"].as_f64().unwrap();
//!     study.tell(trial.number, (x - 2.0).powi(2))?; // and what came of it
//! }
//! let best = study.best().unwrap();
//! drop(study);
//!
//! // Any later process goes on where this one was.
//! let space = group().with("x", float(-5.0..=5.0)).build()?;
//! let study = Study::builder(space).minimize("loss").sampler(Tpe::default()).seed(7).open(folder)?;
//! assert_eq!(study.best(), Some(best));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use regatta_track::Metrics;
use regatta_track::event::{Cause, Outcome};
use serde_json::{Value, json};

use super::machine::{Machine, broken};
use super::session::{Session, Setup};
use super::{Input, Order};
use crate::config::{ITERATION, Mode, SamplerConfig, TuneConfig};
use crate::error::Result;
use crate::scheduler::SchedulerConfig;
use crate::space::Space;
use crate::stopper::StopperConfig;

/// A durable study that is asked and told. Every answer is on the disk before it is given.
pub struct Study {
    session: Option<Session>,
    /// What is asked for first: trials that somebody before was given and never told of, or that go on.
    waiting: Vec<Trial>,
    verdicts: BTreeMap<u32, Verdict>,
}

/// A trial to be run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Trial {
    /// Its number.
    pub number: u32,
    /// What to try.
    pub config: Value,
    /// Whether it was given out before: it was paused, or whoever had it never told. What it reports again changes nothing.
    pub again: bool,
}

/// What a running trial is to do after a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    GoOn,
    /// It waits; a later [`Study::ask`] may give it out again.
    Pause,
    /// It is over.
    Stop,
}

/// Makes a [`Study`].
#[must_use]
pub struct StudyBuilder {
    config: TuneConfig,
    space: Space,
    base: Value,
    seed: u64,
    allow_changed_space: bool,
}

impl StudyBuilder {
    /// What is to be made small.
    pub fn minimize(mut self, metric: impl Into<String>) -> Self {
        (self.config.metric, self.config.mode) = (metric.into(), Mode::Min);
        self
    }

    /// What is to be made large.
    pub fn maximize(mut self, metric: impl Into<String>) -> Self {
        (self.config.metric, self.config.mode) = (metric.into(), Mode::Max);
        self
    }

    /// Who chooses configurations.
    pub fn sampler(mut self, sampler: impl Into<SamplerConfig>) -> Self {
        self.config.sampler = sampler.into();
        self
    }

    /// Who decides which trials go on.
    pub fn scheduler(mut self, scheduler: impl Into<SchedulerConfig>) -> Self {
        self.config.scheduler = scheduler.into();
        self
    }

    /// When a trial or the study has had enough.
    pub fn stop(mut self, stop: StopperConfig) -> Self {
        self.config.stop = Some(stop);
        self
    }

    /// All randomness is derived from it: 42.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// What the space keeps and what it says nothing of.
    pub fn base(mut self, base: Value) -> Self {
        self.base = base;
        self
    }

    /// Goes on in this space, though the study was begun in another.
    pub fn allow_changed_space(mut self) -> Self {
        self.allow_changed_space = true;
        self
    }

    /// Begins a study in a folder.
    pub fn create(self, folder: impl AsRef<Path>) -> Result<Study> {
        Ok(Study::of(Session::create(self.setup(folder.as_ref()))?))
    }

    /// Goes on with the study in a folder.
    pub fn open(self, folder: impl AsRef<Path>) -> Result<Study> {
        let mut session = Session::open(self.setup(folder.as_ref()))?;
        let (ended, _) = session.machine().orphans();
        for input in ended {
            session.handle(input)?;
        }
        let (_, orders) = session.machine().orphans();
        session.settle()?;
        let mut study = Study::of(session);
        study.obey(orders);
        study.waiting.iter_mut().for_each(|trial| trial.again = true);
        Ok(study)
    }

    fn setup(self, folder: &Path) -> Setup {
        let part = |path: Option<&Path>| {
            path.and_then(Path::file_name).map_or("study".into(), |name| name.to_string_lossy().into_owned())
        };
        let document = json!({ "tune": self.config });
        Setup {
            experiment: part(folder.parent()),
            name: part(Some(folder)),
            folder: folder.to_owned(),
            remote: None,
            config: TuneConfig { samples: self.config.samples.or(Some(u64::MAX)), ..self.config },
            space: self.space,
            base: self.base,
            seed: self.seed,
            concurrent: usize::MAX,
            instant: true,
            files: false,
            sampler: None,
            scheduler: None,
            stopper: None,
            document,
            environment: Value::Null,
            allow_changed_space: self.allow_changed_space,
        }
    }
}

impl Study {
    /// A study in this space.
    pub fn builder(space: Space) -> StudyBuilder {
        let (config, base) = (TuneConfig::default(), Value::Null);
        StudyBuilder { config, space, base, seed: 42, allow_changed_space: false }
    }

    fn of(session: Session) -> Self {
        Study { session: Some(session), waiting: Vec::new(), verdicts: BTreeMap::new() }
    }

    fn session(&mut self) -> Result<&mut Session> {
        self.session.as_mut().ok_or_else(|| broken("it is closed"))
    }

    /// What to try next.
    pub fn ask(&mut self) -> Result<Trial> {
        if self.waiting.is_empty() {
            if let Some(why) = self.session()?.machine().closing() {
                return Err(broken(format!("it is over: {why}")));
            }
            let orders = self.session()?.handle(Input::Offer(None))?;
            self.session()?.settle()?;
            self.obey(orders);
        }
        match self.waiting.is_empty() {
            false => Ok(self.waiting.remove(0)),
            true => Err(broken("there is nothing to try before trials under way are told of")),
        }
    }

    /// Tries this configuration next.
    pub fn enqueue(&mut self, config: Value) -> Result<()> {
        self.session()?.handle(Input::Enqueued(config))?;
        self.session()?.settle()
    }

    /// A running trial's value of the first objective at a step (from 1), and what it is to do.
    pub fn report(&mut self, trial: u32, step: u64, value: f64) -> Result<Verdict> {
        self.report_all(trial, step, &[value])
    }

    /// The same with all objectives.
    pub fn report_all(&mut self, trial: u32, step: u64, values: &[f64]) -> Result<Verdict> {
        let metrics = self.figures(trial, Some(step), values)?.1;
        let orders = self.session()?.handle(Input::Reported { trial, step, metrics })?;
        self.obey(orders);
        let verdict = self.verdicts.remove(&trial).unwrap_or(Verdict::GoOn);
        let left = match verdict {
            Verdict::GoOn => None,
            Verdict::Pause => Some(Input::Paused { trial }),
            Verdict::Stop => Some(Input::Finished { trial }),
        };
        if let Some(left) = left {
            let orders = self.session()?.handle(left)?;
            self.obey(orders);
        }
        self.session()?.settle()?;
        Ok(verdict)
    }

    /// What a trial came to.
    pub fn tell(&mut self, trial: u32, value: f64) -> Result<()> {
        self.tell_all(trial, &[value])
    }

    /// The same with all objectives.
    pub fn tell_all(&mut self, trial: u32, values: &[f64]) -> Result<()> {
        let (step, metrics) = self.figures(trial, None, values)?;
        let mut orders = self.session()?.handle(Input::Reported { trial, step, metrics })?;
        orders.extend(self.session()?.handle(Input::Finished { trial })?);
        self.obey(orders);
        self.verdicts.remove(&trial);
        self.session()?.settle()
    }

    /// A trial came to nothing.
    pub fn fail(&mut self, trial: u32, why: impl Into<String>) -> Result<()> {
        let orders = self.session()?.handle(Input::Failed { trial, cause: Cause::new(why) })?;
        self.obey(orders);
        self.session()?.settle()
    }

    /// The best trial so far and its value.
    pub fn best(&self) -> Option<(u32, f64)> {
        self.session.as_ref()?.machine().best()
    }

    /// All that is known of the trials.
    pub fn machine(&self) -> Option<&Machine> {
        self.session.as_ref().map(Session::machine)
    }

    fn figures(&mut self, trial: u32, step: Option<u64>, values: &[f64]) -> Result<(u64, Metrics)> {
        let machine = self.session()?.machine();
        let Some(facts) = machine.trial(trial).filter(|facts| facts.outcome.is_none()) else {
            return Err(broken(format!("trial {trial} does not run: ask first, and tell once")));
        };
        let objectives = machine.objectives();
        if values.len() != objectives.len() {
            let (wanted, given) = (objectives.len(), values.len());
            return Err(broken(format!("it has {wanted} objectives, and {given} values were given")));
        }
        let step = step.unwrap_or(facts.step + 1);
        let mut metrics: Metrics = objectives
            .iter()
            .zip(values)
            .map(|(objective, value)| (objective.metric.as_str(), *value))
            .collect();
        metrics.insert(ITERATION, step as f64);
        Ok((step, metrics))
    }

    fn obey(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Launch { trial, config, .. } => {
                    let again = self.session.as_ref().is_some_and(|session| {
                        session.machine().trial(trial).is_some_and(|facts| facts.reports > 0)
                    });
                    self.waiting.push(Trial { number: trial, config, again });
                }
                Order::Pause { trial } => drop(self.verdicts.insert(trial, Verdict::Pause)),
                Order::Stop { trial } | Order::Kill { trial } => {
                    self.verdicts.insert(trial, Verdict::Stop);
                }
                Order::GoOn { .. } | Order::Resize { .. } => {}
            }
        }
    }
}

impl Drop for Study {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // Every answer is on the disk; this only says that nobody drives the study any more.
        let over = session.machine().is_over();
        let outcome = if over { Outcome::Completed } else { Outcome::Interrupted };
        if let Err(error) = session.close(outcome) {
            tracing::warn!(%error, "a study was not closed cleanly; nothing of it is lost");
        }
    }
}
