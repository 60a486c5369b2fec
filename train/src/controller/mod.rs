//! The controller of a run: what it decides ([`machine`], pure), what it must remember ([`ledger`], the fold of the run's
//! events), how ranks' reports become one ([`merge`], pure), and the loop that does what was decided.
//!
//! Not to be used directly: [`Trainer`](crate::Trainer) is the way in. It is public so that a tuner's simulator can play
//! whole runs without a process.

mod books;
pub(crate) mod drive;
pub mod ledger;
pub mod machine;
pub mod merge;
mod receipts;
#[cfg(test)]
mod simulator;

pub use ledger::Ledger;
pub use machine::{Action, Ending, Input, Machine, Output, Phase, Plan, Problem, ProblemKind, Status};
pub use merge::{Merged, Merger};
