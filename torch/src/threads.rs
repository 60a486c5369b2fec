//! The threads that libtorch computes with: how many, and how they treat the smallest numbers.
//!
//! Several processes on one host share its cores: each takes its part, before its first operation.

use crate::error::{Error, Result};
use crate::result::context;

/// Threads within an operation on the CPU.
pub fn set(threads: usize) -> Result<()> {
    let count = i32::try_from(threads).ok().filter(|&count| count > 0);
    let count = count.ok_or_else(|| Error::Argument {
        what: "threads::set",
        why: format!("{threads} threads; give at least one"),
    })?;
    tch::set_num_threads(count);
    Ok(())
}

/// Threads within an operation on the CPU.
pub fn get() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Makes operations of this thread use no other threads, whatever [`set`] says for all. For threads that work beside the one
/// that trains.
pub fn compute_alone() -> Result<()> {
    let others = get();
    tch::set_num_threads(1);
    // libtorch gives threads that are new to it the number that was set last, on whatever thread; that is to stay.
    let restore = std::thread::Builder::new().name("threads".into()).spawn(move || {
        if let Ok(others) = i32::try_from(others) {
            tch::set_num_threads(others);
        }
    });
    let ended = restore.map(std::thread::JoinHandle::join);
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Error::Torch { op: "setting threads", message: "libtorch refused".into() }),
        Err(error) => Err(Error::NotAvailable { what: "a thread", why: error.to_string() }),
    }
}

/// Makes this thread, and the threads that it starts from now on, take numbers below 1e-38 for zero.
///
/// Processors compute with such numbers up to a hundred times slower, and a training run meets many: the moments of
/// an optimiser fade to them wherever gradients stay zero. PyTorch leaves this off. Call it at the start of `main`,
/// so that libtorch's worker threads inherit it.
pub fn flush_denormals(on: bool) -> Result<()> {
    match context::flush_denormals(on)? {
        true => Ok(()),
        false => Err(Error::NotAvailable {
            what: "flushing denormal numbers",
            why: "this processor has no such mode".into(),
        }),
    }
}
