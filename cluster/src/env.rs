//! The names of the variables every worker finds in its environment, whatever engine started it.

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

/// How many threads libraries start. Left alone they would start one for every CPU of the host, in every worker.
pub(crate) const THREADS: [&str; 5] = [
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
];
