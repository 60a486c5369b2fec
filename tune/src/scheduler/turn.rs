//! How a scheduler says what it wants. Every wish is checked against the roster and takes effect on it at once, so that no
//! scheduler, built in or a user's own, can act on a trial that is over or clone what has no checkpoint.

use std::borrow::Cow;
use std::sync::Arc;

use super::draw::Draw;
use super::event::{Action, Config, Decision};
use super::roster::{Roster, State};

/// One event's worth of decisions.
#[derive(Debug)]
pub struct Turn<'a> {
    pub(super) roster: &'a mut Roster,
    pub(super) draw: Draw,
    pub(super) decisions: Vec<Decision>,
    /// Whether a slot is on offer; placing a trial takes it.
    pub(super) slot: bool,
    /// The first wish that could not be granted.
    pub(super) refused: Option<(Action, &'static str)>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(roster: &'a mut Roster, draw: Draw, slot: bool) -> Self {
        Turn { roster, draw, decisions: Vec::new(), slot, refused: None }
    }

    /// The trials as they are, with this turn's decisions done.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        self.roster
    }

    /// This event's random numbers.
    pub fn draw(&mut self) -> &mut Draw {
        &mut self.draw
    }

    /// Lets a running trial go on, and says why. Saying nothing does the same without a reason.
    pub fn go_on(&mut self, trial: u32, reason: impl Into<Cow<'static, str>>) {
        let running = self.roster.state(trial) == State::Running;
        self.take(Action::Continue { trial }, running.then_some(()).ok_or("it does not run"), reason);
    }

    /// Has a running trial pause.
    pub fn pause(&mut self, trial: u32, reason: impl Into<Cow<'static, str>>) {
        let legal = match self.roster.state(trial) {
            State::Running => Ok(()),
            _ => Err("it does not run"),
        };
        if self.take(Action::Pause { trial }, legal, reason) {
            self.roster.enter(trial, State::Pausing);
        }
    }

    /// Ends a trial before its time: to samplers it counts as pruned.
    pub fn stop(&mut self, trial: u32, reason: impl Into<Cow<'static, str>>) {
        self.end(Action::Stop { trial }, trial, reason);
    }

    /// Ends a trial that has had all it was to have: it counts as completed.
    pub fn finish(&mut self, trial: u32, reason: impl Into<Cow<'static, str>>) {
        self.end(Action::Finish { trial }, trial, reason);
    }

    fn end(&mut self, action: Action, trial: u32, reason: impl Into<Cow<'static, str>>) {
        let legal = match self.roster.state(trial) {
            State::Stopping | State::Ended => Err("it is over"),
            _ => Ok(()),
        };
        if self.take(action, legal, reason) {
            self.roster.enter(trial, State::Stopping);
        }
    }

    /// Takes a paused trial up again on the offered slot.
    pub fn resume(&mut self, trial: u32, reason: impl Into<Cow<'static, str>>) {
        let legal = match self.roster.state(trial) {
            State::Paused if self.slot => Ok(()),
            State::Paused => Err("no slot is on offer"),
            _ => Err("it is not paused"),
        };
        let checkpoint = self.roster.get(trial).and_then(|entry| entry.checkpoint.clone());
        if self.take(Action::Resume { trial, checkpoint }, legal, reason) {
            self.slot = false;
            self.roster.enter(trial, State::Starting);
        }
    }

    /// Has a running or paused trial take over the donor's newest checkpoint (or its own, as its own donor), with this
    /// configuration from there on. The donor may run, but must not be over: what is over keeps no checkpoint.
    pub fn clone(
        &mut self,
        trial: u32,
        donor: u32,
        config: Arc<Config>,
        reason: impl Into<Cow<'static, str>>,
    ) {
        let state = self.roster.state(trial);
        let Some(checkpoint) = self.roster.get(donor).and_then(|entry| entry.checkpoint.clone()) else {
            // An action without a checkpoint cannot even be written down.
            self.refused.get_or_insert((
                Action::Continue { trial },
                "to be cloned from a donor without a checkpoint",
            ));
            return;
        };
        let legal = match state {
            State::Running | State::Paused => Ok(()),
            _ => Err("only what runs or is paused can be replaced"),
        };
        let action =
            Action::Clone { trial, donor, checkpoint: checkpoint.clone(), config: Arc::clone(&config) };
        if self.take(action, legal, reason) {
            self.roster.graft(trial, donor, &checkpoint, config);
            if state == State::Running {
                self.roster.enter(trial, State::Starting);
            }
        }
    }

    /// Restarts a running trial with so many workers. It must have shown that it can checkpoint.
    pub fn resize(&mut self, trial: u32, workers: u32, reason: impl Into<Cow<'static, str>>) {
        let proven = self.roster.get(trial).is_some_and(|entry| entry.checkpoint.is_some());
        let legal = match self.roster.state(trial) {
            State::Running if workers == 0 => Err("no workers cannot run it"),
            State::Running if !proven => Err("it never took a checkpoint"),
            State::Running => Ok(()),
            _ => Err("it does not run"),
        };
        if self.take(Action::Resize { trial, workers }, legal, reason) {
            self.roster.resize(trial, workers);
            self.roster.enter(trial, State::Starting);
        }
    }

    /// Starts a new trial on the offered slot.
    pub fn start_new(&mut self, reason: impl Into<Cow<'static, str>>) {
        let legal = match (self.slot, self.roster.exhausted()) {
            (false, _) => Err("no slot is on offer"),
            (_, true) => Err("there are no new trials"),
            _ => Ok(()),
        };
        if self.take(Action::StartNew, legal, reason) {
            self.slot = false;
        }
    }

    /// Whether the offered slot is still free.
    #[must_use]
    pub fn slot_is_free(&self) -> bool {
        self.slot
    }

    /// Whether this turn has decided about a trial.
    #[must_use]
    pub fn has_decided(&self, trial: u32) -> bool {
        self.decisions.iter().any(|decision| decision.action.trial() == Some(trial))
    }

    fn take(
        &mut self,
        action: Action,
        legal: Result<(), &'static str>,
        reason: impl Into<Cow<'static, str>>,
    ) -> bool {
        match legal {
            Ok(()) => self.decisions.push(Decision { action, reason: reason.into() }),
            Err(why) => {
                self.refused.get_or_insert((action, why));
            }
        }
        legal.is_ok()
    }
}
