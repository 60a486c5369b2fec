//! The flag protocol of shared memory: which word a rank raises when, and what another may conclude from it.
//!
//! Written over [`Word`], so that the model checker runs this code and not a copy of it. Every word has one writer, but for the
//! claims and the abort word, which are compare-and-set. Payload is written before the flag that publishes it (release) and
//! read after it was seen (acquire).
//!
//! - **FP-1** A rank publishes step `g` only after it has drained step `g - 2`, and drains a step only after all ranks have published
//!   it. So with [`SLOTS`] = 4 no slot is overwritten while somebody reads it, and no rank ever announces what it has read.
//! - **FP-2** A rank announces bucket call `b` only after it has finished call `b - WINDOW`. So with [`RING`] = 2 `WINDOW`
//!   no claim word or announcement is reused while somebody needs it.
//! - **FP-3** Each piece of a bucket call is claimed by exactly one rank, after all ranks have announced the call; when the count of done
//!   pieces is full, all writes of all pieces are visible.

/// Steps that may be in the staging slots at once.
pub(crate) const SLOTS: u64 = 4;
/// Bucket calls that a rank may have announced and not finished.
pub(crate) const WINDOW: u64 = 32;
/// Bucket calls that are told apart.
pub(crate) const RING: usize = 2 * WINDOW as usize;

/// A word of memory shared between ranks.
pub(crate) trait Word: Default {
    /// Reads, and sees what was written before the value was (acquire).
    fn get(&self) -> u64;
    /// Writes, and lets whoever reads it see what was written before (release).
    fn set(&self, value: u64);
    /// Replaces `old` by `new`, or tells what is there instead (acquire and release).
    fn replace(&self, old: u64, new: u64) -> Result<(), u64>;
}

impl Word for std::sync::atomic::AtomicU64 {
    #[inline]
    fn get(&self) -> u64 {
        self.load(std::sync::atomic::Ordering::Acquire)
    }
    #[inline]
    fn set(&self, value: u64) {
        self.store(value, std::sync::atomic::Ordering::Release);
    }
    #[inline]
    fn replace(&self, old: u64, new: u64) -> Result<(), u64> {
        use std::sync::atomic::Ordering::{AcqRel, Acquire};
        self.compare_exchange(old, new, AcqRel, Acquire).map(|_| ())
    }
}

/// Something alone on its cache line, and on the neighbour that the prefetcher brings along.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub(crate) struct Line<T>(pub(crate) T);

/// What a rank has published: a step's number, and beside it what the step belongs to.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Steps<W> {
    published: W,
    signatures: [W; SLOTS as usize],
}

impl<W: Word> Steps<W> {
    /// Publishes step `g`, whose payload is written.
    #[inline]
    pub(crate) fn publish(&self, g: u64, signature: u64) {
        self.signatures[(g % SLOTS) as usize].set(signature);
        self.published.set(g);
    }

    /// The last step published.
    #[inline]
    pub(crate) fn published(&self) -> u64 {
        self.published.get()
    }

    /// What step `g` belongs to; valid as long as its slot is (FP-1).
    #[inline]
    pub(crate) fn signature(&self, g: u64) -> u64 {
        self.signatures[(g % SLOTS) as usize].get()
    }
}

/// The words that one rank writes.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct RankFlags<W, const N: usize = RING> {
    /// Steps of staged calls.
    pub(crate) steps: Line<Steps<W>>,
    /// The last step of which this rank's part is combined.
    reduced: Line<W>,
    /// The last bucket call announced.
    announced: Line<W>,
    /// The signature and place of the announced calls.
    announcements: [[W; 2]; N],
    /// The bucket call that this rank may hold a claim of, or 0: only so that the others can name whom they wait for.
    working: Line<W>,
    /// 1 once the rank has left the group.
    left: Line<W>,
}

impl<W: Word, const N: usize> Default for RankFlags<W, N> {
    fn default() -> Self {
        RankFlags {
            steps: Line::default(),
            reduced: Line::default(),
            announced: Line::default(),
            announcements: std::array::from_fn(|_| Default::default()),
            working: Line::default(),
            left: Line::default(),
        }
    }
}

impl<W: Word, const N: usize> RankFlags<W, N> {
    /// This rank's part of step `g` is combined and lies in its slot.
    #[inline]
    pub(crate) fn publish_reduced(&self, g: u64) {
        self.reduced.0.set(g);
    }

    /// The last step of which this rank's part is combined.
    #[inline]
    pub(crate) fn reduced(&self) -> u64 {
        self.reduced.0.get()
    }

    /// Announces bucket call `b`: this rank's values are in place, and it will not touch them until the call is done.
    #[inline]
    pub(crate) fn announce(&self, b: u64, what: [u64; 2]) {
        let slot = &self.announcements[b as usize % N];
        slot[0].set(what[0]);
        slot[1].set(what[1]);
        self.announced.0.set(b);
    }

    /// The last bucket call announced.
    #[inline]
    pub(crate) fn announced(&self) -> u64 {
        self.announced.0.get()
    }

    /// What bucket call `b` is; valid as long as it is not finished (FP-2).
    #[inline]
    pub(crate) fn announcement(&self, b: u64) -> [u64; 2] {
        let slot = &self.announcements[b as usize % N];
        [slot[0].get(), slot[1].get()]
    }

    /// This rank begins to claim pieces of bucket call `b`; 0 when it is through.
    #[inline]
    pub(crate) fn set_working(&self, b: u64) {
        self.working.0.set(b);
    }

    /// The bucket call that this rank may hold a claim of, or 0.
    pub(crate) fn working(&self) -> u64 {
        self.working.0.get()
    }

    /// Tells that this rank will publish nothing more.
    pub(crate) fn leave(&self) {
        self.left.0.set(1);
    }

    /// Whether this rank will publish nothing more.
    pub(crate) fn has_left(&self) -> bool {
        self.left.0.get() != 0
    }
}

/// The words that all ranks write.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct SharedFlags<W, const N: usize = RING> {
    /// 0, or why the group is over; set once.
    abort: Line<W>,
    /// For each bucket call in flight, which piece is next and how many are done.
    claims: [Line<W>; N],
    dones: [Line<W>; N],
}

impl<W: Word, const N: usize> Default for SharedFlags<W, N> {
    fn default() -> Self {
        SharedFlags {
            abort: Line::default(),
            claims: std::array::from_fn(|_| Line::default()),
            dones: std::array::from_fn(|_| Line::default()),
        }
    }
}

/// A count that belongs to call `b`, in a word that served an older call before: the high half says whose it is.
fn count_of(word: u64, b: u64) -> u64 {
    if word >> 32 == b & 0xffff_ffff { word & 0xffff_ffff } else { 0 }
}

fn with_count(b: u64, count: u64) -> u64 {
    (b & 0xffff_ffff) << 32 | count
}

impl<W: Word, const N: usize> SharedFlags<W, N> {
    /// Why the group is over, or 0.
    #[inline]
    pub(crate) fn abort(&self) -> u64 {
        self.abort.0.get()
    }

    /// Ends the group; the first reason stays. Returns the reason that stands.
    pub(crate) fn set_abort(&self, reason: u64) -> u64 {
        match self.abort.0.replace(0, reason) {
            Ok(()) => reason,
            Err(first) => first,
        }
    }

    /// Whether a piece of bucket call `b` is still to be claimed.
    #[inline]
    pub(crate) fn claimable(&self, b: u64, pieces: u64) -> bool {
        count_of(self.claims[b as usize % N].0.get(), b) < pieces
    }

    /// Takes the next of `pieces` of bucket call `b`, which all ranks have announced (FP-3).
    #[inline]
    pub(crate) fn claim(&self, b: u64, pieces: u64) -> Option<u64> {
        let word = &self.claims[b as usize % N].0;
        let mut seen = word.get();
        loop {
            let next = count_of(seen, b);
            if next >= pieces {
                return None;
            }
            match word.replace(seen, with_count(b, next + 1)) {
                Ok(()) => return Some(next),
                Err(now) => seen = now,
            }
        }
    }

    /// A claimed piece of bucket call `b` is done.
    #[inline]
    pub(crate) fn piece_done(&self, b: u64) {
        let word = &self.dones[b as usize % N].0;
        let mut seen = word.get();
        while let Err(now) = word.replace(seen, with_count(b, count_of(seen, b) + 1)) {
            seen = now;
        }
    }

    /// How many pieces of bucket call `b` are done.
    #[inline]
    pub(crate) fn pieces_done(&self, b: u64) -> u64 {
        count_of(self.dones[b as usize % N].0.get(), b)
    }
}

/// The words of one direction between two ranks: the sender's steps, and how many the receiver has taken.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Mail<W> {
    /// Written by the sender.
    pub(crate) sent: Line<Steps<W>>,
    taken: Line<W>,
}

impl<W: Word> Mail<W> {
    /// The receiver has read all up to step `g`.
    pub(crate) fn take(&self, g: u64) {
        self.taken.0.set(g);
    }

    /// The last step that the receiver has read.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.0.get()
    }
}
