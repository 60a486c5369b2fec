//! The shim's C interface as it is; `shim/shim.h` says what each function promises.
//!
//! Nothing outside `result` calls these.

use std::ffi::{c_char, c_int, c_void};

use torch_sys::C_tensor;

/// A message from malloc, or null for success.
pub(crate) type Message = *mut c_char;

#[repr(C)]
pub(crate) struct Failure {
    pub(crate) payload: *mut c_void,
    pub(crate) drop: Option<unsafe extern "C" fn(*mut c_void)>,
    pub(crate) message: *const c_char,
    pub(crate) length: usize,
}

pub(crate) type Call = unsafe extern "C" fn(*mut c_void, *mut Failure) -> bool;
pub(crate) type DropFn = unsafe extern "C" fn(*mut c_void);

macro_rules! opaque {
    ($($name:ident),*) => { $(
        #[repr(C)]
        pub(crate) struct $name {
            _private: [u8; 0],
        }
    )* };
}
opaque!(Hook, Optim, Event, Graph);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) kind: c_int,
    pub(crate) nesterov: bool,
    pub(crate) amsgrad: bool,
    pub(crate) lr: f64,
    pub(crate) weight_decay: f64,
    pub(crate) momentum: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) eps: f64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Autocast {
    pub(crate) device_type: c_int,
    pub(crate) enabled: bool,
    pub(crate) kind: c_int,
    pub(crate) cache: bool,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) id: i64,
    pub(crate) device: c_int,
}

unsafe extern "C" {
    pub(crate) fn rg_free(message: Message);

    pub(crate) fn rg_hook_add(
        leaf: *const C_tensor,
        data: *mut c_void,
        call: Call,
        drop: DropFn,
        out: *mut *mut Hook,
    ) -> Message;
    pub(crate) fn rg_hook_unlink(hook: *mut Hook);
    pub(crate) fn rg_hook_delete(hook: *mut Hook);
    pub(crate) fn rg_backward(
        loss: *const C_tensor,
        gradient: *const C_tensor,
        keep_graph: bool,
        failure: *mut Failure,
    ) -> Message;
    pub(crate) fn rg_on_backward_end(data: *mut c_void, call: Call, drop: DropFn) -> Message;
    pub(crate) fn rg_set_grad(leaf: *const C_tensor, gradient: *const C_tensor) -> Message;
    pub(crate) fn rg_same_layout(a: *const C_tensor, b: *const C_tensor) -> bool;
    pub(crate) fn rg_identity(tensor: *const C_tensor) -> *const c_void;

    pub(crate) fn rg_grads_release(params: *const *const C_tensor, count: usize) -> Message;
    pub(crate) fn rg_grad_into(
        param: *const C_tensor,
        view: *const C_tensor,
        had: *mut bool,
        is_finite: *mut bool,
    ) -> Message;
    pub(crate) fn rg_copy_async(to: *const C_tensor, from: *const C_tensor) -> Message;
    pub(crate) fn rg_all_finite(tensor: *const C_tensor, out: *mut bool) -> Message;

    pub(crate) fn rg_optim_new(out: *mut *mut Optim) -> Message;
    pub(crate) fn rg_optim_delete(optim: *mut Optim);
    pub(crate) fn rg_optim_add(
        optim: *mut Optim,
        rule: *const Rule,
        params: *const *const C_tensor,
        count: usize,
    ) -> Message;
    pub(crate) fn rg_optim_set_lr(optim: *mut Optim, bucket: usize, lr: f64) -> Message;
    pub(crate) fn rg_optim_zero_grad(optim: *mut Optim, release: bool) -> Message;
    pub(crate) fn rg_optim_check(optim: *mut Optim, inverse_scale: *const C_tensor) -> Message;
    pub(crate) fn rg_optim_guard(optim: *mut Optim) -> Message;
    pub(crate) fn rg_optim_is_checked(optim: *const Optim) -> bool;
    pub(crate) fn rg_optim_found_inf(optim: *mut Optim, out: *mut *mut C_tensor) -> Message;
    pub(crate) fn rg_optim_clip(optim: *mut Optim, max_norm: f64, norm: *mut *mut C_tensor) -> Message;
    pub(crate) fn rg_optim_step(optim: *mut Optim) -> Message;
    pub(crate) fn rg_optim_skipped(optim: *mut Optim, out: *mut f64) -> Message;
    pub(crate) fn rg_optim_set_skipped(optim: *mut Optim, skipped: f64) -> Message;
    pub(crate) fn rg_optim_state(
        optim: *mut Optim,
        bucket: usize,
        index: usize,
        slot: c_int,
        out: *mut *mut C_tensor,
    ) -> Message;
    pub(crate) fn rg_scale_update(
        scale: *mut C_tensor,
        growth_tracker: *mut C_tensor,
        found_inf: *const C_tensor,
        growth: f64,
        backoff: f64,
        interval: i64,
    ) -> Message;

    pub(crate) fn rg_autocast_enter(wanted: *const Autocast, before: *mut Autocast) -> Message;
    pub(crate) fn rg_autocast_leave(before: *const Autocast) -> Message;
    pub(crate) fn rg_rng_get(device: c_int, out: *mut *mut C_tensor) -> Message;
    pub(crate) fn rg_rng_set(device: c_int, state: *const C_tensor) -> Message;
    pub(crate) fn rg_seed(seed: u64) -> Message;
    pub(crate) fn rg_deterministic(on: bool) -> Message;
    pub(crate) fn rg_is_deterministic() -> bool;
    pub(crate) fn rg_flush_denormals(on: bool, done: *mut bool) -> Message;
    pub(crate) fn rg_allow_tf32(on: bool) -> Message;
    pub(crate) fn rg_channels_last(tensor: *const C_tensor, out: *mut *mut C_tensor) -> Message;
    pub(crate) fn rg_is_channels_last(tensor: *const C_tensor, out: *mut bool) -> Message;
    pub(crate) fn rg_dense_cpu(tensor: *const C_tensor, out: *mut bool) -> Message;
    #[allow(clippy::too_many_arguments)] // the C side is one at::from_blob
    pub(crate) fn rg_foreign(
        memory: *mut c_void,
        sizes: *const i64,
        dims: usize,
        kind: c_int,
        device: c_int,
        data: *mut c_void,
        drop: DropFn,
        out: *mut *mut C_tensor,
    ) -> Message;

    pub(crate) fn rg_cuda_load(devices: *mut c_int) -> Message;
    pub(crate) fn rg_stream_current(device: c_int, out: *mut Stream) -> Message;
    pub(crate) fn rg_stream_from_pool(device: c_int, high_priority: bool, out: *mut Stream) -> Message;
    pub(crate) fn rg_stream_enter(stream: Stream, before: *mut Stream, device_before: *mut c_int) -> Message;
    pub(crate) fn rg_stream_leave(before: Stream, device_before: c_int) -> Message;
    pub(crate) fn rg_stream_handle(stream: Stream, out: *mut *mut c_void) -> Message;
    pub(crate) fn rg_stream_query(stream: Stream, out: *mut bool) -> Message;
    pub(crate) fn rg_record_on_stream(tensor: *const C_tensor, stream: Stream) -> Message;
    pub(crate) fn rg_event_new(timing: bool, out: *mut *mut Event) -> Message;
    pub(crate) fn rg_event_delete(event: *mut Event);
    pub(crate) fn rg_event_record(event: *mut Event, stream: Stream) -> Message;
    pub(crate) fn rg_event_block(event: *mut Event, stream: Stream) -> Message;
    pub(crate) fn rg_event_query(event: *mut Event, out: *mut bool) -> Message;
    pub(crate) fn rg_event_elapsed(start: *mut Event, end: *mut Event, milliseconds: *mut f64) -> Message;
    pub(crate) fn rg_graph_new(out: *mut *mut Graph) -> Message;
    pub(crate) fn rg_graph_delete(graph: *mut Graph);
    pub(crate) fn rg_graph_begin(graph: *mut Graph) -> Message;
    pub(crate) fn rg_graph_end(graph: *mut Graph) -> Message;
    pub(crate) fn rg_graph_replay(graph: *mut Graph) -> Message;
}
