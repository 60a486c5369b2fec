//! What a study decides, as a pure machine: sampler, scheduler, stoppers and roster together. What happened goes in, events
//! and orders come out; the time is an input. The study's log is the list of its inputs, with what followed from each
//! behind it, so that a resumed study is the same machine fed the same log.
//!
//! Named promises, cited by the tests:
//! - ST-1: the same inputs give the same events, bit for bit; so a replay ends where the study stood.
//! - ST-2: a report that repeats one from before a restart changes nothing: the first counts.
//! - ST-3: a trial is told to its sampler once, when it has ended.
//! - ST-4: every trial ends: those that wait when the study is closed are ended with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use regatta_track::event::{AttemptStarted, Cause, CheckpointCommitted, Decision as Decided, Outcome};
use regatta_track::event::{Report as Reported, RunFinished, TrialCloned, TrialConfigured, TrialCreated};
use regatta_track::event::{TrialFinished, TrialPaused, TrialResumed};
use regatta_track::{Draft, Event, Metrics, Timestamp};
use serde_json::{Value, json};

use super::configs::{flat, full, point_of};
use super::{Input, Opened, Order};
use crate::config::Objective;
use crate::error::{Error, Result};
use crate::sampler::{End, Search, Suggestion};
use crate::scheduler::{Action, Checkpoint, Config, Decision, Event as Told, Referee, Report, Roster, State};
use crate::space::Space;
use crate::stopper::{Observation, Stop, Stopper};

/// Who decides what only the study itself can.
pub(super) const STUDY: &str = "study";

/// What a machine is made of.
pub struct Parts {
    /// What is to get better; the first is what schedulers go by.
    pub objectives: Vec<Objective>,
    /// Metrics that are to stay at or below zero.
    pub constraints: Vec<String>,
    /// What reports are counted in.
    pub resource: String,
    /// Whether the first failure ends the study.
    pub fail_fast: bool,
    /// The sampler, with its space.
    pub search: Search,
    /// The scheduler.
    pub referee: Referee,
    /// When a trial or the study has had enough.
    pub stopper: Option<Box<dyn Stopper>>,
    /// What the space leaves as it is.
    pub base: Value,
}

/// What came out of an input.
#[derive(Debug, Default)]
pub struct Output {
    /// What happened, to be stored: the input itself, and what followed from it.
    pub events: Vec<Draft>,
    /// What is to be done, in order.
    pub orders: Vec<Order>,
}

/// A trial as the study knows it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Its last value of each objective.
    pub values: Vec<Option<f64>>,
    /// The step of its last report.
    pub step: u64,
    /// How many reports it made.
    pub reports: u64,
    /// How often it was started.
    pub attempts: u32,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why it failed.
    pub cause: Option<Box<str>>,
    /// Whether its last report violated a constraint.
    infeasible: bool,
    /// Its place among those that the sampler was told of.
    told: usize,
    /// What is let go of when it has ended.
    live: Option<Box<Live>>,
}

/// What is needed of a trial until it has ended.
#[derive(Clone, Debug, Default)]
struct Live {
    config: Value,
    /// The attempt of its own run that was started last.
    attempt: u32,
    /// How many workers it is to have, if a scheduler said.
    workers: Option<u32>,
    /// The furthest resource that was taken in since it last changed.
    furthest: Option<u64>,
    constraints: Vec<f64>,
    /// Those that were told of.
    checkpoints: BTreeSet<String>,
    /// Whether something runs for it.
    placed: bool,
    /// Whether it was told to end as it has had all it was to have.
    full: bool,
}

/// The machine.
pub struct Machine {
    parts: Parts,
    trials: Vec<Facts>,
    opened: Opened,
    /// When the present session began, and what those before took.
    session: Timestamp,
    spent: Duration,
    now: Timestamp,
    closing: Option<String>,
    /// The last offer was not taken, and nothing has happened since.
    idle: bool,
    done: bool,
    /// What was suggested for the trial that begins now, before a restart.
    suggested: Option<Suggestion>,
    out: Output,
}

impl Machine {
    /// A study before its first session.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Machine {
            parts,
            trials: Vec::new(),
            opened: Opened::default(),
            session: Timestamp::default(),
            spent: Duration::ZERO,
            now: Timestamp::default(),
            closing: None,
            idle: false,
            done: false,
            suggested: None,
            out: Output::default(),
        }
    }

    /// Every trial ever made, by number.
    pub fn trials(&self) -> impl ExactSizeIterator<Item = (u32, &Facts)> {
        self.trials.iter().enumerate().map(|(trial, facts)| (trial as u32, facts))
    }

    /// One trial.
    #[must_use]
    pub fn trial(&self, trial: u32) -> Option<&Facts> {
        self.trials.get(trial as usize)
    }

    /// A trial's whole configuration. Of one that has ended it is put together anew.
    #[must_use]
    pub fn config(&self, trial: u32) -> Option<Value> {
        let facts = self.trial(trial)?;
        if let Some(live) = &facts.live {
            return Some(live.config.clone());
        }
        let point = &self.search().history().told().get(facts.told)?.point;
        let chosen = self.space().config(point, Some(&self.parts.base)).ok()?;
        Some(full(self.space(), &self.parts.base, chosen))
    }

    /// The attempt of a trial's own run that was started last; 0 for a trial that has ended.
    #[must_use]
    pub fn attempt(&self, trial: u32) -> u32 {
        self.live(trial).map_or(0, |live| live.attempt)
    }

    fn live(&self, trial: u32) -> Option<&Live> {
        self.trial(trial)?.live.as_deref()
    }

    fn facts(&mut self, trial: u32) -> Option<&mut Facts> {
        self.trials.get_mut(trial as usize)
    }

    fn live_mut(&mut self, trial: u32) -> Option<&mut Live> {
        self.facts(trial)?.live.as_deref_mut()
    }

    /// Where the trials stand.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        self.parts.referee.roster()
    }

    /// Where it searches.
    #[must_use]
    pub fn space(&self) -> &Space {
        self.parts.search.space()
    }

    /// What is to get better.
    #[must_use]
    pub fn objectives(&self) -> &[Objective] {
        &self.parts.objectives
    }

    /// The sampler with what it was told.
    #[must_use]
    pub fn search(&self) -> &Search {
        &self.parts.search
    }

    /// How many trials are wanted, and how many at once.
    #[must_use]
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Why the study is being ended before its time, if it is.
    #[must_use]
    pub fn closing(&self) -> Option<&str> {
        self.closing.as_deref()
    }

    /// Whether a slot is to be offered.
    #[must_use]
    pub fn has_slot(&self) -> bool {
        let free = self.roster().in_flight() < self.opened.concurrent;
        free && !self.idle && !self.done && self.closing.is_none()
    }

    /// Whether nothing is left to be done.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.roster().in_flight() == 0 && (self.done || self.closing.is_some())
    }

    /// How long the study has run, over all sessions.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.spent + between(self.session, self.now)
    }

    /// What is to be done for the trials that ran when the controller before this one died: each goes on from its last
    /// checkpoint. Those that were on their way out are told of as what they have become, which is for the log; but one that
    /// was to pause, and of whose last report no checkpoint is known, goes on to that report first: others may be cloned from
    /// what it takes there.
    #[must_use]
    pub fn orphans(&self) -> (Vec<Input>, Vec<Order>) {
        let (mut ended, mut orders) = (Vec::new(), Vec::new());
        for (trial, entry) in self.roster().live() {
            match entry.state {
                State::Pausing if self.opened.instant || self.has_saved(trial) => {
                    ended.push(Input::Paused { trial });
                }
                State::Pausing => orders.push(self.launch(trial, entry.checkpoint.clone())),
                State::Stopping => ended.push(Input::Finished { trial }),
                State::Starting | State::Running => orders.push(self.launch(trial, entry.checkpoint.clone())),
                State::Paused | State::Ended => {}
            }
        }
        (ended, orders)
    }

    /// Whether a trial's newest checkpoint has all that it reported.
    fn has_saved(&self, trial: u32) -> bool {
        let saved = self.roster().get(trial).and_then(|entry| entry.checkpoint.as_ref());
        let furthest = self.live(trial).and_then(|live| live.furthest);
        saved.is_some_and(|checkpoint| furthest.is_none_or(|furthest| checkpoint.resource >= furthest))
    }

    /// Takes in what happened.
    pub fn handle(&mut self, at: Timestamp, input: Input) -> Result<Output> {
        self.now = self.now.max(at);
        if !matches!(input, Input::Offer(_) | Input::Tick) {
            self.idle = false;
        }
        match input {
            Input::Opened(opened) => self.open(opened)?,
            Input::Enqueued(config) => {
                self.parts.search.enqueue(&config)?;
                self.decided("enqueue", String::new(), config);
            }
            Input::Offer(suggestion) => self.offer(suggestion)?,
            Input::Started { trial, attempt } => self.started(trial, attempt)?,
            Input::Discovered { trial, nodes, config } => self.discovered(trial, nodes, config)?,
            Input::Reported { trial, step, metrics } => self.reported(trial, step, metrics)?,
            Input::Checkpointed { trial, committed } => self.checkpointed(trial, committed)?,
            Input::Paused { trial } => self.paused(trial)?,
            Input::Finished { trial } => self.finished(trial)?,
            Input::Failed { trial, cause } => self.failed(trial, cause)?,
            Input::Tick => {
                let elapsed = self.elapsed();
                let stop = self.parts.stopper.as_mut().and_then(|stopper| stopper.tick(elapsed));
                if let Some(why) = stop.filter(|_| self.closing.is_none()) {
                    self.close(why)?;
                }
            }
            Input::Stop(why) => self.close(why)?,
            Input::Ended(outcome) => self.emit(None, RunFinished { outcome, cause: None }),
        }
        Ok(std::mem::take(&mut self.out))
    }

    fn emit(&mut self, trial: Option<u32>, event: impl Into<Event>) {
        let attempt = trial.and_then(|trial| self.trial(trial)).map_or(0, |facts| facts.attempts);
        let draft = Draft::new(event).attempt(attempt).at(self.now);
        self.out.events.push(Draft { trial, ..draft });
    }

    fn decided(&mut self, action: &str, reason: String, data: Value) {
        self.emit(None, Decided { by: STUDY.into(), action: action.into(), reason, data });
    }

    fn order(&mut self, order: Order) {
        self.out.orders.push(order);
    }

    fn launch(&self, trial: u32, restore: Option<Checkpoint>) -> Order {
        let live = self.live(trial);
        let (config, workers) = live.map_or((Value::Null, None), |live| (live.config.clone(), live.workers));
        Order::Launch { trial, config, restore, workers }
    }

    fn open(&mut self, opened: Opened) -> Result<()> {
        self.spent += between(self.session, self.now);
        self.session = self.now;
        let more = opened.samples > u64::from(self.count());
        (self.opened, self.done, self.closing) = (opened, false, None);
        self.decided("opened", String::new(), json!(self.opened));
        if more && self.roster().exhausted() {
            let decisions = self.parts.referee.handle(Told::Extended)?;
            self.act(decisions)?;
        }
        Ok(())
    }

    fn count(&self) -> u32 {
        self.trials.len() as u32
    }

    /// Offers a free slot. An offer that comes to nothing leaves no trace.
    fn offer(&mut self, suggestion: Option<Suggestion>) -> Result<()> {
        let decisions = self.parts.referee.handle(Told::Slot)?;
        let waits = |d: &Decision| matches!(d.action, Action::Wait | Action::Done);
        self.done = decisions.iter().any(|d| d.action == Action::Done);
        if decisions.iter().all(waits) {
            self.idle = true;
            return Ok(());
        }
        let first = decisions.first().map(|d| &d.action);
        if !matches!(first, Some(Action::StartNew | Action::Resume { .. })) {
            self.decided("offer", String::new(), Value::Null);
        }
        self.suggested = suggestion;
        self.act(decisions)
    }

    fn act(&mut self, decisions: Vec<Decision>) -> Result<()> {
        decisions.into_iter().try_for_each(|decision| self.perform(decision))
    }

    fn perform(&mut self, decision: Decision) -> Result<()> {
        let Decision { action, reason } = decision;
        let quiet = matches!(
            action,
            Action::Continue { .. } | Action::StartNew | Action::Wait | Action::Done | Action::Resume { .. }
        );
        if let (Some(trial), false) = (action.trial(), quiet) {
            let by = self.parts.referee.scheduler().name().to_owned();
            let (action, reason) = (action.name().to_owned(), reason.to_string());
            self.emit(Some(trial), Decided { by, action, reason, data: Value::Null });
        }
        match action {
            Action::Wait | Action::Done => {}
            Action::Continue { trial } => self.order(Order::GoOn { trial }),
            Action::Pause { trial } => self.order(Order::Pause { trial }),
            Action::Stop { trial } => self.stop(trial)?,
            Action::Finish { trial } => self.finish(trial)?,
            Action::StartNew => self.start_new()?,
            Action::Resume { trial, checkpoint } => {
                self.emit(Some(trial), TrialResumed {});
                self.place(trial);
                let launch = self.launch(trial, checkpoint);
                self.order(launch);
                self.starts_at_once(trial)?;
            }
            Action::Clone { trial, donor, checkpoint, config } => {
                self.cloned(trial, donor, checkpoint, &config)?;
            }
            Action::Resize { trial, workers } => {
                if let Some(live) = self.live_mut(trial) {
                    live.workers = Some(workers);
                }
                self.order(Order::Resize { trial, workers });
            }
        }
        Ok(())
    }

    /// Ends a trial: at once, where nothing runs for it.
    fn stop(&mut self, trial: u32) -> Result<()> {
        if self.live(trial).is_some_and(|live| live.placed) {
            self.order(Order::Stop { trial });
            return Ok(());
        }
        self.finished(trial)
    }

    /// Ends a trial that has had all it was to have.
    fn finish(&mut self, trial: u32) -> Result<()> {
        if let Some(live) = self.live_mut(trial) {
            live.full = true;
        }
        self.stop(trial)
    }

    fn place(&mut self, trial: u32) {
        if let Some(live) = self.live_mut(trial) {
            live.placed = true;
        }
    }

    /// Where trials are calls of this process, there is nothing to wait for between a start and the first line.
    fn starts_at_once(&mut self, trial: u32) -> Result<()> {
        if !self.opened.instant {
            return Ok(());
        }
        if let Some(facts) = self.facts(trial) {
            facts.attempts += 1;
        }
        let decisions = self.parts.referee.handle(Told::Started { trial })?;
        self.act(decisions)
    }

    /// Starts a new trial, with what was suggested for it before a restart or is suggested now.
    fn start_new(&mut self) -> Result<()> {
        let suggestion = match self.suggested.take() {
            Some(known) => known,
            None if u64::from(self.count()) >= self.opened.samples => return self.exhausted(),
            None => self.parts.search.suggest_under(self.parts.referee.scheduler())?,
        };
        let bits = super::configs::bits(&suggestion.point, self.space().parameters().len());
        let (note, by) = (suggestion.note, self.parts.search.sampler().name());
        let trial = self.parts.search.begin(suggestion)?;
        let params = flat(self.space(), &trial.point);
        let config = full(self.space(), &self.parts.base, trial.config);
        let number = self.count();
        let data = json!({ "point": bits, "note": note, "params": params, "by": by });
        let values = vec![None; self.parts.objectives.len()];
        let live = Live { config: config.clone(), placed: true, ..Live::default() };
        self.trials.push(Facts { values, live: Some(Box::new(live)), ..Facts::default() });
        self.emit(Some(number), TrialCreated { config, data });
        let launch = self.launch(number, None);
        self.order(launch);
        let decisions =
            self.parts.referee.handle(Told::Created { trial: number, config: Arc::new(params) })?;
        self.act(decisions)?;
        self.starts_at_once(number)
    }

    fn exhausted(&mut self) -> Result<()> {
        self.decided("exhausted", String::new(), Value::Null);
        let decisions = self.parts.referee.handle(Told::Exhausted)?;
        self.act(decisions)
    }

    fn started(&mut self, trial: u32, attempt: u32) -> Result<()> {
        if let Some(facts) = self.facts(trial) {
            facts.attempts += 1;
        }
        if let Some(live) = self.live_mut(trial) {
            live.attempt = attempt;
        }
        let started = AttemptStarted { generation: attempt.into(), ..AttemptStarted::default() };
        self.emit(Some(trial), started);
        let decisions = self.parts.referee.handle(Told::Started { trial })?;
        self.act(decisions)
    }

    fn reported(&mut self, trial: u32, step: u64, metrics: Metrics) -> Result<()> {
        let Some(facts) = self.trials.get_mut(trial as usize) else { return Ok(()) };
        let Some(live) = facts.live.as_deref_mut() else { return Ok(()) };
        let resource = metrics.get(&self.parts.resource).map(|value| value as u64);
        let value = metrics.get(&self.parts.objectives[0].metric);
        // The first counts, of which a restart may bring a repetition.
        if let (Some(resource), Some(furthest)) = (resource, live.furthest)
            && resource <= furthest
        {
            match self.roster().state(trial) {
                State::Running => self.order(Order::GoOn { trial }),
                State::Pausing if resource == furthest => self.order(Order::Pause { trial }),
                State::Pausing => self.order(Order::GoOn { trial }),
                _ => {}
            }
            return Ok(());
        }
        (facts.step, facts.reports) = (step, facts.reports + 1);
        for (objective, slot) in self.parts.objectives.iter().zip(&mut facts.values) {
            *slot = metrics.get(&objective.metric).or(*slot);
        }
        live.constraints =
            self.parts.constraints.iter().map(|name| metrics.get(name).unwrap_or(f64::NAN)).collect();
        facts.infeasible = !live.constraints.iter().all(|constraint| *constraint <= 0.0);
        let bad = self.parts.objectives.iter().find(|o| metrics.get(&o.metric).is_some_and(f64::is_nan));
        let bad = bad.map(|objective| objective.metric.clone());
        self.emit(Some(trial), Reported { step, metrics: metrics.clone() });
        if let Some(name) = bad {
            return self.fail(
                trial,
                Cause { step: Some(step), ..Cause::new(format!("{name} is NaN at step {step}")) },
            );
        }
        let Some(value) = value else {
            if self.roster().state(trial) == State::Running {
                self.order(Order::GoOn { trial });
            }
            return Ok(());
        };
        let Some(resource) = resource else {
            let name = &self.parts.resource;
            let why = format!(
                "its report at step {step} has no `{name}`, which the study counts in: report it, or set tune.resource"
            );
            return self.fail(trial, Cause { step: Some(step), ..Cause::new(why) });
        };
        self.counted(trial, resource, value, &metrics)
    }

    /// A report with the objective in it.
    fn counted(&mut self, trial: u32, resource: u64, value: f64, metrics: &Metrics) -> Result<()> {
        let loss = self.parts.objectives[0].loss(value);
        if let Some(live) = self.live_mut(trial) {
            live.furthest = Some(resource);
        }
        let report = Report { trial, resource, value: loss };
        let mut decisions = self.parts.referee.handle(Told::Reported(report))?;
        let elapsed = self.elapsed();
        let figures = |name: &str| metrics.get(name);
        let seen = Observation { trial, resource, loss, metrics: &figures, elapsed };
        let stop = self.parts.stopper.as_mut().and_then(|stopper| stopper.observe(&seen));
        let goes_on = |d: &Decision| {
            d.action.trial() == Some(trial)
                && matches!(d.action, Action::Continue { .. } | Action::Pause { .. } | Action::Resize { .. })
        };
        let stopped = matches!(stop, Some(Stop::Trial(_))) && decisions.iter().any(goes_on);
        if stopped {
            decisions.retain(|decision| !goes_on(decision));
        }
        self.act(decisions)?;
        match stop {
            Some(Stop::Trial(why)) if stopped => {
                let decided =
                    Decided { by: "stopper".into(), action: "finish".into(), reason: why, data: Value::Null };
                self.emit(Some(trial), decided);
                self.finish(trial)
            }
            Some(Stop::Study(why)) if self.closing.is_none() => self.close(why),
            _ => Ok(()),
        }
    }

    fn checkpointed(&mut self, trial: u32, committed: CheckpointCommitted) -> Result<()> {
        // One that ended meanwhile may have its last checkpoint committed still.
        let news = self.live_mut(trial).is_none_or(|live| live.checkpoints.insert(committed.id.clone()));
        if !news || self.trial(trial).is_none() {
            return Ok(());
        }
        let resource = committed.metrics.get(&self.parts.resource);
        let iteration = committed.metrics.get(crate::config::ITERATION);
        let resource = resource.or(iteration).unwrap_or(0.0) as u64;
        let checkpoint = Checkpoint { owner: trial, id: committed.id.clone(), resource };
        self.emit(Some(trial), committed);
        let decisions = self.parts.referee.handle(Told::Checkpointed { trial, checkpoint })?;
        self.act(decisions)
    }

    fn paused(&mut self, trial: u32) -> Result<()> {
        if let Some(live) = self.live_mut(trial) {
            live.placed = false;
        }
        let checkpoint = self.roster().get(trial).and_then(|entry| entry.checkpoint.as_ref());
        let checkpoint = checkpoint.map(|checkpoint| checkpoint.id.clone());
        self.emit(Some(trial), TrialPaused { checkpoint });
        if self.closing.is_some() {
            return self.end(trial, Outcome::Stopped);
        }
        let decisions = self.parts.referee.handle(Told::Paused { trial, checkpoint: None })?;
        self.act(decisions)
    }

    fn finished(&mut self, trial: u32) -> Result<()> {
        let Some(facts) = self.trial(trial) else { return Ok(()) };
        let Some(live) = &facts.live else { return Ok(()) };
        if facts.values.iter().all(Option::is_some) {
            let early = self.roster().state(trial) == State::Stopping || self.closing.is_some();
            let stopped = early && !live.full;
            return self.end(trial, if stopped { Outcome::Stopped } else { Outcome::Completed });
        }
        let missing = self.parts.objectives.iter().zip(&facts.values).find(|(_, value)| value.is_none());
        let name = missing.map_or("", |(objective, _)| &objective.metric);
        // One that was stopped before it came to report has done nothing wrong.
        if self.closing.is_some() || self.roster().state(trial) == State::Stopping {
            return self.end(trial, Outcome::Stopped);
        }
        let why = format!("it ended without reporting `{name}`, the study's objective");
        self.fail(trial, Cause::new(why))
    }

    fn failed(&mut self, trial: u32, cause: Cause) -> Result<()> {
        if self.live(trial).is_none() {
            return Ok(());
        }
        self.fail(trial, cause)
    }

    fn fail(&mut self, trial: u32, cause: Cause) -> Result<()> {
        let message = cause.message.clone();
        let live = self.facts(trial).and_then(|facts| {
            facts.cause = Some(message.as_str().into());
            facts.outcome = Some(Outcome::Failed);
            facts.live.take()
        });
        self.emit(Some(trial), TrialFinished { outcome: Outcome::Failed, cause: Some(cause) });
        if live.is_some_and(|live| live.placed) {
            self.order(Order::Kill { trial });
        }
        self.tell(trial, End::Failed, &[])?;
        let decisions = self.parts.referee.handle(Told::Failed { trial })?;
        self.act(decisions)?;
        match self.parts.fail_fast && self.closing.is_none() {
            true => self.close(format!("trial {trial} failed, and fail_fast is on: {message}")),
            false => Ok(()),
        }
    }

    fn end(&mut self, trial: u32, outcome: Outcome) -> Result<()> {
        let Some(facts) = self.trials.get_mut(trial as usize) else { return Ok(()) };
        let Some(live) = facts.live.take() else { return Ok(()) };
        facts.outcome = Some(outcome);
        let losses: Option<Vec<f64>> =
            self.parts.objectives.iter().zip(&facts.values).map(|(o, v)| v.map(|v| o.loss(v))).collect();
        self.emit(Some(trial), TrialFinished { outcome, cause: None });
        if !live.constraints.is_empty() {
            self.parts.search.constrain(u64::from(trial), &live.constraints)?;
        }
        let end = match (&losses, outcome) {
            (None, _) => End::Failed,
            (_, Outcome::Completed) => End::Complete,
            _ => End::Pruned { step: live.furthest.unwrap_or(0) },
        };
        self.tell(trial, end, &losses.unwrap_or_default())?;
        let decisions = self.parts.referee.handle(Told::Finished { trial })?;
        self.act(decisions)
    }

    /// Tells the sampler how a trial ended.
    fn tell(&mut self, trial: u32, end: End, losses: &[f64]) -> Result<()> {
        let told = self.search().history().told().len();
        if let Some(facts) = self.facts(trial) {
            facts.told = told;
        }
        self.parts.search.end(u64::from(trial), end, losses)
    }

    fn cloned(&mut self, trial: u32, donor: u32, checkpoint: Checkpoint, config: &Config) -> Result<()> {
        let point = point_of(self.space(), config)?;
        let tree = self.space().config(&point, Some(&self.parts.base))?;
        let config = full(self.space(), &self.parts.base, tree);
        let Some(live) = self.live_mut(trial) else { return Ok(()) };
        live.config.clone_from(&config);
        live.furthest = Some(checkpoint.resource);
        let placed = live.placed;
        self.parts.search.amend(u64::from(trial), point);
        let id = Some(checkpoint.id.clone());
        self.emit(Some(trial), TrialCloned { from: donor, checkpoint: id, config });
        if placed {
            let launch = self.launch(trial, Some(checkpoint));
            self.order(Order::Kill { trial });
            self.order(launch);
        }
        Ok(())
    }

    /// A trial of an open space told what it asked for.
    fn discovered(
        &mut self,
        trial: u32,
        nodes: Vec<(String, crate::space::Node)>,
        config: Config,
    ) -> Result<()> {
        for (name, node) in &nodes {
            // Asked as something else than by an earlier trial.
            if let Err(error) = self.parts.search.space_mut().extend(name, node) {
                return self.fail(trial, Cause::new(error.to_string()));
            }
        }
        let point = point_of(self.space(), &config)?;
        let bits: BTreeMap<&str, u64> = point
            .iter()
            .map(|(i, raw)| (self.space().parameters()[i].path.as_str(), raw.to_bits()))
            .collect();
        let data = json!({ "nodes": nodes, "bits": bits });
        self.parts.search.amend(u64::from(trial), point);
        let config = Value::from_iter(config);
        if let Some(live) = self.live_mut(trial) {
            live.config.clone_from(&config);
        }
        let (by, action) = (STUDY.into(), "discovered".into());
        self.emit(Some(trial), Decided { by, action, reason: String::new(), data });
        if !nodes.is_empty() {
            let study = super::session::described(self, Value::Null);
            self.emit(None, study);
        }
        self.emit(Some(trial), TrialConfigured { config });
        Ok(())
    }

    /// Ends the study with all of its trials.
    fn close(&mut self, why: String) -> Result<()> {
        self.closing = Some(why.clone());
        self.decided("stop", why, Value::Null);
        let live: Vec<(u32, State)> =
            self.roster().live().map(|(trial, entry)| (trial, entry.state)).collect();
        for (trial, state) in live {
            match state {
                State::Paused => self.end(trial, Outcome::Stopped)?,
                State::Ended => {}
                _ => self.order(Order::Stop { trial }),
            }
        }
        Ok(())
    }

    /// The best trial by its last value of the first objective, among those that ended well and keep their constraints.
    #[must_use]
    pub fn best(&self) -> Option<(u32, f64)> {
        let objective = &self.parts.objectives[0];
        let sound = |facts: &Facts| facts.outcome != Some(Outcome::Failed) && !facts.infeasible;
        let valued = self.trials().filter(|(_, facts)| sound(facts));
        let valued = valued.filter_map(|(trial, facts)| Some((trial, facts.values.first().copied()??)));
        valued.min_by(|(a, x), (b, y)| objective.loss(*x).total_cmp(&objective.loss(*y)).then(a.cmp(b)))
    }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::from_micros(to.0.saturating_sub(from.0).max(0) as u64)
}

/// A study's error that names what it was about.
pub(super) fn broken(what: impl Into<String>) -> Error {
    Error::Study { problem: what.into() }
}
