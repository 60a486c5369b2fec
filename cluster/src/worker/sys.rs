//! Taking the run's secret out of where it was passed: the two calls here are unsafe to the language.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;

use crate::env::TOKEN;
use crate::{Error, Result};

/// Takes [`TOKEN`] out of the environment, so that no process started from here inherits it.
///
/// The environment may be changed only while no other thread can read it, so this fails in a process that already has
/// several; such a program calls it earlier, or is given the secret by a descriptor.
pub(super) fn take_token_variable() -> Result<String> {
    let problem = |problem: &str| Error::Environment { variable: TOKEN, problem: problem.to_owned() };
    let secret =
        std::env::var(TOKEN).map_err(|_| problem("is not set: this process was not launched as a worker"))?;
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(1);
    if threads > 1 {
        return Err(problem(
            "cannot be taken out of the environment, since the process already has several threads; \
             become a worker at the top of main, or pass REGATTA_TOKEN_FD instead",
        ));
    }
    // SAFETY: this is the only thread of the process, as the system just said, so nobody else reads the environment.
    unsafe { std::env::remove_var(TOKEN) };
    Ok(secret)
}

/// Reads the secret from an inherited descriptor and closes it.
pub(super) fn take_token_descriptor(fd: RawFd) -> Result<String> {
    let problem = |source: std::io::Error| Error::Environment {
        variable: crate::env::TOKEN_FD,
        problem: format!("names descriptor {fd}, which cannot be read: {source}"),
    };
    if fd <= 2 || !std::path::Path::new(&format!("/proc/self/fd/{fd}")).exists() {
        return Err(problem(std::io::ErrorKind::InvalidInput.into()));
    }
    // SAFETY: the descriptor is open, and whoever launched this process says that it is ours: it was inherited for this
    // purpose and nothing else in the program knows of it, so that this is its only owner.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&owned, FdFlags::CLOEXEC).map_err(|errno| problem(errno.into()))?;
    let mut secret = String::new();
    File::from(owned).take(4096).read_to_string(&mut secret).map_err(problem)?;
    Ok(secret.trim_end().to_owned())
}
