//! Gangs.

pub mod failure;
pub mod machine;
pub mod state;
