//! Copies at intervals and at the end, from a thread of their own.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Copier, Upload};
use crate::error::{Error, Result};
use crate::reader::Reader;
use crate::store::{Feed, Store};

/// How the copies are doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MirrorStatus {
    /// The last event that the latest copy has.
    pub copied: u64,
    /// Why the last try failed, if it did. It is tried again at the next interval, unless another controller took over.
    pub error: Option<String>,
}

/// Keeps a copy of a store up to date at one place. Dropping it stops it where it is; `finish` copies the end first.
pub struct Mirror {
    control: Arc<Control>,
    feed: Feed,
}

struct Control {
    state: Mutex<Running>,
    news: Condvar,
}

struct Running {
    status: MirrorStatus,
    last: Option<Result<u64>>,
    finish: bool,
    stop: bool,
    ended: bool,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mirror {
    /// Starts copying: at once, which claims the place for this controller, then every so often while there is something
    /// new. A copy costs the size of the store, so the pause is at least ten times what the last one took.
    pub fn start(store: &Store, upload: Box<dyn Upload>, every: Duration) -> Result<Mirror> {
        let state =
            Running { status: MirrorStatus::default(), last: None, finish: false, stop: false, ended: false };
        let control = Arc::new(Control { state: Mutex::new(state), news: Condvar::new() });
        let mirror = Mirror { control: control.clone(), feed: store.feed() };
        let (feed, epoch) = (store.feed(), store.epoch());
        std::thread::Builder::new()
            .name("regatta-copy".into())
            .spawn(move || {
                let _end = End(control.clone());
                follow(&control, &feed, Copier { upload, ours: None }, epoch, every);
            })
            .map_err(Error::io("start the copies of", store.folder()))?;
        Ok(mirror)
    }

    /// How the copies are doing.
    pub fn status(&self) -> MirrorStatus {
        self.control.lock().status.clone()
    }

    /// Copies what is committed now, and ends.
    pub fn finish(self, timeout: Duration) -> Result<u64> {
        let deadline = Instant::now() + timeout;
        let committed = self.feed.committed();
        let mut state = self.control.lock();
        state.finish = true;
        self.control.news.notify_all();
        while !state.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what =
                    format!("the last copy of the store (to event {committed}, at {})", state.status.copied);
                return Err(Error::Deadline { what, after: timeout });
            }
            state = self.control.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.last.clone().unwrap_or(Err(Error::Closed))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.control.lock().stop = true;
        self.control.news.notify_all();
    }
}

struct End(Arc<Control>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.news.notify_all();
    }
}

fn follow(control: &Control, feed: &Feed, mut copier: Copier, epoch: u64, every: Duration) {
    loop {
        let finishing = control.lock().finish;
        let begun = Instant::now();
        let done = Reader::open(&feed.folder).and_then(|reader| copier.copy(&reader, epoch));
        let mut state = control.lock();
        match &done {
            Ok(seq) => state.status = MirrorStatus { copied: *seq, error: None },
            Err(error) => {
                tracing::warn!(place = %copier.upload.place(), %error, "the run's store could not be copied");
                state.status.error = Some(error.to_string());
            }
        }
        let over = matches!(done, Err(Error::NewerCopy { .. }));
        state.last = Some(done);
        if finishing || over {
            return;
        }
        let next = Instant::now() + every.max(begun.elapsed() * 10);
        loop {
            if state.stop {
                return;
            }
            let left = next.saturating_duration_since(Instant::now());
            let news = left.is_zero() && feed.committed() > state.status.copied;
            if state.finish || news || (left.is_zero() && state.status.error.is_some()) {
                break;
            }
            let nap = if left.is_zero() { every } else { left };
            state = control.news.wait_timeout(state, nap).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
