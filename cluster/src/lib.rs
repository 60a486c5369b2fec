//! Gangs of worker processes and the control plane between them and their driver.

pub mod gang;
pub mod link;
pub mod proto;
pub mod token;
