//! The loader: a dataset, split over the ranks, read ahead, handed to the training loop a batch at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::dataset::Dataset;
use super::error::{Error, Result, SampleError};
use super::order::{Order, OrderKind};
use super::pool::{self, Made, Pool, Produce};
use super::position::{BatchWeight, Cursor, Position};
use super::sampler::{Mode, Sampler};
use super::stream::{Reader, Split, Stream};

/// How a [`Loader`] reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderConfig {
    /// Samples in a batch of one rank. Give this or `global_batch_size`.
    pub batch_size: Option<usize>,
    /// Samples in the batches of all ranks together, the same however many ranks there are; each gets its part of them.
    pub global_batch_size: Option<usize>,
    /// Whether each epoch has an order of its own, drawn from the run's seed. Streams keep theirs.
    pub shuffle: bool,
    /// What happens to samples that do not fill a last batch.
    pub mode: Mode,
    /// Threads that make batches. With 0 the training loop makes them itself, when it wants them.
    pub workers: usize,
    /// How many batches are made before they are wanted; at least one for each worker.
    pub prefetch: usize,
    /// A batch that takes longer than this many seconds is an error (not with `workers` 0).
    pub timeout_s: u64,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        LoaderConfig {
            batch_size: None,
            global_batch_size: None,
            shuffle: true,
            mode: Mode::Exact,
            workers: 1,
            prefetch: 2,
            timeout_s: 600,
        }
    }
}

impl LoaderConfig {
    /// So many samples in a batch of one rank.
    pub fn batch_size(samples: usize) -> Self {
        LoaderConfig { batch_size: Some(samples), ..Default::default() }
    }

    /// So many samples in the batches of all ranks together.
    pub fn global_batch_size(samples: usize) -> Self {
        LoaderConfig { global_batch_size: Some(samples), ..Default::default() }
    }

    /// Sets [`LoaderConfig::shuffle`].
    pub fn shuffle(mut self, shuffle: bool) -> Self {
        self.shuffle = shuffle;
        self
    }

    /// Sets [`LoaderConfig::mode`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets [`LoaderConfig::workers`].
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Sets [`LoaderConfig::prefetch`].
    pub fn prefetch(mut self, batches: usize) -> Self {
        self.prefetch = batches;
        self
    }

    /// Sets [`LoaderConfig::timeout_s`].
    pub fn timeout_s(mut self, seconds: u64) -> Self {
        self.timeout_s = seconds;
        self
    }

    /// Samples of a global step.
    fn resolve(&self, world: u64) -> Result<u64> {
        let fail = |what, why: &str| Err(Error::Config { what, why: why.into() });
        match (self.batch_size, self.global_batch_size) {
            (Some(0), _) => fail("batch_size", "a batch of 0 samples; give at least 1"),
            (None, None) => fail("batch_size", "is missing: give it, or `global_batch_size`"),
            (Some(_), Some(_)) => fail("batch_size", "is given beside `global_batch_size`; give one of them"),
            (Some(each), None) => (each as u64)
                .checked_mul(world)
                .ok_or_else(|| Error::Config { what: "batch_size", why: format!("{each} is too large") }),
            (None, Some(all)) => Ok(all as u64),
        }
    }
}

/// Whose part of the data it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// This rank.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// What epochs are shuffled by, the same on all ranks.
    pub seed: u64,
}

impl Shard {
    /// All of it.
    pub fn whole(seed: u64) -> Self {
        Shard { rank: 0, world: 1, seed }
    }
}

/// Hands the batches of one rank to its training loop. The crate's [`data`](super) documentation has an example.
pub struct Loader<B> {
    source: Box<dyn Source<B>>,
    config: LoaderConfig,
    position: Position,
}

impl<B> std::fmt::Debug for Loader<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("config", &self.config)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl<B: Send + 'static> Loader<B> {
    /// A loader over samples that can be had by index.
    ///
    /// # Errors
    /// [`Error::Config`] when settings, dataset and world do not go together.
    pub fn new(dataset: impl Dataset<Batch = B>, config: LoaderConfig, shard: Shard) -> Result<Self> {
        let len = dataset.len() as u64;
        let world = shard.world as u64;
        let sampler = Sampler {
            len,
            global_batch: config.resolve(world)?,
            world,
            rank: shard.rank as u64,
            mode: config.mode,
        };
        sampler.check()?;
        let order = if config.shuffle { OrderKind::Shuffled } else { OrderKind::Sequential };
        let indexed =
            Indexed { dataset: Arc::new(dataset), sampler, shuffle: config.shuffle, seed: shard.seed };
        let start = Cursor { epoch: 0, consumed: 0, done: false, seed: shard.seed, len: Some(len), order };
        Ok(Loader { source: Box::new(indexed), config, position: Position::new(start) })
    }

    /// A loader over a stream, which one thread reads, however many `workers` there are to be.
    ///
    /// # Errors
    /// [`Error::Config`] when settings and world do not go together: a stream cannot be padded, and its global batches must
    /// divide evenly.
    pub fn from_stream(stream: impl Stream<Batch = B>, config: LoaderConfig, shard: Shard) -> Result<Self> {
        let split = Split {
            global_batch: config.resolve(shard.world as u64)?,
            world: shard.world as u64,
            rank: shard.rank as u64,
            mode: config.mode,
        };
        // All but the length, which nobody knows.
        let (len, global_batch) = (u64::MAX, split.global_batch);
        Sampler { len, global_batch, world: split.world, rank: split.rank, mode: split.mode }.check()?;
        if split.mode == Mode::Pad {
            return Err(Error::Config {
                what: "mode",
                why: "a stream cannot be padded; use `exact` or `drop_last`".into(),
            });
        }
        if global_batch % split.world != 0 {
            let why = format!(
                "the {} ranks do not divide the {global_batch} samples evenly, which a stream needs",
                split.world
            );
            return Err(Error::Config { what: "global_batch_size", why });
        }
        let start = Cursor {
            epoch: 0,
            consumed: 0,
            done: false,
            seed: shard.seed,
            len: None,
            order: OrderKind::Stream,
        };
        let source = Box::new(Streamed { stream: Arc::new(stream), split });
        Ok(Loader { source, config, position: Position::new(start) })
    }

    /// The batches of an epoch: from the position if that is in this epoch, else all. Ended early and called again, it goes on
    /// with the batch that would have come next; use [`Position::finish_epoch`] if it is not to.
    ///
    /// What the dataset cannot give comes out as an error, after which nothing more comes and no checkpoint can be taken.
    pub fn epoch(&mut self, epoch: u64) -> Epoch<'_, B> {
        let (from, moves) = self.position.enter(epoch);
        let produce = self.source.open(epoch, from);
        let workers = self.config.workers.min(self.source.threads());
        let feed = match workers {
            0 => Feed::Inline { produce, step: 0 },
            workers => match Pool::start(produce, workers, self.config.prefetch.max(workers)) {
                Ok(pool) => Feed::Pool(pool),
                Err(error) => Feed::Failed(error),
            },
        };
        Epoch {
            feed,
            position: &self.position,
            moves,
            timeout: Duration::from_secs(self.config.timeout_s),
            left: self.source.steps(from),
        }
    }

    /// How many batches a whole epoch has, the same on all ranks; none for a stream.
    pub fn len_batches(&self) -> Option<u64> {
        self.source.steps(0)
    }

    /// A handle to where the loop is, to be saved with a checkpoint.
    pub fn position(&self) -> Position {
        self.position.clone()
    }

    /// The current batch's weight.
    pub fn weight(&self) -> BatchWeight {
        self.position.weight()
    }

    /// The share of time that the loop has waited for data since it was last asked.
    pub fn data_wait(&self) -> f64 {
        self.position.data_wait()
    }
}

/// The batches of an epoch, in order, on their way to the loop. Dropping it ends the reading ahead.
#[must_use = "it is an iterator: nothing is handed out until it is asked"]
pub struct Epoch<'a, B: Send + 'static> {
    feed: Feed<B>,
    position: &'a Position,
    moves: u64,
    timeout: Duration,
    left: Option<u64>,
}

enum Feed<B: Send + 'static> {
    Inline { produce: Box<dyn Produce<B>>, step: u64 },
    Pool(Pool<B>),
    Failed(Error),
    Ended,
}

impl<B: Send + 'static> std::fmt::Debug for Epoch<'_, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Epoch")
            .field("position", &self.position)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl<B: Send + 'static> Epoch<'_, B> {
    /// How many batches are still to come; none for a stream.
    pub fn batches_left(&self) -> Option<u64> {
        self.left
    }

    fn take(&mut self) -> Result<Option<Made<B>>> {
        match &mut self.feed {
            Feed::Inline { produce, step } => {
                *step += 1;
                pool::make(&**produce, *step - 1)
            }
            Feed::Pool(pool) => pool.next(self.timeout),
            Feed::Ended => Ok(None),
            Feed::Failed(_) => match std::mem::replace(&mut self.feed, Feed::Ended) {
                Feed::Failed(error) => Err(error),
                _ => Ok(None),
            },
        }
    }

    fn hand_out(&mut self) -> Result<Option<B>> {
        let begin = Instant::now();
        let made = self.take();
        self.position.add_wait(begin.elapsed());
        let Some(made) = made? else {
            self.position.finish(self.moves)?;
            return Ok(None);
        };
        self.position.advance(self.moves, made.consumed, made.samples, made.weight)?;
        self.left = self.left.map(|left| left.saturating_sub(1));
        Ok(Some(made.batch))
    }
}

impl<B: Send + 'static> Iterator for Epoch<'_, B> {
    type Item = Result<B>;

    fn next(&mut self) -> Option<Result<B>> {
        if matches!(self.feed, Feed::Ended) {
            return None;
        }
        let outcome = self.hand_out();
        if let Err(error) = &outcome {
            self.position.fail(error);
        }
        if !matches!(outcome, Ok(Some(_))) {
            self.feed = Feed::Ended;
        }
        outcome.transpose()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, self.left.and_then(|left| usize::try_from(left).ok()))
    }
}

impl<B: Send + 'static> std::iter::FusedIterator for Epoch<'_, B> {}

/// What batches are made of.
trait Source<B>: Send + Sync {
    fn open(&self, epoch: u64, from: u64) -> Box<dyn Produce<B>>;

    /// The global steps after `from` samples, if that is known.
    fn steps(&self, from: u64) -> Option<u64>;

    /// How many threads are of use.
    fn threads(&self) -> usize;
}

struct Indexed<D> {
    dataset: Arc<D>,
    sampler: Sampler,
    shuffle: bool,
    seed: u64,
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

struct Streamed<S> {
    stream: Arc<S>,
    split: Split,
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
