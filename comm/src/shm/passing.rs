//! Handing descriptors to another process of this host.

use super::{NAP, broken};
use crate::{Error, Result};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Room for the descriptors of one message: the memory and 64 processes, with a header.
const SPACE: usize = 512;

/// How long a broken path waits to learn who is to blame.
const BLAME: Duration = Duration::from_millis(500);

/// Sends descriptors, with a word that the other end expects.
pub(super) fn send(to: &UnixStream, word: u64, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(broken("too many descriptors for one message"));
    }
    let bytes = word.to_le_bytes();
    let sent = sendmsg(to, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    match sent.map_err(|e| Error::io("pass a descriptor", e))? {
        8 => Ok(()),
        n => Err(broken(&format!("{n} of 8 bytes were sent"))),
    }
}

/// Receives `count` descriptors with the expected word. Waits as long as `check` allows.
pub(super) fn receive(
    from: &UnixStream,
    word: u64,
    count: usize,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<OwnedFd>> {
    from.set_read_timeout(Some(NAP.max(Duration::from_millis(5))))
        .map_err(|e| Error::io("set a time limit", e))?;
    let mut bytes = [0; 8];
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => break got,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => check()?,
            Err(e) => return Err(Error::io("receive a descriptor", e)),
        }
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(all) = message {
            descriptors.extend(all);
        }
    }
    let found = u64::from_le_bytes(bytes);
    if got.bytes != 8
        || found != word
        || descriptors.len() != count
        || got.flags.contains(ReturnFlags::CTRUNC)
    {
        let why = format!(
            "{} bytes ({found}) with {} descriptors, not 8 ({word}) with {count}",
            got.bytes,
            descriptors.len()
        );
        let error = broken(&why);
        return Err(if got.bytes == 0 { blame(error, check) } else { error });
    }
    Ok(descriptors)
}

/// A path that breaks means that its other end is dying: the watch over the processes will know who, in a moment.
pub(super) fn blame(error: Error, check: &mut dyn FnMut() -> Result<()>) -> Error {
    let started = std::time::Instant::now();
    while started.elapsed() < BLAME {
        if let Err(better) = check() {
            return better;
        }
        std::thread::sleep(NAP);
    }
    error
}
