//! The supervisor of a gang as a pure machine: what was seen goes in, events and actions come out, the time is an input.
//!
//! Named promises, cited by the tests:
//! - GM-1: the state equals the fold of the events given out.
//! - GM-2: a refused call changes nothing.
//! - GM-3: an attempt fails at most once, and its root cause is not a consequence if any cause known by then is not.
//! - GM-4: without further input but the passing of time, every phase but `Joined`, `Finished` and `Failed` ends.
//! - GM-5: generations and attempts never go back; what a worker says of another generation than its own changes nothing.

use std::time::Duration;

use super::failure::{Cause, CauseKind, root_of};
use super::state::{Event, Incarnation, Phase, State, Step};

/// The deadlines of a gang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often each side says that it is alive.
    pub heartbeat: Duration,
    /// After this silence a member is suspected, which is a warning.
    pub suspect: Duration,
    /// After this silence a member is dead.
    pub dead: Duration,
    /// How long the members may take from launch until all are ready.
    pub start: Duration,
    /// How long the supervisor waits for the root cause after a failure that is only a consequence, and for the last words
    /// of a process that has exited.
    pub settle: Duration,
    /// How long a worker goes on without hearing the controller before it ends itself.
    pub lease: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            suspect: Duration::from_secs(2),
            dead: Duration::from_secs(5),
            start: Duration::from_secs(60),
            settle: Duration::from_secs(1),
            lease: Duration::from_secs(10),
        }
    }
}

/// Why a call was refused. Whoever holds the slot is not disturbed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such gang, at least not any more.
    #[error("this controller has no such gang at work")]
    UnknownGang,
    /// The gang has fewer members.
    #[error("the gang has no such slot")]
    UnknownSlot,
    /// The gang has moved on.
    #[error("it is of attempt {presented}, and attempt {current} holds the slot")]
    OtherAttempt {
        /// The caller's attempt.
        presented: u32,
        /// The attempt that is wanted.
        current: u32,
    },
    /// Another process has the slot.
    #[error("another process has taken this slot")]
    SlotTaken,
    /// The member was given up, or the gang is over.
    #[error("this worker was already given up")]
    GivenUp,
}

/// What the supervisor saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Anything at all came from the member.
    Heard {
        /// The member's slot.
        slot: u32,
    },
    /// The member's stream ended.
    Disconnected {
        /// The member's slot.
        slot: u32,
    },
    /// The member says that it is ready.
    Ready {
        /// The member's slot.
        slot: u32,
        /// The generation it means.
        generation: u64,
    },
    /// The member says that it finished.
    Finished {
        /// The member's slot.
        slot: u32,
        /// The generation it means.
        generation: u64,
    },
    /// The member says that it failed.
    Failed {
        /// The member's slot.
        slot: u32,
        /// The generation it means.
        generation: u64,
        /// The error.
        message: String,
        /// The rank whose loss was the reason.
        peer: Option<u32>,
    },
    /// The spawner says that the member's process ended, or could not begin.
    Ended {
        /// The member's slot.
        slot: u32,
        /// The attempt the process belonged to.
        attempt: u32,
        /// How it ended: `NotLaunched`, `Exited`, `Killed` or `Lost`.
        kind: CauseKind,
        /// What the spawner says about it.
        message: String,
    },
    /// The owner wants the work to begin: a new generation if there was one already.
    Start,
    /// The owner wants the gang to be launched again, after it failed.
    Relaunch,
    /// The owner wants the gang to end within the grace.
    Stop {
        /// How long the members may take.
        grace: Duration,
    },
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Tell the member its rank in the generation.
    Assign {
        /// The member's slot.
        slot: u32,
        /// The generation.
        generation: u64,
    },
    /// Tell the member to begin.
    Start {
        /// The member's slot.
        slot: u32,
        /// The generation.
        generation: u64,
    },
    /// Tell the member that the generation is over.
    Abort {
        /// The member's slot.
        slot: u32,
        /// The generation.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// Tell the member to end within the grace.
    Stop {
        /// The member's slot.
        slot: u32,
        /// The grace.
        grace: Duration,
    },
    /// End by force whatever still runs.
    Kill,
    /// Make the processes of the attempt.
    Launch {
        /// The attempt.
        attempt: u32,
    },
}

/// What came out of an input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// What happened, already applied to the state.
    pub events: Vec<Event>,
    /// What is to be done, in order.
    pub actions: Vec<Action>,
}

/// What the supervisor remembers of a member that is not state: clocks and last words.
#[derive(Debug, Clone, Default)]
struct Pulse {
    heard: Duration,
    /// The process ended, but its stream may still hold what it said last; until when to wait.
    ended: Option<(CauseKind, String, Duration)>,
}

/// The supervisor of one gang.
#[derive(Debug)]
pub struct Machine {
    timing: Timing,
    state: State,
    pulses: Vec<Pulse>,
    /// When the phase began, and when it must be over, where it must.
    since: Duration,
    deadline: Option<Duration>,
    killed: bool,
    out: Output,
}

impl Machine {
    /// The supervisor of a gang whose members, by rank, have the slots. The first output launches it.
    pub fn launch(
        timing: Timing,
        slots: &[u32],
        attempt: u32,
        generation: u64,
        now: Duration,
    ) -> (Self, Output) {
        let mut machine = Self {
            timing,
            state: State::new(slots),
            pulses: vec![Pulse::default(); slots.len()],
            since: now,
            deadline: None,
            killed: false,
            out: Output::default(),
        };
        machine.begin_attempt(now, attempt, generation);
        let out = std::mem::take(&mut machine.out);
        (machine, out)
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether what a worker says of `generation` still counts.
    pub fn counts(&self, slot: u32, generation: u64) -> bool {
        let member = self.state.rank(slot).map(|rank| &self.state.members[rank]);
        let over = matches!(self.state.phase, Phase::Failed | Phase::Stopped);
        generation == self.state.generation && !over && member.is_some_and(|member| !member.is_over())
    }

    /// How long ago the member of this rank was heard.
    pub fn silence(&self, rank: usize, now: Duration) -> Duration {
        self.pulses.get(rank).map_or(Duration::ZERO, |pulse| now.saturating_sub(pulse.heard))
    }

    /// A worker calls: may it have the slot?
    pub fn hello(
        &mut self,
        now: Duration,
        slot: u32,
        attempt: u32,
        incarnation: Incarnation,
    ) -> Result<Output, Refusal> {
        let rank = self.state.rank(slot).ok_or(Refusal::UnknownSlot)?;
        if attempt != self.state.attempt {
            return Err(Refusal::OtherAttempt { presented: attempt, current: self.state.attempt });
        }
        let member = &self.state.members[rank];
        if member.incarnation.is_some_and(|holder| holder != incarnation) {
            return Err(Refusal::SlotTaken);
        }
        let gang_over = matches!(self.state.phase, Phase::Failed | Phase::Stopped);
        if member.is_over()
            || gang_over
            || (member.incarnation.is_none() && self.state.phase != Phase::Joining)
        {
            return Err(Refusal::GivenUp);
        }
        let first = member.incarnation.is_none();
        let connected = member.connected;
        self.heard(now, rank);
        if first {
            self.emit(Event::Called { slot, incarnation });
        } else if !connected {
            self.emit(Event::Reconnected { slot });
        }
        self.advance(now);
        Ok(std::mem::take(&mut self.out))
    }

    /// Takes in what was seen.
    pub fn handle(&mut self, now: Duration, input: Input) -> Output {
        match input {
            Input::Tick => {}
            Input::Start => self.start(now),
            Input::Relaunch => self.relaunch(now),
            Input::Stop { grace } => self.stop(now, grace),
            Input::Heard { slot } => self.with_rank(slot, |machine, rank| machine.heard(now, rank)),
            Input::Disconnected { slot } => self.with_rank(slot, |machine, rank| {
                if machine.state.members[rank].connected {
                    machine.emit(Event::Disconnected { slot });
                }
                machine.last_words(now, rank, true);
            }),
            Input::Ready { slot, generation } => self.with_current(now, slot, generation, |machine, rank| {
                let waited_for = machine.state.phase == Phase::Preparing
                    && machine.state.members[rank].step == Step::Called;
                if waited_for {
                    machine.emit(Event::Ready { slot });
                }
            }),
            Input::Finished { slot, generation } => {
                self.with_current(now, slot, generation, |machine, rank| {
                    let running = matches!(machine.state.phase, Phase::Running | Phase::Stopping)
                        && machine.state.members[rank].step == Step::Running;
                    if running {
                        machine.emit(Event::MemberFinished { slot });
                    }
                });
            }
            Input::Failed { slot, generation, message, peer } => {
                self.with_current(now, slot, generation, |machine, rank| {
                    let kind = peer.map_or(CauseKind::Error, |peer| CauseKind::PeerLost { peer });
                    machine.member_failed(now, rank, kind, message);
                });
            }
            Input::Ended { slot, attempt, kind, message } => {
                let current = attempt == self.state.attempt;
                self.with_rank(slot, |machine, rank| {
                    if current {
                        machine.pulses[rank].ended = Some((kind, message, now + machine.timing.settle));
                        machine.last_words(now, rank, !machine.state.members[rank].connected);
                    }
                });
            }
        }
        self.advance(now);
        std::mem::take(&mut self.out)
    }

    fn with_rank(&mut self, slot: u32, act: impl FnOnce(&mut Self, usize)) {
        if let Some(rank) = self.state.rank(slot) {
            act(self, rank);
        }
    }

    /// Acts on what a worker says, if it is about the present generation and the worker was not given up (GM-5).
    fn with_current(
        &mut self,
        now: Duration,
        slot: u32,
        generation: u64,
        act: impl FnOnce(&mut Self, usize),
    ) {
        let current = generation == self.state.generation;
        self.with_rank(slot, |machine, rank| {
            machine.heard(now, rank);
            if current && !machine.state.members[rank].is_over() {
                act(machine, rank);
            }
        });
    }

    fn emit(&mut self, event: Event) {
        self.state.apply(&event);
        self.out.events.push(event);
    }

    fn enter(&mut self, now: Duration, event: Event, deadline: Option<Duration>) {
        self.since = now;
        self.deadline = deadline.map(|wait| now + wait);
        self.emit(event);
    }

    fn each(&mut self, action: impl Fn(u32) -> Action) {
        let present = self.state.members.iter().filter(|member| !member.is_over());
        self.out.actions.extend(present.map(|member| action(member.slot)));
    }

    fn heard(&mut self, now: Duration, rank: usize) {
        self.pulses[rank].heard = now;
        if self.state.members[rank].suspect {
            let slot = self.state.members[rank].slot;
            self.emit(Event::Cleared { slot });
        }
    }

    fn begin_attempt(&mut self, now: Duration, attempt: u32, generation: u64) {
        self.killed = false;
        self.pulses.iter_mut().for_each(|pulse| *pulse = Pulse { heard: now, ended: None });
        self.enter(now, Event::Launched { attempt, generation }, Some(self.timing.start));
        self.out.actions.push(Action::Launch { attempt });
    }

    fn start(&mut self, now: Duration) {
        let generation = match self.state.phase {
            Phase::Joined => self.state.generation,
            Phase::Finished if self.state.members.iter().all(|member| !member.is_over()) => {
                let generation = self.state.generation + 1;
                self.each(|slot| Action::Assign { slot, generation });
                generation
            }
            _ => return,
        };
        self.enter(now, Event::Started { generation }, None);
        self.each(|slot| Action::Start { slot, generation });
    }

    fn relaunch(&mut self, now: Duration) {
        if self.state.phase == Phase::Failed {
            self.begin_attempt(now, self.state.attempt + 1, self.state.generation + 1);
        }
    }

    fn stop(&mut self, now: Duration, grace: Duration) {
        if matches!(self.state.phase, Phase::Stopping | Phase::Stopped) {
            return;
        }
        self.enter(now, Event::Stopping, Some(grace));
        self.each(|slot| Action::Stop { slot, grace });
    }

    /// A member's process ended. Its stream may hold its last words, so that is read to its end first, or until the
    /// settling time is over.
    fn last_words(&mut self, now: Duration, rank: usize, all_read: bool) {
        let Some((kind, message, until)) = self.pulses[rank].ended.clone() else { return };
        let member = &self.state.members[rank];
        if member.is_over() || !(all_read || now >= until) {
            return;
        }
        let rightly = member.step == Step::Finished || self.state.phase == Phase::Stopping;
        if rightly {
            let slot = member.slot;
            self.emit(Event::Left { slot });
        } else {
            self.member_failed(now, rank, kind, message);
        }
    }

    fn member_failed(&mut self, now: Duration, rank: usize, kind: CauseKind, message: String) {
        let State { attempt, generation, phase, .. } = self.state;
        let slot = self.state.members[rank].slot;
        let cause = Cause { rank: rank as u32, slot, attempt, generation, kind, message };
        let first = !matches!(phase, Phase::Failing | Phase::Failed | Phase::Stopping | Phase::Stopped);
        let reason = cause.to_string();
        if first {
            self.enter(now, Event::MemberFailed(cause), Some(self.timing.dead + self.timing.settle));
            self.each(|slot| Action::Abort { slot, generation, reason: reason.clone() });
        } else {
            self.emit(Event::MemberFailed(cause));
        }
    }

    /// What follows from the state and the time alone.
    fn advance(&mut self, now: Duration) {
        self.watch(now);
        match self.state.phase {
            Phase::Joining | Phase::Preparing => self.advance_joining(now),
            Phase::Running => {
                let done = |step| matches!(step, Step::Finished | Step::Left);
                if self.state.members.iter().all(|member| done(member.step)) {
                    let generation = self.state.generation;
                    self.enter(now, Event::Finished { generation }, None);
                }
            }
            Phase::Failing => self.advance_failing(now),
            Phase::Stopping => self.advance_stopping(now),
            Phase::Joined | Phase::Finished | Phase::Failed | Phase::Stopped => {}
        }
    }

    /// Suspects the silent and gives up the dead.
    fn watch(&mut self, now: Duration) {
        for rank in 0..self.state.members.len() {
            self.last_words(now, rank, false);
            let member = &self.state.members[rank];
            let settled = matches!(self.state.phase, Phase::Failed | Phase::Stopping | Phase::Stopped);
            if member.is_over() || member.step == Step::Launched || settled {
                continue;
            }
            let (slot, suspect, finished) = (member.slot, member.suspect, member.step == Step::Finished);
            let silence = now.saturating_sub(self.pulses[rank].heard);
            if silence >= self.timing.dead {
                if finished {
                    self.emit(Event::Left { slot });
                } else {
                    self.member_failed(now, rank, CauseKind::Silent { silence }, String::new());
                }
            } else if silence >= self.timing.suspect && !suspect {
                self.emit(Event::Suspected { slot });
            }
        }
    }

    fn advance_joining(&mut self, now: Duration) {
        let generation = self.state.generation;
        let awaited = if self.state.phase == Phase::Joining { Step::Launched } else { Step::Called };
        let members = self.state.members.iter().enumerate();
        let late: Vec<usize> =
            members.filter(|(_, member)| member.step == awaited).map(|(rank, _)| rank).collect();
        if late.is_empty() && self.state.phase == Phase::Joining {
            let remaining = self.deadline;
            self.enter(now, Event::Assigned { generation }, None);
            self.deadline = remaining;
            self.each(|slot| Action::Assign { slot, generation });
        } else if late.is_empty() {
            self.enter(now, Event::Joined, None);
        } else if self.deadline.is_some_and(|deadline| now >= deadline) {
            let after = self.timing.start;
            for rank in late {
                let kind = match self.state.members[rank].step {
                    Step::Launched => CauseKind::NeverCalledHome { after },
                    _ => CauseKind::NeverReady { after },
                };
                self.member_failed(now, rank, kind, String::new());
            }
            self.advance_failing(now);
        }
    }

    /// Fails the gang once the root cause is known, or can be waited for no longer.
    fn advance_failing(&mut self, now: Duration) {
        let known = self.state.causes.iter().any(|cause| !cause.kind.is_consequence());
        let alive_since = |rank: usize| self.pulses[rank].heard > self.since;
        let accounted =
            (0..self.state.members.len()).all(|rank| self.state.members[rank].is_over() || alive_since(rank));
        let settled = now >= self.since + self.timing.settle && accounted;
        let over = self.deadline.is_some_and(|deadline| now >= deadline);
        if !(known || settled || over) {
            return;
        }
        if let Some(failure) = root_of(&self.state.causes) {
            self.enter(now, Event::Failed(failure), None);
        }
    }

    fn advance_stopping(&mut self, now: Duration) {
        let present = self.state.members.iter().any(|member| !member.is_over());
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        if !present {
            self.enter(now, Event::Stopped, None);
        } else if late && !self.killed {
            self.killed = true;
            self.deadline = Some(now + self.timing.settle);
            self.out.actions.push(Action::Kill);
        } else if late {
            self.enter(now, Event::Stopped, None);
        }
    }
}
