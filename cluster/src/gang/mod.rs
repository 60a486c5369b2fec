//! Gangs: workers that start, work and fail together.
//!
//! [`Gang::launch`] gets seats for all of them or none, starts them and supervises them. A failure of one is the gang's
//! failure: the others are told to stop, the root cause is found, and the owner hears of it as [`Event::Failed`]. It
//! handles it, for example with [`Gang::relaunch`], or makes it its own with [`Failure::of`].
//!
//! The supervisor itself is the pure [`machine`]; its state is the fold of its events ([`state`]).

pub(crate) mod actor;
mod crew;
pub mod failure;
pub mod machine;
pub mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::actor::{Actor, LOG_LINES, Order, Parts};
use self::crew::Crew;
use self::failure::Failure;
use self::machine::Timing;
use self::state::Event;
use crate::control::{Control, FRAME_LIMIT};
use crate::logs::{LogGate, LogLimits, LogLine};
use crate::{Error, Result};
use crate::{GangRequest, Lease, Spawner, WorkerCommand};

/// What a gang is made of.
#[derive(Clone, Debug)]
pub struct GangSpec {
    /// The run it belongs to: unique among the gangs of a controller, since it also names the rendezvous.
    pub run: String,
    /// The seats it needs.
    pub request: GangRequest,
    /// What each worker executes.
    pub command: WorkerCommand,
    /// The number of the first attempt; a run that is resumed counts on.
    pub attempt: u32,
    /// The number of the first generation; a run that is resumed counts on.
    pub generation: u64,
    /// The folder for the workers' log files.
    pub logs: Option<PathBuf>,
    /// Its deadlines.
    pub timing: Timing,
    /// How many log lines are passed on.
    pub log_limits: LogLimits,
}

impl GangSpec {
    /// A gang with the default deadlines, at its first attempt.
    #[must_use]
    pub fn new(run: impl Into<String>, request: GangRequest, command: WorkerCommand) -> Self {
        Self {
            run: run.into(),
            request,
            command,
            attempt: 1,
            generation: 1,
            logs: None,
            timing: Timing::default(),
            log_limits: LogLimits::default(),
        }
    }

    /// The same with these deadlines.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// The same with log files under this folder.
    #[must_use]
    pub fn logs(mut self, folder: impl Into<PathBuf>) -> Self {
        self.logs = Some(folder.into());
        self
    }
}

/// What the workers are started with. What it means is the trainer's business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Begin {
    /// The name of what is to be run.
    pub trainable: String,
    /// Its configuration.
    pub config: Vec<u8>,
    /// What to restore from; empty for a beginning.
    pub restore: Vec<u8>,
}

/// What a worker reported. It stays with the worker, and is sent again after a reconnect, until it is acknowledged with
/// [`Gang::acknowledge`]; it is handed out once. `attempt`, `rank` and `sequence` together name it for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who.
    pub rank: u32,
    /// In which attempt.
    pub attempt: u32,
    /// In which generation.
    pub generation: u64,
    /// Its place among what this rank said in this attempt. There may be holes.
    pub sequence: u64,
    /// What.
    pub body: MessageBody,
}

/// The kinds of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageBody {
    /// Results of a step.
    Report {
        /// The step.
        step: u64,
        /// The results.
        payload: Vec<u8>,
    },
    /// The rank's part of a checkpoint is on storage.
    ShardWritten {
        /// The checkpoint's step.
        step: u64,
        /// What the committer needs to know.
        payload: Vec<u8>,
    },
    /// The rank finished, with this result.
    Finished {
        /// The result.
        payload: Vec<u8>,
    },
}

/// What a gang's owner hears.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GangEvent {
    /// The gang's state changed.
    Happened(Event),
    /// A worker reported something that wants to be acknowledged.
    Message(Message),
    /// A worker logged a line.
    Log(LogLine),
}

/// A gang at work. Dropping it ends its workers and gives back its seats.
pub struct Gang {
    orders: mpsc::UnboundedSender<Order>,
    events: mpsc::UnboundedReceiver<GangEvent>,
    lines: mpsc::Receiver<GangEvent>,
    lease: Lease,
    task: JoinHandle<Result<()>>,
}

impl Gang {
    /// Waits for the seats, as long as the request's patience says, and launches the workers. They have joined when
    /// [`Gang::joined`] says so.
    pub async fn launch(control: &Control, spawner: Arc<dyn Spawner>, spec: GangSpec) -> Result<Self> {
        let lease = spawner.acquire(spec.request.clone()).await?;
        let shared = control.shared.clone();
        let (inbound, inbox) = mpsc::channel(1024);
        let (orders, ordered) = mpsc::unbounded_channel();
        let (told, events) = mpsc::unbounded_channel();
        let (logged, lines) = mpsc::channel(LOG_LINES);
        let gang = shared.enter(inbound.clone());
        let gate = LogGate::new(spec.log_limits, lease.workers());
        let environment = shared.environment(gang);
        let crew = Crew { spec, spawner, lease: lease.clone(), environment, inbox: inbound };
        let parts = Parts { crew, shared, gang, inbox, orders: ordered, events: told, lines: logged, gate };
        let task = tokio::spawn(Actor::launch(parts).run());
        Ok(Self { orders, events, lines, lease, task })
    }

    /// The seats the gang has. Ranks are in their order.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The next thing to know; `None` once the gang is over and all was told. State and messages come before log lines.
    /// May be dropped at any time without losing anything.
    pub async fn next(&mut self) -> Option<GangEvent> {
        tokio::select! {
            biased;
            Some(event) = self.events.recv() => Some(event),
            Some(line) = self.lines.recv() => Some(line),
            else => None,
        }
    }

    /// Waits until all workers have joined, which the spec's start deadline bounds. What happens before that, log lines
    /// included, is passed to `seen`.
    pub async fn joined(&mut self, mut seen: impl FnMut(GangEvent)) -> Result<()> {
        while let Some(event) = self.next().await {
            match event {
                GangEvent::Happened(Event::Joined) => return Ok(()),
                GangEvent::Happened(Event::Failed(failure)) => return Err(Error::Gang(Box::new(failure))),
                other => seen(other),
            }
        }
        Err(Error::Over { what: "the gang" })
    }

    /// Begins the work on a gang that joined, or begins the next on one that finished: its workers keep their processes
    /// and get a new generation. In any other state it has no effect.
    pub fn start(&self, begin: Begin) -> Result<()> {
        let bytes = begin.trainable.len() + begin.config.len() + begin.restore.len();
        within_frame("what to start", bytes)?;
        self.order(Order::Start(begin))
    }

    /// Takes over a worker's message, and all before it of the same rank: it will not be sent again. To be called once it
    /// is safe, and soon, since only so many messages of a rank may be without it.
    pub fn acknowledge(&self, message: &Message) -> Result<()> {
        let Message { rank, attempt, sequence, .. } = *message;
        self.order(Order::Acknowledge { rank, attempt, sequence })
    }

    /// Sends a decision to a worker. It arrives once, or the worker's failure is told.
    pub fn decide(&self, rank: u32, generation: u64, payload: Vec<u8>) -> Result<()> {
        within_frame("a decision", payload.len())?;
        self.order(Order::Decide { rank, generation, payload })
    }

    /// Launches a failed gang again on the same seats, as the next attempt and generation. In any other state it has no
    /// effect.
    pub fn relaunch(&self) -> Result<()> {
        self.order(Order::Relaunch)
    }

    /// Asks the workers to end and gives them the grace for it, without waiting; what they still report is heard through
    /// [`Gang::next`], until [`Event::Stopped`].
    pub fn begin_stop(&self, grace: Duration) -> Result<()> {
        self.order(Order::Stop { grace })
    }

    /// Ends the workers, gives back the seats and waits for both. What was not read with [`Gang::next`] is lost.
    pub async fn stop(self, grace: Duration) -> Result<()> {
        self.order(Order::Stop { grace }).ok();
        match self.task.await {
            Ok(result) => result,
            Err(_) => Err(Error::Over { what: "the gang" }),
        }
    }

    fn order(&self, order: Order) -> Result<()> {
        self.orders.send(order).map_err(|_| Error::Over { what: "the gang" })
    }
}

fn within_frame(what: &'static str, bytes: usize) -> Result<()> {
    if bytes > FRAME_LIMIT { Err(Error::TooLarge { what, bytes, limit: FRAME_LIMIT }) } else { Ok(()) }
}

impl GangEvent {
    /// The gang's failure, if that is what happened.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Happened(Event::Failed(failure)) => Some(failure),
            _ => None,
        }
    }
}
