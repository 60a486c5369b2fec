//! One worker as a step of the job: the `srun` that stands for it, what it says, and how it ended.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use crate::events::EventSender;
use crate::local::output::{Lines, Record, text};
use crate::spawner::{Exit, Reason, Stream, WorkerEvent, WorkerId};

/// What is known of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The number of its step, once it runs.
    pub(super) step: Option<String>,
    /// Why its program could not be started.
    pub(super) refused: Option<String>,
    /// Its exit code, as its shell tells it.
    pub(super) code: Option<i32>,
    /// Its end was ordered.
    pub(super) cancelled: bool,
    /// Its node did not answer when its end was ordered.
    pub(super) given_up: bool,
    /// Its srun has ended: nothing more will be heard.
    pub(super) ended: bool,
    /// What Slurm's own programs said.
    words: Vec<String>,
}

impl Seen {
    /// Whether it is decided that it runs, or that it never will.
    pub(super) fn decided(&self) -> bool {
        self.step.is_some() || self.refused.is_some() || self.ended
    }

    /// Why it did not start, from the shell or from Slurm.
    pub(super) fn why_not(&self) -> String {
        match &self.refused {
            Some(why) => why.clone(),
            None if self.words.is_empty() => "its step ended before it began".into(),
            None => self.words.join("; "),
        }
    }
}

/// A worker.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) slot: usize,
    pub(super) node: String,
    pub(super) program: OsString,
    id: WorkerId,
    nonce: String,
    srun: Pid,
    seen: watch::Sender<Seen>,
    record: Mutex<Record>,
    /// Gone with the worker: the gang's events end when the last of its workers has.
    events: Mutex<Option<EventSender>>,
}

/// What a worker is made of.
pub(super) struct Order {
    pub(super) slot: usize,
    pub(super) node: String,
    pub(super) program: OsString,
    pub(super) id: WorkerId,
    pub(super) nonce: String,
    /// What the step's shell reads.
    pub(super) script: OsString,
    pub(super) record: Record,
    pub(super) events: EventSender,
}

impl Step {
    /// Runs `srun`; threads of its own read what it says until it ends.
    pub(super) fn start(mut srun: Command, order: Order) -> io::Result<Arc<Self>> {
        srun.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = srun.spawn()?;
        let Order { slot, node, program, id, nonce, script, record, events } = order;
        let srun = Pid::from_child(&child);
        let (seen, record) = (watch::Sender::new(Seen::default()), Mutex::new(record));
        let events = Mutex::new(Some(events));
        let step = Arc::new(Self { slot, node, program, id, nonce, srun, seen, record, events });
        let stdin = child.stdin.take();
        std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(script.as_encoded_bytes())));
        let reader = step.clone();
        std::thread::Builder::new()
            .name(format!("regatta-step-{slot}"))
            .spawn(move || reader.attend(child))?;
        Ok(step)
    }

    /// Reads to the end and tells of it.
    fn attend(self: Arc<Self>, mut child: Child) {
        let errors = child.stderr.take().map(|stderr| {
            let step = self.clone();
            std::thread::spawn(move || step.read(stderr, Stream::Stderr))
        });
        if let Some(stdout) = child.stdout.take() {
            self.read(stdout, Stream::Stdout);
        }
        errors.map(std::thread::JoinHandle::join);
        let _ = child.wait();
        let event = self.end();
        // First the event, then the note: who waits for the end finds it told.
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(events) = events.filter(|_| self.look().step.is_some()) {
            events.send(event);
        }
        self.seen.send_modify(|seen| seen.ended = true);
    }

    fn read(&self, from: impl Read, stream: Stream) {
        let mut from = BufReader::with_capacity(64 << 10, from);
        let mut lines = Lines::default();
        loop {
            let read = match from.fill_buf() {
                Ok([]) | Err(_) => break,
                Ok(bytes) => {
                    lines.feed(bytes, |line| self.line(stream, line));
                    bytes.len()
                }
            };
            from.consume(read);
        }
        lines.flush(|line| self.line(stream, line));
    }

    /// A line of the worker, of its shell, or of Slurm's own programs.
    fn line(&self, stream: Stream, line: &[u8]) {
        let mark = format!("\u{1e}{} ", self.nonce).into_bytes();
        let at = line.windows(mark.len()).position(|window| window == mark);
        let own = line.starts_with(b"srun: ") || line.starts_with(b"slurmstepd");
        match at.filter(|_| stream == Stream::Stdout) {
            Some(at) => {
                if at > 0 {
                    self.written(stream, &line[..at]);
                }
                self.told(&text(&line[at + mark.len()..]));
            }
            None if own && stream == Stream::Stderr => {
                self.seen.send_modify(|seen| seen.words.push(text(line)));
            }
            None => self.written(stream, line),
        }
    }

    fn written(&self, stream: Stream, line: &[u8]) {
        let said = text(line);
        self.record.lock().unwrap_or_else(PoisonError::into_inner).line(stream, line, said.clone());
        if let Some(events) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
            events.line(self.slot, stream, said);
        }
    }

    /// What the step's shell says.
    fn told(&self, said: &str) {
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        match word {
            "started" => {
                let (step, pid) = rest.split_once(' ').unwrap_or((rest, ""));
                let (slot, worker, pid) = (self.slot, self.id.clone(), pid.parse().ok());
                if let Some(events) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
                    events.send(WorkerEvent::Started { slot, worker, pid, reused: false });
                }
                self.seen.send_modify(|seen| seen.step = Some(step.to_owned()));
            }
            "refused" => self.seen.send_modify(|seen| seen.refused = Some(rest.to_owned())),
            "exited" => self.seen.send_modify(|seen| seen.code = rest.parse().ok()),
            _ => {}
        }
    }

    fn end(&self) -> WorkerEvent {
        let seen = self.look();
        let slot = self.slot;
        let (code, signal) = match seen.code {
            Some(code) if code > 128 => (None, Some(code - 128)),
            Some(code) => (Some(code), None),
            // Its shell was killed with it.
            None if seen.cancelled && !seen.given_up => (None, Some(9)),
            None => {
                let said = seen.words.join("; ");
                let cause = match (seen.given_up, said.is_empty()) {
                    (true, _) => format!(
                        "node `{}` did not end it when told to: it hangs or is gone. {said}",
                        self.node
                    ),
                    (false, true) => format!("its step on node `{}` ended without a word", self.node),
                    (false, false) => format!("its step on node `{}` ended: {said}", self.node),
                };
                return WorkerEvent::Lost { slot, cause };
            }
        };
        let reason = match (seen.cancelled, code, signal) {
            (true, ..) => Reason::Cancelled,
            (_, Some(0), _) => Reason::Succeeded,
            // We did not send it, so Slurm did: it wants the place back.
            (_, _, Some(15)) => Reason::Preempted,
            (_, Some(code), _) => Reason::UserError { code },
            (_, None, signal) => Reason::UserError { code: 128 + signal.unwrap_or(0) },
        };
        let tail = self.record.lock().unwrap_or_else(PoisonError::into_inner).tail.take();
        WorkerEvent::Exited { slot, exit: Exit { code, signal, reason, tail } }
    }

    pub(super) fn look(&self) -> Seen {
        self.seen.borrow().clone()
    }

    pub(super) fn cancelled(&self) {
        self.seen.send_modify(|seen| seen.cancelled = true);
    }

    /// Stops listening: its node does not answer. Its end is told as a loss.
    pub(super) fn give_up(&self) {
        self.seen.send_modify(|seen| seen.given_up = true);
        self.kill_srun();
    }

    /// Ends the `srun`, which is all there is of a worker that has not begun.
    pub(super) fn kill_srun(&self) {
        if !self.look().ended {
            kill_process(self.srun, Signal::KILL).ok();
        }
    }

    /// Waits until this is so; `false` when the time is up.
    pub(super) async fn wait(&self, within: Duration, until: impl FnMut(&Seen) -> bool) -> bool {
        let mut seen = self.seen.subscribe();
        matches!(tokio::time::timeout(within, seen.wait_for(until)).await, Ok(Ok(_)))
    }
}
