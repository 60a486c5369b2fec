//! One collective on its way: which frames are still to come, which pieces can be made, what can be sent on. It decides; the
//! engine moves the bytes.

use super::frame::{Header, Stage};
use super::plan::{Plan, piece, pieces};
use crate::reduce::combine;
use crate::{Call, Phase, Probe, Region, Signature};

/// A frame to be sent: to whom, over which of the connections, and what.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) peer: usize,
    pub(super) lane: usize,
    pub(super) header: Header,
    pub(super) body: Region,
}

/// Why a header is not welcome.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The peer called something else.
    Mismatch(Signature),
    /// No honest peer of this generation sends this.
    Corrupt(String),
}

/// Where this rank stands in its group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) rank: usize,
    pub(super) world: usize,
    pub(super) generation: u64,
    /// Connections that carry collectives, to each peer.
    pub(super) lanes: usize,
}

/// A collective to be done, or only to be agreed on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    pub(super) call: Call,
    /// What moves here for it; if nothing does, all ranks only see that all made the same call.
    pub(super) moves: Option<Call>,
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) call: Call,
    /// What moves for it: itself, or its values narrowed.
    pub(super) moves: Option<Call>,
    pub(super) number: u64,
    place: Place,
    plan: Plan,
    /// By peer and stage: which pieces have arrived.
    arrived: Vec<[Vec<bool>; 2]>,
    /// By peer and lane: frames to come.
    expected: Vec<Vec<u32>>,
    to_come: usize,
    /// By piece of this rank's part: sources still to come.
    sources: Vec<usize>,
    to_make: usize,
    probe: Option<Probe>,
}

impl Exchange {
    /// Begins a task. Its plan's scratch must stay untouched until it is finished.
    pub(super) fn new(
        Task { call, moves }: Task,
        number: u64,
        place: Place,
        scratch: Region,
        probe: Option<Probe>,
    ) -> Exchange {
        let plan = match moves {
            Some(call) => Plan::new(&call, place.rank, place.world, scratch),
            None => Plan::nothing(place.world),
        };
        let mut arrived = Vec::with_capacity(place.world);
        let mut expected = vec![vec![0; place.lanes]; place.world];
        let passed_on = plan.gather_out.iter().map(|r| r.len()).max().unwrap_or(0);
        let part = plan.combine.map_or(passed_on, |c| c.target.len());
        let mut sources = vec![0; pieces(part, false)];
        for (peer, expected) in expected.iter_mut().enumerate() {
            let [scatter, gather] = match peer == place.rank {
                true => [0, 0],
                false => {
                    [pieces(plan.scatter_in[peer].len(), true), pieces(plan.gather_in[peer].len(), false)]
                }
            };
            for index in (0..scatter).chain(0..gather) {
                expected[index % place.lanes] += 1;
            }
            for waiting in sources.iter_mut().take(pieces(plan.scatter_in[peer].len(), false)) {
                *waiting += 1;
            }
            arrived.push([vec![false; scatter], vec![false; gather]]);
        }
        let to_come = expected.iter().flatten().sum::<u32>() as usize;
        let to_make = sources.len();
        Exchange { call, moves, number, place, plan, arrived, expected, to_come, sources, to_make, probe }
    }

    /// Copies what this rank sends to itself, and gives the frames that need nothing from others.
    pub(super) fn open(&mut self) -> Vec<Frame> {
        if let Some((from, to)) = self.plan.copy {
            to.copy_from(from);
        }
        let mut frames = Vec::new();
        for peer in self.peers() {
            let stream = self.plan.scatter_out[peer];
            for index in 0..pieces(stream.len(), true) {
                frames.push(self.frame(peer, Stage::Scatter, index, stream));
            }
        }
        // The root of a broadcast has nothing to wait for; nor has a world of one.
        for index in 0..self.sources.len() {
            if self.sources[index] == 0 && !self.must_send_first() {
                frames.extend(self.make(index));
            }
        }
        frames
    }

    /// Where the payload of this frame goes. The header is of this call.
    pub(super) fn admit(&self, peer: usize, lane: usize, header: &Header) -> Result<Region, Refusal> {
        if header.signature != self.call.signature() {
            return Err(Refusal::Mismatch(header.signature));
        }
        let index = header.piece as usize;
        let (stream, arrived) = match header.stage {
            Stage::Scatter => (self.plan.scatter_in[peer], &self.arrived[peer][0]),
            Stage::Gather => (self.plan.gather_in[peer], &self.arrived[peer][1]),
            Stage::Direct => return Err(Refusal::Corrupt("a direct send among collectives".into())),
        };
        if index % self.place.lanes != lane || arrived.get(index) != Some(&false) {
            return Err(Refusal::Corrupt(format!("{:?} piece {index} is not expected here", header.stage)));
        }
        let target = piece(stream, index);
        if target.len() != header.length as usize {
            let why = format!("piece {index} has {} bytes instead of {}", header.length, target.len());
            return Err(Refusal::Corrupt(why));
        }
        Ok(target)
    }

    /// Notes an admitted frame that has arrived whole, and gives what can be sent because of it.
    pub(super) fn arrive(&mut self, peer: usize, lane: usize, header: &Header) -> Vec<Frame> {
        let index = header.piece as usize;
        self.arrived[peer][header.stage as usize][index] = true;
        self.expected[peer][lane] -= 1;
        self.to_come -= 1;
        if header.stage != Stage::Scatter || self.plan.scatter_in[peer].is_empty() {
            return Vec::new();
        }
        let Some(sources) = self.sources.get_mut(index) else { return Vec::new() };
        *sources -= 1;
        if *sources == 0 && !self.must_send_first() { self.make(index) } else { Vec::new() }
    }

    /// Whether nothing may be made before all is sent, because it would be made where that lies.
    fn must_send_first(&self) -> bool {
        self.plan.combine.is_some_and(|c| c.after_sending)
    }

    /// To be called when all queued frames are out: makes what waited for that.
    pub(super) fn sent(&mut self) {
        if self.must_send_first() && self.to_make > 0 && self.sources.iter().all(|s| *s == 0) {
            for index in 0..self.sources.len() {
                // What is made late is never sent on.
                let _ = self.make(index);
            }
        }
    }

    /// Whether only sending can be left to do.
    pub(super) fn is_complete(&self) -> bool {
        self.to_come == 0 && self.to_make == 0
    }

    /// Whether frames are to come from this peer over this lane.
    pub(super) fn expects(&self, peer: usize, lane: usize) -> bool {
        self.expected[peer][lane] > 0
    }

    /// The peers that have not taken part yet.
    pub(super) fn missing(&self) -> Vec<usize> {
        self.peers().filter(|p| !self.arrived[*p][0][0]).collect()
    }

    /// The peers that have something left to send.
    pub(super) fn awaited(&self) -> Vec<usize> {
        self.peers().filter(|p| self.expected[*p].iter().any(|n| *n > 0)).collect()
    }

    fn tell(&self, phase: Phase) {
        if let Some(probe) = &self.probe {
            probe.tell(phase);
        }
    }

    fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.place.rank;
        (0..self.place.world).filter(move |p| *p != rank)
    }

    /// Makes one piece of this rank's part of the result and gives the frames that carry it on.
    fn make(&mut self, index: usize) -> Vec<Frame> {
        if self.to_make == self.sources.len() {
            self.tell(Phase::Working);
        }
        self.tell(Phase::Claimed);
        self.to_make -= 1;
        if let (Some(work), Some(call)) = (self.plan.combine, self.moves) {
            let mut from = Vec::with_capacity(self.place.world);
            for rank in 0..self.place.world {
                let stream = if rank == self.place.rank { work.own } else { self.plan.scatter_in[rank] };
                from.push(piece(stream, index));
            }
            combine(call.dtype, call.op, &from, &[piece(work.target, index)]);
        }
        self.tell(Phase::Worked);
        let mut frames = Vec::new();
        for peer in self.peers() {
            let stream = self.plan.gather_out[peer];
            if index < pieces(stream.len(), false) {
                frames.push(self.frame(peer, Stage::Gather, index, stream));
            }
        }
        frames
    }

    fn frame(&self, peer: usize, stage: Stage, index: usize, stream: Region) -> Frame {
        let header = Header {
            generation: self.place.generation,
            number: self.number,
            signature: self.call.signature(),
            stage,
            piece: index as u32,
            length: 0,
            checksum: 0,
        };
        Frame { peer, lane: index % self.place.lanes, header, body: piece(stream, index) }
    }
}
