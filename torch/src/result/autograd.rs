//! Hooks, backward and gradients, with Rust closures behind C callbacks.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::Tensor;

use super::check;
use crate::error::{BoxError, Error, Result};
use crate::sys;

/// What libtorch calls; from any thread, one call at a time.
pub(crate) type Callback = Box<dyn Fn() -> Result<(), BoxError> + Send + Sync>;

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Callbacks that C++ has not let go of yet.
pub(crate) fn live_callbacks() -> usize {
    LIVE.load(Ordering::SeqCst)
}

struct Held {
    error: Error,
    text: String,
}

fn into_raw(callback: Callback) -> *mut c_void {
    LIVE.fetch_add(1, Ordering::SeqCst);
    Box::into_raw(Box::new(callback)).cast()
}

unsafe extern "C" fn drop_callback(data: *mut c_void) {
    // SAFETY: `data` came from `into_raw` and the shim drops it once.
    let callback = unsafe { Box::from_raw(data.cast::<Callback>()) };
    // A panic in a captured value's Drop has nobody to go to.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(callback)));
    LIVE.fetch_sub(1, Ordering::SeqCst);
}

unsafe extern "C" fn drop_held(data: *mut c_void) {
    // SAFETY: `data` is the `Held` of `call_callback`, dropped once.
    let held = unsafe { Box::from_raw(data.cast::<Held>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(held)));
}

unsafe extern "C" fn call_callback(data: *mut c_void, failure: *mut sys::Failure) -> bool {
    // SAFETY: `data` came from `into_raw` and lives until `drop_callback`.
    let callback = unsafe { &*data.cast::<Callback>() };
    let error = match catch_unwind(AssertUnwindSafe(callback)) {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => Error::Hook(error),
        Err(panic) => Error::HookPanic(panic_text(&*panic)),
    };
    let text = catch_unwind(AssertUnwindSafe(|| error.to_string()))
        .unwrap_or_else(|_| "a gradient hook failed, and its error's Display panicked".into());
    let held = Box::into_raw(Box::new(Held { error, text }));
    // SAFETY: `failure` points to the shim's own struct; the text lives as long as `held`, which goes with it.
    unsafe {
        let text = &(*held).text;
        *failure = sys::Failure {
            payload: held.cast(),
            drop: Some(drop_held),
            message: text.as_ptr().cast(),
            length: text.len(),
        };
    }
    false
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

/// A registered post-hook of a leaf's gradient accumulator.
pub(crate) struct RawHook(*mut sys::Hook);

// SAFETY: the shim's hook is a shared pointer and a key; `crate::autograd` sees to it that no list of hooks is
// changed while a backward pass may be reading it.
unsafe impl Send for RawHook {}

impl RawHook {
    pub(crate) fn add(leaf: &Tensor, callback: Callback) -> Result<Self> {
        let mut out = ptr::null_mut();
        // SAFETY: the tensor is alive, the callback's ownership goes over whatever the outcome.
        let message = unsafe {
            sys::rg_hook_add(leaf.as_ptr(), into_raw(callback), call_callback, drop_callback, &mut out)
        };
        check("registering a gradient hook", message)?;
        Ok(RawHook(out))
    }

    /// Takes the hook out of libtorch's list; its closure lives until the drop. No backward pass may be running.
    pub(crate) fn unlink(&mut self) {
        // SAFETY: the pointer is the shim's; unlinking a second time finds nothing and does nothing.
        unsafe { sys::rg_hook_unlink(self.0) }
    }
}

impl Drop for RawHook {
    fn drop(&mut self) {
        // SAFETY: the pointer is the shim's and goes once.
        unsafe { sys::rg_hook_delete(self.0) }
    }
}

pub(crate) fn backward(loss: &Tensor, gradient: Option<&Tensor>, keep_graph: bool) -> Result<()> {
    let mut failure = sys::Failure { payload: ptr::null_mut(), drop: None, message: ptr::null(), length: 0 };
    let gradient = gradient.map_or(ptr::null(), Tensor::as_ptr);
    // SAFETY: both tensors are alive; the shim writes `failure.payload` only to hand over a `Held`.
    let message = unsafe { sys::rg_backward(loss.as_ptr(), gradient, keep_graph, &mut failure) };
    let outcome = check("backward", message);
    if failure.payload.is_null() {
        return outcome;
    }
    // SAFETY: a payload is a `Held` made by `call_callback`, handed over once.
    Err(unsafe { Box::from_raw(failure.payload.cast::<Held>()) }.error)
}

pub(crate) fn on_backward_end(callback: Callback) -> Result<()> {
    // SAFETY: the callback's ownership goes over whatever the outcome.
    let message = unsafe { sys::rg_on_backward_end(into_raw(callback), call_callback, drop_callback) };
    check("queueing an end-of-backward callback (only possible inside a gradient hook)", message)
}

pub(crate) fn set_grad(leaf: &Tensor, gradient: Option<&Tensor>) -> Result<()> {
    // SAFETY: both tensors are alive; the shim takes a reference of its own.
    let message = unsafe { sys::rg_set_grad(leaf.as_ptr(), gradient.map_or(ptr::null(), Tensor::as_ptr)) };
    check("setting a gradient", message)
}

pub(crate) fn same_layout(a: &Tensor, b: &Tensor) -> bool {
    // SAFETY: both tensors are alive and defined.
    unsafe { sys::rg_same_layout(a.as_ptr(), b.as_ptr()) }
}

/// Equal for handles of one tensor, whatever their names.
pub(crate) fn identity(tensor: &Tensor) -> usize {
    // SAFETY: the tensor is alive; the address is only compared.
    unsafe { sys::rg_identity(tensor.as_ptr()) as usize }
}
