//! Sharded, verified, atomic, asynchronous checkpoints on files and object stores.
