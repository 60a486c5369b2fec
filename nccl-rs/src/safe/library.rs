//! Finding and loading the library.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{DeviceMemory, Group, UniqueId};
use crate::{
    error::{Error, Result, Version},
    result::Api,
};

/// Variables that name the library, the first set one wins.
const VARIABLES: [&str; 2] = ["REGATTA_NCCL_LIB", "NCCL_LIB"];
/// Names the loader is asked for otherwise.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// A loaded NCCL. Cheap to clone; the library itself is never unloaded.
#[derive(Clone)]
pub struct Nccl {
    pub(crate) api: Arc<Api>,
}

impl Nccl {
    /// Loads the library that `REGATTA_NCCL_LIB` or `NCCL_LIB` names (a file, and then that one or nothing), or else
    /// `libnccl.so.2`, or else `libnccl.so`, by the loader's own rules.
    pub fn load() -> Result<Self> {
        match VARIABLES.iter().find_map(|name| env::var_os(name).filter(|value| !value.is_empty())) {
            Some(path) => Self::open(PathBuf::from(path)),
            None => Self::first_of(&NAMES),
        }
    }

    /// Loads this file, or this name by the loader's rules.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let api = Api::open(path.as_ref())?;
        tracing::debug!(path = %api.path().display(), version = %api.version(), "NCCL loaded");
        Ok(Self { api: Arc::new(api) })
    }

    /// The first name that the loader finds. One that is there but unusable ends the search: it is what the machine means.
    fn first_of(names: &[&str]) -> Result<Self> {
        let mut attempts = Vec::new();
        for name in names {
            match Self::open(name) {
                Err(Error::NotAvailable { tried }) => attempts.extend(tried),
                outcome => return outcome,
            }
        }
        Err(Error::NotAvailable { tried: attempts })
    }

    /// The version of the loaded library.
    pub fn version(&self) -> Version {
        self.api.version()
    }

    /// The name or path it was loaded by.
    pub fn path(&self) -> &Path {
        self.api.path()
    }

    /// Whether the loaded library has a function, by its C name, such as `ncclCommShrink`.
    pub fn has(&self, function: &str) -> bool {
        self.api.has(function)
    }

    /// The middle layer, for functions called by hand.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Makes the id of a new clique, on one rank, for all to call [`Communicator::init`](crate::Communicator::init) with.
    /// The process that makes it serves the others until all have joined.
    pub fn unique_id(&self) -> Result<UniqueId> {
        self.api.new_unique_id().map(UniqueId)
    }

    /// Allocates device memory that is fit for every optimisation NCCL has, on the current device.
    pub fn alloc(&self, bytes: usize) -> Result<DeviceMemory> {
        DeviceMemory::new(&self.api, bytes)
    }

    /// Opens a group on this thread: what is called until [`Group::end`] is launched together.
    pub fn group(&self) -> Result<Group> {
        Group::start(&self.api)
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nccl").field("version", &self.version()).field("path", &self.path()).finish()
    }
}
