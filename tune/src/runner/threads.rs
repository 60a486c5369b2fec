//! Trials that are calls of a function in this process: for objectives that cost little more than the call.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use regatta_track::Metrics;
use regatta_track::event::Cause;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{Executor, Heard, Task, tell};
use crate::config::ITERATION;
use crate::error::{Error, Result};
use crate::scheduler::Config;
use crate::space::open::{AskFloat, AskInt, Asked};
use crate::space::{Node, Point, Space};
use crate::study::{Input, Order};

/// A function that is optimised.
pub type Objective = Arc<dyn Fn(&mut RunningTrial) -> Result<Vec<f64>, Halt> + Send + Sync>;

/// Why an objective returns before its end: pass it on with `?`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Halt {
    /// The study wants it so; it is no failure.
    Told,
    /// It failed.
    Failed(String),
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for Halt {
    fn from(error: E) -> Self {
        Halt::Failed(error.into().to_string())
    }
}

/// What an objective may return: a number, one for each objective, or either in a result.
pub trait IntoValues {
    /// The values.
    fn values(self) -> Result<Vec<f64>, Halt>;
}

impl IntoValues for f64 {
    fn values(self) -> Result<Vec<f64>, Halt> {
        Ok(vec![self])
    }
}

impl IntoValues for Vec<f64> {
    fn values(self) -> Result<Vec<f64>, Halt> {
        Ok(self)
    }
}

impl<const N: usize> IntoValues for [f64; N] {
    fn values(self) -> Result<Vec<f64>, Halt> {
        Ok(self.into())
    }
}

impl<T: IntoValues, E: Into<Halt>> IntoValues for Result<T, E> {
    fn values(self) -> Result<Vec<f64>, Halt> {
        self.map_err(Into::into).and_then(IntoValues::values)
    }
}

/// Why a trial is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Pause,
    Stop,
}

/// How many reports may be unanswered where no answer but to go on is expected.
const AHEAD: u32 = 256;

/// Where the loop leaves word for a trial.
#[derive(Default)]
struct Mailbox {
    slot: Mutex<Slot>,
    news: Condvar,
    over: AtomicBool,
}

#[derive(Default)]
struct Slot {
    leave: Option<Leave>,
    /// Reports on which there was no word yet.
    unanswered: u32,
    waiting: bool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The trial may go on after a report.
    fn go_on(&self) {
        let mut slot = self.lock();
        slot.unanswered = slot.unanswered.saturating_sub(1);
        if slot.waiting {
            self.news.notify_all();
        }
    }

    /// The trial is to leave. Who is to pause may yet be told to stop, but not the other way round.
    fn leave(&self, why: Leave) {
        let mut slot = self.lock();
        if slot.leave.is_none() || why == Leave::Stop {
            slot.leave = Some(why);
        }
        self.news.notify_all();
    }

    fn halt(&self) {
        self.over.store(true, Ordering::Release);
        drop(self.lock());
        self.news.notify_all();
    }

    /// A report is about to be told.
    fn report(&self) {
        self.lock().unanswered += 1;
    }

    /// Waits until no more than so many reports are unanswered; why to leave, if the trial is to. The loop has a word for every
    /// report, or ends the trial.
    fn wait(&self, unanswered: u32) -> Option<Leave> {
        let mut slot = self.lock();
        while slot.leave.is_none() && slot.unanswered > unanswered && !self.over.load(Ordering::Acquire) {
            slot.waiting = true;
            slot = self.news.wait(slot).unwrap_or_else(PoisonError::into_inner);
            slot.waiting = false;
        }
        slot.leave.or(self.over.load(Ordering::Acquire).then_some(Leave::Pause))
    }
}

/// A trial as its objective sees it.
pub struct RunningTrial {
    number: u32,
    incarnation: u64,
    config: Value,
    asked: Option<Asked>,
    known: Vec<String>,
    metrics: Arc<[String]>,
    mailbox: Arc<Mailbox>,
    to: Sender<Heard>,
    /// Whether anything is decided at reports.
    decides: bool,
    reported: bool,
    halted: Option<Leave>,
}

impl RunningTrial {
    /// Its number in the study.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its configuration.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Its configuration as a type of one's own.
    pub fn config_as<T: DeserializeOwned>(&self) -> Result<T> {
        serde_path_to_error::deserialize(&self.config)
            .map_err(|error| Error::config(error.path().to_string(), error.inner().to_string()))
    }

    /// Whether the study wants it to end.
    pub fn should_stop(&self) -> bool {
        self.mailbox.lock().leave.is_some() || self.mailbox.over.load(Ordering::Acquire)
    }

    /// Asks for a real number, where the study has no space of its own: the space is what its trials ask for.
    pub fn float(&mut self, name: &str, range: std::ops::RangeInclusive<f64>) -> AskFloat<'_> {
        self.asked().float(name, range)
    }

    /// Asks for an integer.
    pub fn int(&mut self, name: &str, range: std::ops::RangeInclusive<i64>) -> AskInt<'_> {
        self.asked().int(name, range)
    }

    /// Asks for true or false.
    pub fn bool(&mut self, name: &str) -> Result<bool> {
        self.asked().bool(name)
    }

    /// Asks for one of these values.
    pub fn choice<T: Serialize + Clone>(&mut self, name: &str, values: &[T]) -> Result<T> {
        self.asked().choice(name, values)
    }

    /// What it asks of a study that has a space is found out by the trial's end, as a parameter too many.
    fn asked(&mut self) -> &mut Asked {
        let number = u64::from(self.number);
        self.asked.get_or_insert_with(|| Asked::new(&Space::open(), &Point::default(), 0, number))
    }

    /// Reports the first objective's value at a step, from 1, and waits for what the study makes of it: an error is that it
    /// wants the trial to end here. A trial that is paused and goes on begins again; what it reports again changes nothing.
    pub fn report(&mut self, step: u64, value: f64) -> Result<(), Halt> {
        self.report_all(step, &[value])
    }

    /// The same with all objectives.
    pub fn report_all(&mut self, step: u64, values: &[f64]) -> Result<(), Halt> {
        if self.halted.is_some() {
            return Err(Halt::Told);
        }
        self.discover();
        self.mailbox.report();
        self.tell_values(step, values);
        self.reported = true;
        // A report that is no number is the trial's last.
        let decisive = self.decides || values.iter().any(|value| value.is_nan());
        self.halted = self.mailbox.wait(if decisive { 0 } else { AHEAD });
        if self.halted.is_some() { Err(Halt::Told) } else { Ok(()) }
    }

    fn tell_values(&mut self, step: u64, values: &[f64]) {
        let names = self.metrics.iter().map(String::as_str);
        let mut metrics: Metrics = names.zip(values.iter().copied()).collect();
        metrics.insert(ITERATION, step as f64);
        tell(&self.to, self.number, self.incarnation, Input::Reported { trial: self.number, step, metrics });
    }

    /// Tells what was asked for since.
    fn discover(&mut self) {
        let Some(asked) = &self.asked else { return };
        let taken: Vec<(String, Node, Value)> =
            asked.taken().map(|(name, node, value)| (name.to_owned(), node, value)).collect();
        if self.known.len() >= taken.len() {
            return;
        }
        self.known = taken.iter().map(|(name, ..)| name.clone()).collect();
        let config: Config = taken.iter().map(|(name, _, value)| (name.clone(), value.clone())).collect();
        let nodes = taken.into_iter().map(|(name, node, _)| (name, node)).collect();
        let input = Input::Discovered { trial: self.number, nodes, config };
        tell(&self.to, self.number, self.incarnation, input);
    }

    fn run(mut self, objective: &Objective) {
        let outcome = catch_unwind(AssertUnwindSafe(|| objective(&mut self)));
        self.discover();
        let trial = self.number;
        let input = match (outcome, self.halted) {
            (_, Some(Leave::Pause)) => Input::Paused { trial },
            (_, Some(_)) => Input::Finished { trial },
            (Ok(Ok(values)), None) if values.len() == self.metrics.len() => {
                // Who reported is judged by the last report.
                if !self.reported {
                    self.tell_values(1, &values);
                }
                Input::Finished { trial }
            }
            (Ok(Ok(values)), None) => {
                let (wanted, given) = (self.metrics.len(), values.len());
                let why = format!("it returned {given} values, and the study has {wanted} objectives");
                Input::Failed { trial, cause: Cause::new(why) }
            }
            (Ok(Err(Halt::Told)), None) => Input::Paused { trial },
            (Ok(Err(Halt::Failed(why))), None) => Input::Failed { trial, cause: Cause::new(why) },
            (Err(panic), None) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                let why = format!("panicked: {}", text.unwrap_or("with no message"));
                Input::Failed { trial, cause: Cause::new(why) }
            }
        };
        tell(&self.to, trial, self.incarnation, input);
    }
}

/// What a trial's call is made with.
pub(crate) struct Job {
    pub(crate) objective: Objective,
    pub(crate) metrics: Arc<[String]>,
    /// Where the space is discovered: the study's seed.
    pub(crate) open: Option<u64>,
    /// Whether anything is decided at reports.
    pub(crate) decides: bool,
}

/// What the threads share.
#[derive(Default)]
struct Queue {
    waiting: Mutex<(VecDeque<RunningTrial>, bool)>,
    news: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, (VecDeque<RunningTrial>, bool)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<RunningTrial> {
        let idle = |queue: &mut (VecDeque<RunningTrial>, bool)| queue.0.is_empty() && !queue.1;
        let mut queue = self.news.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        if queue.1 { None } else { queue.0.pop_front() }
    }
}

/// Calls the objective on threads of this process.
pub(crate) struct ThreadExecutor {
    job: Job,
    to: Sender<Heard>,
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    mailboxes: BTreeMap<u32, Arc<Mailbox>>,
    /// Where the study's signals are heard.
    _runtime: Runtime,
}

impl ThreadExecutor {
    /// With so many threads.
    pub(crate) fn start(job: Job, threads: usize, to: Sender<Heard>, runtime: Runtime) -> Result<Self> {
        let queue = Arc::new(Queue::default());
        let spawn = |index: usize| {
            let (queue, objective) = (queue.clone(), job.objective.clone());
            let work = move || {
                while let Some(trial) = queue.next() {
                    trial.run(&objective);
                }
            };
            let named = std::thread::Builder::new().name(format!("trial-{index}"));
            let failed = |source| regatta_train::Error::io("start a thread for trials", source);
            Ok(named.spawn(work).map_err(failed)?)
        };
        let threads = (0..threads).map(spawn).collect::<Result<_>>()?;
        Ok(ThreadExecutor { job, to, queue, threads, mailboxes: BTreeMap::new(), _runtime: runtime })
    }

    fn launch(&mut self, trial: u32, incarnation: u64, config: Value) {
        if self.mailboxes.len() > 4 * self.threads.len() + 64 {
            // Nobody reads those of trials that are over.
            self.mailboxes.retain(|_, mailbox| Arc::strong_count(mailbox) > 1);
        }
        let mailbox = Arc::new(Mailbox::default());
        self.mailboxes.insert(trial, mailbox.clone());
        let asked = self.job.open.map(|seed| Asked::given(&config, seed, u64::from(trial)));
        let running = RunningTrial {
            number: trial,
            incarnation,
            config,
            asked,
            known: Vec::new(),
            metrics: self.job.metrics.clone(),
            mailbox,
            to: self.to.clone(),
            decides: self.job.decides,
            reported: false,
            halted: None,
        };
        self.queue.lock().0.push_back(running);
        self.queue.news.notify_one();
    }

    fn mailbox(&self, trial: u32, put: impl FnOnce(&Mailbox)) {
        if let Some(mailbox) = self.mailboxes.get(&trial) {
            put(mailbox);
        }
    }
}

impl Executor for ThreadExecutor {
    fn outlives(&self) -> bool {
        false
    }

    fn obey(&mut self, task: Task) -> Result<()> {
        let Task { incarnation, order } = task;
        match order {
            Order::Launch { trial, config, .. } => self.launch(trial, incarnation, config),
            Order::GoOn { trial } => self.mailbox(trial, Mailbox::go_on),
            Order::Pause { trial } => self.mailbox(trial, |mailbox| mailbox.leave(Leave::Pause)),
            Order::Stop { trial } => self.mailbox(trial, |mailbox| mailbox.leave(Leave::Stop)),
            Order::Kill { trial } => {
                if let Some(mailbox) = self.mailboxes.remove(&trial) {
                    mailbox.halt();
                }
            }
            // A call has no workers to be given.
            Order::Resize { trial, .. } => {
                tell(&self.to, trial, incarnation, Input::Started { trial, attempt: 0 });
                self.mailbox(trial, Mailbox::go_on);
            }
        }
        Ok(())
    }

    /// A call cannot be interrupted; it is waited for, unless it looks.
    fn interrupt(&mut self, trial: u32) {
        self.mailbox(trial, |mailbox| mailbox.leave(Leave::Pause));
    }

    fn end(&mut self) {
        self.mailboxes.values().for_each(|mailbox| mailbox.halt());
        self.queue.lock().1 = true;
        self.queue.news.notify_all();
        // Those that still run are calls of the user's: nobody can end them, and the process may want to go.
        self.threads.retain(|thread| !thread.is_finished());
    }
}
