//! The life of a communicator: made, changed, given up.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use super::{Config, Nccl, Registration, UniqueId, Window, group::refuse_if_open, shared::Shared};
use crate::{
    error::{Code, Error, Result, Version},
    result::{Api, DeviceSliceMut, PendingComm, Progress, RawComm, RawConfig, ShrinkMode},
};

/// One rank's end of a clique of devices that work together.
///
/// It may be shared between threads; NCCL sees one call at a time. All ranks must make the same calls in the same order.
/// [`Communicator::destroy`] ends it in order, together with its peers; dropping it aborts it, which waits for nobody.
pub struct Communicator {
    pub(super) shared: Arc<Shared>,
    world: u32,
    device: u32,
}

/// What NCCL can tell about the memory it holds. Since 2.29.7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum MemoryStatistic {
    /// Bytes that [`Communicator::suspend`] would free.
    Suspendable = 0,
    /// 1 while suspended.
    Suspended = 1,
    /// Bytes that stay.
    Persistent = 2,
    /// Bytes altogether.
    Total = 3,
}

impl Communicator {
    /// Joins a clique of `world` ranks as `rank`, with the current CUDA device, and waits for all the others. A process
    /// with several devices does this on a thread for each.
    pub fn init(nccl: &Nccl, world: u32, rank: u32, id: &UniqueId, config: &Config) -> Result<Self> {
        Self::init_scalable(nccl, world, rank, std::slice::from_ref(id), config)
    }

    /// As [`Communicator::init`], but with several ids, made by several ranks, so that a very large clique finds itself
    /// faster. More than one needs NCCL 2.23.
    pub fn init_scalable(
        nccl: &Nccl,
        world: u32,
        rank: u32,
        ids: &[UniqueId],
        config: &Config,
    ) -> Result<Self> {
        refuse_if_open("init")?;
        check_rank("init", world, rank)?;
        if ids.is_empty() {
            return Err(Error::InvalidArgument {
                operation: "init",
                what: "there is no id; give at least one".to_owned(),
            });
        }
        let raw = RawConfig::new(config, nccl.version())?;
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        let comm = RawComm::init(&nccl.api, world, rank, &ids, raw).map_err(|e| with_rank(e, rank))?;
        Self::ready("ncclCommInitRankConfig", &nccl.api, comm, rank, config.timeout)
    }

    /// Joins, as a newcomer, a clique that grows to `world` ranks; see [`Communicator::grow`].
    pub fn join(nccl: &Nccl, world: u32, rank: u32, id: &UniqueId, config: &Config) -> Result<Self> {
        refuse_if_open("join")?;
        check_rank("join", world, rank)?;
        let raw = RawConfig::new(config, nccl.version())?;
        let comm = RawComm::join(&nccl.api, world, rank, &id.0, raw).map_err(|e| with_rank(e, rank))?;
        Self::ready("ncclCommGrow", &nccl.api, comm, rank, config.timeout)
    }

    /// Waits until a fresh communicator is usable. On failure it is aborted: nothing half made is left.
    fn ready(
        operation: &'static str,
        api: &Arc<Api>,
        comm: RawComm,
        rank: u32,
        timeout: std::time::Duration,
    ) -> Result<Self> {
        let shared = Shared::new(api.clone(), comm, rank, timeout);
        let shape = shared.wait(operation).and_then(|()| shared.with(operation, RawComm::shape));
        match shape {
            // The new rank may differ from the expected one where NCCL assigns it (split, shrink).
            Ok((found, world, device)) if found == rank => Ok(Self { shared, world, device }),
            Ok((found, world, device)) => {
                let comm = shared.take(operation, "renumbered")?;
                let shared = Shared::new(api.clone(), comm, found, timeout);
                Ok(Self { shared, world, device })
            }
            Err(error) => {
                if let Err(second) = shared.abort("it never became ready") {
                    tracing::warn!(error = %second, "a communicator that never became ready could not be aborted");
                }
                Err(error)
            }
        }
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.shared.rank
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> u32 {
        self.world
    }

    /// The CUDA device it works on.
    pub fn device(&self) -> u32 {
        self.device
    }

    /// The version of the library underneath.
    pub fn version(&self) -> Version {
        self.shared.api.version()
    }

    /// Changes how long later calls wait, from what [`Config::timeout`] said.
    pub fn set_timeout(&self, timeout: std::time::Duration) {
        self.shared.set_timeout(timeout);
    }

    /// Looks whether something went wrong in the background, such as a peer that died, without waiting. True if NCCL is
    /// idle, false if it is still busy with a call.
    pub fn check(&self) -> Result<bool> {
        let progress = self.shared.with("check", |comm| comm.poll("ncclCommGetAsyncError"))?;
        Ok(progress == Progress::Done)
    }

    /// A handle with which another thread can abort this communicator while this one waits.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle(Arc::downgrade(&self.shared))
    }

    /// Makes every operation stop and frees the communicator. Every surviving rank must do so.
    ///
    /// With a blocking communicator, a call that hangs on another thread keeps this from happening until the timeout.
    pub fn abort(self, reason: &str) -> Result<()> {
        self.shared.abort(reason)
    }

    /// Waits until all ranks have done all their work, then frees the communicator. If that fails or takes too long, it is
    /// aborted and the failure told.
    pub fn destroy(self) -> Result<()> {
        refuse_if_open("destroy")?;
        let finalized = self.shared.launch("ncclCommFinalize", RawComm::finalize);
        if let Err(error) = finalized {
            let _ = self.shared.abort("it could not be finalized");
            return Err(error);
        }
        self.free()
    }

    /// Frees a communicator that was revoked.
    pub fn free_revoked(self) -> Result<()> {
        self.free()
    }

    fn free(self) -> Result<()> {
        let rank = self.rank();
        let comm = self.shared.take("destroy", "destroyed")?;
        comm.destroy().map_err(|error| with_rank(error, rank))
    }

    /// Stops every operation in flight but keeps the communicator, so that it can still be shrunk, split or freed with
    /// [`Communicator::free_revoked`]. Since 2.28.7.
    pub fn revoke(&self) -> Result<()> {
        refuse_if_open("revoke")?;
        self.shared.launch("ncclCommRevoke", RawComm::revoke)
    }

    /// Makes a communicator for each color out of this one, ranks ordered by `key`; `None` for a rank without color. Every
    /// rank has to call it. Without a configuration the children inherit this one's.
    pub fn split(&self, color: Option<u32>, key: i32, config: Option<&Config>) -> Result<Option<Self>> {
        let operation = "ncclCommSplit";
        refuse_if_open(operation)?;
        let raw = self.raw_config(config)?;
        let pending = self.shared.with(operation, |comm| comm.split(color, key, raw))?;
        if color.is_none() {
            let waited = self.shared.wait(operation);
            // NCCL still writes null to the place when it is done, so it is left where it is.
            std::mem::forget(pending);
            return waited.map(|()| None);
        }
        self.child(operation, pending, config).map(Some)
    }

    /// Makes a communicator without the given ranks, which must not call it; the others are renumbered in order. Since
    /// 2.27.3.
    pub fn shrink(&self, exclude: &[u32], mode: ShrinkMode, config: Option<&Config>) -> Result<Self> {
        let operation = "ncclCommShrink";
        refuse_if_open(operation)?;
        if exclude.is_empty() || exclude.iter().any(|r| *r >= self.world || *r == self.rank()) {
            return Err(Error::InvalidArgument {
                operation,
                what: format!(
                    "rank {} of {} cannot exclude {exclude:?}; name at least one other rank",
                    self.rank(),
                    self.world
                ),
            });
        }
        let raw = self.raw_config(config)?;
        let pending = self.shared.with(operation, |comm| comm.shrink(exclude, mode, raw))?;
        self.child(operation, pending, config)
    }

    /// An id for newcomers, made by one rank of this clique and used for one [`Communicator::grow`]. Since 2.29.2.
    pub fn grow_id(&self) -> Result<UniqueId> {
        self.shared.with("ncclCommGetUniqueId", |comm| comm.grow_id().map(UniqueId))
    }

    /// Makes a communicator of `world` ranks, in which these keep theirs and newcomers, who call [`Communicator::join`],
    /// get those behind. The rank that made the id passes it, the others pass `None`. Since 2.29.2.
    pub fn grow(&self, world: u32, id: Option<&UniqueId>, config: Option<&Config>) -> Result<Self> {
        let operation = "ncclCommGrow";
        refuse_if_open(operation)?;
        if world <= self.world {
            return Err(Error::InvalidArgument {
                operation,
                what: format!("{} ranks cannot grow to {world}", self.world),
            });
        }
        let raw = self.raw_config(config)?;
        let pending = self.shared.with(operation, |comm| comm.grow(world, id.map(|id| &id.0), raw))?;
        self.child(operation, pending, config)
    }

    /// Frees the memory that can be had again, until [`Communicator::resume`]. Since 2.29.7.
    pub fn suspend(&self) -> Result<()> {
        self.shared.launch("ncclCommSuspend", RawComm::suspend)
    }

    /// Takes back what [`Communicator::suspend`] freed. Since 2.29.7.
    pub fn resume(&self) -> Result<()> {
        self.shared.launch("ncclCommResume", RawComm::resume)
    }

    /// Memory held by NCCL for this communicator. Since 2.29.7.
    pub fn memory(&self, statistic: MemoryStatistic) -> Result<u64> {
        self.shared.with("ncclCommMemStats", |comm| comm.memory(statistic as i32))
    }

    /// Registers memory, so that collectives on it need no copy. It must stay allocated until the registration is dropped.
    pub fn register(&self, memory: DeviceSliceMut) -> Result<Registration> {
        let handle = self.shared.with("ncclCommRegister", |comm| comm.register(memory))?;
        Ok(Registration { comm: Arc::downgrade(&self.shared), handle })
    }

    /// Registers memory of all ranks together; each calls it with the same length, with memory from
    /// [`Nccl::alloc`] if it is to be `symmetric`. `None` where the hardware has no use for it. Since 2.27.3.
    pub fn register_window(&self, memory: DeviceSliceMut, symmetric: bool) -> Result<Option<Window>> {
        let operation = "ncclCommWindowRegister";
        refuse_if_open(operation)?;
        let pending = self.shared.with(operation, |comm| comm.register_window(memory, symmetric))?;
        let handle = pending.resolve(|| self.shared.wait(operation))?;
        let comm = Arc::downgrade(&self.shared);
        Ok((handle != 0).then_some(Window { comm, handle }))
    }

    fn raw_config(&self, config: Option<&Config>) -> Result<Option<RawConfig>> {
        config.map(|config| RawConfig::new(config, self.version())).transpose()
    }

    /// Waits for the parent to have made the child, and then for the child.
    fn child(&self, operation: &'static str, pending: PendingComm, config: Option<&Config>) -> Result<Self> {
        let mut pending = Some(pending);
        let waited = self.shared.wait_for(operation, || {
            let progress = self.shared.with(operation, |comm| comm.poll(operation))?;
            match pending.take().map(PendingComm::into_comm) {
                Some(Ok(child)) => return Ok(Some(child)),
                Some(Err(still)) => pending = Some(still),
                None => {}
            }
            match progress {
                Progress::InProgress => Ok(None),
                Progress::Done => Err(Error::Nccl {
                    function: operation,
                    code: Code::INTERNAL,
                    message: "NCCL reported success but made no communicator".to_owned(),
                    rank: Some(self.rank()),
                }),
            }
        });
        // If NCCL may still write to its place, that place is left standing.
        std::mem::forget(pending);
        let timeout = config.map_or(self.shared.timeout(), |config| config.timeout);
        Self::ready(operation, &self.shared.api, waited?, self.rank(), timeout)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if let Err(error) = self.shared.abort("dropped") {
            tracing::warn!(%error, rank = self.rank(), "a dropped communicator could not be aborted");
        }
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Communicator(rank {} of {}, device {})", self.rank(), self.world, self.device)
    }
}

/// Aborts a communicator from another thread.
#[derive(Clone)]
pub struct AbortHandle(Weak<Shared>);

impl AbortHandle {
    /// As [`Communicator::abort`]. Calls in progress and later ones fail with [`Error::Closed`] and this reason. Does
    /// nothing if the communicator is gone.
    pub fn abort(&self, reason: &str) -> Result<()> {
        self.0.upgrade().map_or(Ok(()), |shared| shared.abort(reason))
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AbortHandle")
    }
}

fn check_rank(operation: &'static str, world: u32, rank: u32) -> Result<()> {
    if rank < world {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        operation,
        what: format!("rank {rank} does not exist among {world}; give 0 <= rank < world"),
    })
}

fn with_rank(error: Error, rank: u32) -> Error {
    match error {
        Error::Nccl { function, code, message, .. } => {
            Error::Nccl { function, code, message, rank: Some(rank) }
        }
        other => other,
    }
}
