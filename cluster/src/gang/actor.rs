//! The task behind a gang: it feeds the supervisor what sockets, processes and clocks say, and does what it decides.
//!
//! It never waits for its owner. What it holds for the owner is bounded by what workers may have under way without an
//! acknowledgement, so a slow owner slows the reports of its own workers and nothing else.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Status;

use super::failure::CauseKind;
use super::machine::{Action, Input, Machine, Output, Refusal};
use super::state::{Event, Incarnation};
use super::{Begin, GangEvent, Message, MessageBody};
use crate::control::Shared;
use crate::gang::crew::Crew;
use crate::link::{Arrival, Inbox, Limits, Outbox};
use crate::logs::LogGate;
use crate::proto::control::{self as pb, FromWorker, ToWorker, from_worker, to_worker};
use crate::{Reason, WorkerEvent};

/// Lines that wait for the owner; more are left out and counted.
pub(crate) const LOG_LINES: usize = 1024;

/// What reaches a gang's task from outside.
pub(crate) enum Inbound {
    /// A worker calls.
    Call(Box<Call>),
    /// A worker says something.
    Frame { slot: u32, connection: u64, frame: FromWorker },
    /// A worker's stream ended.
    Gone { slot: u32, connection: u64, reason: String },
    /// The spawner says something about a process of the attempt.
    Spawned { attempt: u32, event: WorkerEvent },
    /// The spawner could not make the processes of the attempt.
    NotLaunched { attempt: u32, slot: u32, reason: String },
    /// The spawner has taken back the seats.
    Released(crate::Result<()>),
}

/// A worker's call.
pub(crate) struct Call {
    pub(crate) hello: pb::Hello,
    pub(crate) incarnation: Incarnation,
    pub(crate) received: u64,
    pub(crate) outbound: mpsc::Sender<Result<ToWorker, Status>>,
    pub(crate) answer: oneshot::Sender<Result<Admitted, Refusal>>,
}

/// The answer to a call that may stay.
pub(crate) struct Admitted {
    pub(crate) connection: u64,
    /// Ends when the gang closes the connection.
    pub(crate) closed: oneshot::Receiver<()>,
}

/// What the owner wants.
pub(crate) enum Order {
    Start(Begin),
    Decide { rank: u32, generation: u64, payload: Vec<u8> },
    Acknowledge { rank: u32, attempt: u32, sequence: u64 },
    Relaunch,
    Stop { grace: Duration },
}

struct Connection {
    number: u64,
    outbound: mpsc::Sender<Result<ToWorker, Status>>,
    /// Dropped with the connection, which ends the task that reads from it.
    _close: oneshot::Sender<()>,
}

/// The link to one member.
struct Seat {
    connection: Option<Connection>,
    outbox: Outbox<to_worker::Body>,
    inbox: Inbox,
    /// Numbers handed to the owner and not acknowledged by it.
    owed: VecDeque<u64>,
}

impl Seat {
    fn new() -> Self {
        Self {
            connection: None,
            outbox: Outbox::new(Limits::default()),
            inbox: Inbox::default(),
            owed: VecDeque::new(),
        }
    }

    fn send(&mut self, frame: ToWorker) {
        if let Some(connection) = &self.connection {
            connection.outbound.try_send(Ok(frame)).ok();
        }
    }

    fn unnumbered(&mut self, body: to_worker::Body) {
        let received = self.inbox.acknowledged();
        self.send(ToWorker { sequence: 0, received, body: Some(body) });
    }

    /// Puts on the wire what the network takes; the rest goes with the next beat.
    fn flush(&mut self) {
        let Some(connection) = &self.connection else { return };
        let received = self.inbox.acknowledged();
        while let Ok(permit) = connection.outbound.try_reserve() {
            let Some((sequence, body)) = self.outbox.send_next() else { break };
            permit.send(Ok(ToWorker { sequence, received, body: Some(body.clone()) }));
        }
    }

    /// Acknowledges to the worker all that the owner took over.
    fn acknowledge(&mut self) {
        let upto = self.owed.front().map_or(self.inbox.delivered(), |first| first - 1);
        if self.inbox.acknowledge(upto) {
            self.unnumbered(to_worker::Body::Heartbeat(pb::Heartbeat {}));
        }
    }
}

/// The parts of a gang's task.
pub(crate) struct Actor {
    pub(crate) crew: Crew,
    pub(crate) shared: Arc<Shared>,
    pub(crate) gang: u64,
    pub(crate) inbox: mpsc::Receiver<Inbound>,
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    pub(crate) events: mpsc::UnboundedSender<GangEvent>,
    pub(crate) lines: mpsc::Sender<GangEvent>,
    pub(crate) gate: LogGate,
    state: Running,
}

/// What changes while the task runs.
struct Running {
    machine: Machine,
    origin: Instant,
    seats: Vec<Seat>,
    connections: u64,
    begin: Begin,
    released: Option<crate::Result<()>>,
}

/// What an actor is made of.
pub(crate) struct Parts {
    pub(crate) crew: Crew,
    pub(crate) shared: Arc<Shared>,
    pub(crate) gang: u64,
    pub(crate) inbox: mpsc::Receiver<Inbound>,
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    pub(crate) events: mpsc::UnboundedSender<GangEvent>,
    pub(crate) lines: mpsc::Sender<GangEvent>,
    pub(crate) gate: LogGate,
}

impl Actor {
    /// Launches the gang.
    pub(crate) fn launch(parts: Parts) -> Self {
        let Parts { crew, shared, gang, inbox, orders, events, lines, gate } = parts;
        let slots: Vec<u32> = (0..crew.world()).collect();
        let spec = &crew.spec;
        let (machine, output) =
            Machine::launch(spec.timing, &slots, spec.attempt, spec.generation, Duration::ZERO);
        let seats = slots.iter().map(|_| Seat::new()).collect();
        let state = Running {
            machine,
            origin: Instant::now(),
            seats,
            connections: 0,
            begin: Begin::default(),
            released: None,
        };
        let mut actor = Self { crew, shared, gang, inbox, orders, events, lines, gate, state };
        actor.act(output);
        actor
    }

    /// Runs until the gang is over and its seats are given back.
    pub(crate) async fn run(mut self) -> crate::Result<()> {
        let mut beat = tokio::time::interval(self.crew.spec.timing.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut owned = true;
        while self.state.released.is_none() {
            tokio::select! {
                Some(inbound) = self.inbox.recv() => self.inbound(inbound),
                order = self.orders.recv(), if owned => match order {
                    Some(order) => self.order(order),
                    None => {
                        owned = false;
                        self.order(Order::Stop { grace: Duration::ZERO });
                    }
                },
                _ = beat.tick() => self.beat(),
            }
        }
        self.shared.remove(self.gang);
        self.shared.rendezvous.close(&self.crew.spec.run, self.state.machine.state().generation);
        self.state.released.unwrap_or(Ok(()))
    }

    fn now(&self) -> Duration {
        self.state.origin.elapsed()
    }

    fn beat(&mut self) {
        self.input(Input::Tick);
        for seat in &mut self.state.seats {
            seat.unnumbered(to_worker::Body::Heartbeat(pb::Heartbeat {}));
            seat.flush();
        }
    }

    fn input(&mut self, input: Input) {
        let output = self.state.machine.handle(self.now(), input);
        self.act(output);
    }

    fn inbound(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Call(call) => self.call(*call),
            Inbound::Frame { slot, connection, frame } => self.frame(slot, connection, frame),
            Inbound::Gone { slot, connection, reason } => self.gone(slot, connection, &reason),
            Inbound::Spawned { attempt, event } => self.spawned(attempt, event),
            Inbound::NotLaunched { attempt, slot, reason } => {
                self.input(Input::Ended { slot, attempt, kind: CauseKind::NotLaunched, message: reason });
            }
            Inbound::Released(result) => self.state.released = Some(result),
        }
    }

    fn call(&mut self, call: Call) {
        let Call { hello, incarnation, received, outbound, answer } = call;
        let output = match self.state.machine.hello(self.now(), hello.slot, hello.attempt, incarnation) {
            Ok(output) => output,
            Err(refusal) => {
                answer.send(Err(refusal)).ok();
                return;
            }
        };
        let (close, closed) = oneshot::channel();
        self.state.connections += 1;
        let connection = self.state.connections;
        if answer.send(Ok(Admitted { connection, closed })).is_err() {
            // The caller hung up meanwhile; it calls again, or is missed by its heartbeats.
            self.act(output);
            return;
        }
        let timing = self.crew.spec.timing;
        let seat = &mut self.state.seats[hello.slot as usize];
        seat.connection = Some(Connection { number: connection, outbound, _close: close });
        seat.outbox.acknowledge(received);
        seat.outbox.reconnect();
        seat.unnumbered(to_worker::Body::Welcome(pb::Welcome {
            heartbeat_ms: timing.heartbeat.as_millis() as u32,
            lease_ms: timing.lease.as_millis() as u32,
            window_frames: Limits::default().window_frames as u32,
            window_bytes: Limits::default().window_bytes as u32,
        }));
        seat.flush();
        tracing::debug!(
            gang = self.gang,
            slot = hello.slot,
            host = hello.host,
            pid = hello.pid,
            "worker called"
        );
        self.act(output);
    }

    /// The seat, if the connection is its present one.
    fn seat(&mut self, slot: u32, connection: u64) -> Option<&mut Seat> {
        let seat = self.state.seats.get_mut(slot as usize)?;
        seat.connection.as_ref().is_some_and(|present| present.number == connection).then_some(seat)
    }

    fn gone(&mut self, slot: u32, connection: u64, reason: &str) {
        if let Some(seat) = self.seat(slot, connection) {
            seat.connection = None;
            tracing::debug!(slot, reason, "a worker's stream ended");
            self.input(Input::Disconnected { slot });
        }
    }

    fn frame(&mut self, slot: u32, connection: u64, frame: FromWorker) {
        let Some(seat) = self.seat(slot, connection) else { return };
        seat.outbox.acknowledge(frame.received);
        let arrival = match frame.sequence {
            0 => Arrival::New,
            sequence => seat.inbox.arrived(sequence, Limits::default().window_frames),
        };
        match arrival {
            Arrival::New => {
                self.input(Input::Heard { slot });
                if let Some(body) = frame.body {
                    self.body(slot, frame.sequence, body);
                }
            }
            Arrival::Duplicate => self.input(Input::Heard { slot }),
            Arrival::Broken => self.gone(slot, connection, "it sent frames out of order"),
        }
        if let Some(seat) = self.state.seats.get_mut(slot as usize) {
            seat.acknowledge();
            seat.flush();
        }
    }

    fn body(&mut self, slot: u32, sequence: u64, body: from_worker::Body) {
        use from_worker::Body;
        match body {
            Body::Hello(_) | Body::Heartbeat(_) => {}
            Body::LogLines(pb::LogLines { lines, dropped }) => {
                self.gate.lost(slot, dropped);
                lines.into_iter().for_each(|line| self.line(slot, line));
            }
            Body::Ready(pb::Ready { generation }) => self.input(Input::Ready { slot, generation }),
            Body::Report(pb::Report { generation, step, payload }) => {
                self.tell(slot, sequence, generation, MessageBody::Report { step, payload });
            }
            Body::ShardWritten(pb::ShardWritten { generation, step, payload }) => {
                self.tell(slot, sequence, generation, MessageBody::ShardWritten { step, payload });
            }
            Body::Finished(pb::Finished { generation, payload }) => {
                self.tell(slot, sequence, generation, MessageBody::Finished { payload });
                self.input(Input::Finished { slot, generation });
            }
            Body::Failed(pb::Failed { generation, error, peer }) => {
                self.input(Input::Failed { slot, generation, message: error, peer });
            }
        }
    }

    /// Hands a worker's message to the owner, unless it is of a generation that is over.
    fn tell(&mut self, slot: u32, sequence: u64, generation: u64, body: MessageBody) {
        if !self.state.machine.counts(slot, generation) {
            return;
        }
        let attempt = self.state.machine.state().attempt;
        self.state.seats[slot as usize].owed.push_back(sequence);
        let message = Message { rank: slot, attempt, generation, sequence, body };
        self.events.send(GangEvent::Message(message)).ok();
    }

    fn line(&mut self, rank: u32, text: String) {
        let now = self.now();
        if let Some(line) = self.gate.line(now, rank, text)
            && self.lines.try_send(GangEvent::Log(line)).is_err()
        {
            self.gate.lost(rank, 1);
        }
    }

    fn spawned(&mut self, attempt: u32, event: WorkerEvent) {
        match event {
            WorkerEvent::Started { .. } => {}
            WorkerEvent::Line { slot, text, dropped, .. } => {
                self.gate.lost(slot as u32, dropped);
                self.line(slot as u32, text);
            }
            WorkerEvent::Lost { slot, cause } => {
                self.input(Input::Ended {
                    slot: slot as u32,
                    attempt,
                    kind: CauseKind::Lost,
                    message: cause,
                });
            }
            WorkerEvent::Exited { slot, exit } => {
                let (kind, message) = match (&exit.reason, exit.code, exit.signal) {
                    (Reason::Succeeded | Reason::UserError { .. }, _, Some(signal)) => {
                        (CauseKind::Killed { signal }, String::new())
                    }
                    (Reason::Succeeded | Reason::UserError { .. }, Some(code), None) => {
                        (CauseKind::Exited { code }, String::new())
                    }
                    (Reason::Preempted | Reason::NodeLost, ..) => (CauseKind::Preempted, exit.to_string()),
                    _ => (CauseKind::Lost, exit.to_string()),
                };
                self.input(Input::Ended { slot: slot as u32, attempt, kind, message });
            }
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Start(begin) => {
                self.state.begin = begin;
                self.input(Input::Start);
            }
            Order::Relaunch => self.input(Input::Relaunch),
            Order::Stop { grace } => self.input(Input::Stop { grace }),
            Order::Decide { rank, generation, payload } => {
                self.push(rank, to_worker::Body::Decide(pb::Decide { generation, payload }));
            }
            Order::Acknowledge { rank, attempt, sequence } => {
                let current = attempt == self.state.machine.state().attempt;
                if let Some(seat) = self.state.seats.get_mut(rank as usize).filter(|_| current) {
                    seat.owed.retain(|owed| *owed > sequence);
                    seat.acknowledge();
                }
            }
        }
    }

    fn push(&mut self, slot: u32, body: to_worker::Body) {
        let Some(seat) = self.state.seats.get_mut(slot as usize) else { return };
        let bytes =
            prost::Message::encoded_len(&ToWorker { body: Some(body.clone()), ..ToWorker::default() });
        let taken = seat.outbox.push(body, bytes);
        seat.flush();
        if let Err(full) = taken {
            let generation = self.state.machine.state().generation;
            let message =
                format!("it did not take {} commands ({} bytes) sent to it", full.frames, full.bytes);
            self.input(Input::Failed { slot, generation, message, peer: None });
        }
    }

    /// Does what the supervisor decided, and tells the owner what happened.
    fn act(&mut self, output: Output) {
        for action in output.actions {
            match action {
                Action::Assign { slot, generation } => {
                    self.shared.rendezvous.open(&self.crew.spec.run, generation);
                    let assign = self.crew.assign(slot, generation);
                    self.push(slot, to_worker::Body::Assign(assign));
                }
                Action::Start { slot, generation } => {
                    let Begin { trainable, config, restore } = self.state.begin.clone();
                    let start = pb::Start { generation, trainable, config, restore };
                    self.push(slot, to_worker::Body::Start(start));
                }
                Action::Abort { slot, generation, reason } => {
                    self.push(slot, to_worker::Body::Abort(pb::Abort { generation, reason }));
                }
                Action::Stop { slot, grace } => {
                    let grace_ms = grace.as_millis().min(u128::from(u32::MAX)) as u32;
                    let stop = pb::Stop { grace_ms, reason: "the gang is stopped".into() };
                    self.push(slot, to_worker::Body::Stop(stop));
                }
                Action::Kill => self.crew.kill(),
                Action::Launch { attempt } => {
                    self.state.seats.iter_mut().for_each(|seat| *seat = Seat::new());
                    self.crew.launch(attempt);
                }
            }
        }
        let mut closed = Vec::new();
        for mut event in output.events {
            match &mut event {
                // The stream may be what is broken: the worker calls again on a new one.
                Event::Suspected { slot } => closed.push(*slot),
                Event::Failed(failure) => failure.log_tail = self.gate.tail(failure.root.rank),
                Event::MemberFailed(cause) => tracing::warn!(gang = self.gang, %cause, "a member failed"),
                Event::Stopped => self.crew.release(),
                _ => {}
            }
            self.events.send(GangEvent::Happened(event)).ok();
        }
        for slot in closed {
            if let Some(number) = self.state.seats[slot as usize].connection.as_ref().map(|c| c.number) {
                self.gone(slot, number, "nothing was heard on it");
            }
        }
    }
}
