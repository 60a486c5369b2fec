//! The threads that make batches ahead of the loop, and give them out in order.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::dataset::panic_message;
use super::error::{Error, Result};

/// The longest time that the end of a loop takes if its threads are not known to be hung.
const FAREWELL: Duration = Duration::from_secs(5);

/// A batch with what goes with it.
pub(super) struct Made<B> {
    pub(super) batch: B,
    /// Samples of this rank.
    pub(super) samples: u64,
    pub(super) weight: f64,
    /// Samples of the epoch that are consumed with this batch, over all ranks.
    pub(super) consumed: u64,
}

/// Makes the batches of one epoch, by step; none past the last.
pub(super) trait Produce<B>: Send + Sync {
    fn make(&self, step: u64) -> Result<Option<Made<B>>>;

    /// The samples of a step, for messages.
    fn place(&self, step: u64) -> String;
}

/// A batch, made on this thread; a panic is an error.
pub(super) fn make<B>(produce: &dyn Produce<B>, step: u64) -> Result<Option<Made<B>>> {
    catch_unwind(AssertUnwindSafe(|| produce.make(step))).unwrap_or_else(|panic| {
        Err(Error::Panic { place: produce.place(step), message: panic_message(&*panic) })
    })
}

/// Threads that make an epoch's batches.
pub(super) struct Pool<B> {
    shared: Arc<Shared<B>>,
    threads: Vec<JoinHandle<()>>,
    /// How long the end waits for threads that are in the middle of a batch.
    farewell: Duration,
}

struct Shared<B> {
    produce: Box<dyn Produce<B>>,
    ahead: usize,
    state: Mutex<State<B>>,
    /// A batch is made, or a thread has ended.
    made: Condvar,
    /// A batch is taken, or all is over.
    taken: Condvar,
}

struct State<B> {
    /// The step that the loop takes next; the first slot's.
    next: u64,
    /// Steps that are made or in the making.
    slots: VecDeque<Option<Result<Option<Made<B>>>>>,
    /// No more steps are begun: the epoch has ended, a batch failed, or nobody wants more.
    closed: bool,
    running: usize,
}

impl<B: Send + 'static> Pool<B> {
    /// Starts threads that make at most `ahead` batches before they are wanted.
    pub(super) fn start(produce: Box<dyn Produce<B>>, threads: usize, ahead: usize) -> Result<Self> {
        let state = State { next: 0, slots: VecDeque::with_capacity(ahead), closed: false, running: 0 };
        let shared = Arc::new(Shared {
            produce,
            ahead,
            state: Mutex::new(state),
            made: Condvar::new(),
            taken: Condvar::new(),
        });
        let mut pool = Pool { shared, threads: Vec::with_capacity(threads), farewell: FAREWELL };
        for number in 0..threads {
            let shared = pool.shared.clone();
            pool.shared.lock().running += 1;
            match thread::Builder::new().name(format!("regatta-data-{number}")).spawn(move || shared.work()) {
                Ok(thread) => pool.threads.push(thread),
                Err(error) => {
                    pool.shared.lock().running -= 1;
                    return Err(Error::Thread(error));
                }
            }
        }
        Ok(pool)
    }

    /// The next step's batch; none when the epoch has ended.
    pub(super) fn next(&mut self, timeout: Duration) -> Result<Option<Made<B>>> {
        let begin = Instant::now();
        let mut state = self.shared.lock();
        loop {
            if let Some(outcome) = state.slots.front_mut().and_then(Option::take) {
                state.slots.pop_front();
                state.next += 1;
                drop(state);
                self.shared.taken.notify_one();
                return outcome;
            }
            let waited = begin.elapsed();
            let Some(left) = timeout.checked_sub(waited) else {
                let step = state.next;
                drop(state);
                self.farewell = Duration::ZERO;
                return Err(Error::Timeout { place: self.shared.produce.place(step), waited });
            };
            state = self.shared.made.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<B> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(step) = self.claim() {
            let outcome = make(&*self.produce, step);
            let mut state = self.lock();
            state.closed |= !matches!(outcome, Ok(Some(_)));
            // Steps before this one may be in the making still: the slot is this step's own.
            let slot = (step - state.next) as usize;
            state.slots[slot] = Some(outcome);
            drop(state);
            self.made.notify_all();
        }
        self.lock().running -= 1;
        self.made.notify_all();
    }

    fn claim(&self) -> Option<u64> {
        let mut state = self.lock();
        // Woken by every batch taken and by the end; without a deadline, as an idle thread holds nobody up.
        while !state.closed && state.slots.len() >= self.ahead {
            state = self.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return None;
        }
        state.slots.push_back(None);
        Some(state.next + state.slots.len() as u64 - 1)
    }
}

impl<B> Drop for Pool<B> {
    fn drop(&mut self) {
        let begin = Instant::now();
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.taken.notify_all();
        while state.running > 0 {
            let Some(left) = self.farewell.checked_sub(begin.elapsed()) else {
                tracing::error!(
                    threads = state.running,
                    "the dataset has not come back; the threads that wait for it are left behind"
                );
                return;
            };
            state = self.shared.made.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        for thread in self.threads.drain(..) {
            // It has nothing left to do but to return, and its panics are caught.
            let _ = thread.join();
        }
    }
}
