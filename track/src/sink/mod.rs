//! Where else a run's events go. A sink reads the committed log at its own pace from its own thread: it may be slow, fail
//! or hang, and the run never notices. Where it was is written beside its files, so it goes on there after any crash, and
//! what it wrote beyond that is recognised and not written twice.

mod console;
mod files;
mod journal;
mod proto;
mod tensorboard;
mod text;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use console::{Console, render};
pub use journal::OptunaJournal;
pub use tensorboard::TensorBoard;
pub use text::{ProgressCsv, ResultJsonl};

use crate::error::{Error, Result};
use crate::event::Envelope;
use crate::reader::{Query, Reader};
use crate::store::{Feed, Store};

/// Where a sink wants its events from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// After this place in the log.
    After(u64),
    /// From now on.
    Now,
}

/// A taker of committed events. Calls come from one thread, in the order of the log.
pub trait Sink: Send {
    /// Its name in messages.
    fn name(&self) -> &str;

    /// The kinds it wants, as `Event::kind` names them; none is all.
    fn kinds(&self) -> &[&str] {
        &[]
    }

    /// Called at the start and after every failure: drops what is in memory, mends what is on disk, and says where to go
    /// on. Events that were written after that place must be recognised.
    fn resume(&mut self) -> Result<Start>;

    /// Takes events.
    fn write(&mut self, events: &[Envelope]) -> Result<()>;

    /// Makes what was taken durable, and remembers that everything up to this place was.
    fn save(&mut self, upto: u64) -> Result<()>;
}

/// How sinks are fed. The defaults suit every run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkConfig {
    /// How often a sink looks for new events.
    pub poll: Duration,
    /// How many events it gets at once.
    pub batch: usize,
    /// How often it saves.
    pub save: Duration,
    /// The first pause after a failure; it doubles up to a minute.
    pub retry: Duration,
}

impl Default for SinkConfig {
    fn default() -> Self {
        SinkConfig {
            poll: Duration::from_millis(100),
            batch: 2_000,
            save: Duration::from_secs(2),
            retry: Duration::from_secs(1),
        }
    }
}

/// The files of a run in its folder: what every run is told in.
pub fn of_run(folder: impl AsRef<Path>) -> Vec<Box<dyn Sink>> {
    let folder = folder.as_ref();
    vec![
        Box::new(ProgressCsv::new(folder)),
        Box::new(ResultJsonl::new(folder)),
        Box::new(TensorBoard::new(folder)),
    ]
}

/// The files of a study in its folder. Trials that are runs of their own write theirs themselves: then only what tells of
/// the study as a whole is written here, or two would write the same files.
pub fn of_study(folder: impl AsRef<Path>, trials_are_runs: bool) -> Vec<Box<dyn Sink>> {
    let folder = folder.as_ref();
    let mut sinks = match trials_are_runs {
        true => vec![Box::new(TensorBoard::without_trials(folder)) as Box<dyn Sink>],
        false => of_run(folder),
    };
    sinks.push(Box::new(OptunaJournal::new(folder)));
    sinks
}

/// How a sink is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkStatus {
    /// Its name.
    pub name: String,
    /// The last event it took.
    pub seq: u64,
    /// Why it does not get on, while it does not.
    pub error: Option<String>,
    /// Whether it is through with everything, and its thread gone.
    pub finished: bool,
}

/// The running sinks of a store. Dropping it lets them go where they are; `finish` lets them catch up first.
pub struct Sinks {
    control: Arc<Control>,
    feed: Feed,
}

struct Control {
    state: Mutex<Running>,
    news: Condvar,
}

struct Running {
    sinks: Vec<SinkStatus>,
    /// Stop when through with this place.
    until: Option<u64>,
    stop: bool,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits so long, unless told to stop or finish meanwhile.
    fn pause(&self, length: Duration) {
        let deadline = Instant::now() + length;
        let mut state = self.lock();
        let begun = state.until;
        while !state.stop && state.until == begun {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Sinks {
    /// Starts feeding sinks from a store.
    pub fn start(store: &Store, sinks: Vec<Box<dyn Sink>>, config: SinkConfig) -> Result<Sinks> {
        let status = |name: &str| SinkStatus { name: name.into(), seq: 0, error: None, finished: false };
        let running = Running {
            sinks: sinks.iter().map(|sink| status(sink.name())).collect(),
            until: None,
            stop: false,
        };
        let control = Arc::new(Control { state: Mutex::new(running), news: Condvar::new() });
        let feed = store.feed();
        let all = Sinks { control: control.clone(), feed: feed.clone() };
        for (index, sink) in sinks.into_iter().enumerate() {
            let pump =
                Pump { sink, index, control: control.clone(), feed: feed.clone(), config: config.clone() };
            std::thread::Builder::new()
                .name("regatta-sink".into())
                .spawn(move || pump.run())
                .map_err(Error::io("start a sink of", store.folder()))?;
        }
        Ok(all)
    }

    /// How they are doing.
    pub fn status(&self) -> Vec<SinkStatus> {
        self.control.lock().sinks.clone()
    }

    /// Lets every sink catch up with what is committed now, and ends them. An error names the first that did not: the run
    /// is unharmed, and that sink catches up when the run is next opened.
    pub fn finish(self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let committed = self.feed.committed();
        let mut state = self.control.lock();
        state.until = Some(committed);
        self.control.news.notify_all();
        while let Some(late) = state.sinks.iter().find(|s| !s.finished) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = late.error.clone().unwrap_or_else(|| "it is slow".into());
                return Err(Error::SinkBehind { name: late.name.clone(), at: late.seq, committed, why });
            }
            state = self.control.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.control.lock().stop = true;
        self.control.news.notify_all();
    }
}

/// One sink's thread.
struct Pump {
    sink: Box<dyn Sink>,
    index: usize,
    control: Arc<Control>,
    feed: Feed,
    config: SinkConfig,
}

/// Whatever ends the thread, nobody waits for it any longer than need be.
struct End(Arc<Control>, usize);

impl Drop for End {
    fn drop(&mut self) {
        self.0.lock().sinks[self.1].finished = !std::thread::panicking();
        self.0.news.notify_all();
    }
}

impl Pump {
    fn run(mut self) {
        let _end = End(self.control.clone(), self.index);
        let mut pause = self.config.retry;
        loop {
            let before = self.control.lock().sinks[self.index].seq;
            let Err(error) = self.follow() else { return };
            let mut state = self.control.lock();
            let status = &mut state.sinks[self.index];
            tracing::warn!(sink = %status.name, %error, "a sink failed; the run goes on and the sink is tried again");
            pause = if status.seq > before {
                self.config.retry
            } else {
                (pause * 2).min(Duration::from_secs(60))
            };
            status.error = Some(error.to_string());
            drop(state);
            self.control.pause(pause);
            if self.control.lock().stop {
                return;
            }
        }
    }

    /// Feeds the sink until it is to end or fails.
    fn follow(&mut self) -> Result<()> {
        let mut reader = Reader::open(&self.feed.folder)?;
        let mut after = match self.sink.resume()? {
            Start::After(seq) => seq,
            Start::Now => self.feed.committed(),
        };
        let (mut saved, mut saved_at) = (after, Instant::now());
        loop {
            let mut through = after >= self.feed.committed();
            if !through {
                let mut snapshot = reader.snapshot()?;
                let kinds: Vec<&str> = self.sink.kinds().to_vec();
                let query = Query { after, limit: self.config.batch, scope: None, kinds: &kinds };
                let events = snapshot.events(&query)?;
                let whole = events.len() < self.config.batch;
                let upto = if whole { snapshot.committed() } else { events.last().map_or(after, |e| e.seq) };
                drop(snapshot);
                if !events.is_empty() {
                    self.sink.write(&events)?;
                }
                after = upto;
                through = whole;
            }
            let (stop, until) = {
                let mut state = self.control.lock();
                let (stop, until) = (state.stop, state.until);
                let status = &mut state.sinks[self.index];
                (status.seq, status.error) = (after, None);
                (stop, until)
            };
            let end =
                stop || until.is_some_and(|until| after >= until) || (through && self.feed.ended(after));
            if saved < after && (end || saved_at.elapsed() >= self.config.save) {
                self.sink.save(after)?;
                (saved, saved_at) = (after, Instant::now());
            }
            if end {
                return Ok(());
            }
            if through {
                self.control.pause(self.config.poll);
            }
        }
    }
}

/// What a sink remembers between processes, in a file beside its own.
pub(crate) struct Cursor {
    path: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct Place {
    seq: u64,
    #[serde(default)]
    extra: Value,
}

impl Cursor {
    pub(crate) fn new(folder: &Path, name: &str) -> Cursor {
        Cursor { path: folder.join(format!(".{name}.cursor")) }
    }

    /// Where the sink was, and what else it wanted to know. A cursor that is missing or unreadable is the beginning.
    pub(crate) fn load(&self) -> (u64, Value) {
        let text = std::fs::read(&self.path).unwrap_or_default();
        let place: Place = serde_json::from_slice(&text).unwrap_or_default();
        (place.seq, place.extra)
    }

    pub(crate) fn save(&self, seq: u64, extra: Value) -> Result<()> {
        let text = serde_json::to_vec(&Place { seq, extra })
            .map_err(|e| Error::Encode { kind: "cursor".into(), source: e.into() })?;
        files::replace(&self.path, |file| std::io::Write::write_all(file, &text))
    }
}
