//! The line from a rank to its controller, whatever carries it: the control stream of a worker process, or a channel between
//! threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::Result;
use crate::wire::{Committed, FromRank, StopReason};

/// What a rank says to its controller. No call waits for the network.
pub trait Link: Send + Sync {
    /// Passes on a report or progress.
    fn tell(&self, step: u64, message: FromRank) -> Result<()>;

    /// Passes on that a checkpoint is committed, or failed.
    fn committed(&self, committed: Committed) -> Result<()>;

    /// What the controller asked of this rank.
    fn orders(&self) -> &Orders;

    /// Whether the generation is over, so that nothing of this rank counts any more.
    fn is_over(&self) -> bool;
}

/// What the controller asked of a rank, set by whoever hears it and read by the training loop at its next step.
#[derive(Debug, Default)]
pub struct Orders {
    stop: Mutex<Option<StopReason>>,
    stopping: AtomicBool,
    save: AtomicBool,
    /// Up to which of the attempt's reports the rank may go on, where it waits to be told.
    granted: Mutex<u64>,
    news: Condvar,
}

impl Orders {
    /// Asks to stop; the first reason counts.
    pub fn stop(&self, reason: StopReason) {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.stopping.store(true, Ordering::Release);
        drop(self.granted());
        self.news.notify_all();
    }

    /// Lets the rank go on after this report of the attempt.
    pub fn grant(&self, report: u64) {
        let mut granted = self.granted();
        *granted = report.max(*granted);
        self.news.notify_all();
    }

    /// Waits a while for leave to go on after a report; whether there is any, or a stop was asked for.
    pub fn wait_granted(&self, report: u64, within: Duration) -> bool {
        let waits = |granted: &mut u64| *granted < report && !self.stopping.load(Ordering::Acquire);
        let waited = self.news.wait_timeout_while(self.granted(), within, waits);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn granted(&self) -> MutexGuard<'_, u64> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks to save.
    pub fn save(&self) {
        self.save.store(true, Ordering::Release);
    }

    /// Whether and why to stop. Cheap while nobody asked.
    pub fn stopping(&self) -> Option<StopReason> {
        if !self.stopping.load(Ordering::Acquire) {
            return None;
        }
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether to save; asked for once.
    pub fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::AcqRel)
    }
}
