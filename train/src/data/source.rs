//! How the batches of an epoch are made: from samples by index, or from a stream.

use std::sync::{Arc, Mutex, PoisonError};

use super::dataset::Dataset;
use super::error::{Error, Result, SampleError};
use super::order::Order;
use super::pool::{Made, Produce};
use super::sampler::Sampler;
use super::stream::{Reader, Split, Stream};

/// What batches are made of.
pub(super) trait Source<B>: Send + Sync {
    fn open(&self, epoch: u64, from: u64) -> Box<dyn Produce<B>>;

    /// The global steps after `from` samples, if that is known.
    fn steps(&self, from: u64) -> Option<u64>;

    /// How many threads are of use.
    fn threads(&self) -> usize;
}

/// Samples by index.
pub(super) struct Indexed<D> {
    pub(super) dataset: Arc<D>,
    pub(super) sampler: Sampler,
    pub(super) shuffle: bool,
    pub(super) seed: u64,
}

impl<D: Dataset> Source<D::Batch> for Indexed<D> {
    fn open(&self, epoch: u64, from: u64) -> Box<dyn Produce<D::Batch>> {
        let len = self.sampler.len;
        let order =
            if self.shuffle { Order::shuffled(len, self.seed, epoch) } else { Order::sequential(len) };
        Box::new(IndexedEpoch { dataset: self.dataset.clone(), sampler: self.sampler, order, epoch, from })
    }

    fn steps(&self, from: u64) -> Option<u64> {
        Some(self.sampler.steps(from))
    }

    fn threads(&self) -> usize {
        usize::MAX
    }
}

struct IndexedEpoch<D> {
    dataset: Arc<D>,
    sampler: Sampler,
    order: Order,
    epoch: u64,
    from: u64,
}

impl<D: Dataset> Produce<D::Batch> for IndexedEpoch<D> {
    fn make(&self, step: u64) -> Result<Option<Made<D::Batch>>> {
        let Some(share) = self.sampler.share(self.from, step) else { return Ok(None) };
        let len = self.order.len();
        // An index comes from the dataset's own length, a usize.
        let indices: Vec<usize> =
            share.positions.map(|position| self.order.at(position % len) as usize).collect();
        let batch = self.dataset.get_batch(&indices).map_err(|source| {
            let epoch = self.epoch;
            let place = match source.is::<SampleError>() {
                true => format!("epoch {epoch}"),
                false => format!("epoch {epoch}, {}", samples(&indices)),
            };
            Error::Dataset { place, source }
        })?;
        let (samples, weight, consumed) = (indices.len() as u64, share.weight, share.consumed);
        Ok(Some(Made { batch, samples, weight, consumed }))
    }

    fn place(&self, step: u64) -> String {
        let share = self.sampler.share(self.from, step);
        let positions = share.map_or(0..0, |share| share.positions);
        let indices: Vec<usize> =
            positions.map(|position| self.order.at(position % self.order.len()) as usize).collect();
        format!("epoch {}, {}", self.epoch, samples(&indices))
    }
}

/// The first few of a batch's samples.
fn samples(indices: &[usize]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<_> = indices.iter().take(SHOWN).map(usize::to_string).collect();
    match indices {
        [one] => format!("sample {one}"),
        _ if indices.len() <= SHOWN => format!("samples {}", shown.join(", ")),
        _ => format!("samples {} and {} more", shown.join(", "), indices.len() - SHOWN),
    }
}

/// Samples one after another.
pub(super) struct Streamed<S> {
    pub(super) stream: Arc<S>,
    pub(super) split: Split,
}

impl<S: Stream> Source<S::Batch> for Streamed<S> {
    fn open(&self, epoch: u64, from: u64) -> Box<dyn Produce<S::Batch>> {
        let stream = self.stream.clone();
        Box::new(StreamedEpoch { stream, split: self.split, epoch, from, reader: Mutex::new(None) })
    }

    fn steps(&self, _from: u64) -> Option<u64> {
        None
    }

    fn threads(&self) -> usize {
        1
    }
}

struct StreamedEpoch<S: Stream> {
    stream: Arc<S>,
    split: Split,
    epoch: u64,
    from: u64,
    /// Opened by the thread that reads. Never waited for: there is one reader.
    reader: Mutex<Option<Reader<S::Item>>>,
}

impl<S: Stream> Produce<S::Batch> for StreamedEpoch<S> {
    /// Steps are made in order, as one thread makes them.
    fn make(&self, step: u64) -> Result<Option<Made<S::Batch>>> {
        let failed = |source| Error::Dataset { place: self.place(step), source };
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = match &mut *reader {
            Some(reader) => reader,
            closed => {
                let items = self.stream.open(self.epoch).map_err(failed)?;
                closed.insert(Reader::new(items, self.from, self.split)?)
            }
        };
        let Some(taken) = reader.next()? else { return Ok(None) };
        let samples = taken.items.len() as u64;
        let batch = self.stream.collate(taken.items).map_err(failed)?;
        Ok(Some(Made { batch, samples, weight: taken.weight, consumed: taken.consumed }))
    }

    fn place(&self, step: u64) -> String {
        format!("epoch {} of a stream, step {step} after {} items", self.epoch, self.from)
    }
}
