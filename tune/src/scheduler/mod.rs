//! Schedulers decide which trials go on: who pauses, who is stopped, who takes over whose checkpoint. They never choose a
//! new trial's configuration; that is the sampler's part.
//!
//! A scheduler is a pure state machine. The [`Referee`] feeds it [`Event`]s and hands out [`Decision`]s; there is no clock,
//! thread or file in it, so a study that is resumed feeds it the stored events again and has it back bit for bit. Random
//! choices are hashes of the study's seed and of what is decided on.
//!
//! ```
//! use regatta_tune::scheduler::{Action, Asha, Event, Referee, Report, SchedulerConfig};
//!
//! let asha = SchedulerConfig::from(Asha::new(1..=9)).build(None)?;
//! let mut referee = Referee::new(asha, 42);
//! assert_eq!(referee.handle(Event::Slot)?[0].action, Action::StartNew);
//! referee.handle(Event::Created { trial: 0, config: Default::default() })?;
//! referee.handle(Event::Started { trial: 0 })?;
//! let decisions = referee.handle(Event::Reported(Report { trial: 0, resource: 1, value: 0.7 }))?;
//! assert_eq!(decisions[0].to_string(), "pause trial 0: rung at resource 1: 1 have come so far, the best 0 go on");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is promised
//! - **SCH-1**: a trial is promoted out of a rung only from among the best `1/eta` of it.
//! - **SCH-2**: a trial is cloned only from a checkpoint, which stays [pinned](Roster::pinned) until it is restored.
//! - **SCH-3**: whatever the order of events and failures, an offered slot is left free only while some trial still holds
//!   one; so every study ends, and every trial of it.
//! - **SCH-4**: the same events give the same decisions and the same state.
//! - **SCH-5**: a loss that is not a number is worse than any other.
//!
//! [`conformance`] checks them; run it against a scheduler of your own.

mod asha;
mod config;
pub mod conformance;
mod draw;
mod event;
mod fifo;
mod gp;
mod hyperband;
mod median;
mod pb2;
mod pbt;
mod perturb;
mod referee;
mod replay;
mod resizing;
mod roster;
mod rung;
mod score;
mod space;
mod turn;
mod wilcoxon;

use std::fmt::Debug;

pub use asha::Asha;
pub use config::{InvalidConfig, SchedulerConfig};
pub use draw::Draw;
pub use event::{Action, Checkpoint, Config, Decision, Event, Report};
pub use fifo::Fifo;
pub use hyperband::HyperBand;
pub use median::Median;
pub use pb2::Pb2;
pub use pbt::Pbt;
pub use perturb::Perturb;
pub use referee::{Misuse, Referee};
pub use replay::PbtReplay;
pub use resizing::Resizing;
pub use roster::{Entry, Leg, Roster, State};
pub use turn::Turn;
pub use wilcoxon::Wilcoxon;

pub(crate) use score::Score;

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It came to its own end.
    Finished,
    /// It was told to stop.
    Stopped,
    /// It failed for good.
    Failed,
}

/// A policy over trials. What it wants done it says through the [`Turn`]; what it says nothing about goes on as it is.
///
/// The methods are called for trials whose [`State`] allows a decision: reports of a trial that is pausing or stopping are
/// answered by the [`Referee`] itself. `Debug` shows the whole state: two schedulers that print the same are the same.
pub trait Scheduler: Debug + Send {
    /// The name under which its decisions are logged, such as `asha`.
    fn name(&self) -> &'static str;

    /// A new trial begins.
    fn created(&mut self, trial: u32, turn: &mut Turn<'_>) {
        let _ = (trial, turn);
    }

    /// A running trial reported. Resources may repeat (after a retry) and may skip.
    fn reported(&mut self, report: &Report, turn: &mut Turn<'_>) {
        let _ = (report, turn);
    }

    /// A trial gave its slot back.
    fn paused(&mut self, trial: u32, turn: &mut Turn<'_>) {
        let _ = (trial, turn);
    }

    /// A trial is over.
    fn ended(&mut self, trial: u32, how: End, turn: &mut Turn<'_>) {
        let _ = (trial, how, turn);
    }

    /// There will be no new trials (unless the study is extended).
    fn exhausted(&mut self, turn: &mut Turn<'_>) {
        let _ = turn;
    }

    /// A slot is free: [start a new trial](Turn::start_new) or [take up a paused one](Turn::resume), or neither. What is
    /// changed here without saying so is lost, as offers that come to nothing are not stored.
    fn slot(&mut self, turn: &mut Turn<'_>);

    /// The trials with a result at each rung, best first, from the lowest rung to the highest. A sampler learns from them
    /// before trials are over; see [`History::judged_by`](crate::sampler::History::judged_by). Empty for a scheduler that
    /// does not compare trials at rungs.
    fn rungs(&self) -> Vec<Vec<u32>> {
        Vec::new()
    }

    /// Whether the [`Roster`] is to keep what it knows of trials that are over. Otherwise it lets go of them, so that a study
    /// of very many trials needs little memory.
    fn looks_back(&self) -> bool {
        true
    }
}
