//! Hyperparameter search: which trials to make, which of them to carry on, and what came of them.

pub mod results;
pub mod scheduler;
pub mod sim;
pub mod stopper;
