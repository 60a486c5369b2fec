//! CUDA's streams, events and graphs. The safe layer has loaded libtorch_cuda before any of these is reached.

use std::ffi::{c_int, c_void};
use std::ptr;

use tch::Tensor;

use super::check;
use crate::error::Result;
use crate::sys;

pub(crate) use crate::sys::Stream as RawStream;

pub(crate) fn load() -> Result<usize> {
    let mut devices: c_int = 0;
    // SAFETY: writes a number.
    check("loading libtorch_cuda", unsafe { sys::rg_cuda_load(&mut devices) })?;
    Ok(usize::try_from(devices).unwrap_or(0))
}

fn stream_from(op: &'static str, call: impl FnOnce(*mut RawStream) -> sys::Message) -> Result<RawStream> {
    let mut out = RawStream::default();
    check(op, call(&mut out))?;
    Ok(out)
}

pub(crate) fn current_stream(device: c_int) -> Result<RawStream> {
    // SAFETY: writes a plain struct.
    stream_from("reading the current stream", |out| unsafe { sys::rg_stream_current(device, out) })
}

pub(crate) fn stream_from_pool(device: c_int, high_priority: bool) -> Result<RawStream> {
    // SAFETY: writes a plain struct.
    stream_from("taking a stream", |out| unsafe { sys::rg_stream_from_pool(device, high_priority, out) })
}

/// Makes the stream and its device current on this thread; answers what was.
pub(crate) fn enter_stream(stream: RawStream) -> Result<(RawStream, c_int)> {
    let (mut before, mut device) = (RawStream::default(), 0);
    // SAFETY: writes plain values; libtorch's pooled streams are never destroyed.
    check("changing the current stream", unsafe { sys::rg_stream_enter(stream, &mut before, &mut device) })?;
    Ok((before, device))
}

pub(crate) fn leave_stream((before, device): (RawStream, c_int)) -> Result<()> {
    // SAFETY: takes plain values that `enter_stream` gave.
    check("going back to the stream before", unsafe { sys::rg_stream_leave(before, device) })
}

pub(crate) fn stream_handle(stream: RawStream) -> Result<*mut c_void> {
    let mut out = ptr::null_mut();
    // SAFETY: writes a pointer.
    check("reading a stream's handle", unsafe { sys::rg_stream_handle(stream, &mut out) })?;
    Ok(out)
}

pub(crate) fn stream_is_idle(stream: RawStream) -> Result<bool> {
    let mut out = false;
    // SAFETY: writes a flag.
    check("querying a stream", unsafe { sys::rg_stream_query(stream, &mut out) })?;
    Ok(out)
}

pub(crate) fn record_on_stream(tensor: &Tensor, stream: RawStream) -> Result<()> {
    // SAFETY: the tensor is alive.
    check("recording a tensor's use", unsafe { sys::rg_record_on_stream(tensor.as_ptr(), stream) })
}

/// An event of libtorch's.
pub(crate) struct RawEvent(*mut sys::Event);

// SAFETY: CUDA events may be used from any thread; the wrapper takes `&mut self` to record.
unsafe impl Send for RawEvent {}

impl RawEvent {
    pub(crate) fn new(timing: bool) -> Result<Self> {
        let mut out = ptr::null_mut();
        // SAFETY: writes an object that is ours.
        check("making an event", unsafe { sys::rg_event_new(timing, &mut out) })?;
        Ok(RawEvent(out))
    }

    pub(crate) fn record(&mut self, stream: RawStream) -> Result<()> {
        // SAFETY: the event is alive.
        check("recording an event", unsafe { sys::rg_event_record(self.0, stream) })
    }

    pub(crate) fn block(&self, stream: RawStream) -> Result<()> {
        // SAFETY: the event is alive.
        check("making a stream wait for an event", unsafe { sys::rg_event_block(self.0, stream) })
    }

    pub(crate) fn query(&self) -> Result<bool> {
        let mut out = false;
        // SAFETY: the event is alive.
        check("querying an event", unsafe { sys::rg_event_query(self.0, &mut out) })?;
        Ok(out)
    }

    pub(crate) fn elapsed_ms(&self, end: &RawEvent) -> Result<f64> {
        let mut out = 0.0;
        // SAFETY: both events are alive.
        check("timing between events", unsafe { sys::rg_event_elapsed(self.0, end.0, &mut out) })?;
        Ok(out)
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        // SAFETY: the event is ours and goes once.
        unsafe { sys::rg_event_delete(self.0) }
    }
}

/// A CUDA graph of libtorch's.
pub(crate) struct RawGraph(*mut sys::Graph);

// SAFETY: the object is only reached through `&mut self`.
unsafe impl Send for RawGraph {}

impl RawGraph {
    pub(crate) fn new() -> Result<Self> {
        let mut out = ptr::null_mut();
        // SAFETY: writes an object that is ours.
        check("making a CUDA graph", unsafe { sys::rg_graph_new(&mut out) })?;
        Ok(RawGraph(out))
    }

    pub(crate) fn begin(&mut self) -> Result<()> {
        // SAFETY: the graph is alive.
        check("beginning a capture", unsafe { sys::rg_graph_begin(self.0) })
    }

    pub(crate) fn end(&mut self) -> Result<()> {
        // SAFETY: the graph is alive.
        check("ending a capture", unsafe { sys::rg_graph_end(self.0) })
    }

    pub(crate) fn replay(&mut self) -> Result<()> {
        // SAFETY: the graph is alive.
        check("replaying a CUDA graph", unsafe { sys::rg_graph_replay(self.0) })
    }
}

impl Drop for RawGraph {
    fn drop(&mut self) {
        // SAFETY: the graph is ours and goes once.
        unsafe { sys::rg_graph_delete(self.0) }
    }
}
