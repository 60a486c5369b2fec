//! Between the runner and a scheduler: keeps the roster, lets the scheduler decide where there is something to decide, and
//! sees to it that a study cannot get stuck.

use std::sync::Arc;

use super::draw::Draw;
use super::event::{Action, Checkpoint, Config, Decision, Event, Report};
use super::roster::{Roster, State};
use super::turn::Turn;
use super::{End, Scheduler};

/// A scheduler or a runner broke the rules. It is a bug in whichever it names, and the study should not go on with it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// The scheduler wanted what cannot be.
    #[error("the scheduler `{by}` wants to {action} {what}, but {why}: a bug in that scheduler")]
    Illegal {
        /// The scheduler.
        by: &'static str,
        /// What it wanted.
        action: &'static str,
        /// With which trial.
        what: String,
        /// Why not.
        why: &'static str,
    },
    /// The runner told of a trial before telling that it was created, or created one twice.
    #[error("{event} for trial {trial}, {why}: events must be told in the order in which they happened")]
    OutOfOrder {
        /// The event.
        event: &'static str,
        /// The trial.
        trial: u32,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Runs a [`Scheduler`]. One per study; the runner tells it every [`Event`] in order and does what it answers.
///
/// After each event, and as long as a slot is free and the last offer was taken, the runner offers [`Event::Slot`].
#[derive(Debug)]
pub struct Referee {
    scheduler: Box<dyn Scheduler>,
    roster: Roster,
    seed: u64,
    /// Offers that came to something.
    offers: u64,
    rescues: u64,
}

impl Referee {
    /// A referee of a fresh study.
    #[must_use]
    pub fn new(scheduler: Box<dyn Scheduler>, seed: u64) -> Self {
        Referee { scheduler, roster: Roster::default(), seed, offers: 0, rescues: 0 }
    }

    /// What is known of the trials.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The scheduler.
    #[must_use]
    pub fn scheduler(&self) -> &dyn Scheduler {
        &*self.scheduler
    }

    /// How often the scheduler left a free slot idle while nothing ran, so that the referee had to act. Those built in
    /// never do.
    #[must_use]
    pub fn rescues(&self) -> u64 {
        self.rescues
    }

    /// Takes in what happened and answers what is to be done, in this order. A report is answered by a decision on its
    /// trial, an offered slot by what is to run there. An error leaves the study where a person has to look at it.
    pub fn handle(&mut self, event: Event) -> Result<Vec<Decision>, Misuse> {
        match event {
            Event::Created { trial, config } => self.created(trial, config),
            Event::Started { trial } => self.started(trial),
            Event::Reported(report) => self.reported(&report),
            Event::Checkpointed { trial, checkpoint } => self.checkpointed(trial, checkpoint),
            Event::Paused { trial, checkpoint } => self.paused(trial, checkpoint),
            Event::Finished { trial } => self.ended("finished", trial, End::Finished),
            Event::Failed { trial } => self.ended("failed", trial, End::Failed),
            Event::Slot => self.slot(),
            Event::Exhausted => {
                self.roster.exhaust(true);
                self.ask(Occasion::Exhausted, |scheduler, turn| scheduler.exhausted(turn))
            }
            Event::Extended => {
                self.roster.exhaust(false);
                Ok(Vec::new())
            }
        }
    }

    fn created(&mut self, trial: u32, config: Arc<Config>) -> Result<Vec<Decision>, Misuse> {
        if self.roster.known(trial).is_some() {
            return Err(Misuse::OutOfOrder { event: "created", trial, why: "which there is already" });
        }
        self.roster.create(trial, config);
        self.ask(Occasion::Created(trial), |scheduler, turn| scheduler.created(trial, turn))
    }

    fn started(&mut self, trial: u32) -> Result<Vec<Decision>, Misuse> {
        if self.known("started", trial)? == State::Starting {
            self.roster.enter(trial, State::Running);
        }
        Ok(Vec::new())
    }

    fn reported(&mut self, report: &Report) -> Result<Vec<Decision>, Misuse> {
        let trial = report.trial;
        let standing = |action, reason: &'static str| Ok(vec![Decision { action, reason: reason.into() }]);
        match self.known("reported", trial)? {
            // Of an incarnation that a clone or a resize has replaced.
            State::Starting => Ok(Vec::new()),
            State::Paused | State::Pausing => standing(Action::Pause { trial }, "it was to pause already"),
            State::Stopping | State::Ended => standing(Action::Stop { trial }, "it was to stop already"),
            State::Running => {
                self.roster.report(report);
                let mut decisions =
                    self.ask(Occasion::Reported(trial), |scheduler, turn| scheduler.reported(report, turn))?;
                if !decisions.iter().any(|decision| decision.action.trial() == Some(trial)) {
                    decisions.push(Decision {
                        action: Action::Continue { trial },
                        reason: "nothing against it".into(),
                    });
                }
                Ok(decisions)
            }
        }
    }

    fn checkpointed(&mut self, trial: u32, checkpoint: Checkpoint) -> Result<Vec<Decision>, Misuse> {
        match self.known("checkpointed", trial)? {
            State::Running | State::Pausing => self.roster.checkpoint(trial, checkpoint),
            _ => {}
        }
        Ok(Vec::new())
    }

    fn paused(&mut self, trial: u32, checkpoint: Option<Checkpoint>) -> Result<Vec<Decision>, Misuse> {
        // A running trial may pause of its own, as when its machine is taken away.
        if !matches!(self.known("paused", trial)?, State::Pausing | State::Running | State::Starting) {
            return Ok(Vec::new());
        }
        if let Some(checkpoint) = checkpoint {
            self.roster.checkpoint(trial, checkpoint);
        }
        self.roster.enter(trial, State::Paused);
        self.ask(Occasion::Paused(trial), |scheduler, turn| scheduler.paused(trial, turn))
    }

    fn ended(&mut self, event: &'static str, trial: u32, how: End) -> Result<Vec<Decision>, Misuse> {
        let how = match (self.known(event, trial)?, how) {
            (State::Ended, _) => return Ok(Vec::new()),
            (State::Stopping, End::Finished) => End::Stopped,
            (_, how) => how,
        };
        self.roster.enter(trial, State::Ended);
        let decisions = self.ask(Occasion::Ended(trial), |scheduler, turn| scheduler.ended(trial, how, turn));
        if !self.scheduler.looks_back() {
            self.roster.forget(trial);
        }
        decisions
    }

    /// Offers the slot. Nothing is counted for an offer that comes to nothing, so that it leaves no trace.
    fn slot(&mut self) -> Result<Vec<Decision>, Misuse> {
        let (mut decisions, free) = self.consult(Occasion::Slot, |scheduler, turn| scheduler.slot(turn))?;
        if free && self.roster.in_flight() == 0 && self.roster.paused().next().is_some() {
            self.rescues += 1;
            let (more, _) = self.consult(Occasion::Slot, rescue)?;
            decisions.extend(more);
        } else if free {
            let (action, reason) = if self.roster.in_flight() > 0 {
                (Action::Wait, "nothing can go on before those in flight are heard of")
            } else {
                (Action::Done, "every trial is over and there are no new ones")
            };
            decisions.push(Decision { action, reason: reason.into() });
        }
        if !decisions.iter().all(|decision| matches!(decision.action, Action::Wait | Action::Done)) {
            self.offers += 1;
        }
        Ok(decisions)
    }

    /// The random numbers of an occasion: they depend on what it is about and not on how many events came before, as a study
    /// that was interrupted is told of more starts and of more checkpoints than one that was not.
    fn draw(&self, occasion: &Occasion) -> Draw {
        let stands = |kind: u64, trial: u32| {
            let entry = self.roster.get(trial);
            let (resource, legs) = entry.map_or((0, 0), |entry| (entry.resource, entry.legs.len()));
            [kind, trial.into(), resource, legs as u64]
        };
        let what = match *occasion {
            Occasion::Created(trial) => stands(1, trial),
            Occasion::Reported(trial) => stands(2, trial),
            Occasion::Paused(trial) => stands(3, trial),
            Occasion::Ended(trial) => stands(4, trial),
            Occasion::Exhausted => [5, self.roster.len() as u64, 0, 0],
            Occasion::Slot => [6, self.offers, 0, 0],
        };
        Draw::of(self.seed, what)
    }

    fn known(&self, event: &'static str, trial: u32) -> Result<State, Misuse> {
        let why = "which was never created";
        self.roster.known(trial).ok_or(Misuse::OutOfOrder { event, trial, why })
    }

    fn ask(
        &mut self,
        occasion: Occasion,
        asked: impl FnOnce(&mut dyn Scheduler, &mut Turn<'_>),
    ) -> Result<Vec<Decision>, Misuse> {
        self.consult(occasion, asked).map(|(decisions, _)| decisions)
    }

    /// Lets the scheduler decide; also says whether the offered slot stayed free.
    fn consult(
        &mut self,
        occasion: Occasion,
        asked: impl FnOnce(&mut dyn Scheduler, &mut Turn<'_>),
    ) -> Result<(Vec<Decision>, bool), Misuse> {
        let draw = self.draw(&occasion);
        let mut turn = Turn::new(&mut self.roster, draw, matches!(occasion, Occasion::Slot));
        asked(&mut *self.scheduler, &mut turn);
        match turn.refused {
            None => Ok((turn.decisions, turn.slot)),
            Some((action, why)) => Err(Misuse::Illegal {
                by: self.scheduler.name(),
                action: action.name(),
                what: action.trial().map_or("a trial".into(), |trial| format!("trial {trial}")),
                why,
            }),
        }
    }
}

/// What a scheduler is asked about.
#[derive(Clone, Copy)]
enum Occasion {
    Created(u32),
    Reported(u32),
    Paused(u32),
    Ended(u32),
    Exhausted,
    Slot,
}

/// Nothing runs, some are paused, and the scheduler has no plan: what is furthest goes on.
fn rescue(_: &mut dyn Scheduler, turn: &mut Turn<'_>) {
    let furthest =
        turn.roster().paused().max_by_key(|(trial, entry)| (entry.resource, std::cmp::Reverse(*trial)));
    if let Some((trial, _)) = furthest {
        turn.resume(trial, "nothing else runs, and the scheduler named nothing that should");
    }
}
