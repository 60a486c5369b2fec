//! Training on tensors: what libtorch's users need of a [`TrainContext`] and its [`State`], as methods on them.
//!
//! ```no_run
//! use regatta_torch::context::{TorchContext, TorchState};
//! use regatta_torch::loader::TensorDataset;
//! use regatta_torch::optim::{AdamW, Optimizer};
//! use regatta_train::{TrainContext, metrics};
//! use tch::{Kind, Tensor, nn, nn::Module};
//!
//! fn train(ctx: &mut TrainContext) -> regatta_train::Result<()> {
//!     let vs = nn::VarStore::new(ctx.device());
//!     let net = nn::linear(vs.root(), 4, 1, Default::default());
//!     let mut opt = AdamW::new(&vs, 1e-3);
//!     let x = Tensor::zeros([100, 4], (Kind::Float, tch::Device::Cpu));
//!     let y = Tensor::ones([100, 1], (Kind::Float, tch::Device::Cpu));
//!     let dataset = TensorDataset::new((x, y)).map_err(regatta_torch::context::train_error)?;
//!     let mut data = ctx.loader(dataset, 32)?;
//!     let mut state = ctx.state().model(&vs).optimizer(&opt).data(&data);
//!     ctx.restore(&mut state)?;
//!     for epoch in state.epochs(3) {
//!         for batch in data.epoch(epoch) {
//!             let (x, y) = batch.map_err(|error| regatta_train::Error::other("load a batch", error))?;
//!             opt.zero_grad().map_err(regatta_torch::context::train_error)?;
//!             let loss = net.forward(&x).mse_loss(&y, tch::Reduction::Mean);
//!             regatta_torch::backward(&loss).map_err(regatta_torch::context::train_error)?;
//!             opt.step().map_err(regatta_torch::context::train_error)?;
//!             ctx.step(&state)?;
//!         }
//!         ctx.report(metrics! { epoch }).checkpoint(&state)?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Linking this crate is enough for every context to be seeded by (seed, rank) before its trainable runs, and for every state to
//! hold the random state of libtorch.

use regatta_train::data::{Dataset, LoaderConfig, Shard};
use regatta_train::{BoxError, Preparation, Result, State, TrainContext};
use tch::Device;
use tch::nn::VarStore;

use crate::amp::GradScaler;
use crate::components::{self, Keep};
use crate::cuda;
use crate::ddp::{Compression, DataParallel, DataParallelConfig};
use crate::loader::{Loader, TensorBatch};
use crate::rng;
use crate::schedule::Scheduler;

pub use crate::components::train_error;

regatta_train::__private::inventory::submit! { Preparation(prepare) }

fn prepare(context: &mut TrainContext) -> Result<()> {
    let (seed, rank) = (context.seed(), context.rank());
    rng::seed_everything(components::seed_of(seed, rank, 0)).map_err(train_error)?;
    context.always(components::RNG, move || Box::new(components::Random { seed, rank }));
    Ok(())
}

/// What training on tensors needs of its context.
pub trait TorchContext {
    /// Where this rank computes: its GPU if it was given one and CUDA is there, else the CPU.
    fn device(&self) -> Device;

    /// The model of `vs` on all ranks: its weights become rank 0's, and gradients are averaged while `backward` runs. Costs nothing
    /// with one rank.
    fn data_parallel(&mut self, vs: &VarStore) -> Result<DataParallel>;

    /// The same with other settings. What [`Compression::PowerSgd`] remembers is in every
    /// state that is made after this.
    fn data_parallel_with(&mut self, vs: &VarStore, config: DataParallelConfig) -> Result<DataParallel>;

    /// A loader of this rank's part of a dataset, shuffled by the run's seed, onto [`TorchContext::device`].
    fn loader<D>(&mut self, dataset: D, batch_size: usize) -> Result<Loader<D::Batch>>
    where
        D: Dataset<Batch: TensorBatch>;

    /// The same with other settings.
    fn loader_with<D>(&mut self, dataset: D, config: LoaderConfig) -> Result<Loader<D::Batch>>
    where
        D: Dataset<Batch: TensorBatch>;
}

impl TorchContext for TrainContext {
    fn device(&self) -> Device {
        cuda::load_if_present();
        match cuda::device_count() {
            0 => Device::Cpu,
            // A worker process sees the GPUs it was given, and no others.
            _ if regatta_train::worker::is_worker() => Device::Cuda(0),
            devices => Device::Cuda(self.local_rank() % devices),
        }
    }

    fn data_parallel(&mut self, vs: &VarStore) -> Result<DataParallel> {
        self.data_parallel_with(vs, DataParallelConfig::default())
    }

    fn data_parallel_with(&mut self, vs: &VarStore, config: DataParallelConfig) -> Result<DataParallel> {
        let compressed = matches!(config.compression, Compression::PowerSgd(_));
        let model = DataParallel::new(vs, self.group().clone(), config).map_err(train_error)?;
        if compressed {
            let memory = model.compression_memory();
            self.always("compression", move || Box::new(memory.clone()));
        }
        Ok(model.with_weight(self.batch_weight()))
    }

    fn loader<D>(&mut self, dataset: D, batch_size: usize) -> Result<Loader<D::Batch>>
    where
        D: Dataset<Batch: TensorBatch>,
    {
        self.loader_with(dataset, LoaderConfig::batch_size(batch_size))
    }

    fn loader_with<D>(&mut self, dataset: D, config: LoaderConfig) -> Result<Loader<D::Batch>>
    where
        D: Dataset<Batch: TensorBatch>,
    {
        let (rank, world) = (self.rank(), self.world_size());
        let batch = config.global_batch_size.or_else(|| config.batch_size?.checked_mul(world));
        let most = if self.fast_dev_run() { batch.unwrap_or(1).saturating_mul(2) } else { usize::MAX };
        let dataset = First { dataset, most };
        let shard = Shard { rank, world, seed: self.seed() };
        let loader = Loader::new(dataset, config, shard, self.device())
            .map_err(|error| regatta_train::Error::other("make a loader", error))?;
        self.follow(&loader.position());
        Ok(loader)
    }
}

/// The first samples of a dataset.
struct First<D> {
    dataset: D,
    most: usize,
}

impl<D: Dataset> Dataset for First<D> {
    type Batch = D::Batch;

    fn len(&self) -> usize {
        self.dataset.len().min(self.most)
    }

    fn get_batch(&self, indices: &[usize]) -> Result<D::Batch, BoxError> {
        self.dataset.get_batch(indices)
    }
}

/// The components of a state that training on tensors has.
pub trait TorchState {
    /// A model's parameters and buffers. In the checkpoint they have their own names, as other tools expect them.
    fn model(self, vs: &VarStore) -> Self;

    /// An optimiser, with its moments and its learning rate.
    fn optimizer(self, optimizer: &impl Keep) -> Self;

    /// A schedule of learning rates. Its optimiser must be in the state too.
    fn schedule(self, scheduler: &Scheduler) -> Self;

    /// A gradient scaler.
    fn scaler(self, scaler: &GradScaler) -> Self;

    /// The place in the data.
    fn data<B: TensorBatch>(self, loader: &Loader<B>) -> Self;
}

impl TorchState for State {
    fn model(self, vs: &VarStore) -> Self {
        self.with(regatta_train::MODEL, components::Model::of(vs))
    }

    fn optimizer(self, optimizer: &impl Keep) -> Self {
        self.with("optimizer", components::Moments(optimizer.keep()))
    }

    fn schedule(self, scheduler: &Scheduler) -> Self {
        self.with("schedule", scheduler.share())
    }

    fn scaler(self, scaler: &GradScaler) -> Self {
        self.with("scaler", scaler.share())
    }

    fn data<B: TensorBatch>(self, loader: &Loader<B>) -> Self {
        self.follow(&loader.position());
        self.with("data", loader.position())
    }
}
