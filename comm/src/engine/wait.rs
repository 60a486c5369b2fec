//! How to wait: spin while it can pay, give way, then nap for a part of the time already waited.
//!
//! A nap is at most a sixteenth of the time already spent, so it costs little latency, and nobody has to be woken: publishers pay nothing
//! for sleepers, and a wake-up cannot be lost.

use std::time::{Duration, Instant};

/// Spins before the first look at the clock.
const SHORT: u32 = 64;
/// For how long a rank spins when every rank has a core.
const SPIN: Duration = Duration::from_micros(50);
/// From when on a rank naps instead of giving way.
const NAP_FROM: Duration = Duration::from_millis(5);
/// The longest nap: also the longest that an abort goes unnoticed.
const NAP_MOST: Duration = Duration::from_millis(2);
/// How many pauses pass between two looks around.
const LOOK: u32 = 16;

/// The waiting of one call.
pub(super) struct Patience {
    within: Duration,
    /// When the call first waited longer than a few spins.
    began: Option<Instant>,
    /// The same, since the call last moved.
    since: Option<Instant>,
    waited: Duration,
    pauses: u32,
}

impl Patience {
    /// The clock starts at the first pause that is not short: a call that hardly waits never reads it.
    pub(super) fn new(within: Duration) -> Patience {
        Patience { within, began: None, since: None, waited: Duration::ZERO, pauses: 0 }
    }

    /// The call has moved: the next wait is a new one. The deadline stays.
    #[inline]
    pub(super) fn moved(&mut self) {
        (self.since, self.waited, self.pauses) = (None, Duration::ZERO, 0);
    }

    /// Pauses; true if it is time to look around.
    #[inline]
    pub(super) fn pause(&mut self, crowded: bool) -> bool {
        self.pauses = self.pauses.wrapping_add(1);
        if self.pauses < SHORT && !crowded {
            std::hint::spin_loop();
            return false;
        }
        self.long_pause(crowded)
    }

    #[cold]
    fn long_pause(&mut self, crowded: bool) -> bool {
        if self.since.is_none() {
            let now = Instant::now();
            self.began.get_or_insert(now);
            self.since = Some(now);
        }
        if !self.pauses.is_multiple_of(LOOK) && self.waited < NAP_FROM {
            if crowded || self.waited > SPIN {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
            return false;
        }
        self.waited = self.since.map_or(Duration::ZERO, |s| s.elapsed());
        if self.waited >= NAP_FROM {
            std::thread::sleep((self.waited / 16).min(NAP_MOST));
        }
        true
    }

    /// How long was waited, if that is too long.
    pub(super) fn expired(&self) -> Option<Duration> {
        self.began.map(|s| s.elapsed()).filter(|waited| *waited >= self.within)
    }
}

/// The cores that this thread may run on, as a bit mask.
pub(super) fn own_cores() -> [u64; 16] {
    let mut mask = [0; 16];
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => {
            for core in (0..1024).filter(|c| set.is_set(*c)) {
                mask[core / 64] |= 1 << (core % 64);
            }
        }
        Err(_) => mask[0] = 1,
    }
    mask
}
