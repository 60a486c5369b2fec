//! Where everything lies in a group's shared memory. Unsafe, because it turns zeroed shared bytes into references to words.

use super::flags::{Mail, RankFlags, SLOTS, SharedFlags};
use super::memory::Mapping;
use crate::{Error, Region, Result};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Bytes of a staging slot, of which each rank has [`SLOTS`].
pub(crate) const SLOT_BYTES: usize = 256 << 10;
/// Bytes of a mail slot, of which each ordered pair of ranks has [`SLOTS`].
pub(crate) const MAIL_BYTES: usize = 16 << 10;
/// The most ranks that share memory.
pub(crate) const MAX_RANKS: usize = 64;
/// Bytes for the reason that a rank gives for ending the group.
const REASON_BYTES: usize = 504;
const PAGE: usize = 4096;

/// What a rank tells about itself.
#[repr(C, align(128))]
struct Card {
    /// The cores that it may run on.
    cores: [AtomicU64; 16],
    /// Its account of the group's end: a peer and two signatures for a mismatch, and text, length first.
    peer: AtomicU64,
    signatures: [AtomicU64; 2],
    reason_length: AtomicU64,
    reason: [AtomicU64; REASON_BYTES / 8],
}

/// The group's shared memory, as words and slots.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    mapping: Arc<Mapping>,
    world: usize,
    ranks_at: usize,
    mail_at: usize,
    cards_at: usize,
    slots_at: usize,
    mail_slots_at: usize,
}

type Shared = SharedFlags<AtomicU64>;
type Rank = RankFlags<AtomicU64>;
type Post = Mail<AtomicU64>;

impl Layout {
    /// The offsets of the parts for `world` ranks; the last one is the end.
    fn offsets(world: usize) -> [usize; 6] {
        let page = |n: usize| n.next_multiple_of(PAGE);
        let ranks_at = page(size_of::<Shared>());
        let mail_at = ranks_at + page(world * size_of::<Rank>());
        let cards_at = mail_at + page(world * world * size_of::<Post>());
        let slots_at = cards_at + page(world * size_of::<Card>());
        let mail_slots_at = slots_at + world * SLOTS as usize * SLOT_BYTES;
        [
            ranks_at,
            mail_at,
            cards_at,
            slots_at,
            mail_slots_at,
            mail_slots_at + world * world * SLOTS as usize * MAIL_BYTES,
        ]
    }

    /// How much memory `world` ranks need.
    pub(crate) fn bytes(world: usize) -> usize {
        Layout::offsets(world)[5]
    }

    /// Over memory of [`Layout::bytes`], which was zeroed when it was made.
    pub(crate) fn new(mapping: Arc<Mapping>, world: usize) -> Result<Layout> {
        if world > MAX_RANKS {
            let why = format!("{world} ranks cannot share memory, at most {MAX_RANKS} can");
            return Err(Error::NotAvailable { what: "shared memory", why });
        }
        let [ranks_at, mail_at, cards_at, slots_at, mail_slots_at, end] = Layout::offsets(world);
        assert_eq!(mapping.region().len(), end, "the mapping was made for this world");
        Ok(Layout { mapping, world, ranks_at, mail_at, cards_at, slots_at, mail_slots_at })
    }

    #[inline]
    fn at<T>(&self, offset: usize, index: usize) -> &T {
        let region = self.mapping.region().part(offset + index * size_of::<T>(), size_of::<T>());
        // SAFETY: inside the mapping (checked), which `self` holds; offsets are multiples of a page and T's size of its alignment. T is
        // one of this module's structs of atomics, for which any bytes are valid.
        unsafe { &*region.ptr().cast::<T>() }
    }

    /// The words that all ranks write.
    #[inline]
    pub(crate) fn shared(&self) -> &Shared {
        self.at(0, 0)
    }

    /// The words that `rank` writes.
    #[inline]
    pub(crate) fn rank(&self, rank: usize) -> &Rank {
        assert!(rank < self.world);
        self.at(self.ranks_at, rank)
    }

    /// The words of what `from` sends to `to`.
    pub(crate) fn mail(&self, from: usize, to: usize) -> &Post {
        assert!(from < self.world && to < self.world);
        self.at(self.mail_at, from * self.world + to)
    }

    /// The staging slot of `rank` for step `g`.
    #[inline]
    pub(crate) fn slot(&self, rank: usize, g: u64) -> Region {
        let index = rank * SLOTS as usize + (g % SLOTS) as usize;
        self.mapping.region().part(self.slots_at + index * SLOT_BYTES, SLOT_BYTES)
    }

    /// The mail slot from `from` to `to` for step `g`.
    pub(crate) fn mail_slot(&self, from: usize, to: usize, g: u64) -> Region {
        let index = (from * self.world + to) * SLOTS as usize + (g % SLOTS) as usize;
        self.mapping.region().part(self.mail_slots_at + index * MAIL_BYTES, MAIL_BYTES)
    }

    fn card(&self, rank: usize) -> &Card {
        self.at(self.cards_at, rank)
    }

    /// Tells which cores this rank may run on.
    pub(crate) fn set_cores(&self, rank: usize, cores: &[u64; 16]) {
        for (to, from) in self.card(rank).cores.iter().zip(cores) {
            to.store(*from, std::sync::atomic::Ordering::Release);
        }
    }

    /// How many cores the ranks may run on, taken together.
    pub(crate) fn cores(&self) -> u32 {
        let load = |r: usize, i: usize| self.card(r).cores[i].load(std::sync::atomic::Ordering::Acquire);
        (0..16).map(|i| (0..self.world).fold(0, |all, r| all | load(r, i)).count_ones()).sum()
    }

    /// Writes down why `rank` ends the group, before it sets the abort word.
    pub(crate) fn set_reason(&self, rank: usize, reason: &str, peer: usize, signatures: [u64; 2]) {
        use std::sync::atomic::Ordering::Release;
        let card = self.card(rank);
        let bytes = &reason.as_bytes()[..reason.len().min(REASON_BYTES)];
        for (word, chunk) in card.reason.iter().zip(bytes.chunks(8)) {
            let mut full = [0; 8];
            full[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(full), Release);
        }
        card.peer.store(peer as u64, Release);
        card.signatures[0].store(signatures[0], Release);
        card.signatures[1].store(signatures[1], Release);
        card.reason_length.store(bytes.len() as u64, Release);
    }

    /// What `rank` wrote down. It may be anything; the length is not trusted.
    pub(crate) fn reason(&self, rank: usize) -> (String, usize, [u64; 2]) {
        use std::sync::atomic::Ordering::Acquire;
        let card = self.card(rank.min(self.world - 1));
        let length = (card.reason_length.load(Acquire) as usize).min(REASON_BYTES);
        let bytes: Vec<u8> =
            card.reason.iter().flat_map(|w| w.load(Acquire).to_le_bytes()).take(length).collect();
        let signatures = [card.signatures[0].load(Acquire), card.signatures[1].load(Acquire)];
        (String::from_utf8_lossy(&bytes).into_owned(), card.peer.load(Acquire) as usize, signatures)
    }
}
