//! Streams and events: which queue work goes into, and when it is done.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::thread;
use std::time::{Duration, Instant};

use tch::{Device, Tensor};

use crate::cuda;
use crate::error::{Error, Result};
use crate::result::{cuda as raw, device_code};

/// A queue of work on a CUDA device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub(super) raw::RawStream);

fn cuda_index(device: Device) -> Result<c_int> {
    let devices = cuda::load()?;
    match device {
        Device::Cuda(index) if index < devices => device_code(device),
        other => {
            let why = format!("{other:?} is none of the {devices} CUDA devices");
            Err(Error::NotAvailable { what: "a CUDA stream", why })
        }
    }
}

impl Stream {
    /// The stream that this thread's work on `device` goes into.
    pub fn current(device: Device) -> Result<Self> {
        Ok(Stream(raw::current_stream(cuda_index(device)?)?))
    }

    /// A stream of libtorch's pool, other than the default one.
    pub fn from_pool(device: Device, high_priority: bool) -> Result<Self> {
        Ok(Stream(raw::stream_from_pool(cuda_index(device)?, high_priority)?))
    }

    /// The `cudaStream_t`, for other libraries; libtorch owns it.
    pub fn raw(&self) -> Result<*mut c_void> {
        raw::stream_handle(self.0)
    }

    /// Sends this thread's work into the stream until the guard is dropped.
    pub fn enter(&self) -> Result<StreamGuard> {
        Ok(StreamGuard { before: raw::enter_stream(self.0)?, _thread: PhantomData })
    }

    /// Whether all work so far is done.
    pub fn is_idle(&self) -> Result<bool> {
        raw::stream_is_idle(self.0)
    }

    /// Waits until all work so far is done.
    pub fn wait(&self, timeout: Duration) -> Result<()> {
        poll("a CUDA stream", timeout, || self.is_idle())
    }

    /// Keeps the tensor's memory from being given to others before the stream's work so far is done with it.
    pub fn uses(&self, tensor: &Tensor) -> Result<()> {
        raw::record_on_stream(tensor, self.0)
    }
}

/// While it lives, a [`Stream`] is this thread's current one.
#[must_use = "the stream before is current again when the guard is dropped"]
#[derive(Debug)]
pub struct StreamGuard {
    before: (raw::RawStream, c_int),
    /// Current streams are kept per thread.
    _thread: PhantomData<*const ()>,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if let Err(error) = raw::leave_stream(self.before) {
            tracing::error!(%error, "the current stream could not be changed back");
        }
    }
}

/// A point in a stream.
pub struct Event(raw::RawEvent);

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Event")
    }
}

impl Event {
    /// An event; `timing` makes [`Event::elapsed_ms`] possible at some cost.
    pub fn new(timing: bool) -> Result<Self> {
        cuda::load()?;
        Ok(Event(raw::RawEvent::new(timing)?))
    }

    /// Marks the stream's end as it is now.
    pub fn record(&mut self, stream: &Stream) -> Result<()> {
        self.0.record(stream.0)
    }

    /// Makes a stream wait for the mark, without making the CPU wait.
    pub fn block(&self, stream: &Stream) -> Result<()> {
        self.0.block(stream.0)
    }

    /// Whether the work before the mark is done.
    pub fn is_done(&self) -> Result<bool> {
        self.0.query()
    }

    /// Waits until the work before the mark is done.
    pub fn wait(&self, timeout: Duration) -> Result<()> {
        poll("a CUDA event", timeout, || self.is_done())
    }

    /// Milliseconds from this mark to another; both made with timing, and done.
    pub fn elapsed_ms(&self, end: &Event) -> Result<f64> {
        self.0.elapsed_ms(&end.0)
    }
}

/// CUDA's own waits have no deadline. Yields at first, as most waits are short, then sleeps.
fn poll(what: &'static str, timeout: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !done()? {
        let waited = begin.elapsed();
        if waited > timeout {
            return Err(Error::Timeout { what, after: timeout });
        }
        if waited < Duration::from_millis(1) {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(50));
        }
    }
    Ok(())
}
