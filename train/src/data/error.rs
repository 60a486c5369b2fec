//! What can go wrong with data, by what the caller can do next.

use std::time::Duration;

use crate::BoxError;

/// Results of reading data.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no next batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting cannot work with this dataset and world. Change it.
    #[error("{what}: {why}")]
    Config {
        /// The setting.
        what: &'static str,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// The dataset failed. Repair the data it names.
    #[error("the dataset failed in {place}: {source}")]
    Dataset {
        /// The epoch and the samples.
        place: String,
        /// The dataset's own error.
        source: BoxError,
    },
    /// The dataset's code panicked.
    #[error("the dataset panicked in {place}: {message}")]
    Panic {
        /// The epoch and the samples.
        place: String,
        /// The panic's message.
        message: String,
    },
    /// The dataset is hung, or slower than the loader's `timeout_s` allows for.
    #[error("the dataset gave nothing for {place} within {waited:?}; if it is only slow, raise `timeout_s`")]
    Timeout {
        /// The epoch and the samples.
        place: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The data is not what the saved position belongs to. Bring the old data back, or begin a new run.
    #[error("the data has changed since the position was saved: {0}; bring it back, or begin a new run")]
    Changed(String),
    /// The position was set while an epoch was being read. Leave the loop, and call `epoch` again.
    #[error(
        "the position was set anew while an epoch was being read; leave the loop, then call `epoch` again"
    )]
    Moved,
    /// A file of records cannot be used.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A loader's thread could not be started.
    #[error("cannot start a thread to load data: {0}; use fewer `workers`, or 0")]
    Thread(#[source] std::io::Error),
}

/// A failure at one sample, which a [`Dataset`](super::Dataset) returns so that the loader's error names the sample.
#[derive(Debug, thiserror::Error)]
#[error("sample {index}: {source}")]
pub struct SampleError {
    /// The sample.
    pub index: usize,
    /// What failed.
    pub source: BoxError,
}

impl SampleError {
    /// Names the sample at which something failed.
    pub fn new(index: usize, source: impl Into<BoxError>) -> Self {
        SampleError { index, source: source.into() }
    }
}
