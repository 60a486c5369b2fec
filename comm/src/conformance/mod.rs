//! What every back end must do, as tests that every back end runs.
//!
//! A back end writes one function that makes the groups of a world, and gets all tests by a macro:
//!
//! ```text
//! fn make(world: usize) -> Vec<ProcessGroup> { ... }
//! regatta_comm::conformance_tests!(make);
//! ```
//!
//! The ranks of one world run as threads of the test's process; what only separate processes can show is tested apart.

mod behaviour;
mod reference;
mod results;
mod store;

pub use behaviour::{
    abort_reaches_everyone, arguments_leave_the_group_usable, deadline_names_the_missing, leaving_is_noticed,
    messages_pass, mismatches_are_told_to_everyone, order_of_waiting_is_free, split_groups_work,
    started_calls_finish,
};
pub use reference::{Sample, Values, expected};
pub use results::{
    barrier_holds_everyone, buckets_agree_with_the_reference, copies_agree_with_the_reference,
    random_sequences_agree_with_the_reference, reductions_agree_with_the_reference,
    results_are_bit_identical,
};
pub use store::store_keeps_its_promises;

use crate::ProcessGroup;

/// Makes the groups of one world, one for each rank in order.
pub type Make = dyn Fn(usize) -> Vec<ProcessGroup> + Sync;

/// Makes the ranks of a world by joining them at the same time, as most `make` functions need to.
pub fn join_all(
    world: usize,
    join: impl Fn(usize) -> crate::Result<ProcessGroup> + Sync,
) -> Vec<ProcessGroup> {
    let join = &join;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world).map(|r| scope.spawn(move || join(r))).collect();
        ranks
            .into_iter()
            .map(|r| r.join().expect("no panic while joining").expect("every rank joins"))
            .collect()
    })
}

/// Runs `body` as every rank of a fresh world, and returns what they return, in rank order.
pub fn on_all<R: Send>(make: &Make, world: usize, body: impl Fn(ProcessGroup) -> R + Sync) -> Vec<R> {
    let body = &body;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = make(world).into_iter().map(|g| scope.spawn(move || body(g))).collect();
        let ends: Vec<_> = ranks.into_iter().map(|r| r.join()).collect();
        ends.into_iter().map(|r| r.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// One test function for each promise of [`Backend`](crate::Backend), over the groups that the given function makes.
#[macro_export]
macro_rules! conformance_tests {
    ($make:path) => {
        $crate::conformance_tests!($make;
            reductions_agree_with_the_reference, copies_agree_with_the_reference, buckets_agree_with_the_reference,
            random_sequences_agree_with_the_reference, results_are_bit_identical, barrier_holds_everyone,
            messages_pass, started_calls_finish, order_of_waiting_is_free, split_groups_work,
            mismatches_are_told_to_everyone, arguments_leave_the_group_usable, deadline_names_the_missing,
            abort_reaches_everyone, leaving_is_noticed);
    };
    ($make:path; $($test:ident),*) => {$(
        #[test]
        fn $test() {
            $crate::conformance::$test(&$make);
        }
    )*};
}
