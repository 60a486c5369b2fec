//! Data for training: datasets, an order for each epoch, and loaders that read ahead.
//!
//! A [`Dataset`] gives samples by index. A [`Loader`] splits it over the ranks, shuffles it by (seed, epoch), reads ahead on
//! threads of its own, and hands out batches in order. Where the loop is can be saved at any step ([`Position::cursor`]) and
//! sought to at once, with any number of ranks: the [`Order`] is a bijection without a table and knows nothing of the world, and
//! the [`Sampler`] gives each global step a run of it. Every sample comes exactly once an epoch, however unevenly it divides.
//!
//! ```
//! use regatta_train::data::{Dataset, Loader, LoaderConfig, Shard};
//!
//! let numbers: Vec<u32> = (0..1000).collect();
//! let dataset = numbers.map(|batch| Ok(batch.into_iter().map(f64::from).sum::<f64>()));
//! let mut data = Loader::new(dataset, LoaderConfig::batch_size(64), Shard { rank: 0, world: 2, seed: 7 })?;
//!
//! let position = data.position();
//! for batch in data.epoch(0).take(3) {
//!     let _sum = batch?; // an error here is the dataset's, and names the sample
//! }
//! let saved = position.cursor()?; // goes into a checkpoint
//! assert_eq!(saved.consumed, 3 * 2 * 64);
//!
//! // Another process, with another number of ranks.
//! let dataset: Vec<u32> = (0..1000).collect();
//! let mut data = Loader::new(dataset, LoaderConfig::batch_size(64), Shard { rank: 0, world: 1, seed: 7 })?;
//! data.position().seek(&saved)?;
//! let rest = data.epoch(0).map(|batch| Ok(batch?.len())).sum::<Result<usize, regatta_train::data::Error>>()?;
//! assert_eq!(rest, 1000 - 3 * 2 * 64);
//! # Ok::<(), regatta_train::data::Error>(())
//! ```
//!
//! [`Records`] is a mapped file; a [`Stream`] is what cannot be had by index. A [`BatchWeight`] makes the gradient of a smaller
//! last batch exact.

mod config;
mod dataset;
mod error;
mod loader;
mod mapped;
mod order;
mod pool;
mod position;
mod sampler;
mod source;
mod stream;

pub use crate::BoxError;
pub use config::{LoaderConfig, Shard};
pub use dataset::{Dataset, FromFn, Map, from_fn};
pub use error::{Error, Result, SampleError};
pub use loader::{Epoch, Loader};
pub use mapped::Records;
pub use order::{Order, OrderKind};
pub use position::{BatchWeight, Cursor, Position};
pub use sampler::{Mode, Sampler, Share};
pub use stream::{FromOpen, Items, Stream, stream};
