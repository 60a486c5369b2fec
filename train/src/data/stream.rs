//! Samples that can only be had one after another: logs, archives, what a network sends.

use std::collections::VecDeque;

use super::error::{Error, Result};
use super::sampler::{self, Mode};
use crate::BoxError;

/// The items of an epoch, in the order in which they come.
pub type Items<T> = Box<dyn Iterator<Item = Result<T, BoxError>> + Send>;

/// Samples in an order of their own.
///
/// Rank r of W takes the items r, r + W, r + 2 W and so on. So **every rank reads the whole stream**, and a resume **reads all
/// that was consumed in the epoch again** and throws it away, through [`Iterator::nth`], which a stream that can seek
/// implements well. Let items be cheap (a path, undecoded bytes) and do the work in [`Stream::collate`], which sees only the
/// rank's own. Where samples can be had by index, use a [`Dataset`](super::Dataset): it does neither.
pub trait Stream: Send + Sync + 'static {
    /// What the stream is made of.
    type Item: Send + 'static;
    /// What the training loop gets.
    type Batch: Send + 'static;

    /// The epoch from its beginning. It must give the same items in the same order on every rank, and whenever it is opened
    /// again; shuffling by the epoch's number is the stream's own affair.
    fn open(&self, epoch: u64) -> Result<Items<Self::Item>, BoxError>;

    /// Makes a batch of items.
    fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch, BoxError>;
}

/// A stream that a function opens by epoch; a batch is a vector of items.
pub fn stream<F, I, T>(open: F) -> FromOpen<F>
where
    F: Fn(u64) -> Result<I, BoxError> + Send + Sync + 'static,
    I: Iterator<Item = Result<T, BoxError>> + Send + 'static,
    T: Send + 'static,
{
    FromOpen(open)
}

/// What [`stream`] gives.
#[derive(Debug, Clone)]
pub struct FromOpen<F>(F);

impl<F, I, T> Stream for FromOpen<F>
where
    F: Fn(u64) -> Result<I, BoxError> + Send + Sync + 'static,
    I: Iterator<Item = Result<T, BoxError>> + Send + 'static,
    T: Send + 'static,
{
    type Item = T;
    type Batch = Vec<T>;

    fn open(&self, epoch: u64) -> Result<Items<T>, BoxError> {
        Ok(Box::new((self.0)(epoch)?))
    }

    fn collate(&self, items: Vec<T>) -> Result<Vec<T>, BoxError> {
        Ok(items)
    }
}

/// How a stream is split. The world divides the global batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split {
    pub(super) global_batch: u64,
    pub(super) world: u64,
    pub(super) rank: u64,
    pub(super) mode: Mode,
}

/// A rank's items of one global step.
pub(super) struct Taken<T> {
    pub(super) items: Vec<T>,
    pub(super) weight: f64,
    pub(super) consumed: u64,
}

/// Cuts a stream into global steps. It reads a little more than a global batch ahead, as only then it knows whether the batch
/// is the last, and keeps of it what is the rank's own.
pub(super) struct Reader<T> {
    items: Items<T>,
    split: Split,
    /// The number of the item that is read next.
    position: u64,
    /// The first item of the next global step.
    start: u64,
    ended: bool,
    own: VecDeque<(u64, T)>,
    /// The first item of all, for the case that fewer than one for each rank are left. Where a step has gone before there
    /// are always enough.
    spare: Option<T>,
}

impl<T> Reader<T> {
    /// Reads the first `from` items and throws them away.
    pub(super) fn new(mut items: Items<T>, from: u64, split: Split) -> Result<Self> {
        if let Some(last) = from.checked_sub(1) {
            let missing = || {
                Error::Changed(format!("the stream ends before item {from}, which the position has reached"))
            };
            let last = usize::try_from(last).map_err(|_| missing())?;
            items.nth(last).ok_or_else(missing)?.map_err(|source| failed(from - 1, source))?;
        }
        Ok(Reader {
            items,
            split,
            position: from,
            start: from,
            ended: false,
            own: VecDeque::new(),
            spare: None,
        })
    }

    pub(super) fn next(&mut self) -> Result<Option<Taken<T>>> {
        let Split { global_batch, world, rank, mode } = self.split;
        self.fill(global_batch + world)?;
        let left = self.position - self.start;
        let size = match mode {
            Mode::DropLast if left < global_batch => return Ok(None),
            Mode::DropLast => global_batch,
            _ => sampler::next_batch(left, global_batch, world),
        };
        if size == 0 {
            return Ok(None);
        }
        if self.start == 0 && size < world {
            let why = format!(
                "its {size} items are fewer than the {world} ranks, each of which needs one; use fewer workers"
            );
            return Err(Error::Config { what: "the stream", why });
        }
        let end = self.start + size;
        let mine = self.own.iter().take_while(|(number, _)| *number < end).count();
        let mut items: Vec<T> = self.own.drain(..mine).map(|(_, item)| item).collect();
        if items.is_empty() {
            items.extend(self.spare.take());
        }
        debug_assert!(!items.is_empty(), "rank {rank} has neither an item of its own nor a spare one");
        (self.start, self.spare) = (end, None);
        Ok(Some(Taken { items, weight: sampler::weight(mine as u64, size, world), consumed: end }))
    }

    fn fill(&mut self, ahead: u64) -> Result<()> {
        while !self.ended && self.position < self.start + ahead {
            match self.items.next() {
                None => self.ended = true,
                Some(Err(source)) => return Err(failed(self.position, source)),
                Some(Ok(item)) => {
                    if self.position % self.split.world == self.split.rank {
                        self.own.push_back((self.position, item));
                    } else if self.position == self.start && self.own.is_empty() {
                        self.spare = Some(item);
                    }
                    self.position += 1;
                }
            }
        }
        Ok(())
    }
}

fn failed(item: u64, source: BoxError) -> Error {
    Error::Dataset { place: format!("item {item} of the stream"), source }
}
