//! Loaders into tensors: datasets of tensors, and batches that are on the device before the training loop wants them.
//!
//! On a CPU a batch is one gather, made ahead on a thread of its own. On CUDA that thread also copies the batch through pinned
//! memory, on a stream beside the one that computes, and the loop only makes its own stream wait for the copy. That half has not
//! been run on a GPU yet; its test is among the ignored ones.
//!
//! ```
//! use regatta_torch::loader::{Loader, TensorDataset};
//! use regatta_train::data::{LoaderConfig, Shard};
//! use tch::{Device, Kind, Tensor};
//!
//! let images = Tensor::zeros([100, 1, 28, 28], (Kind::Uint8, Device::Cpu));
//! let labels = Tensor::zeros([100], (Kind::Int64, Device::Cpu));
//! let dataset = TensorDataset::new((images, labels))?;
//! let mut data = Loader::new(dataset, LoaderConfig::batch_size(32), Shard::whole(7), Device::Cpu)?;
//! for batch in data.epoch(0) {
//!     let (x, y) = batch?;
//!     let x = x.to_kind(Kind::Float) / 255.0; // bytes travel, floats are made where they are needed
//!     assert_eq!(x.size()[0], y.size()[0]);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use regatta_train::BoxError;
use regatta_train::data::{self, BatchWeight, Dataset, LoaderConfig, Position, Shard, Stream as Source};
use tch::{Device, Tensor};

use crate::cuda::{Event, Stream};
use crate::error::{Error, Result};
use crate::{memory, threads};

/// Something made of tensors: a tensor, a tuple or vector of such; numbers and strings may be among them.
pub trait TensorBatch: Send + Sized + 'static {
    /// The same with every tensor put through a function, in order.
    fn map_tensors(&self, function: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self>;
}

impl TensorBatch for Tensor {
    fn map_tensors(&self, function: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        function(self)
    }
}

impl<T: TensorBatch> TensorBatch for Vec<T> {
    fn map_tensors(&self, function: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        self.iter().map(|part| part.map_tensors(function)).collect()
    }
}

macro_rules! plain {
    ($($plain:ty),*) => { $(
        impl TensorBatch for $plain {
            fn map_tensors(&self, _: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
                Ok(self.clone())
            }
        }
    )* };
}
plain!((), bool, u8, u16, u32, u64, usize, i8, i16, i32, i64, isize, f32, f64, String);

macro_rules! tuple {
    ($($part:ident),*) => {
        impl<$($part: TensorBatch),*> TensorBatch for ($($part,)*) {
            fn map_tensors(&self, function: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
                #[allow(non_snake_case)]
                let ($($part,)*) = self;
                Ok(($($part.map_tensors(function)?,)*))
            }
        }
    };
}
tuple!(A);
tuple!(A, B);
tuple!(A, B, C);
tuple!(A, B, C, D);

/// Tensors whose first dimension counts samples; a batch is a copy of some rows of each.
///
/// They may lie on the CPU, as bytes where that is what the data is, or on the device, if they fit there.
#[derive(Debug)]
pub struct TensorDataset<T> {
    /// A `Tensor` may be used by one thread at a time; each takes handles of its own.
    tensors: Mutex<T>,
    len: usize,
}

impl<T: TensorBatch> TensorDataset<T> {
    /// A dataset of a tensor, or a tuple of tensors.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no tensor, or their first dimensions differ.
    pub fn new(tensors: T) -> Result<Self> {
        let mut sizes = Vec::new();
        let tensors = tensors.map_tensors(&mut |tensor| {
            sizes.push(tensor.size());
            Ok(tensor.detach())
        })?;
        let first = sizes.first().and_then(|size| size.first().copied());
        if first.is_none() || sizes.iter().any(|size| size.first().copied() != first) {
            let why = format!(
                "the tensors' first dimensions must count the same samples; the shapes are {sizes:?}"
            );
            return Err(Error::Argument { what: "TensorDataset::new", why });
        }
        let len = usize::try_from(first.unwrap_or(0)).unwrap_or(0);
        Ok(TensorDataset { tensors: Mutex::new(tensors), len })
    }
}

impl<T: TensorBatch> Dataset for TensorDataset<T> {
    type Batch = T;

    fn len(&self) -> usize {
        self.len
    }

    fn get_batch(&self, indices: &[usize]) -> Result<T, BoxError> {
        let indices: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
        let index = Tensor::from_slice(&indices);
        let tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        let tensors = tensors.map_tensors(&mut |tensor| Ok(tensor.shallow_clone()))?;
        let select = |tensor: &Tensor| {
            let index = index.f_to_device(tensor.device())?;
            Ok(tch::no_grad(|| tensor.f_index_select(0, &index))?)
        };
        Ok(tensors.map_tensors(&mut |tensor| select(tensor))?)
    }
}

/// A [`regatta_train::data::Loader`] whose batches are on a device.
#[derive(Debug)]
pub struct Loader<B: TensorBatch> {
    inner: data::Loader<Staged<B>>,
    device: Device,
}

impl<B: TensorBatch> Loader<B> {
    /// A loader over samples that can be had by index.
    ///
    /// # Errors
    /// When settings, dataset and world do not go together, or the device is not to be had.
    pub fn new(
        dataset: impl Dataset<Batch = B>,
        config: LoaderConfig,
        shard: Shard,
        device: Device,
    ) -> data::Result<Self> {
        let stage = Stage::new(device, &config).map_err(transfer)?;
        let inner = data::Loader::new(OnDevice { source: dataset, stage }, config, shard)?;
        Ok(Loader { inner, device })
    }

    /// A loader over a stream.
    ///
    /// # Errors
    /// When settings and world do not go together, or the device is not to be had.
    pub fn from_stream(
        stream: impl Source<Batch = B>,
        config: LoaderConfig,
        shard: Shard,
        device: Device,
    ) -> data::Result<Self> {
        let stage = Stage::new(device, &config).map_err(transfer)?;
        let inner = data::Loader::from_stream(OnDevice { source: stream, stage }, config, shard)?;
        Ok(Loader { inner, device })
    }

    /// The batches of an epoch, as [`regatta_train::data::Loader::epoch`] gives them, on the device.
    pub fn epoch(&mut self, epoch: u64) -> Epoch<'_, B> {
        Epoch(self.inner.epoch(epoch))
    }

    /// Where batches go.
    pub fn device(&self) -> Device {
        self.device
    }

    /// How many batches a whole epoch has, the same on all ranks; none for a stream.
    pub fn len_batches(&self) -> Option<u64> {
        self.inner.len_batches()
    }

    /// A handle to where the loop is, to be saved with a checkpoint.
    pub fn position(&self) -> Position {
        self.inner.position()
    }

    /// The current batch's weight.
    pub fn weight(&self) -> BatchWeight {
        self.inner.weight()
    }

    /// The share of time that the loop has waited for data since it was last asked.
    pub fn data_wait(&self) -> f64 {
        self.inner.data_wait()
    }
}

/// The batches of an epoch, on the device.
#[must_use = "it is an iterator: nothing is handed out until it is asked"]
#[derive(Debug)]
pub struct Epoch<'a, B: TensorBatch>(data::Epoch<'a, Staged<B>>);

impl<B: TensorBatch> Epoch<'_, B> {
    /// How many batches are still to come; none for a stream.
    pub fn batches_left(&self) -> Option<u64> {
        self.0.batches_left()
    }
}

impl<B: TensorBatch> Iterator for Epoch<'_, B> {
    type Item = data::Result<B>;

    fn next(&mut self) -> Option<data::Result<B>> {
        Some(self.0.next()?.and_then(|staged| staged.receive().map_err(transfer)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

fn transfer(source: Error) -> data::Error {
    data::Error::Dataset { place: "the transfer to the device".into(), source: source.into() }
}

/// A batch that is on the device, or will be when the event is done.
#[derive(Debug)]
struct Staged<B> {
    batch: B,
    copied: Option<(Event, Device)>,
}

impl<B: TensorBatch> Staged<B> {
    /// Makes this thread's stream wait for the copy, and keeps the memory until that stream is done with it.
    fn receive(self) -> Result<B> {
        let Some((copied, device)) = self.copied else { return Ok(self.batch) };
        let current = Stream::current(device)?;
        copied.block(&current)?;
        self.batch.map_tensors(&mut |tensor| {
            if tensor.device() == device {
                current.uses(tensor)?;
            }
            Ok(tensor.shallow_clone())
        })
    }
}

/// How a loader's threads make batches and bring them to the device.
struct Stage {
    device: Device,
    /// Whether batches are made by the loader's threads, not by the loop.
    threads: bool,
    /// Where copies to a CUDA device go, so that they and the computing overlap.
    side: Option<Stream>,
}

impl Stage {
    fn new(device: Device, config: &LoaderConfig) -> Result<Self> {
        let side = match device {
            Device::Cuda(_) => {
                let side = Stream::from_pool(device, false)?;
                // What the dataset has on the device may still be on its way there.
                let mut before = Event::new(false)?;
                before.record(&Stream::current(device)?)?;
                before.block(&side)?;
                Some(side)
            }
            _ => None,
        };
        Ok(Stage { device, threads: config.workers > 0, side })
    }

    fn run<B: TensorBatch>(&self, make: impl FnOnce() -> Result<B, BoxError>) -> Result<Staged<B>, BoxError> {
        if self.threads {
            compute_alone()?;
        }
        let Some(side) = &self.side else {
            let batch = make()?.map_tensors(&mut |tensor| Ok(tensor.f_to_device(self.device)?))?;
            return Ok(Staged { batch, copied: None });
        };
        let _side = side.enter()?;
        let batch = make()?.map_tensors(&mut |tensor| self.copy(tensor))?;
        let mut copied = Event::new(false)?;
        copied.record(side)?;
        Ok(Staged { batch, copied: Some((copied, self.device)) })
    }

    /// Begins a copy to the device. libtorch keeps the pinned memory until the copy is done.
    fn copy(&self, tensor: &Tensor) -> Result<Tensor> {
        match tensor.device() == Device::Cpu {
            true => Ok(memory::pin(tensor)?.f_to_device_(self.device, tensor.kind(), true, false)?),
            false => Ok(tensor.f_to_device(self.device)?),
        }
    }
}

/// A loader's thread that computed on all cores would take them from the training.
fn compute_alone() -> Result<()> {
    thread_local!(static ALONE: Cell<bool> = const { Cell::new(false) });
    if !ALONE.get() {
        threads::compute_alone()?;
        ALONE.set(true);
    }
    Ok(())
}

struct OnDevice<S> {
    source: S,
    stage: Stage,
}

impl<D> Dataset for OnDevice<D>
where
    D: Dataset<Batch: TensorBatch>,
{
    type Batch = Staged<D::Batch>;

    fn len(&self) -> usize {
        self.source.len()
    }

    fn get_batch(&self, indices: &[usize]) -> Result<Self::Batch, BoxError> {
        self.stage.run(|| self.source.get_batch(indices))
    }
}

impl<S> Source for OnDevice<S>
where
    S: Source<Batch: TensorBatch>,
{
    type Item = S::Item;
    type Batch = Staged<S::Batch>;

    fn open(&self, epoch: u64) -> Result<data::Items<S::Item>, BoxError> {
        self.source.open(epoch)
    }

    fn collate(&self, items: Vec<S::Item>) -> Result<Self::Batch, BoxError> {
        self.stage.run(|| self.source.collate(items))
    }
}
