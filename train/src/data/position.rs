//! Where a loop over the data is: what is saved, what a resume seeks to, and what it measures on the way.
//!
//! All of it is reached by handles, so that a checkpoint can be taken while the loop holds the loader.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::order::OrderKind;

/// A position in the data: what is saved. It is the same on all ranks and fits any number of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The epoch.
    pub epoch: u64,
    /// Samples of the epoch's order that all ranks together have been handed.
    pub consumed: u64,
    /// Whether the loop over the epoch has ended.
    pub done: bool,
    /// The order's seed.
    pub seed: u64,
    /// The dataset's length; none for a stream.
    pub len: Option<u64>,
    /// How the samples are ordered.
    pub order: OrderKind,
}

impl Cursor {
    /// Says what makes `saved` a position in other data than this one's.
    fn check(&self, saved: &Cursor) -> Result<()> {
        let changed = |what: String| Err(Error::Changed(what));
        if saved.order != self.order {
            return changed(format!("its order was {:?} and is {:?}", saved.order, self.order));
        }
        if saved.len != self.len {
            let count = |len: Option<u64>| len.map_or("no known number of".into(), |len| len.to_string());
            return changed(format!("it had {} samples and has {}", count(saved.len), count(self.len)));
        }
        if saved.order == OrderKind::Shuffled && saved.seed != self.seed {
            return changed(format!("it was shuffled by seed {} and is by {}", saved.seed, self.seed));
        }
        match self.len {
            Some(len) if saved.consumed > len => {
                changed(format!("{} samples of {len} were consumed", saved.consumed))
            }
            _ => Ok(()),
        }
    }
}

/// A handle to a loader's position and measurements. Clones are the same position.
#[derive(Debug, Clone)]
pub struct Position(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    now: Mutex<Now>,
    weight: BatchWeight,
    samples: AtomicU64,
    waited: AtomicU64,
    last_look: Mutex<(Instant, u64)>,
}

#[derive(Debug)]
struct Now {
    cursor: Cursor,
    /// How often it was set from outside, so that a loop under way notices.
    moves: u64,
    /// Why the loop ended before the epoch did.
    failure: Option<String>,
}

impl Position {
    pub(super) fn new(cursor: Cursor) -> Self {
        let now = Mutex::new(Now { cursor, moves: 0, failure: None });
        Position(Arc::new(Inner {
            now,
            weight: BatchWeight::default(),
            samples: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            last_look: Mutex::new((Instant::now(), 0)),
        }))
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a checkpoint saves: after the batch that the loop has last been handed, whatever was read ahead.
    ///
    /// # Errors
    /// When the loop failed at a batch, with that failure: a training loop that passed over it must not go on as if the epoch
    /// were complete.
    pub fn cursor(&self) -> Result<Cursor> {
        let now = self.now();
        match &now.failure {
            None => Ok(now.cursor.clone()),
            Some(why) => Err(Error::Dataset {
                place: format!("epoch {} after {} samples", now.cursor.epoch, now.cursor.consumed),
                source: why.clone().into(),
            }),
        }
    }

    /// Goes to a saved position: the next loop over its epoch begins there.
    ///
    /// # Errors
    /// [`Error::Changed`] when it is no position in this data.
    pub fn seek(&self, saved: &Cursor) -> Result<()> {
        let mut now = self.now();
        now.cursor.check(saved)?;
        now.cursor = Cursor { seed: now.cursor.seed, ..saved.clone() };
        now.moves += 1;
        now.failure = None;
        Ok(())
    }

    /// The epoch under way, or the one that ended last.
    pub fn epoch(&self) -> u64 {
        self.now().cursor.epoch
    }

    /// Whether the loop over the epoch has ended.
    pub fn epoch_done(&self) -> bool {
        self.now().cursor.done
    }

    /// Counts the epoch as done although samples are left: for a loop that is left early on purpose, as otherwise a resume
    /// would go on with them.
    pub fn finish_epoch(&self) {
        self.now().cursor.done = true;
    }

    /// How much of the epoch is consumed, from 0 to 1; none for a stream.
    pub fn part(&self) -> Option<f64> {
        let now = self.now();
        let len = now.cursor.len?;
        Some(if now.cursor.done { 1.0 } else { now.cursor.consumed as f64 / len.max(1) as f64 })
    }

    /// Samples that this rank's loop has been handed since the loader was made.
    pub fn samples(&self) -> u64 {
        self.0.samples.load(Relaxed)
    }

    /// The share of time, from 0 to 1, that this rank's loop has waited for data since it was last asked.
    pub fn data_wait(&self) -> f64 {
        let (now, waited) = (Instant::now(), self.0.waited.load(Relaxed));
        let mut last = self.0.last_look.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, before) = std::mem::replace(&mut *last, (now, waited));
        let span = now.duration_since(since).as_nanos().max(1) as f64;
        ((waited - before) as f64 / span).min(1.0)
    }

    /// The current batch's weight.
    pub fn weight(&self) -> BatchWeight {
        self.0.weight.clone()
    }

    /// Begins an epoch, or goes on with it: where, and the count of moves that the loop then expects.
    pub(super) fn enter(&self, epoch: u64) -> (u64, u64) {
        let mut now = self.now();
        if now.cursor.epoch != epoch || now.cursor.done {
            now.cursor = Cursor { epoch, consumed: 0, done: false, ..now.cursor.clone() };
        }
        now.failure = None;
        (now.cursor.consumed, now.moves)
    }

    /// A batch is handed out.
    pub(super) fn advance(&self, moves: u64, consumed: u64, samples: u64, weight: f64) -> Result<()> {
        let mut now = self.now();
        if now.moves != moves {
            return Err(Error::Moved);
        }
        now.cursor.consumed = consumed;
        self.0.samples.fetch_add(samples, Relaxed);
        self.0.weight.set(weight);
        Ok(())
    }

    /// The loop has come to the epoch's end.
    pub(super) fn finish(&self, moves: u64) -> Result<()> {
        let mut now = self.now();
        if now.moves != moves {
            return Err(Error::Moved);
        }
        now.cursor.done = true;
        Ok(())
    }

    pub(super) fn fail(&self, moves: u64, error: &Error) {
        let mut now = self.now();
        // A position that was set anew is good, even though the loop is not.
        if now.moves == moves {
            now.failure = Some(error.to_string());
        }
    }

    pub(super) fn add_wait(&self, waited: Duration) {
        self.0.waited.fetch_add(waited.as_nanos() as u64, Relaxed);
    }
}

impl crate::Stateful for Position {
    fn values(&self) -> crate::Result<serde_json::Value> {
        serde_json::to_value(self.cursor()?)
            .map_err(|error| crate::Error::other("saving the position in the data", error))
    }

    fn load(&mut self, saved: &dyn crate::SavedPart) -> crate::Result<()> {
        let cursor = Cursor::deserialize(saved.values()).map_err(|error| saved.misfit(error.to_string()))?;
        self.seek(&cursor).map_err(|error| saved.misfit(error.to_string()))
    }

    fn epoch_done(&self) -> Option<bool> {
        Some(Position::epoch_done(self))
    }
}

/// What the current batch's mean loss must be multiplied by, so that the mean over the ranks' gradients is that over the
/// global batch. 1 but for the last batch of an epoch, and where batches do not divide evenly. A handle: clones are the same.
#[derive(Debug, Clone)]
pub struct BatchWeight(Arc<AtomicU64>);

impl Default for BatchWeight {
    fn default() -> Self {
        BatchWeight(Arc::new(AtomicU64::new(1f64.to_bits())))
    }
}

impl BatchWeight {
    /// The weight.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }

    /// Sets it, for loops that do not use a [`Loader`](super::Loader).
    pub fn set(&self, weight: f64) {
        self.0.store(weight.to_bits(), Relaxed);
    }
}
