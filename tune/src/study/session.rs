//! A study that somebody drives: the machine, and the log it is the fold of. What the machine was told is appended with
//! what followed from it; whoever acts on that outside of this process waits until it is durable.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use regatta_track::event::{self, Outcome, RunConfigured, RunCreated, RunEnvironment, StudyConfigured};
use regatta_track::sink::{self, SinkConfig, Sinks};
use regatta_track::{Draft, Event, Query, Reader, Store, StoreConfig, Ticket, Timestamp, copy};
use serde_json::{Value, json};

use super::input::{agrees, input, is_aside};
use super::machine::{Machine, Parts};
use super::{Input, Opened, Order, configs};
use crate::config::{Mode, SamplerConfig, TuneConfig};
use crate::error::{Error, Result};
use crate::results::recorded;
use crate::sampler::{Grid, Sampler, Search};
use crate::scheduler::{Referee, Scheduler};
use crate::space::Space;
use crate::stopper::{Stopper, StopperConfig};

/// How many trials there are if nobody says.
const SAMPLES: u64 = 10;
/// How long the log may take to the disk.
const DURABLE_WITHIN: Duration = Duration::from_secs(60);
/// How often the log is copied to a remote storage.
const MIRROR_EVERY: Duration = Duration::from_secs(30);
/// How long sinks and copies get to catch up at the end.
const CATCH_UP: Duration = Duration::from_secs(30);
/// Events read at once.
const PAGE: usize = 4_000;

/// What a session is made of.
pub(crate) struct Setup {
    pub(crate) experiment: String,
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    /// Where the log is copied to, if checkpoints go elsewhere.
    pub(crate) remote: Option<String>,
    pub(crate) config: TuneConfig,
    pub(crate) space: Space,
    pub(crate) base: Value,
    pub(crate) seed: u64,
    pub(crate) concurrent: usize,
    /// Whether a trial runs as soon as it is created.
    pub(crate) instant: bool,
    /// Whether reports go to files of the trials', too.
    pub(crate) files: bool,
    /// In place of what the configuration says.
    pub(crate) sampler: Option<Box<dyn Sampler>>,
    pub(crate) scheduler: Option<Box<dyn Scheduler>>,
    pub(crate) stopper: Option<Box<dyn Stopper>>,
    /// The whole experiment, for the log.
    pub(crate) document: Value,
    pub(crate) environment: Value,
    pub(crate) allow_changed_space: bool,
}

/// A place in the log up to which it is to be durable.
type Durable = Option<Ticket>;

/// A driven study.
pub(crate) struct Session {
    machine: Machine,
    store: Store,
    sinks: Option<Sinks>,
    mirror: Option<copy::Mirror>,
    last: Durable,
}

impl Session {
    /// Begins a study in a folder that has none.
    pub(crate) fn create(mut setup: Setup) -> Result<Self> {
        let Setup { experiment, name, .. } = &setup;
        let (experiment, name, folder) = (experiment.clone(), name.clone(), setup.folder.clone());
        setup.config.check()?;
        let opened = setup.opened()?;
        let plan = setup.plan();
        let machine = setup.machine()?;
        let store = Store::create(&folder, StoreConfig::default()).map_err(|error| match error {
            regatta_track::Error::Exists { .. } => {
                Error::StudyExists { name: name.clone(), folder: folder.display().to_string() }
            }
            other => other.into(),
        })?;
        store.append(RunCreated { experiment, name })?.detach();
        let enqueue = setup.config.enqueue.clone();
        let mut session = Session { machine, store, sinks: None, mirror: None, last: None };
        session.introduce(&setup, plan)?;
        session.handle(Input::Opened(opened))?;
        enqueue.into_iter().try_for_each(|config| session.handle(Input::Enqueued(config)).map(drop))?;
        session.settle()?;
        session.follow(&setup)?;
        Ok(session)
    }

    /// Goes on with a study: its log is played again. What ran when it was left is among the machine's orphans.
    pub(crate) fn open(mut setup: Setup) -> Result<Self> {
        setup.config.check()?;
        // The store first: it is locked against every other driver.
        let store = Store::open(&setup.folder, StoreConfig::default())?;
        let before = stored_plan(&setup.folder)?;
        let same_space = setup.compare(&before)?;
        let (plan, opened) = (setup.plan(), setup.opened()?);
        let machine = setup.machine()?;
        let mut session = Session { machine, store, sinks: None, mirror: None, last: None };
        session.replay(same_space)?;
        session.introduce(&setup, plan)?;
        session.handle(Input::Opened(opened))?;
        session.settle()?;
        session.follow(&setup)?;
        Ok(session)
    }

    /// Starts what follows the log.
    fn follow(&mut self, setup: &Setup) -> Result<()> {
        let sinks = sink::of_study(&setup.folder, !setup.files);
        self.sinks = Some(Sinks::start(&self.store, sinks, SinkConfig::default())?);
        if let Some(place) = &setup.remote {
            self.mirror = Some(copy::Mirror::start(&self.store, copy::open(place)?, MIRROR_EVERY)?);
        }
        Ok(())
    }

    /// What the log has of the study's surroundings; not the machine's business.
    fn introduce(&mut self, setup: &Setup, plan: Value) -> Result<()> {
        self.store.append(RunConfigured { config: setup.document.clone() })?.detach();
        if !setup.environment.is_null() {
            self.store.append(RunEnvironment { env: setup.environment.clone() })?.detach();
        }
        let study = described(&self.machine, plan);
        self.last = Some(self.store.append(study)?);
        Ok(())
    }

    fn replay(&mut self, same_space: bool) -> Result<()> {
        let mut reader = Reader::open(self.store.folder())?;
        let mut snapshot = reader.snapshot()?;
        let (mut after, mut follows) = (0, VecDeque::<Draft>::new());
        loop {
            let page = snapshot.events(&Query { after, limit: PAGE, scope: None, kinds: &[] })?;
            let Some(last) = page.last() else { break };
            after = last.seq;
            for stored in page.iter().filter(|stored| !is_aside(&stored.event)) {
                if follows.is_empty() {
                    let told = input(stored, self.machine.space(), same_space)?;
                    follows.extend(self.machine.handle(stored.at, told)?.events);
                }
                match follows.pop_front() {
                    Some(draft) if agrees(stored, &draft) => {}
                    other => return Err(disagreement(stored.seq, &stored.event, other.as_ref())),
                }
            }
        }
        // The controller before this one died between what it was told and what followed.
        for draft in follows {
            self.last = Some(self.store.append(draft)?);
        }
        Ok(())
    }

    /// Tells the machine, and appends what happened.
    pub(crate) fn handle(&mut self, input: Input) -> Result<Vec<Order>> {
        let output = self.machine.handle(Timestamp::now(), input)?;
        for draft in output.events {
            self.last = Some(self.store.append(draft)?);
        }
        Ok(output.orders)
    }

    /// Waits until everything so far is durable.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if let Some(ticket) = self.last.take() {
            ticket.wait(DURABLE_WITHIN)?;
        }
        Ok(())
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// How often the study was opened.
    pub(crate) fn epoch(&self) -> u64 {
        self.store.epoch()
    }

    /// Closes the study's log with how this session ended.
    pub(crate) fn close(mut self, outcome: Outcome) -> Result<()> {
        self.handle(Input::Ended(outcome))?;
        self.settle()?;
        let followed = self.sinks.take().map_or(Ok(()), |sinks| sinks.finish(CATCH_UP));
        let copied = self.mirror.take().map_or(Ok(()), |mirror| mirror.finish(CATCH_UP).map(drop));
        for error in [followed, copied].into_iter().filter_map(regatta_track::Result::err) {
            tracing::warn!(%error, "the study is stored, but not everything that follows it is up to date");
        }
        Ok(self.store.close()?)
    }
}

impl Setup {
    fn opened(&self) -> Result<Opened> {
        let grid = match (&self.config.sampler, &self.sampler) {
            (SamplerConfig::Grid, None) => Some(Grid::size(&self.space)?),
            _ => None,
        };
        let samples = self.config.samples.or(grid).unwrap_or(SAMPLES);
        let samples = grid.map_or(samples, |grid| samples.min(grid));
        Ok(Opened { samples, concurrent: self.concurrent, instant: self.instant })
    }

    /// The machine; sampler, scheduler and stopper that were given go into it.
    fn machine(&mut self) -> Result<Machine> {
        let sampler = self.sampler.take().unwrap_or_else(|| self.config.sampler.build());
        let scheduler = match self.scheduler.take() {
            Some(own) => own,
            None => self.config.scheduler.clone().build(Some(Arc::new(self.space.clone())))?,
        };
        let stopper = match (self.stopper.take(), self.config.stop.clone()) {
            (Some(own), _) => Some(own),
            (None, config) => config.map(StopperConfig::build).transpose()?,
        };
        let search = Search::new(self.space.clone(), sampler, self.seed).base(self.base.clone());
        Ok(Machine::new(Parts {
            objectives: self.config.objectives(),
            constraints: self.config.constraints.clone(),
            resource: self.config.resource.clone(),
            fail_fast: self.config.fail_fast,
            search,
            referee: Referee::new(scheduler, self.seed),
            stopper,
            base: self.base.clone(),
        }))
    }

    /// Whether the study goes on in the space it was begun with; another one is refused unless it is allowed, and another
    /// sampler or scheduler would never come to where the study stands.
    fn compare(&self, before: &Value) -> Result<bool> {
        let now = self.plan();
        for part in ["seed", "sampler", "scheduler", "stop", "resource"] {
            if before[part] != now[part] {
                let problem = format!(
                    "its {part} was {} when it was begun, and is {} now; begin a new study, which can be given what this one \
                     found by `warm_start`",
                    before[part], now[part]
                );
                return Err(Error::Study { problem });
            }
        }
        if before["space"] == now["space"] {
            return Ok(true);
        }
        let space: Result<Space, _> = serde_json::from_value(before["space"].clone());
        match (self.allow_changed_space, space) {
            (true, _) => Ok(false),
            (false, Ok(space)) => {
                Err(Error::ChangedSpace { diff: configs::differences(&space, &self.space) })
            }
            (false, Err(_)) => {
                Err(Error::ChangedSpace { diff: "  one was discovered by trials, the other declared".into() })
            }
        }
    }

    /// What a resumed study is compared with.
    fn plan(&self) -> Value {
        let TuneConfig { scheduler, stop, resource, .. } = &self.config;
        let sampler = match &self.sampler {
            Some(own) => json!({ "own": own.name() }),
            None => json!(self.config.sampler),
        };
        let scheduler = match &self.scheduler {
            Some(own) => json!({ "own": own.name() }),
            None => json!(scheduler),
        };
        let space = if self.space.is_open() { Value::Null } else { json!(self.space.root()) };
        json!({ "seed": self.seed, "space": space, "sampler": sampler, "scheduler": scheduler, "stop": stop,
                "resource": resource })
    }
}

/// What the log says of the study, for those who only read it.
pub(super) fn described(machine: &Machine, plan: Value) -> StudyConfigured {
    let objectives = machine.objectives().iter().map(|objective| event::Objective {
        metric: objective.metric.clone(),
        maximize: objective.mode == Mode::Max,
    });
    StudyConfigured { objectives: objectives.collect(), parameters: recorded(machine.space()), plan }
}

/// The plan that the study was last driven by.
fn stored_plan(folder: &Path) -> Result<Value> {
    let mut reader = Reader::open(folder)?;
    let mut snapshot = reader.snapshot()?;
    let (mut after, mut plan) = (0, Value::Null);
    loop {
        let page = snapshot.events(&Query {
            after,
            limit: PAGE,
            scope: Some(None),
            kinds: &["study_configured"],
        })?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        for event in page {
            if let Event::StudyConfigured(body) = event.event
                && !body.plan.is_null()
            {
                plan = body.plan;
            }
        }
    }
    match plan.is_null() {
        true => Err(Error::Study { problem: format!("{} holds a run and no study", folder.display()) }),
        false => Ok(plan),
    }
}

fn disagreement(seq: u64, stored: &Event, follows: Option<&Draft>) -> Error {
    let follows = follows.map_or("nothing".to_owned(), |draft| match &draft.event {
        Event::Decision(decided) => format!("`{}` by {}", decided.action, decided.by),
        other => other.kind().to_owned(),
    });
    Error::Study {
        problem: format!(
            "event {seq} of its log is a {}, and by this program's sampler, scheduler and stoppers {follows} would follow \
             there: it was driven by another build, or its own sampler, scheduler or stopper was changed",
            stored.kind()
        ),
    }
}
