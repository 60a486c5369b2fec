//! The messages of the control plane and of the rendezvous store, generated from `proto/`.
//!
//! They are documented there. Everything above this module speaks its own types where a user can see them.
#![allow(missing_docs, unreachable_pub, clippy::all)]

/// The stream between a worker and its controller.
pub mod control {
    tonic::include_proto!("regatta.control.v1");
}

/// The rendezvous store.
pub mod rendezvous {
    tonic::include_proto!("regatta.rendezvous.v1");
}

/// The revision of the protocol; workers of another one are refused.
pub const PROTOCOL: u32 = 1;
