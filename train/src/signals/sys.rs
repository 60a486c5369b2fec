//! The system's side of signals: a handler that writes the signal's number to a socket, and nothing else.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};

/// Where the handler writes to; -1 while there is none.
static WRITER: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(signal: libc::c_int) {
    let writer: RawFd = WRITER.load(Ordering::Acquire);
    if writer < 0 {
        return;
    }
    let byte = signal as u8;
    // SAFETY: `write` and errno's place may be used in a signal handler. The descriptor is one of ours or, in the instant
    // of a removal, closed, which is an error that nobody needs to know of. errno is given back as it was found.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(writer, (&raw const byte).cast(), 1);
        *errno = before;
    }
}

/// Handlers that are in place; the ones before come back when it goes.
pub(super) struct Handlers {
    before: Vec<(i32, libc::sigaction)>,
    _writer: UnixStream,
}

impl Handlers {
    /// Puts the handler in place for these signals. Their numbers come out of the stream, a byte each.
    pub(super) fn install(signals: &[i32]) -> io::Result<(UnixStream, Self)> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        let free = WRITER.compare_exchange(-1, writer.as_raw_fd(), Ordering::AcqRel, Ordering::Acquire);
        free.map_err(|_| super::taken())?;
        let mut handlers = Handlers { before: Vec::new(), _writer: writer };
        for &signal in signals {
            // SAFETY: a zeroed sigaction is a valid one, its handler is set to a function of the right type, and both
            // pointers are to values that live through the call.
            let before = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
                action.sa_flags = libc::SA_RESTART;
                libc::sigemptyset(&raw mut action.sa_mask);
                let mut before: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(signal, &raw const action, &raw mut before) != 0 {
                    return Err(io::Error::last_os_error());
                }
                before
            };
            handlers.before.push((signal, before));
        }
        Ok((reader, handlers))
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: `before` is what sigaction gave for this signal.
            unsafe { libc::sigaction(*signal, before, std::ptr::null_mut()) };
        }
        WRITER.store(-1, Ordering::Release);
    }
}
