//! The state of a gang, which is nothing but the fold of its events.

use super::failure::{Cause, Failure};

/// Drawn at random by each worker process, so that a reconnect is told from an impostor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Incarnation(pub [u8; 16]);

/// Where a gang is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Launched; waiting for every member's call.
    Joining,
    /// All called and were told their rank; waiting until they are ready.
    Preparing,
    /// All are ready to be started.
    Joined,
    /// At work.
    Running,
    /// Every member finished; the gang can be started again.
    Finished,
    /// A member failed, the others were told to stop; waiting until the root cause is known.
    Failing,
    /// Failed. The gang can be launched again, as the next attempt.
    Failed,
    /// Told to end.
    Stopping,
    /// Over: every member ended.
    Stopped,
}

/// Where a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Launched, not heard yet.
    Launched,
    /// Called the controller.
    Called,
    /// Ready to be started.
    Ready,
    /// At work.
    Running,
    /// Finished its work.
    Finished,
    /// Failed; the cause is among the gang's.
    Failed,
    /// Ended, and that was right.
    Left,
}

/// One member of a gang. Its rank is its place in [`State::members`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The slot it was launched for.
    pub slot: u32,
    /// Where it is.
    pub step: Step,
    /// The process that took the slot, once one has.
    pub incarnation: Option<Incarnation>,
    /// Whether its stream is there.
    pub connected: bool,
    /// Whether it has been silent for long enough to be worth a warning.
    pub suspect: bool,
}

impl Member {
    fn new(slot: u32) -> Self {
        Self { slot, step: Step::Launched, incarnation: None, connected: false, suspect: false }
    }

    /// Whether nothing more is expected of its process.
    pub fn is_over(&self) -> bool {
        matches!(self.step, Step::Failed | Step::Left)
    }
}

/// What happened to a gang. The run's store keeps these; [`State::apply`] is their meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The processes of an attempt were asked for.
    Launched {
        /// Which launch this is.
        attempt: u32,
        /// The generation the attempt begins with.
        generation: u64,
    },
    /// A process took its slot.
    Called {
        /// The member's slot.
        slot: u32,
        /// The process.
        incarnation: Incarnation,
    },
    /// A member's stream ended.
    Disconnected {
        /// The member's slot.
        slot: u32,
    },
    /// A member opened a stream again.
    Reconnected {
        /// The member's slot.
        slot: u32,
    },
    /// A member has been silent for long.
    Suspected {
        /// The member's slot.
        slot: u32,
    },
    /// A suspected member was heard again.
    Cleared {
        /// The member's slot.
        slot: u32,
    },
    /// All members called and were told their ranks in this generation.
    Assigned {
        /// The generation.
        generation: u64,
    },
    /// A member is ready.
    Ready {
        /// The member's slot.
        slot: u32,
    },
    /// All members are ready.
    Joined,
    /// The work of a generation began.
    Started {
        /// The generation.
        generation: u64,
    },
    /// A member finished its work.
    MemberFinished {
        /// The member's slot.
        slot: u32,
    },
    /// All members finished.
    Finished {
        /// The generation.
        generation: u64,
    },
    /// A member failed. The first of these makes the gang abort its generation.
    MemberFailed(Cause),
    /// The gang failed; the root cause is known.
    Failed(Failure),
    /// The gang was told to end.
    Stopping,
    /// A member's process ended, and that was right.
    Left {
        /// The member's slot.
        slot: u32,
    },
    /// All members ended.
    Stopped,
}

/// The state of a gang.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Where the gang is.
    pub phase: Phase,
    /// Which launch of the gang this is.
    pub attempt: u32,
    /// The generation the members were last assigned to, or will be.
    pub generation: u64,
    /// The members, by rank.
    pub members: Vec<Member>,
    /// The failures of this attempt, in the order they became known.
    pub causes: Vec<Cause>,
}

impl State {
    /// A gang of the slots, before anything happened.
    pub fn new(slots: &[u32]) -> Self {
        Self {
            phase: Phase::Joining,
            attempt: 0,
            generation: 0,
            members: slots.iter().copied().map(Member::new).collect(),
            causes: Vec::new(),
        }
    }

    /// The rank of a slot.
    pub fn rank(&self, slot: u32) -> Option<usize> {
        self.members.iter().position(|member| member.slot == slot)
    }

    /// Changes the state as the event says.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Launched { attempt, generation } => {
                let slots: Vec<u32> = self.members.iter().map(|member| member.slot).collect();
                *self = Self { attempt: *attempt, generation: *generation, ..Self::new(&slots) };
            }
            Event::Called { slot, incarnation } => {
                self.update(*slot, |member| {
                    member.step = Step::Called;
                    member.incarnation = Some(*incarnation);
                    member.connected = true;
                });
            }
            Event::Disconnected { slot } => self.update(*slot, |member| member.connected = false),
            Event::Reconnected { slot } => self.update(*slot, |member| member.connected = true),
            Event::Suspected { slot } => self.update(*slot, |member| member.suspect = true),
            Event::Cleared { slot } => self.update(*slot, |member| member.suspect = false),
            Event::Assigned { generation } => {
                self.generation = *generation;
                self.phase = Phase::Preparing;
                self.members.iter_mut().for_each(|member| member.step = Step::Called);
            }
            Event::Ready { slot } => self.update(*slot, |member| member.step = Step::Ready),
            Event::Joined => self.phase = Phase::Joined,
            Event::Started { generation } => {
                self.generation = *generation;
                self.phase = Phase::Running;
                self.members.iter_mut().for_each(|member| member.step = Step::Running);
            }
            Event::MemberFinished { slot } => self.update(*slot, |member| member.step = Step::Finished),
            Event::Finished { .. } => self.phase = Phase::Finished,
            Event::MemberFailed(cause) => {
                self.update(cause.slot, |member| member.step = Step::Failed);
                self.causes.push(cause.clone());
                if !matches!(self.phase, Phase::Failed | Phase::Stopping | Phase::Stopped) {
                    self.phase = Phase::Failing;
                }
            }
            Event::Failed(_) => self.phase = Phase::Failed,
            Event::Stopping => self.phase = Phase::Stopping,
            Event::Left { slot } => self.update(*slot, |member| {
                member.step = Step::Left;
                member.connected = false;
            }),
            Event::Stopped => self.phase = Phase::Stopped,
        }
    }

    fn update(&mut self, slot: u32, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.members.iter_mut().find(|member| member.slot == slot) {
            change(member);
        }
    }
}
