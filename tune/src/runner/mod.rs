//! The loop that drives a study: it offers free slots, hears what trials do, and has an executor carry out what the study
//! decides.
//!
//! What is told goes into the study's log before anybody outside of this process acts on it. Trials that are calls of this
//! process die with it and may be ahead of the log.

mod pool;
mod threads;
mod trainer;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use regatta_track::event::Outcome;

pub(crate) use pool::{PoolExecutor, PoolPlan};
pub use threads::{Halt, IntoValues, Objective, RunningTrial};
pub(crate) use threads::{Job, ThreadExecutor};
pub(crate) use trainer::TrainerExecutor;

use crate::error::Result;
use crate::scheduler::State;
use crate::study::{Input, Machine, Order, Session};

/// How often stoppers look at the clock while nothing is told.
const TICK: Duration = Duration::from_millis(100);
/// How much is taken in before orders are carried out.
const BATCH: usize = 512;

/// What reaches the loop.
pub(crate) enum Heard {
    /// A trial's incarnation did something.
    Trial { trial: u32, incarnation: u64, input: Input },
    /// Somebody wants the study to stop, with everything saved.
    Stop,
    /// Somebody wants it to end at once.
    Kill,
}

/// An order, with the incarnation of the trial that it is about.
pub(crate) struct Task {
    pub(crate) incarnation: u64,
    pub(crate) order: Order,
}

/// Carries out orders; what comes of them is told to the loop.
pub(crate) trait Executor {
    /// Whether what it does outlives this process, so that the log must be ahead of it.
    fn outlives(&self) -> bool;

    /// Carries an order out, or begins to.
    fn obey(&mut self, task: Task) -> Result<()>;

    /// Has a trial save and leave, since the study is stopped.
    fn interrupt(&mut self, trial: u32);

    /// What a trial did under the driver before this one that the study has not heard of; `attempt` is the last of its own
    /// that the study knows, and whether it was known to have begun what it is about.
    fn left_behind(&mut self, trial: u32, attempt: u32, begun: bool) -> Result<Vec<Input>> {
        let _ = (trial, attempt, begun);
        Ok(Vec::new())
    }

    /// Ends everything at once.
    fn end(&mut self);
}

/// Something that happened in a study, for those who watch it.
#[derive(Debug)]
#[non_exhaustive]
pub enum StudyEvent<'a> {
    /// It begins, or goes on.
    Begun {
        /// Its experiment.
        experiment: &'a str,
        /// Its name.
        name: &'a str,
        /// Its folder.
        folder: &'a std::path::Path,
        /// Whether it was begun before.
        resumed: bool,
    },
    /// The study was told something; it stands as the machine says.
    Told {
        /// What.
        input: &'a Input,
    },
    /// It was asked to stop; trials save and leave.
    Stopping {
        /// How long they get.
        grace: Duration,
    },
    /// It is over, for now or for good.
    Ended {
        /// How.
        outcome: Outcome,
        /// Why, if that is not that it is done.
        why: Option<&'a str>,
    },
}

/// Hears what happens in a study, and sees how it stands. Must be quick: the study waits for it.
pub trait StudyCallback: Send {
    /// Something happened.
    fn on(&mut self, event: &StudyEvent<'_>, study: &Machine);
}

impl<F: FnMut(&StudyEvent<'_>, &Machine) + Send> StudyCallback for F {
    fn on(&mut self, event: &StudyEvent<'_>, study: &Machine) {
        self(event, study);
    }
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All trials are over.
    Done,
    /// A stopper, or the first failure, ended it before all trials were made.
    Stopped,
    /// It was asked to stop, and can be resumed.
    Interrupted,
    /// It was ended at once, and can be resumed.
    Killed,
}

/// Whether and since when the study is being stopped.
#[derive(Clone, Copy, PartialEq)]
enum Stopping {
    No,
    Since(Instant),
    AtOnce,
}

/// A study at work.
pub(crate) struct Runner {
    pub(crate) session: Session,
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) heard: Receiver<Heard>,
    pub(crate) callbacks: Vec<Box<dyn StudyCallback>>,
    /// How long trials get to save and leave when the study is stopped.
    pub(crate) grace: Duration,
    incarnations: BTreeMap<u32, u64>,
    pending: Vec<Order>,
    stopping: Stopping,
}

impl Runner {
    pub(crate) fn new(session: Session, executor: Box<dyn Executor>, heard: Receiver<Heard>) -> Self {
        Runner {
            session,
            executor,
            heard,
            callbacks: Vec::new(),
            grace: Duration::from_secs(30),
            incarnations: BTreeMap::new(),
            pending: Vec::new(),
            stopping: Stopping::No,
        }
    }

    pub(crate) fn tell(&mut self, event: &StudyEvent<'_>) {
        let Runner { callbacks, session, .. } = self;
        callbacks.iter_mut().for_each(|callback| callback.on(event, session.machine()));
    }

    /// Drives the study to an end.
    pub(crate) fn run(mut self) -> Result<Ending> {
        let ending = self.drive();
        self.executor.end();
        let ending = ending?;
        let outcome = match ending {
            Ending::Done => Outcome::Completed,
            Ending::Stopped => Outcome::Stopped,
            Ending::Interrupted | Ending::Killed => Outcome::Interrupted,
        };
        let why = self.session.machine().closing().map(str::to_owned);
        self.tell(&StudyEvent::Ended { outcome, why: why.as_deref() });
        self.session.close(outcome)?;
        Ok(ending)
    }

    fn drive(&mut self) -> Result<Ending> {
        self.take_up()?;
        loop {
            self.offer()?;
            self.act()?;
            if let Some(ending) = self.ending() {
                return Ok(ending);
            }
            match self.heard.recv_timeout(TICK) {
                Ok(heard) => self.hear(heard)?,
                Err(RecvTimeoutError::Timeout) => self.handle(Input::Tick)?,
                // Whoever executes holds a sender, so this does not come before the end.
                Err(RecvTimeoutError::Disconnected) => self.handle(Input::Tick)?,
            }
            for _ in 0..BATCH {
                match self.heard.try_recv() {
                    Ok(heard) => self.hear(heard)?,
                    Err(_) => break,
                }
            }
        }
    }

    fn ending(&self) -> Option<Ending> {
        let machine = self.session.machine();
        match self.stopping {
            Stopping::AtOnce => Some(Ending::Killed),
            Stopping::Since(since) if since.elapsed() >= self.grace => Some(Ending::Interrupted),
            _ if machine.is_over() && self.pending.is_empty() => {
                Some(if machine.closing().is_some() { Ending::Stopped } else { Ending::Done })
            }
            Stopping::Since(_) if machine.roster().in_flight() == 0 => Some(Ending::Interrupted),
            _ => None,
        }
    }

    /// Has what ran under another driver go on, after hearing what became of it since.
    fn take_up(&mut self) -> Result<()> {
        let live: Vec<(u32, State)> =
            self.session.machine().roster().live().map(|(trial, entry)| (trial, entry.state)).collect();
        for (trial, state) in live.into_iter().filter(|(_, state)| *state != State::Paused) {
            let attempt = self.session.machine().attempt(trial);
            for input in self.executor.left_behind(trial, attempt, state != State::Starting)? {
                // What is to be done is seen from where all of them stand in the end.
                self.session.handle(input)?;
            }
        }
        let (ended, _) = self.session.machine().orphans();
        for input in ended {
            self.session.handle(input)?;
        }
        let (_, orders) = self.session.machine().orphans();
        self.pending = orders;
        Ok(())
    }

    fn offer(&mut self) -> Result<()> {
        while self.stopping == Stopping::No && self.session.machine().has_slot() {
            self.handle(Input::Offer(None))?;
        }
        Ok(())
    }

    fn handle(&mut self, input: Input) -> Result<()> {
        // Only those who watch need to know of it once it is gone.
        let told = (!self.callbacks.is_empty()).then(|| input.clone());
        let orders = self.session.handle(input)?;
        self.pending.extend(orders);
        if let Some(input) = told {
            self.tell(&StudyEvent::Told { input: &input });
        }
        Ok(())
    }

    fn hear(&mut self, heard: Heard) -> Result<()> {
        match heard {
            Heard::Trial { trial, incarnation, input } => {
                // What an earlier incarnation did counts no more.
                match self.incarnations.get(&trial) {
                    Some(current) if *current == incarnation => self.handle(input),
                    _ => Ok(()),
                }
            }
            Heard::Stop if self.stopping == Stopping::No => {
                self.stopping = Stopping::Since(Instant::now());
                self.tell(&StudyEvent::Stopping { grace: self.grace });
                let live = self.session.machine().roster().live();
                let running: Vec<u32> =
                    live.filter(|(_, e)| e.state != State::Paused).map(|(trial, _)| trial).collect();
                running.into_iter().for_each(|trial| self.executor.interrupt(trial));
                Ok(())
            }
            Heard::Stop | Heard::Kill => {
                self.stopping = Stopping::AtOnce;
                Ok(())
            }
        }
    }

    /// Carries out what was decided, once it is safe to.
    fn act(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if self.executor.outlives() {
            self.session.settle()?;
        }
        for order in std::mem::take(&mut self.pending) {
            let trial = order.trial();
            let incarnation = self.incarnations.entry(trial).or_default();
            if matches!(order, Order::Launch { .. } | Order::Kill { .. }) {
                *incarnation += 1;
            }
            let incarnation = *incarnation;
            if self.stopping != Stopping::No && matches!(order, Order::Launch { .. }) {
                // It would be stopped before it began.
                let heard = self.session.handle(Input::Paused { trial })?;
                debug_assert!(heard.iter().all(|order| !matches!(order, Order::Launch { .. })));
                continue;
            }
            self.executor.obey(Task { incarnation, order })?;
        }
        Ok(())
    }
}

/// Tells the loop of a trial; the end of the loop is the end of everything, so nobody needs to know that it is gone.
pub(crate) fn tell(to: &Sender<Heard>, trial: u32, incarnation: u64, input: Input) {
    to.send(Heard::Trial { trial, incarnation, input }).ok();
}
