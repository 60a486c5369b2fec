//! Data-parallel training: every rank computes gradients on its own samples, and all step with their mean.
//!
//! ```
//! use regatta_torch::ddp::{DataParallel, DataParallelConfig};
//! use regatta_torch::optim::{Adam, Optimizer};
//! use tch::{Device, Kind, Tensor, nn, nn::Module};
//!
//! // Two ranks as threads; processes get their group from `ProcessGroup::from_env()` or from the trainer.
//! let weights = regatta_comm::thread::run(2, |group| {
//!     let rank = group.rank() as f64;
//!     let vs = nn::VarStore::new(Device::Cpu);
//!     let net = nn::linear(vs.root() / "layer", 4, 1, Default::default());
//!     let mut opt = Adam::new(&vs, 1e-2);
//!     let model = DataParallel::new(&vs, group, DataParallelConfig::default())?;   // all ranks have rank 0's weights now
//!     for _ in 0..3 {
//!         let x = Tensor::full([8, 4], rank, (Kind::Float, Device::Cpu));          // each rank its own samples
//!         model.backward(&net.forward(&x).square().mean(Kind::Float))?;            // gradients are the mean over the ranks
//!         opt.step()?;
//!     }
//!     Ok::<_, regatta_torch::Error>(net.ws.sum(Kind::Float).double_value(&[]))
//! });
//! assert_eq!(weights[0].as_ref().unwrap(), weights[1].as_ref().unwrap());
//! ```
//!
//! # What a backward pass does
//! [`DataParallel::backward`] makes new gradients: what the last pass left is let go, so that no `zero_grad` is needed. When a
//! parameter's gradient is ready it is moved into its place in a bucket, in memory that belongs to the group, and that place becomes
//! the parameter's `.grad`. A full bucket is reduced where it lies, while the pass goes on; buckets go in the same order on every rank. At the end all ranks
//! tell each other how it went, so that they all return the same: `Ok`, or the same error at the same step. Several batches
//! before a step are added up with [`DataParallel::accumulate`].
//!
//! Gradients may be read and changed in place until the next pass (clipping does); they are overwritten by it, handles and views of them too.
//! A pass that `tch` starts itself is none of ours: its gradients are not reduced.
//!
//! # What is promised
//! Ranks that begin with the same weights (the constructor sees to it) and take the same optimiser steps hold the same bits after any number of
//! steps, and get the same bits in every run of a world of the same size; [`DataParallel::verify_replicas`] looks. A rank that dies is
//! an [`Error::Group`] on all others, as soon as they need it or ask for it; after that, and after any error of a rank's own, the group is over.
//! [`Error::NotFinite`] and [`Error::Unused`] leave it usable.

mod agree;
mod arena;
mod buffers;
mod config;
mod gpu;
mod memory;
mod plan;
mod power;
mod present;
mod reducer;
mod tally;
mod verdict;
mod way;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use regatta_comm::ProcessGroup;
use regatta_comm::nccl::DeviceGroup;
use tch::Tensor;
use tch::nn::VarStore;

pub use config::{Buffers, Compression, DataParallelConfig, PowerSgd, Unused};
pub use power::CompressionState;

use crate::autograd::{self, GradHook};
use crate::error::{Error, Result};
use crate::params;
use crate::result::ddp::{all_finite, release_grads};
use arena::{Spec, reducible};
use buffers::Synced;
use present::Present;
use reducer::{Parameter, Reducer};

/// What a sample of this rank's batch counts, in terms of one in a full batch; asked once a pass.
type Weight = Box<dyn Fn() -> f64 + Send + Sync>;

/// A model whose gradients are averaged over the ranks of a group. See [the module](self).
///
/// With one rank it only releases and checks gradients.
pub struct DataParallel {
    group: ProcessGroup,
    config: DataParallelConfig,
    /// Those that are trained.
    parameters: Vec<Parameter>,
    /// All that must be the same on all ranks, to be compared.
    replicated: Vec<Parameter>,
    /// Absent with one rank.
    many: Option<Many>,
    weight: Option<Weight>,
    /// Whether gradients of earlier passes are to be kept by the next.
    accumulated: AtomicBool,
    alone_steps: Arc<Mutex<u64>>,
}

/// What compressed gradients leave behind for the next pass, as a handle: it follows the model that it is of.
#[derive(Clone)]
pub(crate) struct CompressionMemory {
    rank: u64,
    world: u64,
    /// Absent with one rank, which sends nothing to anyone.
    reducer: Option<Arc<Mutex<Reducer>>>,
    alone_steps: Arc<Mutex<u64>>,
}

/// What only more than one rank needs.
struct Many {
    reducer: Arc<Mutex<Reducer>>,
    buffers: Mutex<Synced>,
    _hooks: Vec<GradHook>,
}

impl DataParallel {
    /// All ranks together. Checks that they have the same model, and gives them rank 0's values.
    ///
    /// Gradients on a CUDA device go through pinned memory: use [`with_nccl`](DataParallel::with_nccl) where every rank has a GPU.
    pub fn new(vs: &VarStore, group: ProcessGroup, config: DataParallelConfig) -> Result<DataParallel> {
        DataParallel::build(vs, group, config, None)
    }

    /// The same for parameters on CUDA devices, whose gradients go through NCCL. `group` is of the same ranks, and carries everything else.
    pub fn with_nccl(
        vs: &VarStore,
        group: ProcessGroup,
        nccl: DeviceGroup,
        config: DataParallelConfig,
    ) -> Result<DataParallel> {
        DataParallel::build(vs, group, config, Some(nccl))
    }

    fn build(
        vs: &VarStore,
        group: ProcessGroup,
        config: DataParallelConfig,
        nccl: Option<DeviceGroup>,
    ) -> Result<DataParallel> {
        let all = params::parameters(vs);
        let buffers = params::buffers(vs);
        let parameters: Vec<Parameter> = (all.iter())
            .filter(|(_, tensor)| tensor.requires_grad())
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        let many = match group.world_size() {
            1 => None,
            _ => {
                let many = Many::new(&group, &config, &all, &buffers, &parameters, nccl);
                // What a difference between models is, all know; what else fails here may be this rank's own.
                many.inspect_err(|error| {
                    if !all_know(error) {
                        group.abort(&format!("it could not set up data parallelism: {error}"));
                    }
                })
                .map(Some)?
            }
        };
        let shared = |_: &Parameter| config.buffers != Buffers::Leave;
        let replicated = all.into_iter().chain(buffers.into_iter().filter(shared)).collect();
        Ok(DataParallel {
            group,
            config,
            parameters,
            replicated,
            many,
            weight: None,
            accumulated: AtomicBool::new(false),
            alone_steps: Arc::default(),
        })
    }

    /// Multiplies each pass's loss with what `weight` says at the time, if that is not 1: so a rank whose last batch is smaller counts
    /// less. With `size * world / global size` the mean over the ranks is the mean over all samples.
    #[must_use]
    pub fn with_weight(mut self, weight: impl Fn() -> f64 + Send + Sync + 'static) -> DataParallel {
        self.weight = Some(Box::new(weight));
        self
    }

    /// The group.
    pub fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// Reducing passes so far; [`Error::NotFinite`] counts in these.
    pub fn steps(&self) -> u64 {
        match &self.many {
            Some(many) => many.lock().steps(),
            None => *lock(&self.alone_steps),
        }
    }

    /// Computes the gradients of a scalar loss and averages them over the ranks, with those of [`accumulate`](DataParallel::accumulate)
    /// since the last call. All ranks together.
    pub fn backward(&self, loss: &Tensor) -> Result<()> {
        let fresh = !self.accumulated.swap(false, Ordering::Relaxed);
        let Some(many) = &self.many else { return self.backward_alone(loss, fresh) };
        let outcome = self.reducing_pass(many, loss, fresh);
        self.settle(outcome)
    }

    /// Computes gradients of this rank alone and adds them up, to be averaged by the next [`backward`](DataParallel::backward): what is
    /// called `no_sync` elsewhere. Divide the losses by their number if their mean is meant.
    pub fn accumulate(&self, loss: &Tensor) -> Result<()> {
        let fresh = !self.accumulated.swap(true, Ordering::Relaxed);
        let outcome = self.local_pass(loss, fresh);
        self.settle(outcome)
    }

    /// Takes part in the others' steps until every rank has called this: for ranks that have run out of data before the others. Needs
    /// [`DataParallelConfig::uneven`]. `step` does what the training loop does after a backward pass, which is how this rank's weights stay
    /// the others'. Answers how many steps that were.
    pub fn join(&self, mut step: impl FnMut() -> Result<()>) -> Result<u64> {
        let Some(many) = &self.many else { return Ok(0) };
        if !self.config.uneven {
            let why =
                "ranks that do not ask each other who is left cannot be joined: set `uneven`".to_owned();
            return Err(Error::Argument { what: "DataParallel::join", why });
        }
        self.accumulated.store(false, Ordering::Relaxed);
        let mut steps = 0;
        while let Some(()) = self.settle(self.shadow_pass(many))? {
            step()?;
            steps += 1;
        }
        Ok(steps)
    }

    /// Compares all ranks' parameters (and buffers, unless each rank keeps its own) by hash. All ranks together.
    pub fn verify_replicas(&self) -> Result<()> {
        if self.many.is_none() {
            return Ok(());
        }
        let tensors = self.replicated.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        agree::same_values(&self.group, tensors.collect())
    }

    /// What a checkpoint must hold besides the model and the optimiser: only [`Compression::PowerSgd`] has something.
    pub fn compression_state(&self) -> Option<CompressionState> {
        self.many.as_ref()?.lock().compression_state()
    }

    /// Takes such a state over, by copying; if anything does not fit, nothing is changed.
    pub fn load_compression_state(&self, state: &CompressionState) -> Result<()> {
        self.many.as_ref().map_or(Ok(()), |many| many.lock().load_compression_state(state))
    }

    /// The same as a component of a training state.
    pub(crate) fn compression_memory(&self) -> CompressionMemory {
        CompressionMemory {
            rank: self.group.rank() as u64,
            world: self.group.world_size() as u64,
            reducer: self.many.as_ref().map(|many| many.reducer.clone()),
            alone_steps: self.alone_steps.clone(),
        }
    }

    fn reducing_pass(&self, many: &Many, loss: &Tensor, fresh: bool) -> Result<()> {
        let present = many.lock().begin(true, fresh)?;
        self.differentiate(loss)?;
        let value = if self.config.check_finite { Some(value_of(loss)?) } else { None };
        self.finish(many, value, &present)
    }

    fn shadow_pass(&self, many: &Many) -> Result<Option<()>> {
        let present = many.lock().begin(false, true)?;
        if present.count == 0 {
            return Ok(None);
        }
        self.finish(many, None, &present).map(Some)
    }

    /// What follows the computation of a pass.
    fn finish(&self, many: &Many, loss: Option<f64>, present: &Present) -> Result<()> {
        let steps = {
            let mut reducer = many.lock();
            reducer.finish(loss)?;
            reducer.steps()
        };
        let mut buffers = many.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.sync(&self.group, self.config.buffers, present)?;
        match self.config.verify_every {
            0 => Ok(()),
            every if steps.is_multiple_of(every) => self.verify_replicas(),
            _ => Ok(()),
        }
    }

    fn local_pass(&self, loss: &Tensor, fresh: bool) -> Result<()> {
        if fresh {
            release_grads(self.parameters.iter().map(|(_, tensor)| tensor))?;
        }
        self.differentiate(loss)
    }

    fn backward_alone(&self, loss: &Tensor, fresh: bool) -> Result<()> {
        self.local_pass(loss, fresh)?;
        let step = {
            let mut steps = lock(&self.alone_steps);
            *steps += 1;
            *steps - 1
        };
        if !self.config.check_finite {
            return Ok(());
        }
        let value = value_of(loss)?;
        if !value.is_finite() {
            return Err(Error::NotFinite { step, rank: Some(0), what: format!("the loss ({value})") });
        }
        for (name, tensor) in &self.parameters {
            let grad = tensor.grad();
            if grad.defined() && !all_finite(&grad)? {
                return Err(Error::NotFinite { step, rank: None, what: format!("the gradient of {name}") });
            }
        }
        Ok(())
    }

    /// libtorch's part, with the loss weighted.
    fn differentiate(&self, loss: &Tensor) -> Result<()> {
        let outcome = match self.weight.as_ref().map(|weight| weight()).filter(|w| *w != 1.0) {
            Some(weight) => {
                let gradient = tch::no_grad(|| loss.detach().f_full_like(weight))?;
                autograd::backward_with(loss, Some(&gradient), false)
            }
            None => autograd::backward(loss),
        };
        outcome.map_err(|error| match error {
            // An error of our own that went through libtorch.
            Error::Hook(inner) => inner.downcast::<Error>().map_or_else(Error::Hook, |error| *error),
            other => other,
        })
    }

    /// After a failure that the others cannot know of, tells them, so that they do not wait for this rank.
    fn settle<T>(&self, outcome: Result<T>) -> Result<T> {
        let (Err(error), Some(many)) = (&outcome, &self.many) else { return outcome };
        many.lock().give_up();
        if !all_know(error) {
            self.group.abort(&format!("its backward pass failed: {error}"));
        }
        outcome
    }
}

impl Many {
    fn new(
        group: &ProcessGroup,
        config: &DataParallelConfig,
        all: &[Parameter],
        buffers: &[Parameter],
        parameters: &[Parameter],
        nccl: Option<DeviceGroup>,
    ) -> Result<Many> {
        let role =
            |tensor: &Tensor| if tensor.requires_grad() { "a parameter," } else { "a frozen parameter," };
        let mut lines = vec![("the configuration".to_owned(), format!("{config:?}"))];
        lines.extend(all.iter().map(|(name, tensor)| agree::describe(name, tensor, role(tensor))));
        lines.extend(buffers.iter().map(|(name, tensor)| agree::describe(name, tensor, "a buffer,")));
        agree::same_model(group, &lines)?;
        // What is wrong from here on is wrong on all ranks.
        for (name, tensor) in parameters {
            let why = match reducible(tensor.kind()) {
                None => format!("{name} is of {:?}, whose gradients cannot be averaged", tensor.kind()),
                Some(_) if !Spec::like(tensor).is_dense() => {
                    format!(
                        "{name} shares memory among its elements or leaves gaps (strides {:?})",
                        tensor.stride()
                    )
                }
                Some(_) if tensor.device() != parameters[0].1.device() => {
                    format!("{name} is on {:?}, others on {:?}", tensor.device(), parameters[0].1.device())
                }
                Some(_) => continue,
            };
            return Err(Error::Argument { what: "DataParallel", why });
        }
        let detached = |tensors: &[Parameter]| tensors.iter().map(|(_, t)| t.detach()).collect::<Vec<_>>();
        let mut first = detached(all);
        if config.buffers != Buffers::Leave {
            first.extend(detached(buffers));
        }
        buffers::copy_from(group, &first, 0)?;
        let synced = Synced::new(group, &detached(buffers))?;
        let owned = parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let reducer = Arc::new(Mutex::new(Reducer::new(group.clone(), config.clone(), owned, nccl)?));
        let hooks = (parameters.iter().enumerate())
            .map(|(index, (_, tensor))| register(tensor, index, &reducer, group.deadline()))
            .collect::<Result<_>>()?;
        // Nobody begins a pass before all have registered: ranks may be threads of one process.
        group.barrier()?;
        Ok(Many { reducer, buffers: Mutex::new(synced), _hooks: hooks })
    }

    fn lock(&self) -> MutexGuard<'_, Reducer> {
        lock(&self.reducer)
    }
}

/// Hooks cannot be registered while a backward pass runs anywhere in the process: where ranks are threads, another group's may.
fn register(
    tensor: &Tensor,
    index: usize,
    reducer: &Arc<Mutex<Reducer>>,
    within: Duration,
) -> Result<GradHook> {
    let began = Instant::now();
    loop {
        let reducer = reducer.clone();
        match GradHook::register(tensor, index, move |index| lock(&reducer).ready(index)) {
            Err(Error::Argument { .. }) if began.elapsed() < within => {
                std::thread::sleep(Duration::from_millis(1));
            }
            outcome => return outcome,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // After a panic inside the pass has failed, and the next begins from nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an error comes to all ranks by itself.
fn all_know(error: &Error) -> bool {
    matches!(error, Error::NotFinite { .. } | Error::Unused { .. } | Error::Replica { .. } | Error::Group(_))
}

fn value_of(loss: &Tensor) -> Result<f64> {
    Ok(f64::try_from(loss.detach())?)
}

impl std::fmt::Debug for DataParallel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataParallel")
            .field("rank", &self.group.rank())
            .field("world_size", &self.group.world_size())
            .field("parameters", &self.parameters.len())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
