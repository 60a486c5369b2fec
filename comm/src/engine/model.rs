//! The flag protocol under a model checker: every order of two ranks' reads and writes that the memory model allows, within a bound.
//! Payload lies in cells that fail the test if two ranks touch one at the same time.

use super::flags::{RankFlags, SLOTS, SharedFlags, Word};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Release};

#[derive(Debug, Default)]
struct Checked(AtomicU64);

impl Word for Checked {
    fn get(&self) -> u64 {
        self.0.load(Acquire)
    }
    fn set(&self, value: u64) {
        self.0.store(value, Release);
    }
    fn replace(&self, old: u64, new: u64) -> Result<(), u64> {
        self.0.compare_exchange(old, new, AcqRel, Acquire).map(|_| ())
    }
}

/// Payload that all ranks can reach.
struct Cells(Vec<UnsafeCell<u64>>);

// SAFETY: the model fails if two threads touch one cell at the same time: that is what is tested.
unsafe impl Send for Cells {}
// SAFETY: as above.
unsafe impl Sync for Cells {}

impl Cells {
    fn new(n: u64) -> Arc<Cells> {
        Arc::new(Cells((0..n).map(|_| UnsafeCell::new(0)).collect()))
    }
}

fn check(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    // More than it takes on an idle machine; a loaded one looks at fewer orders, and does not fail for it.
    model.max_duration = Some(std::time::Duration::from_secs(6));
    model.check(body);
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        loom::thread::yield_now();
    }
}

/// Runs `rank` as two threads.
fn pair(rank: impl Fn(usize) + Send + Sync + 'static) {
    let rank = std::sync::Arc::new(rank);
    let other = rank.clone();
    let thread = loom::thread::spawn(move || other(1));
    rank(0);
    thread.join().expect("no panic");
}

/// FP-1: five steps through four slots, one ahead; nobody overwrites what is being read.
#[test]
fn steps_never_overwrite_what_is_read() {
    check(2, || {
        let flags: Arc<[RankFlags<Checked, 2>; 2]> = Arc::new(Default::default());
        let slots = Cells::new(2 * SLOTS);
        pair(move |me| {
            let slot = |rank: usize, g: u64| &slots.0[rank * SLOTS as usize + (g % SLOTS) as usize];
            let publish = |g: u64| {
                // SAFETY: the model fails if somebody reads meanwhile: that is what is tested.
                slot(me, g).with_mut(|p| unsafe { *p = g * 10 + me as u64 });
                flags[me].steps.0.publish(g, g);
            };
            publish(1);
            for g in 1..=5 {
                if g < 5 {
                    publish(g + 1);
                }
                let peer = 1 - me;
                until(|| flags[peer].steps.0.published() >= g);
                // SAFETY: as above.
                let got = slot(peer, g).with(|p| unsafe { *p });
                assert_eq!(got, g * 10 + peer as u64);
                assert_eq!(flags[peer].steps.0.signature(g), g);
            }
        });
    });
}

/// FP-2, FP-3: two bucket calls of three pieces; each piece is written once, and all are visible in the end.
#[test]
fn pieces_are_claimed_once_and_seen_by_all() {
    check(2, || {
        let flags: Arc<[RankFlags<Checked, 2>; 2]> = Arc::new(Default::default());
        let shared: Arc<SharedFlags<Checked, 2>> = Arc::new(Default::default());
        let pieces = Cells::new(2);
        pair(move |me| {
            for b in 1..=2 {
                flags[me].announce(b, [b, 0]);
                until(|| flags[1 - me].announced() >= b);
                assert_eq!(flags[1 - me].announcement(b), [b, 0]);
                while let Some(piece) = shared.claim(b, 2) {
                    // SAFETY: the model fails if two ranks touch a piece at the same time: that is what is tested.
                    pieces.0[piece as usize].with_mut(|p| unsafe { *p += 1 });
                    shared.piece_done(b);
                }
                until(|| shared.pieces_done(b) == 2);
                // SAFETY: as above.
                pieces.0.iter().for_each(|p| assert_eq!(p.with(|p| unsafe { *p }), b));
                // Its owner may change a bucket only after all have read it; the next call is announced after that.
            }
        });
    });
}

/// The first reason to end a group stays.
#[test]
fn one_reason_stands() {
    check(3, || {
        let shared: Arc<SharedFlags<Checked, 2>> = Arc::new(Default::default());
        pair(move |me| {
            let stands = shared.set_abort(me as u64 + 1);
            assert!(stands == 1 || stands == 2);
            assert_eq!(shared.abort(), stands);
        });
    });
}
