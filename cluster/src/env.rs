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
