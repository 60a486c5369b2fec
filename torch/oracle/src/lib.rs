//! libtorch's own reducer between threads, so that tests can hold ours against it. Nothing but tests uses this.

mod sys;

use std::ffi::{CStr, c_char, c_int, c_void};

use tch::Tensor;

/// Where the reducers of one group meet.
#[derive(Debug)]
pub struct Hub(*mut c_void);

// SAFETY: the hub's only state is behind its own mutex.
unsafe impl Send for Hub {}
// SAFETY: as above.
unsafe impl Sync for Hub {}

impl Hub {
    /// For so many ranks.
    pub fn new(world: usize) -> Hub {
        // SAFETY: takes a number and gives a new hub.
        Hub(unsafe { sys::oracle_hub_new(world as c_int) })
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // SAFETY: reducers borrow the hub, so none is left.
        unsafe { sys::oracle_hub_delete(self.0) }
    }
}

/// How large buckets are, and whether unused parameters are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of the first bucket.
    pub first_bucket: i64,
    /// Bytes of the others.
    pub bucket: i64,
    /// Whether every pass looks for unused parameters.
    pub find_unused: bool,
}

/// One rank's reducer.
#[derive(Debug)]
pub struct Reducer<'a> {
    raw: *mut c_void,
    find_unused: bool,
    _hub: &'a Hub,
}

impl Reducer<'_> {
    /// Over these parameters, which get hooks.
    pub fn new<'a>(
        hub: &'a Hub,
        rank: usize,
        world: usize,
        parameters: &[Tensor],
        how: Settings,
    ) -> Reducer<'a> {
        let pointers: Vec<_> = parameters.iter().map(|p| p.as_ptr()).collect();
        let Settings { first_bucket, bucket, find_unused } = how;
        let settings =
            sys::Settings { rank: rank as c_int, size: world as c_int, first_bucket, bucket, find_unused };
        let mut raw = std::ptr::null_mut();
        // SAFETY: the tensors are alive and the list is as long as is said.
        check(unsafe { sys::oracle_new(hub.0, &settings, pointers.as_ptr(), pointers.len(), &mut raw) });
        Reducer { raw, find_unused, _hub: hub }
    }

    /// To be called before the model computes.
    pub fn before_forward(&self) {
        // SAFETY: the reducer is alive.
        check(unsafe { sys::oracle_before(self.raw) });
    }

    /// To be called with what the model computed, before its backward pass.
    pub fn after_forward(&self, output: &Tensor) {
        // SAFETY: the reducer and the tensor are alive.
        check(unsafe { sys::oracle_after(self.raw, output.as_ptr(), self.find_unused) });
    }
}

impl Drop for Reducer<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `oracle_new`, deleted once.
        unsafe { sys::oracle_delete(self.raw) }
    }
}

/// An oracle that fails has nothing to say.
fn check(message: *mut c_char) {
    if !message.is_null() {
        // SAFETY: a message is a C string from malloc, ours to free once.
        let text = unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            sys::oracle_free(message);
            text
        };
        panic!("libtorch's reducer failed: {text}");
    }
}
