//! What a communicator is for. Each call returns when NCCL has the operation on the stream; the stream says when it is done.

use super::{Communicator, ReduceOp};
use crate::{
    error::{Error, Result},
    result::{DeviceSlice, DeviceSliceMut, Stream},
};

impl Communicator {
    /// Every rank gets the reduction of all. In place if `send` is `recv`.
    pub fn all_reduce(
        &self,
        send: DeviceSlice,
        recv: DeviceSliceMut,
        op: ReduceOp,
        stream: Stream,
    ) -> Result<()> {
        self.shared.launch("all_reduce", |comm| comm.all_reduce(send, recv, op, stream))
    }

    /// The root gets the reduction of all. Only it needs `recv`.
    pub fn reduce(
        &self,
        send: DeviceSlice,
        recv: Option<DeviceSliceMut>,
        op: ReduceOp,
        root: u32,
        stream: Stream,
    ) -> Result<()> {
        self.check_root("reduce", "recv", root, recv.is_some())?;
        self.shared.launch("reduce", |comm| comm.reduce(send, recv, op, root, stream))
    }

    /// Every rank gets the root's memory in its own.
    pub fn broadcast(&self, buffer: DeviceSliceMut, root: u32, stream: Stream) -> Result<()> {
        self.check_peer("broadcast", root)?;
        self.shared.launch("broadcast", |comm| comm.broadcast(buffer, root, stream))
    }

    /// Every rank gets its share of the reduction of all. `send` holds as much for each rank.
    pub fn reduce_scatter(
        &self,
        send: DeviceSlice,
        recv: DeviceSliceMut,
        op: ReduceOp,
        stream: Stream,
    ) -> Result<()> {
        let world = self.world_size() as usize;
        self.shared.launch("reduce_scatter", |comm| comm.reduce_scatter(send, recv, op, world, stream))
    }

    /// Every rank gets the memory of all, in order of rank. `recv` holds as much from each rank.
    pub fn all_gather(&self, send: DeviceSlice, recv: DeviceSliceMut, stream: Stream) -> Result<()> {
        let world = self.world_size() as usize;
        self.shared.launch("all_gather", |comm| comm.all_gather(send, recv, world, stream))
    }

    /// Every rank sends its n-th part to rank n. One NCCL call since 2.28, a group of sends and receives before.
    pub fn all_to_all(&self, send: DeviceSlice, recv: DeviceSliceMut, stream: Stream) -> Result<()> {
        let world = self.world_size() as usize;
        self.shared.launch("all_to_all", |comm| comm.all_to_all(send, recv, world, stream))
    }

    /// The root gets the memory of all, in order of rank. Only it needs `recv`. Works with every version, as
    /// [`Communicator::all_to_all`] does.
    pub fn gather(
        &self,
        send: DeviceSlice,
        recv: Option<DeviceSliceMut>,
        root: u32,
        stream: Stream,
    ) -> Result<()> {
        self.check_root("gather", "recv", root, recv.is_some())?;
        let recv = recv.filter(|_| self.rank() == root);
        let world = self.world_size() as usize;
        self.shared.launch("gather", |comm| comm.gather(send, recv, root, world, stream))
    }

    /// Every rank gets its part of the root's memory. Only the root needs `send`. Works with every version, as
    /// [`Communicator::all_to_all`] does.
    pub fn scatter(
        &self,
        send: Option<DeviceSlice>,
        recv: DeviceSliceMut,
        root: u32,
        stream: Stream,
    ) -> Result<()> {
        self.check_root("scatter", "send", root, send.is_some())?;
        let send = send.filter(|_| self.rank() == root);
        let world = self.world_size() as usize;
        self.shared.launch("scatter", |comm| comm.scatter(send, recv, root, world, stream))
    }

    /// Sends to a peer that receives. Put sends and receives that wait for each other into a group.
    pub fn send(&self, data: DeviceSlice, peer: u32, stream: Stream) -> Result<()> {
        self.check_peer("send", peer)?;
        self.shared.launch("send", |comm| comm.send(data, peer, stream))
    }

    /// Receives from a peer that sends.
    pub fn recv(&self, data: DeviceSliceMut, peer: u32, stream: Stream) -> Result<()> {
        self.check_peer("recv", peer)?;
        self.shared.launch("recv", |comm| comm.recv(data, peer, stream))
    }

    fn check_peer(&self, operation: &'static str, peer: u32) -> Result<()> {
        if peer < self.world_size() {
            return Ok(());
        }
        Err(Error::InvalidArgument {
            operation,
            what: format!("rank {peer} does not exist among {}", self.world_size()),
        })
    }

    fn check_root(&self, operation: &'static str, name: &str, root: u32, has_buffer: bool) -> Result<()> {
        self.check_peer(operation, root)?;
        if self.rank() == root && !has_buffer {
            return Err(Error::InvalidArgument { operation, what: format!("the root needs {name}") });
        }
        Ok(())
    }
}
