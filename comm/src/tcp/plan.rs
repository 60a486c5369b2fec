//! What a collective means for one rank, as two streams to and from each peer. Pure: no socket, no clock.
//!
//! Every collective is at most this: first each rank sends to each peer what concerns that peer (*scatter*), then each makes its
//! part of the result and sends it to those who need it (*gather*). Values are combined in rank order from all ranks' own
//! values, never from partial sums, so the result has the same bits everywhere; that is why there is no ring here, whose
//! sums begin at another rank for every block.
//!
//! In the scatter stream every rank sends every other at least an empty frame, so that all know that all made the same call.

use crate::{Call, Kind, Region};

/// Bytes in a piece: what is combined and sent on at a time.
pub(super) const PIECE: usize = 256 << 10;
/// Up to this many bytes sent by each rank, everything goes to everybody at once and nothing is sent on.
const AT_ONCE: usize = 64 << 10;
/// Blocks begin at multiples of this.
const ALIGN: usize = 64;

/// The streams of one call for one rank, indexed by peer. This rank's own entries are empty.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) scatter_out: Vec<Region>,
    pub(super) scatter_in: Vec<Region>,
    pub(super) gather_out: Vec<Region>,
    pub(super) gather_in: Vec<Region>,
    /// Copied first: what this rank sends to itself.
    pub(super) copy: Option<(Region, Region)>,
    /// Combined when it has arrived.
    pub(super) combine: Option<Combine>,
}

/// This rank's values and all the `scatter_in`, in rank order, become `target`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Combine {
    pub(super) own: Region,
    pub(super) target: Region,
    /// The target is also being sent, so that must be out first.
    pub(super) after_sending: bool,
}

impl Plan {
    /// Bytes of scratch that [`Plan::new`] needs.
    pub(super) fn scratch(call: &Call, world: usize) -> usize {
        match call.kind {
            kind if !kind.reduces() || world == 1 => 0,
            Kind::ReduceScatter => call.bytes() * world,
            _ if at_once(call, world) => call.bytes() * world,
            _ => block(call, 0, world).1 * world,
        }
    }

    /// Empty streams.
    pub(super) fn nothing(world: usize) -> Plan {
        let none = || vec![Region::EMPTY; world];
        Plan {
            scatter_out: none(),
            scatter_in: none(),
            gather_out: none(),
            gather_in: none(),
            ..Plan::default()
        }
    }

    /// What `call`, which is valid, means for `rank`.
    pub(super) fn new(call: &Call, rank: usize, world: usize, scratch: Region) -> Plan {
        let mut plan = Plan::nothing(world);
        let (bytes, root) = (call.bytes(), call.root);
        let peers = || (0..world).filter(move |p| *p != rank);
        let part = |region: Region, peer: usize| region.part(peer * bytes, bytes);
        match call.kind {
            Kind::Barrier | Kind::AllocBucket | Kind::Send | Kind::Recv => {}
            Kind::AllReduce | Kind::BucketAllReduce | Kind::Reduce => {
                plan.reduce(call, rank, world, scratch);
            }
            Kind::ReduceScatter => {
                for p in peers() {
                    plan.scatter_out[p] = part(call.input, p);
                    plan.scatter_in[p] = part(scratch, p);
                }
                let own = part(call.input, rank);
                plan.combine = Some(Combine { own, target: call.output, after_sending: false });
            }
            Kind::AllGather => {
                for p in peers() {
                    plan.scatter_out[p] = call.input;
                    plan.scatter_in[p] = part(call.output, p);
                }
                plan.copy = Some((call.input, part(call.output, rank)));
            }
            Kind::AllToAll => {
                for p in peers() {
                    plan.scatter_out[p] = part(call.input, p);
                    plan.scatter_in[p] = part(call.output, p);
                }
                plan.copy = Some((part(call.input, rank), part(call.output, rank)));
            }
            Kind::Gather if rank == root => {
                for p in peers() {
                    plan.scatter_in[p] = part(call.output, p);
                }
                plan.copy = Some((call.input, part(call.output, rank)));
            }
            Kind::Gather => plan.scatter_out[root] = call.input,
            Kind::Scatter if rank == root => {
                for p in peers() {
                    plan.scatter_out[p] = part(call.input, p);
                }
                plan.copy = Some((part(call.input, rank), call.output));
            }
            Kind::Scatter => plan.scatter_in[root] = call.output,
            Kind::Broadcast => plan.broadcast(call, rank, world),
        }
        plan
    }

    fn reduce(&mut self, call: &Call, rank: usize, world: usize, scratch: Region) {
        let (root, all) = (call.root, call.kind != Kind::Reduce);
        let receives = |p: usize| all || p == root;
        if at_once(call, world) {
            for p in (0..world).filter(|p| *p != rank) {
                if receives(p) {
                    self.scatter_out[p] = call.input;
                }
                if receives(rank) {
                    self.scatter_in[p] = scratch.part(p * call.bytes(), call.bytes());
                }
            }
            if receives(rank) {
                self.combine = Some(Combine { own: call.input, target: call.output, after_sending: true });
            }
            return;
        }
        let of = |region: Region, p: usize| {
            let (start, bytes) = block(call, p, world);
            region.part(start, bytes)
        };
        let (_, widest) = block(call, 0, world);
        let (_, mine) = block(call, rank, world);
        let target = match receives(rank) {
            true => of(call.output, rank),
            false => scratch.part(rank * widest, mine),
        };
        for p in (0..world).filter(|p| *p != rank) {
            self.scatter_out[p] = of(call.input, p);
            self.scatter_in[p] = scratch.part(p * widest, mine);
            if receives(p) {
                self.gather_out[p] = target;
            }
            if receives(rank) {
                self.gather_in[p] = of(call.output, p);
            }
        }
        self.combine = Some(Combine { own: of(call.input, rank), target, after_sending: false });
    }

    /// Small or for two: from the root to all. Else the root sends each a block, and all pass theirs on.
    fn broadcast(&mut self, call: &Call, rank: usize, world: usize) {
        let root = call.root;
        if rank == root && call.input != call.output {
            self.copy = Some((call.input, call.output));
        }
        let whole = world == 2 || call.bytes() <= AT_ONCE;
        let of = |region: Region, p: usize| {
            let (start, bytes) = block(call, p, world);
            region.part(start, bytes)
        };
        for p in (0..world).filter(|p| *p != rank) {
            match (rank == root, p == root) {
                (true, _) if whole => self.scatter_out[p] = call.input,
                (_, true) if whole => self.scatter_in[p] = call.output,
                _ if whole => {}
                (true, _) => {
                    self.scatter_out[p] = of(call.input, p);
                    self.gather_out[p] = of(call.input, root);
                }
                (_, true) => {
                    self.scatter_in[p] = of(call.output, rank);
                    self.gather_in[p] = of(call.output, root);
                }
                _ => {
                    self.gather_out[p] = of(call.output, rank);
                    self.gather_in[p] = of(call.output, p);
                }
            }
        }
    }
}

/// Whether a reduction goes to everybody at once.
fn at_once(call: &Call, world: usize) -> bool {
    call.bytes() * (world - 1) <= AT_ONCE
}

/// Where the block of rank `p` begins, and its length, in bytes. Block 0 is the longest.
fn block(call: &Call, p: usize, world: usize) -> (usize, usize) {
    let all = call.bytes();
    let each = all.div_ceil(world).next_multiple_of(ALIGN);
    let start = (p * each).min(all);
    (start, each.min(all - start))
}

/// How many frames a stream of this length has. The first scatter frame is sent even if it is empty.
pub(super) fn pieces(bytes: usize, first_always: bool) -> usize {
    bytes.div_ceil(PIECE).max(usize::from(first_always))
}

/// One piece of a stream.
pub(super) fn piece(stream: Region, index: usize) -> Region {
    let start = index * PIECE;
    stream.part(start, PIECE.min(stream.len() - start))
}
