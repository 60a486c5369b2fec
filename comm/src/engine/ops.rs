//! The state machines of collectives. Each moves as far as the others' flags allow, and says who it is waiting for.

use super::flags::RING;
use super::layout::SLOT_BYTES;
use super::{Mapping, Phase, View};
use crate::call::{Call, Kind, Place, Signature};
use crate::reduce::combine;
use crate::{Error, Region, Result};
use std::sync::Arc;

/// Up to here an all-reduce is one shot: everyone publishes everything, and combines everything.
const ONE_SHOT_BYTES: usize = 16 << 10;
/// The most that is claimed at a time in a bucket.
const PIECE_BYTES: usize = 256 << 10;
/// The least that is worth claiming.
const LEAST_PIECE_BYTES: usize = 4 << 10;

/// What has happened in this rank's sequence of calls; the same on every rank at the same place.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Steps of staged calls begun.
    steps: u64,
    /// Bucket calls submitted, and announced.
    buckets: u64,
    announced: u64,
}

/// A collective in flight.
#[derive(Debug)]
pub(super) struct Op {
    call: Call,
    /// Bucket calls before this one in the sequence.
    buckets_before: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Not begun: its turn has not come.
    Queued,
    Exchange(Steps),
    Pipeline(Steps),
    Bucket {
        number: u64,
        memory: Arc<Mapping>,
        stride: usize,
        arrived: bool,
    },
}

/// Where a staged call is. Steps are numbered from 0 here, and from `base` in the group's count.
#[derive(Debug)]
struct Steps {
    base: u64,
    count: u64,
    /// Elements of each block in a step.
    per: usize,
    published: u64,
    combined: u64,
    drained: u64,
}

impl Op {
    pub(super) fn new(
        call: Call,
        bucket: Option<(Arc<Mapping>, usize)>,
        _: &View,
        counters: &mut Counters,
    ) -> Op {
        let buckets_before = counters.buckets;
        let state = match bucket {
            Some((memory, stride)) if call.bytes() > ONE_SHOT_BYTES => {
                counters.buckets += 1;
                State::Bucket { number: counters.buckets, memory, stride, arrived: false }
            }
            _ => State::Queued,
        };
        Op { call, buckets_before, state }
    }

    pub(super) fn signature(&self) -> Signature {
        self.call.signature()
    }

    /// Changes whenever the call has moved.
    #[inline]
    pub(super) fn stamp(&self) -> u64 {
        match &self.state {
            State::Queued => 0,
            State::Exchange(s) | State::Pipeline(s) => 1 + s.published + s.combined + s.drained,
            State::Bucket { arrived, .. } => 1 + u64::from(*arrived),
        }
    }

    /// Tells the others of a bucket call; false if this is another kind of call, which nothing may overtake.
    pub(super) fn announce(&self, view: &View, counters: &mut Counters) -> bool {
        let State::Bucket { number, .. } = self.state else { return false };
        if counters.announced < number {
            view.layout.rank(view.rank).announce(number, self.announcement());
            counters.announced = number;
            view.tell(Phase::Published);
        }
        true
    }

    fn announcement(&self) -> [u64; 2] {
        let Place { bucket, offset } = self.call.place.unwrap_or(Place { bucket: 0, offset: 0 });
        [self.signature().to_word(), u64::from(bucket) << 44 | offset as u64]
    }

    /// Moves the first call of the queue; true if it is finished.
    #[inline]
    pub(super) fn advance(
        &mut self,
        view: &View,
        counters: &mut Counters,
        scratch: &mut Vec<Region>,
    ) -> Result<bool> {
        if let State::Queued = self.state {
            self.begin(view, counters);
        }
        match &mut self.state {
            State::Queued => unreachable!("begun above"),
            State::Exchange(steps) => exchange(&self.call, steps, view, scratch),
            State::Pipeline(steps) => pipeline(&self.call, steps, view, scratch),
            State::Bucket { .. } => {
                self.announce(view, counters);
                self.advance_bucket(view, scratch)
            }
        }
    }

    fn begin(&mut self, view: &View, counters: &mut Counters) {
        let (size, bytes) = (self.call.dtype.size(), self.call.bytes());
        // Between two, the second hand-over of each step costs more than combining all of it on both sides.
        let pipelined = self.call.kind == Kind::AllReduce && bytes > ONE_SHOT_BYTES && view.world > 2;
        let blocks = match self.call.kind {
            Kind::ReduceScatter | Kind::Scatter | Kind::AllToAll => view.world,
            _ => 1,
        };
        let per = match pipelined {
            true => (bytes / 4).next_multiple_of(4096).min(SLOT_BYTES) / size,
            false => SLOT_BYTES / blocks / size,
        };
        let count = match self.call.kind {
            Kind::Barrier | Kind::AllocBucket => 1,
            _ => self.call.count.div_ceil(per).max(1) as u64,
        };
        let steps = Steps { base: counters.steps + 1, count, per, published: 0, combined: 0, drained: 0 };
        counters.steps += count;
        self.state = if pipelined { State::Pipeline(steps) } else { State::Exchange(steps) };
    }

    fn advance_bucket(&mut self, view: &View, scratch: &mut Vec<Region>) -> Result<bool> {
        let announcement = self.announcement();
        let State::Bucket { number, memory, stride, arrived } = &mut self.state else { unreachable!() };
        let (number, stride) = (*number, *stride);
        if !*arrived {
            if (0..view.world).any(|r| view.layout.rank(r).announced() < number) {
                return Ok(false);
            }
            for peer in 0..view.world {
                let theirs = view.layout.rank(peer).announcement(number);
                if theirs != announcement {
                    return Err(mismatch(view, announcement[0], peer, theirs[0]));
                }
            }
            *arrived = true;
            view.tell(Phase::Working);
        }
        let bytes = self.call.bytes();
        let piece = bytes.div_ceil(view.world).clamp(LEAST_PIECE_BYTES, PIECE_BYTES).next_multiple_of(256);
        let pieces = bytes.div_ceil(piece) as u64;
        let shared = view.layout.shared();
        if !shared.claimable(number, pieces) {
            return Ok(shared.pieces_done(number) == pieces);
        }
        let me = view.layout.rank(view.rank);
        me.set_working(number);
        while let Some(index) = shared.claim(number, pieces) {
            view.tell(Phase::Claimed);
            let from = index as usize * piece;
            let length = piece.min(bytes - from);
            let place = self.call.place.map_or(0, |p| p.offset) + from;
            scratch.clear();
            scratch.extend((0..view.world).map(|r| memory.region().part(r * stride + place, length)));
            combine(self.call.dtype, self.call.op, scratch, scratch);
            shared.piece_done(number);
            view.tell(Phase::Worked);
        }
        me.set_working(0);
        Ok(shared.pieces_done(number) == pieces)
    }

    /// Which ranks this call is waiting for.
    pub(super) fn missing(&self, view: &View) -> Vec<usize> {
        let behind = |r: usize| {
            let flags = view.layout.rank(r);
            match &self.state {
                State::Queued => false,
                State::Exchange(s) => flags.steps.0.published() < s.base + s.drained,
                State::Pipeline(s) if s.combined < s.published => {
                    flags.steps.0.published() < s.base + s.combined
                }
                State::Pipeline(s) => flags.reduced() < s.base + s.drained,
                State::Bucket { number, .. } => flags.announced() < *number || flags.working() == *number,
            }
        };
        (0..view.world).filter(|r| *r != view.rank && behind(*r)).collect()
    }

    /// Finds out whether a rank we wait for is in another kind of call: it has published something that comes later in our sequence, and not
    /// what we wait for.
    pub(super) fn suspect(&self, view: &View, counters: &Counters) -> Result<()> {
        for peer in (0..view.world).filter(|r| *r != view.rank) {
            let flags = view.layout.rank(peer);
            match &self.state {
                State::Queued => {}
                State::Exchange(s) | State::Pipeline(s) => {
                    let later = self.buckets_before + 1;
                    if flags.announced() >= later && flags.steps.0.published() < s.base {
                        let theirs = flags.announcement(later)[0];
                        return Err(mismatch(view, self.signature().to_word(), peer, theirs));
                    }
                }
                State::Bucket { number, .. } => {
                    let later = counters.steps + 1;
                    if flags.steps.0.published() >= later && flags.announced() < *number {
                        let theirs = flags.steps.0.signature(later);
                        return Err(mismatch(view, self.signature().to_word(), peer, theirs));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cold]
fn mismatch(view: &View, mine: u64, peer: usize, theirs: u64) -> Error {
    let (mine, theirs) = (Signature::from_word(mine), Signature::from_word(theirs));
    Error::Mismatch { rank: view.rank, mine, peer, theirs }
}

impl Steps {
    /// The elements `(from, how many)` of a block in step `k`.
    #[inline]
    fn span(&self, k: u64, count: usize) -> (usize, usize) {
        let from = k as usize * self.per;
        (from, self.per.min(count.saturating_sub(from)))
    }

    /// FP-1: at most one step is in flight before the one being drained.
    #[inline]
    fn may_publish(&self) -> bool {
        self.published < self.count && self.published <= self.drained + 1
    }

    /// Whether all have published step `k`; at the first, checks that all mean the same call.
    #[inline]
    fn all_published(&self, k: u64, call: &Call, view: &View) -> Result<bool> {
        let g = self.base + k;
        let others = || (0..view.world).filter(|r| *r != view.rank);
        if others().any(|r| view.layout.rank(r).steps.0.published() < g) {
            return Ok(false);
        }
        if k == 0 {
            let mine = call.signature().to_word();
            for peer in others() {
                let theirs = view.layout.rank(peer).steps.0.signature(g);
                if theirs != mine {
                    return Err(mismatch(view, mine, peer, theirs));
                }
            }
        }
        Ok(true)
    }
}

/// One phase: everyone publishes what the others want of it, and takes what it wants from everyone.
fn exchange(call: &Call, steps: &mut Steps, view: &View, scratch: &mut Vec<Region>) -> Result<bool> {
    loop {
        if steps.may_publish() {
            fill(call, steps, view);
            view.layout
                .rank(view.rank)
                .steps
                .0
                .publish(steps.base + steps.published, call.signature().to_word());
            steps.published += 1;
            view.tell(Phase::Published);
            continue;
        }
        if !steps.all_published(steps.drained, call, view)? {
            return Ok(false);
        }
        view.tell(Phase::Working);
        drain(call, steps, view, scratch);
        steps.drained += 1;
        if steps.drained == steps.count {
            return Ok(true);
        }
    }
}

/// Puts into this rank's slot what the others take from it.
#[inline]
fn fill(call: &Call, steps: &Steps, view: &View) {
    let size = call.dtype.size();
    let (from, n) = steps.span(steps.published, call.count);
    let slot = view.layout.slot(view.rank, steps.base + steps.published);
    let root = view.rank == call.root;
    match call.kind {
        Kind::AllReduce | Kind::AllGather | Kind::BucketAllReduce => {
            slot.part(0, n * size).copy_from(call.input.part(from * size, n * size));
        }
        Kind::Reduce | Kind::Gather if !root => {
            slot.part(0, n * size).copy_from(call.input.part(from * size, n * size));
        }
        Kind::Broadcast if root => slot.part(0, n * size).copy_from(call.input.part(from * size, n * size)),
        Kind::ReduceScatter | Kind::AllToAll => fill_blocks(call, steps, view, slot),
        Kind::Scatter if root => fill_blocks(call, steps, view, slot),
        _ => {}
    }
}

fn fill_blocks(call: &Call, steps: &Steps, view: &View, slot: Region) {
    let size = call.dtype.size();
    let (from, n) = steps.span(steps.published, call.count);
    for to in (0..view.world).filter(|r| *r != view.rank) {
        let block = call.input.part((to * call.count + from) * size, n * size);
        slot.part(to * steps.per * size, n * size).copy_from(block);
    }
}

/// Takes what this rank wants from everyone's slots.
#[inline]
fn drain(call: &Call, steps: &Steps, view: &View, scratch: &mut Vec<Region>) {
    let size = call.dtype.size();
    let (from, n) = steps.span(steps.drained, call.count);
    let (at, bytes) = (from * size, n * size);
    let g = steps.base + steps.drained;
    // What rank `r` gives us: from its slot, but our own straight from the input.
    let whole = |r: usize| match r == view.rank {
        true => call.input.part(at, bytes),
        false => view.layout.slot(r, g).part(0, bytes),
    };
    let block = |r: usize| match r == view.rank {
        true => call.input.part(r * call.bytes() + at, bytes),
        false => view.layout.slot(r, g).part(view.rank * steps.per * size, bytes),
    };
    let root = view.rank == call.root;
    match call.kind {
        Kind::AllReduce | Kind::BucketAllReduce => {
            gather_into(scratch, view.world, whole);
            combine(call.dtype, call.op, scratch, &[call.output.part(at, bytes)]);
        }
        Kind::Reduce if root => {
            gather_into(scratch, view.world, whole);
            combine(call.dtype, call.op, scratch, &[call.output.part(at, bytes)]);
        }
        Kind::ReduceScatter => {
            gather_into(scratch, view.world, block);
            combine(call.dtype, call.op, scratch, &[call.output.part(at, bytes)]);
        }
        Kind::AllGather => copy_all(call, view, at, bytes, whole),
        Kind::Gather if root => copy_all(call, view, at, bytes, whole),
        Kind::AllToAll => copy_all(call, view, at, bytes, block),
        Kind::Broadcast => call.output.part(at, bytes).copy_from(whole_of_root(call, view, g, at, bytes)),
        Kind::Scatter => call.output.part(at, bytes).copy_from(block(call.root)),
        _ => {}
    }
}

#[inline]
fn gather_into(scratch: &mut Vec<Region>, world: usize, source: impl Fn(usize) -> Region) {
    scratch.clear();
    scratch.extend((0..world).map(source));
}

fn copy_all(call: &Call, view: &View, at: usize, bytes: usize, source: impl Fn(usize) -> Region) {
    for r in 0..view.world {
        call.output.part(r * call.bytes() + at, bytes).copy_from(source(r));
    }
}

fn whole_of_root(call: &Call, view: &View, g: u64, at: usize, bytes: usize) -> Region {
    if view.rank == call.root {
        call.input.part(at, bytes)
    } else {
        view.layout.slot(call.root, g).part(0, bytes)
    }
}

/// Two phases, pipelined: everyone combines its part of a step, and takes the other parts one step later.
fn pipeline(call: &Call, steps: &mut Steps, view: &View, scratch: &mut Vec<Region>) -> Result<bool> {
    let me = view.layout.rank(view.rank);
    loop {
        if steps.may_publish() {
            fill_others(call, steps, view);
            me.steps.0.publish(steps.base + steps.published, call.signature().to_word());
            steps.published += 1;
            view.tell(Phase::Published);
        }
        if steps.combined < steps.published && steps.all_published(steps.combined, call, view)? {
            view.tell(Phase::Working);
            combine_own(call, steps, view, scratch);
            me.publish_reduced(steps.base + steps.combined);
            steps.combined += 1;
            view.tell(Phase::Worked);
            // Look at the next step before the peers' parts of this one are asked for: they are likely still at it.
            if steps.combined < steps.count && steps.combined <= steps.drained + 1 {
                continue;
            }
        }
        let g = steps.base + steps.drained;
        let ready = steps.drained < steps.combined
            && (0..view.world).all(|r| r == view.rank || view.layout.rank(r).reduced() >= g);
        if !ready {
            return Ok(false);
        }
        take_others(call, steps, view);
        steps.drained += 1;
        if steps.drained == steps.count {
            return Ok(true);
        }
    }
}

/// The part of a step of `n` elements that `rank` combines: `(from, how many)`.
fn share(n: usize, world: usize, rank: usize) -> (usize, usize) {
    let each = n.div_ceil(world).next_multiple_of(64);
    let from = (each * rank).min(n);
    (from, each.min(n - from))
}

fn fill_others(call: &Call, steps: &Steps, view: &View) {
    let size = call.dtype.size();
    let (from, n) = steps.span(steps.published, call.count);
    let (own, length) = share(n, view.world, view.rank);
    let slot = view.layout.slot(view.rank, steps.base + steps.published);
    for (a, b) in [(0, own), (own + length, n)] {
        let bytes = (b - a) * size;
        slot.part(a * size, bytes).copy_from(call.input.part((from + a) * size, bytes));
    }
}

fn combine_own(call: &Call, steps: &Steps, view: &View, scratch: &mut Vec<Region>) {
    let size = call.dtype.size();
    let (from, n) = steps.span(steps.combined, call.count);
    let (own, length) = share(n, view.world, view.rank);
    let g = steps.base + steps.combined;
    let (at, bytes) = ((from + own) * size, length * size);
    gather_into(scratch, view.world, |r| match r == view.rank {
        true => call.input.part(at, bytes),
        false => view.layout.slot(r, g).part(own * size, bytes),
    });
    let slot = view.layout.slot(view.rank, g).part(own * size, bytes);
    combine(call.dtype, call.op, scratch, &[call.output.part(at, bytes), slot]);
}

fn take_others(call: &Call, steps: &Steps, view: &View) {
    let size = call.dtype.size();
    let (from, n) = steps.span(steps.drained, call.count);
    for r in (0..view.world).filter(|r| *r != view.rank) {
        let (own, length) = share(n, view.world, r);
        let theirs = view.layout.slot(r, steps.base + steps.drained).part(own * size, length * size);
        call.output.part((from + own) * size, length * size).copy_from(theirs);
    }
}

const _: () = assert!(RING.is_power_of_two());
