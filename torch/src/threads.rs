//! How many threads libtorch computes with.
//!
//! Several processes on one host share its cores: each takes its part, before its first operation.

use crate::error::{Error, Result};

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
