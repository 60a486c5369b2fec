//! What a resume needs, put together from components: a model, an optimiser, a position in the data, anything of the user's.
//!
//! A component gives its tensors and its small values out and takes them back. It is kept by handle, so that a state can be
//! saved inside of the loop that changes it.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use regatta_checkpoint::{Dtype, Placement, Region, TensorSource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::data::Position;
use crate::{Error, Result};

/// The key of the component whose tensors keep their own names in a checkpoint, so that other tools read it.
pub const MODEL: &str = "model";

/// A tensor of a component.
pub struct StateTensor<'a> {
    /// Its name, unique in the component.
    pub name: Cow<'a, str>,
    /// Its element type.
    pub dtype: Dtype,
    /// Its global shape.
    pub shape: Vec<u64>,
    /// What of it is on this rank.
    pub placement: Placement,
    /// Its bytes, row-major and little-endian.
    pub data: Box<dyn TensorSource + 'a>,
}

/// What is saved of a component and comes back. Implemented by models, optimisers, loaders; implement it for what is yours,
/// or use a `Tracked` value.
pub trait Stateful: Send {
    /// The version of the form of [`Stateful::values`].
    fn version(&self) -> u32 {
        1
    }

    /// Its tensors as they are now.
    fn tensors(&self) -> Result<Vec<StateTensor<'_>>> {
        Ok(Vec::new())
    }

    /// Its small values as they are now, on this rank.
    fn values(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    /// Takes back what was saved. Called on all ranks.
    fn load(&mut self, saved: &dyn SavedPart) -> Result<()>;

    /// Whether this is a position in the data that is at the end of its epoch; `None` if it is no such thing.
    fn epoch_done(&self) -> Option<bool> {
        None
    }
}

/// What a checkpoint holds of one component.
pub trait SavedPart {
    /// The component's key in the state.
    fn key(&self) -> &str;

    /// The version its values were saved with.
    fn version(&self) -> u32;

    /// The values this rank saved; rank 0's, if there was no such rank or there were more ranks or fewer.
    fn values(&self) -> &Value;

    /// Whether as many ranks saved as restore now, so that the values are this rank's own.
    fn same_world(&self) -> bool;

    /// The step the checkpoint was taken at.
    fn step(&self) -> u64;

    /// The names, element types and shapes of its tensors.
    fn list(&self) -> Vec<(String, Dtype, Vec<u64>)>;

    /// The bytes of a whole tensor.
    fn tensor(&self, name: &str) -> Result<Cow<'_, [u8]>>;

    /// The bytes of a part of a tensor, whoever saved it.
    fn region(&self, name: &str, region: &Region) -> Result<Cow<'_, [u8]>>;

    /// An error about this component and checkpoint, which ought to list all that does not fit.
    fn misfit(&self, why: String) -> Error;
}

/// What a resume needs, as the training loop holds it; made by `TrainContext::state`. Besides its components it saves how far
/// training has come: the step and the epoch.
///
/// ```
/// use regatta_train::{Tracked, TrainContext, metrics};
///
/// fn train(ctx: &mut TrainContext) -> regatta_train::Result<f64> {
///     let sum = Tracked::new(0.0);
///     let mut state = ctx.state().with("sum", sum.clone());
///     ctx.restore(&mut state)?;
///     for epoch in state.epochs(10) {
///         sum.update(|sum| *sum += 0.5);
///         ctx.report(metrics! { epoch, sum: sum.get() }).checkpoint(&state)?;
///     }
///     Ok(sum.get())
/// }
/// ```
#[must_use = "a state saves nothing by itself: give it to `restore`, and to `step` or `checkpoint`"]
pub struct State {
    pub(crate) components: Vec<(String, Box<dyn Stateful>)>,
    pub(crate) counters: Arc<Counters>,
}

impl State {
    /// This and one more component, under a name of its own. `"model"` is the one whose tensors keep their names.
    pub fn with(mut self, key: impl Into<String>, component: impl Stateful + 'static) -> Self {
        self.components.push((key.into(), Box::new(component)));
        self
    }

    /// Whether there is a component of this name.
    pub fn has(&self, key: &str) -> bool {
        self.components.iter().any(|(known, _)| known == key)
    }

    /// The epochs from the one under way on, counted from 0, up to `epochs`. Does not borrow the state.
    pub fn epochs(&self, epochs: u64) -> Epochs {
        let epochs = if self.counters.fast.load(Relaxed) { epochs.min(1) } else { epochs };
        self.counters.epochs.store(epochs, Relaxed);
        Epochs { counters: self.counters.clone(), epochs, begun: false }
    }

    /// Takes progress and batch weights from this loader: it is the one that is trained on.
    pub fn follow(&self, position: &Position) {
        *self.counters.followed() = Some(position.clone());
    }

    /// Training steps done, over all attempts.
    pub fn step(&self) -> u64 {
        self.counters.step()
    }

    /// The epoch under way, from 0.
    pub fn epoch(&self) -> u64 {
        self.counters.epoch()
    }

    /// Whether all positions in the data are at the end of their epoch, or there are none.
    pub(crate) fn epoch_done(&self) -> bool {
        self.components.iter().all(|(_, component)| component.epoch_done() != Some(false))
    }

    /// Refuses names that would meet in a checkpoint.
    pub(crate) fn check(&self) -> Result<()> {
        for (index, (key, _)) in self.components.iter().enumerate() {
            let why = if key.is_empty() || key.contains('/') {
                "a component needs a name, without `/`"
            } else if self.components[..index].iter().any(|(other, _)| other == key) {
                "two components have this name; give each its own"
            } else {
                continue;
            };
            return Err(Error::config(format!("state.{key}"), why));
        }
        Ok(())
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<&str> = self.components.iter().map(|(key, _)| &**key).collect();
        f.debug_struct("State").field("components", &keys).field("step", &self.step()).finish_non_exhaustive()
    }
}

/// How far training has come: one for a context and all its states.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) step: AtomicU64,
    pub(crate) epoch: AtomicU64,
    /// All epochs there will be; 0 if nobody said.
    pub(crate) epochs: AtomicU64,
    /// One epoch is enough.
    pub(crate) fast: AtomicBool,
    /// The place in the data that is trained on.
    followed: Mutex<Option<Position>>,
}

impl Counters {
    pub(crate) fn followed(&self) -> MutexGuard<'_, Option<Position>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn step(&self) -> u64 {
        self.step.load(Relaxed)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }
}

/// The epochs that are left, and the one under way first; see [`State::epochs`].
#[derive(Debug)]
pub struct Epochs {
    counters: Arc<Counters>,
    epochs: u64,
    begun: bool,
}

impl Iterator for Epochs {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.begun {
            self.counters.epoch.fetch_add(1, Relaxed);
        }
        self.begun = true;
        let epoch = self.counters.epoch();
        (epoch < self.epochs).then_some(epoch)
    }
}

/// A value of the training loop's own that is saved and comes back: a running sum, the best so far. Clones are the same value.
#[derive(Debug, Default)]
pub struct Tracked<T>(Arc<Mutex<T>>);

impl<T> Clone for Tracked<T> {
    fn clone(&self) -> Self {
        Tracked(self.0.clone())
    }
}

impl<T> Tracked<T> {
    /// A value to begin with.
    pub fn new(value: T) -> Self {
        Tracked(Arc::new(Mutex::new(value)))
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value now.
    pub fn get(&self) -> T
    where
        T: Clone,
    {
        self.lock().clone()
    }

    /// Sets it.
    pub fn set(&self, value: T) {
        *self.lock() = value;
    }

    /// Changes it, and passes on what the change returns.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        change(&mut self.lock())
    }
}

impl<T: Serialize + DeserializeOwned + Send> Stateful for Tracked<T> {
    /// As RON inside of JSON, which by itself knows neither NaN nor infinities: what a best value begins with.
    fn values(&self) -> Result<Value> {
        let text =
            ron::to_string(&*self.lock()).map_err(|error| Error::other("save a tracked value", error))?;
        Ok(Value::String(text))
    }

    fn load(&mut self, saved: &dyn SavedPart) -> Result<()> {
        let text = saved.values().as_str().ok_or_else(|| saved.misfit("it is no tracked value".into()))?;
        let value = ron::from_str(text).map_err(|error| saved.misfit(error.to_string()))?;
        self.set(value);
        Ok(())
    }
}
