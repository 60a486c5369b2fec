//! What a loader reads from: samples by index, a batch at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::error::SampleError;
use crate::BoxError;

/// Samples that can be had in any order.
///
/// A batch is whatever the training loop wants: a vector of values, a tuple of tensors. [`from_fn`] makes a dataset of a
/// closure that gives single samples, and [`Dataset::map`] turns batches into others.
///
/// ```
/// use regatta_train::data::{Dataset, from_fn};
///
/// let squares = from_fn(100, |index| Ok::<_, std::io::Error>(index * index)).map(|batch| Ok(batch.iter().sum::<usize>()));
/// assert_eq!(squares.get_batch(&[1, 2, 3])?, 14);
/// # Ok::<(), regatta_train::data::BoxError>(())
/// ```
pub trait Dataset: Send + Sync + 'static {
    /// What the training loop gets.
    type Batch: Send + 'static;

    /// How many samples there are. It must not change.
    fn len(&self) -> usize;

    /// The samples with these indices, in this order. Called from the loader's threads, on several batches at once where it
    /// has several. Failures at one sample are best returned as [`SampleError`].
    fn get_batch(&self, indices: &[usize]) -> Result<Self::Batch, BoxError>;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A dataset whose batches are this one's put through a function, on the loader's threads.
    fn map<F, B>(self, function: F) -> Map<Self, F>
    where
        Self: Sized,
        F: Fn(Self::Batch) -> Result<B, BoxError> + Send + Sync + 'static,
        B: Send + 'static,
    {
        Map { dataset: self, function }
    }
}

impl<T: Clone + Send + Sync + 'static> Dataset for Vec<T> {
    type Batch = Vec<T>;

    fn len(&self) -> usize {
        self.len()
    }

    fn get_batch(&self, indices: &[usize]) -> Result<Vec<T>, BoxError> {
        Ok(indices.iter().map(|&index| self[index].clone()).collect())
    }
}

impl<T: Clone + Send + Sync + 'static> Dataset for &'static [T] {
    type Batch = Vec<T>;

    fn len(&self) -> usize {
        <[T]>::len(self)
    }

    fn get_batch(&self, indices: &[usize]) -> Result<Vec<T>, BoxError> {
        Ok(indices.iter().map(|&index| self[index].clone()).collect())
    }
}

impl<D: Dataset + ?Sized> Dataset for Arc<D> {
    type Batch = D::Batch;

    fn len(&self) -> usize {
        (**self).len()
    }

    fn get_batch(&self, indices: &[usize]) -> Result<D::Batch, BoxError> {
        (**self).get_batch(indices)
    }
}

/// What [`Dataset::map`] gives.
#[derive(Debug, Clone)]
pub struct Map<D, F> {
    dataset: D,
    function: F,
}

impl<D, F, B> Dataset for Map<D, F>
where
    D: Dataset,
    F: Fn(D::Batch) -> Result<B, BoxError> + Send + Sync + 'static,
    B: Send + 'static,
{
    type Batch = B;

    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn get_batch(&self, indices: &[usize]) -> Result<B, BoxError> {
        (self.function)(self.dataset.get_batch(indices)?)
    }
}

/// What [`from_fn`] gives.
#[derive(Debug, Clone)]
pub struct FromFn<F> {
    len: usize,
    get: F,
}

/// A dataset of single samples, which a function gives by index; a batch is a vector of them. Errors and panics are told
/// with the sample's index.
pub fn from_fn<F, T, E>(len: usize, get: F) -> FromFn<F>
where
    F: Fn(usize) -> Result<T, E> + Send + Sync + 'static,
    T: Send + 'static,
    E: Into<BoxError> + 'static,
{
    FromFn { len, get }
}

impl<F, T, E> Dataset for FromFn<F>
where
    F: Fn(usize) -> Result<T, E> + Send + Sync + 'static,
    T: Send + 'static,
    E: Into<BoxError> + 'static,
{
    type Batch = Vec<T>;

    fn len(&self) -> usize {
        self.len
    }

    fn get_batch(&self, indices: &[usize]) -> Result<Vec<T>, BoxError> {
        let mut batch = Vec::with_capacity(indices.len());
        for &index in indices {
            // The panic goes on to the loader as an error: it is only stopped here because here the sample is known.
            match catch_unwind(AssertUnwindSafe(|| (self.get)(index))) {
                Ok(Ok(sample)) => batch.push(sample),
                Ok(Err(error)) => return Err(SampleError::new(index, error).into()),
                Err(panic) => return Err(SampleError::new(index, Panicked(panic_message(&*panic))).into()),
            }
        }
        Ok(batch)
    }
}

/// A panic as an error.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
struct Panicked(String);

pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
