//! Collectives over an owned communicator. Counts follow from the slices and are checked against each other, so that
//! nothing is read or written beyond them.

use std::ptr;

use super::{DeviceSlice, DeviceSliceMut, Progress, RawComm, Stream, int};
use crate::{
    error::{Error, Result, Version},
    safe::{DataType, ReduceOp},
};

impl RawComm {
    pub(crate) fn all_reduce(
        &self,
        send: DeviceSlice,
        recv: DeviceSliceMut,
        op: ReduceOp,
        stream: Stream,
    ) -> Result<Progress> {
        let (count, dtype) = self.one("all_reduce", send)?;
        fits("all_reduce", recv.as_slice(), send, 1)?;
        // SAFETY: the handle is live; both slices hold `count` elements, as their makers vouched.
        unsafe { self.api.all_reduce(send.ptr, recv.ptr, count, dtype, op as i32, self.handle, stream.0) }
    }

    /// `recv` may be left out on every rank but the root.
    pub(crate) fn reduce(
        &self,
        send: DeviceSlice,
        recv: Option<DeviceSliceMut>,
        op: ReduceOp,
        root: u32,
        stream: Stream,
    ) -> Result<Progress> {
        let (count, dtype) = self.one("reduce", send)?;
        if let Some(recv) = recv {
            fits("reduce", recv.as_slice(), send, 1)?;
        }
        let root = int("reduce", "root", root as usize)?;
        let (recv, op) = (recv.map_or(ptr::null_mut(), |r| r.ptr), op as i32);
        // SAFETY: as in `all_reduce`; NCCL writes `recv` only on the root, where the safe layer demands it.
        unsafe { self.api.reduce(send.ptr, recv, count, dtype, op, root, self.handle, stream.0) }
    }

    /// In place: the root's memory is sent, the others' overwritten.
    pub(crate) fn broadcast(&self, buffer: DeviceSliceMut, root: u32, stream: Stream) -> Result<Progress> {
        let (count, dtype) = self.one("broadcast", buffer.as_slice())?;
        let (root, ptr) = (int("broadcast", "root", root as usize)?, buffer.ptr);
        // SAFETY: as in `all_reduce`.
        unsafe { self.api.broadcast(ptr, ptr, count, dtype, root, self.handle, stream.0) }
    }

    pub(crate) fn reduce_scatter(
        &self,
        send: DeviceSlice,
        recv: DeviceSliceMut,
        op: ReduceOp,
        world: usize,
        stream: Stream,
    ) -> Result<Progress> {
        let (count, dtype) = self.one("reduce_scatter", recv.as_slice())?;
        fits("reduce_scatter", send, recv.as_slice(), world)?;
        // SAFETY: as in `all_reduce`; `send` holds `count` elements for each rank.
        unsafe { self.api.reduce_scatter(send.ptr, recv.ptr, count, dtype, op as i32, self.handle, stream.0) }
    }

    pub(crate) fn all_gather(
        &self,
        send: DeviceSlice,
        recv: DeviceSliceMut,
        world: usize,
        stream: Stream,
    ) -> Result<Progress> {
        let (count, dtype) = self.one("all_gather", send)?;
        fits("all_gather", recv.as_slice(), send, world)?;
        // SAFETY: as in `all_reduce`; `recv` holds `count` elements from each rank.
        unsafe { self.api.all_gather(send.ptr, recv.ptr, count, dtype, self.handle, stream.0) }
    }

    pub(crate) fn send(&self, data: DeviceSlice, peer: u32, stream: Stream) -> Result<Progress> {
        let (count, dtype) = self.one("send", data)?;
        let peer = int("send", "peer", peer as usize)?;
        // SAFETY: as in `all_reduce`.
        unsafe { self.api.send(data.ptr, count, dtype, peer, self.handle, stream.0) }
    }

    pub(crate) fn recv(&self, data: DeviceSliceMut, peer: u32, stream: Stream) -> Result<Progress> {
        let (count, dtype) = self.one("recv", data.as_slice())?;
        let peer = int("recv", "peer", peer as usize)?;
        // SAFETY: as in `all_reduce`.
        unsafe { self.api.recv(data.ptr, count, dtype, peer, self.handle, stream.0) }
    }

    /// One call where NCCL has it (2.28), else a group of sends and receives.
    pub(crate) fn all_to_all(
        &self,
        send: DeviceSlice,
        recv: DeviceSliceMut,
        world: usize,
        stream: Stream,
    ) -> Result<Progress> {
        let (total, dtype) = self.one("all_to_all", send)?;
        fits("all_to_all", recv.as_slice(), send, 1)?;
        if !total.is_multiple_of(world) {
            let what = format!("{total} elements do not divide among {world} ranks");
            return Err(Error::InvalidArgument { operation: "all_to_all", what });
        }
        if self.api.has("ncclAlltoAll") {
            let count = total / world;
            // SAFETY: as in `all_reduce`; both slices hold `count` elements for each rank.
            return unsafe { self.api.all_to_all(send.ptr, recv.ptr, count, dtype, self.handle, stream.0) };
        }
        self.grouped(|| {
            for peer in 0..world {
                let _ = self.send(send.part(peer, world), peer as u32, stream)?;
                let _ = self.recv(recv.part(peer, world), peer as u32, stream)?;
            }
            Ok(())
        })
    }

    /// `recv` is the root's alone.
    pub(crate) fn gather(
        &self,
        send: DeviceSlice,
        recv: Option<DeviceSliceMut>,
        root: u32,
        world: usize,
        stream: Stream,
    ) -> Result<Progress> {
        let (count, dtype) = self.one("gather", send)?;
        if let Some(recv) = recv {
            fits("gather", recv.as_slice(), send, world)?;
        }
        if self.api.has("ncclGather") {
            let root = int("gather", "root", root as usize)?;
            let recv = recv.map_or(ptr::null_mut(), |r| r.ptr);
            // SAFETY: as in `reduce`; on the root `recv` holds `count` elements from each rank.
            return unsafe { self.api.gather(send.ptr, recv, count, dtype, root, self.handle, stream.0) };
        }
        self.grouped(|| {
            let _ = self.send(send, root, stream)?;
            if let Some(recv) = recv {
                for peer in 0..world {
                    let _ = self.recv(recv.part(peer, world), peer as u32, stream)?;
                }
            }
            Ok(())
        })
    }

    /// `send` is the root's alone.
    pub(crate) fn scatter(
        &self,
        send: Option<DeviceSlice>,
        recv: DeviceSliceMut,
        root: u32,
        world: usize,
        stream: Stream,
    ) -> Result<Progress> {
        let (count, dtype) = self.one("scatter", recv.as_slice())?;
        if let Some(send) = send {
            fits("scatter", send, recv.as_slice(), world)?;
        }
        if self.api.has("ncclScatter") {
            let root = int("scatter", "root", root as usize)?;
            let send = send.map_or(ptr::null(), |s| s.ptr);
            // SAFETY: as in `reduce`; on the root `send` holds `count` elements for each rank.
            return unsafe { self.api.scatter(send, recv.ptr, count, dtype, root, self.handle, stream.0) };
        }
        self.grouped(|| {
            if let Some(send) = send {
                for peer in 0..world {
                    let _ = self.send(send.part(peer, world), peer as u32, stream)?;
                }
            }
            let _ = self.recv(recv, root, stream)?;
            Ok(())
        })
    }

    /// Runs `body` inside a group, which is closed whatever happens; the first error is the one told.
    fn grouped(&self, body: impl FnOnce() -> Result<()>) -> Result<Progress> {
        let _ = self.api.begin_group()?;
        let recorded = body();
        let launched = self.api.finish_group();
        recorded.and(launched)
    }

    /// Count and type of a slice, the type one that this version has.
    fn one(&self, operation: &'static str, slice: DeviceSlice) -> Result<(usize, i32)> {
        let (dtype, found, needs) = (slice.dtype(), self.api.version(), Version::new(2, 24, 3));
        if matches!(dtype, DataType::F8E4M3 | DataType::F8E5M2) && found < needs {
            return Err(Error::NotSupported { feature: "an 8-bit float", needs, found });
        }
        if slice.count().checked_mul(dtype.size()).is_none() {
            let what = format!("{} elements of {dtype:?} overflow", slice.count());
            return Err(Error::InvalidArgument { operation, what });
        }
        Ok((slice.count(), dtype as i32))
    }
}

/// Makes sure that `all` holds `ranks` times what `one` holds, in the same type.
fn fits(operation: &'static str, all: DeviceSlice, one: DeviceSlice, ranks: usize) -> Result<()> {
    let needed = one.count().checked_mul(ranks);
    if needed == Some(all.count()) && all.dtype() == one.dtype() {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        operation,
        what: format!(
            "one buffer holds {} {:?}, the other {} {:?}; it should be {ranks} times as many of the same type",
            one.count(),
            one.dtype(),
            all.count(),
            all.dtype()
        ),
    })
}
