//! Ranks with a GPU each: NCCL, found at run time.
//!
//! This is not a [`Backend`](crate::Backend): those move host memory and finish a call when its bytes are there, while here memory is on a
//! device, and a call is finished when a CUDA stream has passed it, which only the owner of the stream can see. So a
//! [`DeviceGroup`] takes NCCL's slices and a stream, such as a tensor library's own, and returns when the work is enqueued.
//! What it shares with the other groups is everything around the calls: ranks meet in the [`Store`](crate::store::Store), scoped to name
//! and generation; all waits have deadlines; failures are this crate's errors; any rank can end the group for all.
//!
//! ```no_run
//! use regatta_comm::nccl::{DataType, DeviceGroup, DeviceSliceMut, Nccl, ReduceOp, Stream};
//! # fn gradients() -> (*mut std::ffi::c_void, usize) { unimplemented!() }
//! # fn train(who: &regatta_comm::Rendezvous) -> regatta_comm::Result<()> {
//! let nccl = Nccl::load().map_err(|e| regatta_comm::nccl::error(who.rank, 0, &e))?;
//! let group = DeviceGroup::join(&nccl, who)?;
//! let (pointer, count) = gradients();
//! // SAFETY: the gradients outlive the work on the stream.
//! let bucket = unsafe { DeviceSliceMut::from_raw(pointer, count, DataType::F32) };
//! group.all_reduce(bucket, ReduceOp::Mean, Stream::DEFAULT)?;
//! group.check()
//! # }
//! ```

pub use nccl_rs::{
    Communicator, Config, DataType, DeviceSlice, DeviceSliceMut, Nccl, ReduceOp, ShrinkMode, Stream,
};

use crate::rendezvous::Rendezvous;
use crate::store::Store;
use crate::{Error, Result};
use nccl_rs::{Code, UniqueId};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where rank 0 puts NCCL's id, and where the reason is put if somebody ends the group.
const ID: &str = "nccl/id";
const END: &str = "nccl/end";
/// A look into the store must not hold up training.
const GLANCE: Duration = Duration::from_secs(5);

/// This rank's membership in a group of GPUs.
#[derive(Debug)]
pub struct DeviceGroup {
    comm: Option<Communicator>,
    store: Arc<dyn Store>,
    rank: usize,
    world: usize,
    generation: u64,
}

impl DeviceGroup {
    /// Joins with the current CUDA device, and NCCL's own settings. Returns when all ranks have.
    pub fn join(nccl: &Nccl, who: &Rendezvous) -> Result<DeviceGroup> {
        DeviceGroup::join_with(nccl, who, &Config::default())
    }

    /// The same, with other settings. Calls wait for `who.within`, whatever the configuration says.
    pub fn join_with(nccl: &Nccl, who: &Rendezvous, config: &Config) -> Result<DeviceGroup> {
        let started = Instant::now();
        let (store, rank, world) = (who.scope(), who.rank, who.world_size);
        let told = |e: nccl_rs::Error| error(rank, who.generation, &e);
        let id = if rank == 0 {
            let id = nccl.unique_id().map_err(told)?;
            store.set(ID, &id.to_bytes(), who.within)?;
            id
        } else {
            let bytes = store.wait(ID, who.within)?;
            let bytes = bytes.try_into().map_err(|bytes: Vec<u8>| Error::Corrupt {
                peer: "rank 0".into(),
                what: "NCCL's id",
                why: format!("it has {} bytes, not {}", bytes.len(), UniqueId::BYTES),
            })?;
            UniqueId::from_bytes(bytes)
        };
        let left = who.within.saturating_sub(started.elapsed());
        let forming = Config { timeout: left, blocking: false, ..config.clone() };
        let number = |n: usize| {
            let why = || format!("{n} is more ranks than NCCL counts");
            u32::try_from(n).map_err(|_| Error::invalid("join", why()))
        };
        let comm = Communicator::init(nccl, number(world)?, number(rank)?, &id, &forming).map_err(told)?;
        comm.set_timeout(who.within);
        Ok(DeviceGroup { comm: Some(comm), store, rank, world, generation: who.generation })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.world
    }

    /// Which incarnation of the group this is.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// NCCL's communicator, for what this type does not wrap.
    pub fn communicator(&self) -> Result<&Communicator> {
        self.comm
            .as_ref()
            .ok_or_else(|| Error::NotAvailable { what: "the communicator", why: "the group was left".into() })
    }

    /// Combines the ranks' values in place. Not in rank order, but as NCCL does: the same bits on every rank, and from run to run
    /// as long as the topology stays.
    pub fn all_reduce(&self, data: DeviceSliceMut, op: ReduceOp, stream: Stream) -> Result<()> {
        self.told(self.communicator()?.all_reduce(data.as_slice(), data, op, stream))
    }

    /// The root's values on every rank.
    pub fn broadcast(&self, data: DeviceSliceMut, root: usize, stream: Stream) -> Result<()> {
        let root = u32::try_from(root).unwrap_or(u32::MAX);
        self.told(self.communicator()?.broadcast(data, root, stream))
    }

    /// Each rank's input, in rank order, on every rank.
    pub fn all_gather(&self, input: DeviceSlice, output: DeviceSliceMut, stream: Stream) -> Result<()> {
        self.told(self.communicator()?.all_gather(input, output, stream))
    }

    /// Combines `world` blocks of input; each rank gets its block.
    pub fn reduce_scatter(
        &self,
        input: DeviceSlice,
        output: DeviceSliceMut,
        op: ReduceOp,
        stream: Stream,
    ) -> Result<()> {
        self.told(self.communicator()?.reduce_scatter(input, output, op, stream))
    }

    /// Looks, without waiting for peers, whether the group has failed: here in the background, or on a rank that said so with
    /// [`abort`](DeviceGroup::abort). Call it now and then while a stream is waited for, and abort when it fails.
    pub fn check(&self) -> Result<()> {
        self.told(self.communicator()?.check().map(|_| ()))?;
        match self.store.get(END, GLANCE)? {
            None => Ok(()),
            Some(note) => Err(self.ended(&note)),
        }
    }

    /// Stops all work of this rank, frees the communicator, and lets the others know: their [`check`](DeviceGroup::check) fails with
    /// [`Error::Aborted`]. All survivors of a failure must do this; NCCL's kernels wait for ever otherwise.
    pub fn abort(mut self, reason: &str) -> Result<()> {
        let note = format!("{} {reason}", self.rank);
        // The first reason counts, and a store that is gone must not keep NCCL running.
        let noted = self.store.compare_set(END, None, note.as_bytes(), GLANCE);
        let aborted = match self.comm.take() {
            Some(comm) => self.told(comm.abort(reason)),
            None => Ok(()),
        };
        noted.map(|_| ()).and(aborted)
    }

    /// Leaves in order: returns when the work of all ranks is done.
    pub fn leave(mut self) -> Result<()> {
        match self.comm.take() {
            Some(comm) => self.told(comm.destroy()),
            None => Ok(()),
        }
    }

    fn ended(&self, note: &[u8]) -> Error {
        let text = String::from_utf8_lossy(note);
        let (by, reason) = text.split_once(' ').unwrap_or(("", &text));
        let by = by.parse().unwrap_or(usize::MAX);
        Error::Aborted { by, generation: self.generation, reason: reason.into() }
    }

    fn told<T>(&self, result: nccl_rs::Result<T>) -> Result<T> {
        result.map_err(|e| error(self.rank, self.generation, &e))
    }
}

/// What an error of NCCL's means to a member of a group.
pub fn error(rank: usize, generation: u64, error: &nccl_rs::Error) -> Error {
    use nccl_rs::Error as N;
    let text = error.to_string();
    match error {
        N::Timeout { operation, waited, .. } => {
            Error::Deadline { rank, op: (*operation).into(), waited: *waited, missing: Vec::new() }
        }
        N::InvalidArgument { operation, what } => Error::invalid(operation, what.clone()),
        N::Nccl { function, code: Code::INVALID_ARGUMENT | Code::INVALID_USAGE, .. } => {
            Error::invalid(function, text)
        }
        N::Nccl { function: "ncclGetUniqueId" | "ncclCommInitRankConfig", code, .. } if !code.is_remote() => {
            Error::NotAvailable { what: "NCCL on this rank", why: text }
        }
        // NCCL does not say which peer was lost, only that one was; the group is over here in any case.
        N::Nccl { .. } | N::Closed { .. } => Error::Aborted { by: rank, generation, reason: text },
        _ => Error::NotAvailable { what: "NCCL", why: text },
    }
}
