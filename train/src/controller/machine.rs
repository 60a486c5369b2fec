//! What a run's controller decides, as a pure machine: what was seen goes in, events and actions come out, the time is an
//! input. What must outlive the controller is in the [`Ledger`].
//!
//! Named promises, cited by the simulator:
//! - CM-1: the ledger equals the fold of the events given out, over all controllers of a run.
//! - CM-2: no more failures are made good than `max_failures`, no more preemptions than `max_preemptions`.
//! - CM-3: every attempt has the next number, and a generation later than any that the log or the storage has seen.
//! - CM-4: an attempt that began is ended once, by the next controller at the latest; a run is ended once, as the last event.
//! - CM-5: a crew is launched only when nothing is left of the one before.
//! - CM-6: once told to stop, a run ends within the grace, whatever its crew does or leaves undone.
//! - CM-7: what a failed run reports is the first cause since its last progress.
//! - CM-8: restarts without progress wait twice as long each time, up to a minute.

use std::time::Duration;

use regatta_track::event::{AttemptEnded, AttemptStarted, Cause, CheckpointCommitted, CheckpointDeleted};
use regatta_track::event::{Decision as Decided, Outcome, RunFinished};
use regatta_track::{Draft, Event, Timestamp};
use serde_json::{Value, json};

use super::ledger::Ledger;
use crate::config::{FailureConfig, StopConfig};
use crate::wire::{Decision, Restore, StopReason};
use crate::{Error, Result};

/// The longest wait before a restart.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// How long workers get to leave once the run is at its end.
const LEAVE: Duration = Duration::from_secs(5);

/// What the run is meant to be.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The run's name, for messages.
    pub run: String,
    /// How much may go wrong.
    pub failure: FailureConfig,
    /// When it has had enough.
    pub stop: StopConfig,
    /// What to begin from, if that is not the run's own newest checkpoint.
    pub restore: Restore,
    /// How many workers are planned.
    pub world_size: u32,
    /// Whether the run only tries everything: what it saved is then restored once, by another crew.
    pub rehearsal: bool,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not begun.
    Planning,
    /// Getting room, and making processes.
    Placing,
    /// Waiting for all ranks.
    Joining,
    /// At work.
    Running,
    /// Asked to stop; finishing a step and saving.
    Stopping,
    /// A crew is taken down, and another is to follow.
    Recovering,
    /// A crew is taken down, and that is the end.
    Ending,
    /// Over.
    Ended,
}

/// How a run ended, or where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not over yet, as far as anyone knows.
    Running,
    /// It came to its own end, or to one that its configuration asked for.
    Completed,
    /// It was stopped and can be resumed.
    Stopped {
        /// Why.
        reason: StopReason,
        /// Whether somebody did not want to wait for its last checkpoint.
        forced: bool,
    },
    /// It failed.
    Failed,
}

/// What a problem counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// A failure, made good by a restart within the budget.
    Failure,
    /// A worker's place was taken away.
    Preemption,
    /// No restart would help.
    Fatal,
}

/// Something went wrong.
#[derive(Debug)]
pub struct Problem {
    /// What it counts as.
    pub kind: ProblemKind,
    /// What the run's log keeps of it.
    pub cause: Cause,
    /// What its user is told.
    pub error: Error,
}

impl Problem {
    /// A problem without more than its error.
    pub fn new(kind: ProblemKind, error: Error) -> Self {
        Problem { kind, cause: Cause::new(error.to_string()), error }
    }
}

/// What was seen.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// Begin.
    Begin,
    /// There is room, and the ranks are being made.
    Placed,
    /// All ranks were started.
    Started {
        /// How many.
        world_size: u32,
    },
    /// Rank 0 took up a checkpoint, or began at the beginning.
    Restored {
        /// The checkpoint.
        checkpoint: Option<String>,
        /// Its step.
        step: u64,
        /// What was passed over, each with why.
        damaged: Vec<String>,
    },
    /// A checkpoint was committed.
    Committed(CheckpointCommitted),
    /// A checkpoint is no more.
    Deleted(CheckpointDeleted),
    /// The storage has seen this generation: a copy of the log, from which the run may have been brought back, may not.
    Fence(u64),
    /// A rank failed, could not be launched, or broke the rules.
    Failed(Problem),
    /// All ranks are done.
    Finished {
        /// What rank 0's trainable returned.
        value: Value,
        /// Why they stopped before their own end, if they did.
        stopped: Option<StopReason>,
    },
    /// Nothing is left of the crew; the error is that this is not certain.
    Gone(Result<()>),
    /// Somebody wants the run to stop.
    Stop(StopReason),
    /// Somebody wants the run to stop at once.
    Kill,
    /// Somebody wants a checkpoint.
    Save,
    /// The run's own store is lost.
    Broken(Error),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Get room for a crew and start it.
    Launch {
        /// The attempt.
        attempt: u32,
        /// The generation.
        generation: u64,
        /// What to begin from.
        restore: Restore,
        /// What earlier attempts took.
        spent: Duration,
    },
    /// Tell the ranks.
    Decide(Decision),
    /// End the crew, after this grace by force, and answer with [`Input::Gone`].
    TakeDown {
        /// The grace.
        grace: Duration,
    },
}

/// What came out of an input.
#[derive(Debug, Default)]
pub struct Output {
    /// What happened, to be stored, already in the ledger.
    pub events: Vec<Draft>,
    /// What is to be done, in order.
    pub actions: Vec<Action>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ending {
    /// In short.
    pub status: Status,
    /// What went wrong: why it failed, or what kept it from stopping cleanly.
    pub error: Option<Error>,
    /// What rank 0's trainable returned.
    pub value: Option<Value>,
}

/// The controller of one run.
#[derive(Debug)]
pub struct Machine {
    plan: Plan,
    ledger: Ledger,
    phase: Phase,
    /// The wall clock at the controller's time 0.
    origin: Timestamp,
    now: Duration,
    /// When the attempt began.
    begun: Duration,
    /// When the phase must be over.
    deadline: Option<Duration>,
    /// Whether a crew may be there.
    manned: bool,
    /// Whether a checkpoint was committed under this controller.
    progressed: bool,
    stopping: Option<StopReason>,
    /// The first error since the last progress, as long as this controller saw it.
    first: Option<Error>,
    /// The last one after it.
    latest: Option<Error>,
    /// The newest generation that the storage has seen.
    fence: u64,
    ending: Option<Ending>,
    out: Output,
}

impl Machine {
    /// The controller of a run that remembers this; `origin` is the wall clock at its time 0.
    pub fn new(plan: Plan, ledger: Ledger, origin: Timestamp) -> Self {
        Machine {
            plan,
            ledger,
            phase: Phase::Planning,
            origin,
            now: Duration::ZERO,
            begun: Duration::ZERO,
            deadline: None,
            manned: false,
            progressed: false,
            stopping: None,
            first: None,
            latest: None,
            fence: 0,
            ending: None,
            out: Output::default(),
        }
    }

    /// Where the run is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What it remembers.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Why it is stopping, if it is.
    pub fn stopping(&self) -> Option<&StopReason> {
        self.stopping.as_ref()
    }

    /// How long until the next attempt, while one is to follow.
    pub fn backoff_left(&self) -> Duration {
        self.deadline.filter(|_| self.phase == Phase::Recovering).unwrap_or_default().saturating_sub(self.now)
    }

    /// What all attempts took until now.
    pub fn spent(&self, now: Duration) -> Duration {
        let open = self.ledger.open.is_some() && self.phase != Phase::Planning;
        self.ledger.spent + if open { now.saturating_sub(self.begun) } else { Duration::ZERO }
    }

    /// When [`Input::Tick`] is needed at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let limit = self.time_limit().map(|limit| limit.saturating_sub(self.spent(self.now)) + self.now);
        // A restart waits for the end of the crew before it, whatever the time.
        let deadline = self.deadline.filter(|_| !(self.phase == Phase::Recovering && self.manned));
        [deadline, limit].into_iter().flatten().min()
    }

    /// How the run ended, once it did.
    pub fn into_ending(self) -> Option<Ending> {
        if self.phase == Phase::Ended { self.ending } else { None }
    }

    /// Takes in what was seen.
    pub fn handle(&mut self, now: Duration, input: Input) -> Output {
        self.now = self.now.max(now);
        match input {
            Input::Begin => self.begin(),
            Input::Placed => self.enter(Phase::Placing, Phase::Joining),
            Input::Started { world_size } => self.started(world_size),
            Input::Restored { checkpoint, step, damaged } => self.restored(checkpoint, step, &damaged),
            Input::Committed(committed) => self.committed(committed),
            Input::Fence(generation) => self.fence = self.fence.max(generation),
            Input::Deleted(deleted) => self.deleted(deleted),
            Input::Failed(problem) => self.failed(problem),
            Input::Finished { value, stopped } => self.finished(value, stopped),
            Input::Gone(result) => self.gone(result),
            Input::Stop(reason) => self.stop(reason),
            Input::Kill => self.kill(),
            Input::Save if self.phase == Phase::Running => {
                self.out.actions.push(Action::Decide(Decision::Save));
            }
            Input::Broken(error) => self.broken(error),
            Input::Save | Input::Tick => {}
        }
        self.tick();
        std::mem::take(&mut self.out)
    }

    fn wall(&self) -> Timestamp {
        Timestamp(self.origin.0 + self.now.as_micros() as i64)
    }

    fn emit(&mut self, attempt: u32, event: impl Into<Event>) {
        self.emit_at(attempt, self.wall(), event.into());
    }

    fn emit_at(&mut self, attempt: u32, at: Timestamp, event: Event) {
        self.ledger.apply(attempt, at, &event);
        self.out.events.push(Draft::new(event).attempt(attempt).at(at));
    }

    fn decided(&mut self, action: &str, reason: String, data: Value) {
        let decision = Decided { by: "controller".into(), action: action.into(), reason, data };
        self.emit(self.ledger.attempt, decision);
    }

    fn enter(&mut self, from: Phase, to: Phase) {
        if self.phase == from {
            self.phase = to;
        }
    }

    fn take_down(&mut self, phase: Phase, grace: Duration) {
        self.phase = phase;
        self.out.actions.push(Action::TakeDown { grace });
    }

    fn begin(&mut self) {
        if self.phase != Phase::Planning {
            return;
        }
        // The controller before this one did not live to say how its attempt ended.
        if self.ledger.open.is_some() {
            let ended = AttemptEnded { outcome: Outcome::Interrupted, cause: None };
            let (attempt, at) = (self.ledger.attempt, self.ledger.last);
            self.emit_at(attempt, at, ended.into());
        }
        // Nor, if it had given the run up, to say that this was the end.
        let FailureConfig { max_failures, max_preemptions, .. } = self.plan.failure;
        if self.ledger.failures > max_failures || self.ledger.preemptions > max_preemptions {
            let cause = self.ledger.first.clone();
            self.emit(0, RunFinished { outcome: Outcome::Failed, cause });
        }
        self.launch();
    }

    fn launch(&mut self) {
        let (attempt, generation) = (self.ledger.attempt + 1, self.ledger.generation.max(self.fence) + 1);
        let newest = self.ledger.newest().map(|(name, kept)| (name.to_owned(), kept.step));
        // What was committed may not be told yet, so a later attempt looks for itself.
        let own = match self.plan.restore {
            Restore::Nothing => newest.is_some() || attempt > 1,
            _ => self.progressed,
        };
        let restore = if own { Restore::Newest } else { self.plan.restore.clone() };
        let spent = self.ledger.spent;
        let (restored, step) = newest.map_or((None, 0), |(name, step)| (Some(name), step));
        let started = AttemptStarted { world_size: self.plan.world_size, generation, restored, step };
        self.begun = self.now;
        self.emit(attempt, started);
        (self.phase, self.deadline, self.manned) = (Phase::Placing, None, true);
        self.out.actions.push(Action::Launch { attempt, generation, restore, spent });
    }

    /// Says more about the attempt that is on: what is known only once it began.
    fn correct(&mut self, started: AttemptStarted) {
        if let Some(at) = self.ledger.open {
            self.emit_at(self.ledger.attempt, at, started.into());
        }
    }

    fn begun_as(&self) -> AttemptStarted {
        let (restored, step) = self.ledger.newest().map_or((None, 0), |(n, k)| (Some(n.to_owned()), k.step));
        let (world_size, generation) = (self.plan.world_size, self.ledger.generation);
        AttemptStarted { world_size, generation, restored, step }
    }

    fn started(&mut self, world_size: u32) {
        if !matches!(self.phase, Phase::Placing | Phase::Joining) {
            return;
        }
        self.phase = Phase::Running;
        if world_size != self.plan.world_size {
            self.plan.world_size = world_size;
            self.correct(self.begun_as());
        }
    }

    fn restored(&mut self, checkpoint: Option<String>, step: u64, damaged: &[String]) {
        if !matches!(self.phase, Phase::Running | Phase::Stopping) {
            return;
        }
        let planned = self.begun_as();
        if (&planned.restored, planned.step) != (&checkpoint, step) {
            self.correct(AttemptStarted { restored: checkpoint.clone(), step, ..planned });
        }
        if !damaged.is_empty() {
            let reason = format!("passed over what is damaged: {}", damaged.join("; "));
            self.decided("restored", reason, json!({ "checkpoint": checkpoint, "step": step }));
        }
    }

    fn committed(&mut self, committed: CheckpointCommitted) {
        let ended = matches!(self.phase, Phase::Ended);
        if !ended && !self.ledger.checkpoints.contains_key(&committed.id) {
            // One that is told after its attempt failed was made before that.
            let before = self.ledger.open.is_none();
            self.first = self.latest.take().or(self.first.take()).filter(|_| before);
            self.progressed |= self.phase != Phase::Planning;
            self.emit(self.ledger.attempt, committed);
        }
    }

    fn deleted(&mut self, deleted: CheckpointDeleted) {
        if self.phase != Phase::Ended && self.ledger.checkpoints.contains_key(&deleted.id) {
            self.emit(self.ledger.attempt, deleted);
        }
    }

    fn end_attempt(&mut self, outcome: Outcome, cause: Option<Cause>) {
        if self.ledger.open.is_some() {
            self.emit(self.ledger.attempt, AttemptEnded { outcome, cause });
        }
    }

    fn failed(&mut self, problem: Problem) {
        if !matches!(self.phase, Phase::Placing | Phase::Joining | Phase::Running | Phase::Stopping) {
            return;
        }
        let Problem { kind, cause, error } = problem;
        let outcome = if kind == ProblemKind::Preemption { Outcome::Interrupted } else { Outcome::Failed };
        let before = self.ledger.first.clone();
        self.end_attempt(outcome, Some(cause));
        let error = match (self.first.take(), before) {
            (Some(first), _) => first,
            (None, Some(first)) => {
                Error::other("the first failure, under an earlier controller", first.message)
            }
            (None, None) => error,
        };
        match self.stopping.take() {
            // What the user asked for has come about, if less gently than asked. A goal was reached only by what was
            // lost with the crew, so the run goes on.
            Some(reason) if !matches!(reason, StopReason::Reached(_)) => {
                let status = Status::Stopped { reason, forced: false };
                return self.finish_with(status, Some(error), None);
            }
            _ => {}
        }
        let FailureConfig { max_failures, max_preemptions, .. } = self.plan.failure;
        let verdict = match kind {
            ProblemKind::Fatal => Some("no restart would help".to_owned()),
            ProblemKind::Failure if self.ledger.failures > max_failures => Some(format!(
                "{} failures, and {max_failures} were to be made good (max_failures)",
                self.ledger.failures
            )),
            ProblemKind::Preemption if self.ledger.preemptions > max_preemptions => Some(format!(
                "{} preemptions, and {max_preemptions} were to be made good (max_preemptions)",
                self.ledger.preemptions
            )),
            _ => None,
        };
        match verdict {
            Some(why) => {
                let error = match error {
                    Error::Failed(failure) if kind != ProblemKind::Fatal => {
                        Error::Failed(Box::new(failure.of(format!("run {} ({why})", self.plan.run))))
                    }
                    Error::Failed(failure) => {
                        Error::Failed(Box::new(failure.of(format!("run {}", self.plan.run))))
                    }
                    other => other,
                };
                self.decided("give_up", why, Value::Null);
                self.finish_with(Status::Failed, Some(error), None);
            }
            None => self.recover(error),
        }
    }

    fn recover(&mut self, error: Error) {
        self.first = Some(error);
        let wait = self.backoff();
        let from = self.ledger.newest().map_or("the beginning", |(name, _)| name).to_owned();
        let reason = format!("restart from {from} in {:.1} s", wait.as_secs_f64());
        self.decided("restart", reason, json!({ "failures": self.ledger.failures }));
        self.deadline = Some(self.now + wait);
        self.take_down(Phase::Recovering, Duration::ZERO);
    }

    /// Doubled by every restart without progress.
    fn backoff(&self) -> Duration {
        let doublings = self.ledger.fruitless.saturating_sub(1).min(32);
        let seconds = self.plan.failure.backoff_seconds * f64::from(2_u32).powi(doublings as i32);
        Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_BACKOFF.as_secs_f64()))
    }

    fn finished(&mut self, value: Value, stopped: Option<StopReason>) {
        if !matches!(self.phase, Phase::Running | Phase::Stopping) {
            return;
        }
        let status = match stopped {
            None | Some(StopReason::Reached(_)) => Status::Completed,
            Some(reason) => Status::Stopped { reason, forced: false },
        };
        self.end_attempt(outcome_of(&status), None);
        if std::mem::take(&mut self.plan.rehearsal) && status == Status::Completed && self.progressed {
            self.decided("restore", "to try that what was saved can be restored".into(), Value::Null);
            (self.stopping, self.deadline) = (None, Some(self.now));
            return self.take_down(Phase::Recovering, LEAVE);
        }
        self.finish_with(status, None, Some(value));
    }

    fn stop(&mut self, reason: StopReason) {
        match self.phase {
            Phase::Running => {
                self.stopping = Some(reason.clone());
                self.deadline = Some(self.now + seconds(self.plan.failure.grace_seconds));
                self.phase = Phase::Stopping;
                self.decided("stop", reason.to_string(), Value::Null);
                self.out.actions.push(Action::Decide(Decision::Stop(reason)));
            }
            // Nothing has been done yet that would be worth saving.
            Phase::Planning | Phase::Placing | Phase::Joining | Phase::Recovering => {
                self.cut_short(reason, false, None);
            }
            Phase::Stopping | Phase::Ending | Phase::Ended => {}
        }
    }

    fn kill(&mut self) {
        if !matches!(self.phase, Phase::Ending | Phase::Ended) {
            let reason = self.stopping.take().unwrap_or(StopReason::User);
            self.cut_short(reason, true, None);
        }
    }

    fn cut_short(&mut self, reason: StopReason, forced: bool, error: Option<Error>) {
        let status = match reason {
            StopReason::Reached(_) if !forced => Status::Completed,
            reason => Status::Stopped { reason, forced },
        };
        if self.phase != Phase::Planning {
            self.end_attempt(outcome_of(&status), None);
        }
        self.finish_with(status, error, None);
    }

    fn broken(&mut self, error: Error) {
        match &mut self.ending {
            Some(ending) => {
                ending.error.get_or_insert(error);
            }
            None => {
                self.end_attempt(Outcome::Failed, Some(Cause::new(error.to_string())));
                self.finish_with(Status::Failed, Some(error), None);
            }
        }
    }

    /// Settles how the run ends; it has ended once nothing is left of its crew.
    fn finish_with(&mut self, status: Status, error: Option<Error>, value: Option<Value>) {
        let grace = if value.is_some() { LEAVE } else { Duration::ZERO };
        let taken_down = self.phase == Phase::Recovering;
        self.ending = Some(Ending { status, error, value });
        (self.stopping, self.deadline) = (None, None);
        if !self.manned {
            self.end();
        } else if taken_down {
            self.phase = Phase::Ending;
        } else {
            self.take_down(Phase::Ending, grace);
        }
    }

    fn gone(&mut self, result: Result<()>) {
        if !matches!(self.phase, Phase::Recovering | Phase::Ending) {
            return;
        }
        self.manned = false;
        match (self.phase, result) {
            (Phase::Ending, result) => {
                if let (Err(error), Some(ending)) = (result, &mut self.ending) {
                    ending.error.get_or_insert(error);
                }
                self.end();
            }
            // Something of the old crew may still be there: another beside it would be two.
            (_, Err(error)) => {
                self.decided("give_up", error.to_string(), Value::Null);
                let error = self.first.take().unwrap_or(error);
                self.finish_with(Status::Failed, Some(error), None);
            }
            (_, Ok(())) => {}
        }
    }

    fn end(&mut self) {
        let Some(ending) = &self.ending else { return };
        let (outcome, value) = (outcome_of(&ending.status), ending.value.clone());
        let failed = ending.status == Status::Failed;
        let cause = ending.error.as_ref().filter(|_| failed).map(|error| self.cause_of(error));
        if let Status::Stopped { reason, forced } = &ending.status {
            let reason = reason.clone();
            let data = json!({ "reason": reason, "forced": forced });
            self.decided("stopped", reason.to_string(), data);
        }
        if let Some(value) = value.filter(|value| !value.is_null()) {
            self.decided("value", String::new(), value);
        }
        self.phase = Phase::Ended;
        self.emit(0, RunFinished { outcome, cause });
    }

    fn cause_of(&self, error: &Error) -> Cause {
        self.ledger.first.clone().unwrap_or_else(|| Cause::new(error.to_string()))
    }

    fn time_limit(&self) -> Option<Duration> {
        self.plan.stop.seconds.filter(|_| self.phase == Phase::Running).map(seconds)
    }

    /// What follows from the time alone.
    fn tick(&mut self) {
        if let Some(limit) = self.time_limit()
            && self.spent(self.now) >= limit
        {
            self.stop(StopReason::Reached(format!("{} s", limit.as_secs_f64())));
        }
        let due = self.deadline.is_some_and(|deadline| self.now >= deadline);
        match self.phase {
            Phase::Recovering if due && !self.manned => self.launch(),
            Phase::Stopping if due => {
                let reason = self.stopping.take().unwrap_or(StopReason::User);
                let waited = seconds(self.plan.failure.grace_seconds);
                let error = regatta_cluster::Error::Timeout {
                    operation: "the workers' stop",
                    waited,
                    detail: ", so they were killed: what they did since the last checkpoint is lost. If saving takes \
                             longer, raise failure.grace_seconds"
                        .into(),
                };
                self.cut_short(reason, false, Some(error.into()));
            }
            _ => {}
        }
    }
}

fn outcome_of(status: &Status) -> Outcome {
    match status {
        Status::Completed => Outcome::Completed,
        Status::Stopped { reason: StopReason::Scheduler, .. } => Outcome::Stopped,
        Status::Stopped { .. } | Status::Running => Outcome::Interrupted,
        Status::Failed => Outcome::Failed,
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(u64::from(u32::MAX)))
}
