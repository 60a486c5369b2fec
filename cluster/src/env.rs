//! The names of the variables every worker finds in its environment, whatever engine started it.

#[cfg(any(feature = "ray", feature = "slurm"))]
use std::collections::BTreeMap;
#[cfg(any(feature = "ray", feature = "slurm"))]
use std::ffi::OsString;

/// Its place in the gang, counted from 0.
pub const SLOT: &str = "REGATTA_SLOT";
/// How many workers the gang has.
pub const SLOTS: &str = "REGATTA_SLOTS";
/// How many of the gang's workers on its node come before it.
pub const LOCAL_SLOT: &str = "REGATTA_LOCAL_SLOT";
/// Which try of the run this is, counted from 1.
pub const ATTEMPT: &str = "REGATTA_ATTEMPT";
/// The process's lasting name: [`WorkerId`](crate::WorkerId).
pub const WORKER: &str = "REGATTA_WORKER";
/// The name of the node it was placed on.
pub const NODE: &str = "REGATTA_NODE";

// What the controller adds for its workers.

/// Where to call: the controller's address, as in `http://127.0.0.1:4711`.
pub const ADDR: &str = "REGATTA_ADDR";
/// The run's secret. Taken out of the environment as soon as it is read.
pub const TOKEN: &str = "REGATTA_TOKEN";
/// The file descriptor to read the run's secret from, in place of [`TOKEN`].
pub const TOKEN_FD: &str = "REGATTA_TOKEN_FD";
/// The number of the gang the worker belongs to.
pub const GANG: &str = "REGATTA_GANG";
/// The authority whose certificates the controller shows, as a PEM text, where it speaks TLS.
pub const AUTHORITY: &str = "REGATTA_CA";
/// The name in the controller's certificate, where it is not the host in [`ADDR`].
pub const TLS_NAME: &str = "REGATTA_TLS_NAME";

/// The variables by which libraries are told how many threads to use.
pub const THREADS: [&str; 5] = [
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
];

/// What a worker finds in its environment on an engine of a cluster: the driver's own variables, the seat's, the command's,
/// the slot's. Its GPUs are named here unless the engine does that itself.
#[cfg(any(feature = "ray", feature = "slurm"))]
pub(crate) fn of_worker(
    lease: &crate::Lease,
    seat: &crate::Seat,
    launch: &crate::Launch,
    gpus: Option<String>,
) -> BTreeMap<OsString, OsString> {
    let command = &launch.command;
    let inherited = crate::WorkerCommand { env: BTreeMap::new(), ..command.clone() };
    let mut variables = crate::engine::shell::environment(&inherited);
    variables.remove(std::ffi::OsStr::new("CUDA_VISIBLE_DEVICES"));
    let mut set = |name: &str, value: OsString| drop(variables.insert(name.into(), value));
    set(SLOT, seat.slot.to_string().into());
    set(SLOTS, lease.workers().to_string().into());
    set(LOCAL_SLOT, seat.local_slot.to_string().into());
    set(ATTEMPT, launch.attempt.to_string().into());
    set(NODE, (&seat.node).into());
    if let Some(gpus) = gpus {
        set("CUDA_VISIBLE_DEVICES", gpus.into());
    }
    if !seat.resources.cpu.is_zero() {
        let threads = seat.resources.cpu.units().max(1).to_string();
        THREADS.iter().for_each(|name| set(name, (&threads).into()));
    }
    command.env.iter().for_each(|(name, value)| set(name, value.clone()));
    let own = launch.slot_env.get(seat.slot).into_iter().flatten();
    own.for_each(|(name, value)| set(name, value.clone()));
    variables
}
