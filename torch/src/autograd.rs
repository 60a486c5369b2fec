//! Hooks into a backward pass, and gradients that live where the caller wants them.
//!
//! A [`GradHook`] fires when its parameter's gradient is final for this pass: once, however often the parameter was
//! used, and never if it was not. It runs on the thread that runs the backward pass: the caller's on a CPU, libtorch's
//! own for a CUDA device. An error or a panic inside ends the pass and comes out of [`backward`], the error as it was.
//!
//! Hooks may be dropped at any time. While a backward pass is running they fall silent at once and are taken out of
//! libtorch's lists afterwards; registering one meanwhile is refused, because libtorch reads the lists without a lock.
//! Passes started with `tch`'s own `backward` are seen only while a hook of ours is running, so do not add or drop hooks
//! from other threads during those.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use crate::error::{BoxError, Error, Result};
use crate::result::autograd as raw;

/// Backward passes and callbacks under way, and the hooks dropped since the first of them began.
struct Passes {
    running: usize,
    dropped: Vec<raw::RawHook>,
}

static PASSES: Mutex<Passes> = Mutex::new(Passes { running: 0, dropped: Vec::new() });

fn passes() -> MutexGuard<'static, Passes> {
    PASSES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a backward pass, or a callback of one, as running.
struct Running;

impl Running {
    fn begin() -> Self {
        passes().running += 1;
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        passes().running -= 1;
    }
}

/// Takes dropped hooks out of libtorch's lists, if nobody can be reading them.
fn bury() {
    let mut passes = passes();
    if passes.running > 0 || passes.dropped.is_empty() {
        return;
    }
    let mut dropped = mem::take(&mut passes.dropped);
    // Under the lock, so that no pass begins meanwhile; what the closures captured is dropped outside of it.
    dropped.iter_mut().for_each(raw::RawHook::unlink);
    drop(passes);
    drop(dropped);
}

/// A hook on a parameter's gradient; dropping it unregisters.
///
/// ```
/// use std::sync::mpsc;
/// use regatta_torch::autograd::{self, GradHook};
/// use tch::{Device, Kind, Tensor};
///
/// let w = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let (ready, arrived) = mpsc::channel();
/// let _hook = GradHook::register(&w, 7, move |index| Ok(ready.send(index)?))?;
/// autograd::backward(&(&w * &w).sum(Kind::Float))?;
/// assert_eq!(arrived.try_iter().collect::<Vec<_>>(), [7]);
/// # Ok::<(), regatta_torch::Error>(())
/// ```
#[must_use = "a hook is unregistered when it is dropped"]
pub struct GradHook {
    raw: Option<raw::RawHook>,
    silent: Arc<AtomicBool>,
    index: usize,
}

impl GradHook {
    /// Calls `ready(index)` in every backward pass that reaches `parameter`, once its `.grad` is final.
    pub fn register<F>(parameter: &Tensor, index: usize, ready: F) -> Result<Self>
    where
        F: Fn(usize) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        bury();
        let silent = Arc::new(AtomicBool::new(false));
        // Held past the lock, so that what the closure captured is never dropped under it.
        let ready = Arc::new(ready);
        let (heard, called) = (silent.clone(), ready.clone());
        let callback: raw::Callback = Box::new(move || {
            let _running = Running::begin();
            if heard.load(Ordering::Acquire) { Ok(()) } else { called(index) }
        });
        let passes = passes();
        if passes.running > 0 {
            drop(passes);
            return Err(Error::Argument {
                what: "GradHook::register",
                why: "a backward pass is running; register hooks between passes".into(),
            });
        }
        // Under the lock, so that no pass of ours begins meanwhile.
        let raw = raw::RawHook::add(parameter, callback);
        drop(passes);
        drop(ready);
        let raw = raw?;
        Ok(GradHook { raw: Some(raw), silent, index })
    }

    /// The number that was given at registration.
    pub fn index(&self) -> usize {
        self.index
    }
}

impl Drop for GradHook {
    fn drop(&mut self) {
        self.silent.store(true, Ordering::Release);
        if let Some(raw) = self.raw.take() {
            passes().dropped.push(raw);
        }
        bury();
    }
}

impl std::fmt::Debug for GradHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GradHook").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Computes the gradients of a scalar loss.
pub fn backward(loss: &Tensor) -> Result<()> {
    backward_with(loss, None, false)
}

/// Computes gradients from `gradient` (needed if `loss` is no scalar), keeping the graph for another pass if asked.
pub fn backward_with(loss: &Tensor, gradient: Option<&Tensor>, keep_graph: bool) -> Result<()> {
    bury();
    let running = Running::begin();
    let outcome = raw::backward(loss, gradient, keep_graph);
    drop(running);
    bury();
    outcome
}

/// Calls `done` once when the running backward pass ends; from inside a [`GradHook`] only.
///
/// It does not run if the pass fails. Its own failure is the pass's.
pub fn on_backward_end<F>(done: F) -> Result<()>
where
    F: FnOnce() -> Result<(), BoxError> + Send + 'static,
{
    let once = Mutex::new(Some(done));
    raw::on_backward_end(Box::new(move || {
        let _running = Running::begin();
        let done = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        done.map_or(Ok(()), |done| done())
    }))
}

/// Makes `gradient` the parameter's `.grad`, without a copy: backward then accumulates into its memory.
///
/// With `None` the parameter has no gradient, until the next backward pass makes one. A gradient must have the
/// parameter's shape, strides, dtype and device.
pub fn set_grad(parameter: &Tensor, gradient: Option<&Tensor>) -> Result<()> {
    if let Some(gradient) = gradient {
        let seen = |t: &Tensor| {
            format!("{:?} {:?} strides {:?} on {:?}", t.kind(), t.size(), t.stride(), t.device())
        };
        let alike = raw::same_layout(parameter, gradient)
            && parameter.kind() == gradient.kind()
            && parameter.device() == gradient.device();
        if !alike {
            return Err(Error::Argument {
                what: "set_grad",
                why: format!("the parameter is {}, the gradient {}", seen(parameter), seen(gradient)),
            });
        }
    }
    raw::set_grad(parameter, gradient)
}

/// Callbacks that libtorch still holds: zero when every [`GradHook`] is gone and no pass is running.
pub fn live_callbacks() -> usize {
    raw::live_callbacks()
}
