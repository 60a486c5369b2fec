//! The loader: a dataset, split over the ranks, read ahead, handed to the training loop a batch at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{LoaderConfig, Shard};
use super::dataset::Dataset;
use super::error::{Error, Result};
use super::order::OrderKind;
use super::pool::{self, Made, Pool, Produce};
use super::position::{BatchWeight, Cursor, Position};
use super::sampler::{Mode, Sampler};
use super::source::{Indexed, Source, Streamed};
use super::stream::{Split, Stream};

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
            self.position.fail(self.moves, error);
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
