//! Memory of this back end's own, and the way of a region's bytes into and out of a socket. The only `unsafe` of the back
//! end is here.

use super::frame;
use crate::Region;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ptr::NonNull;

const PAGE: usize = 4096;

/// Zeroed memory, aligned to a page.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is owned, and reached only through regions, whose users exclude each other.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    pub(crate) fn new(bytes: usize) -> Pages {
        let layout = Pages::layout(bytes);
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Pages { start, bytes }
    }

    /// All of it. Use it only while the pages live.
    pub(crate) fn region(&self) -> Region {
        // SAFETY: the pages are valid for their length; whoever keeps the region keeps the pages.
        unsafe { Region::new(self.start.as_ptr(), self.bytes) }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes.max(1), PAGE).expect("a bucket fits the address space")
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), Pages::layout(self.bytes)) }
    }
}

/// Writes what is left of a frame: from byte `at` of header and body together.
pub(super) fn write_frame(
    mut socket: &TcpStream,
    header: &[u8],
    body: Region,
    at: usize,
) -> io::Result<usize> {
    // SAFETY: the body belongs to a call in flight, which nobody writes to until it is finished (or, in place, until this is sent).
    let bytes = unsafe { body.as_slice() };
    if at >= header.len() {
        return socket.write(&bytes[at - header.len()..]);
    }
    socket.write_vectored(&[IoSlice::new(&header[at..]), IoSlice::new(bytes)])
}

/// The checksum of a region.
pub(super) fn checksum(region: Region) -> u32 {
    // SAFETY: as in `write_frame`; a region that was received is touched by nobody else before its checksum is found right.
    frame::checksum(unsafe { region.as_slice() })
}

/// Reads into a region; 0 is the end of the connection.
pub(super) fn read_into(mut socket: &TcpStream, region: Region) -> io::Result<usize> {
    // SAFETY: the region is the receiver's own, and this is the only place that touches it until the frame is whole.
    socket.read(unsafe { region.as_mut_slice() })
}
