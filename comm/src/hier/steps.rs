//! A collective as a sequence of smaller ones, inside the host and along the column, with copies between. Pure but for the
//! memory: what is done when is decided here, the groups are the caller's.

use super::Position;
use crate::reduce::combine;
use crate::tcp::Pages;
use crate::{Call, DType, Kind, ReduceOp, Region};
use half::{bf16, f16};
use std::collections::VecDeque;
use std::fmt;

/// Bytes that travel along a column at a time.
const PIECE: usize = 512 << 10;

/// One step of a collective.
pub(super) enum Step {
    /// Among the ranks of this host.
    Local(Call),
    /// Among the ranks of this column.
    Column(Call),
    /// A send along the column that later steps do not wait for.
    Behind(Call),
    /// Alone.
    Do(Box<dyn FnOnce() + Send>),
}

/// The steps of one call, and the memory they need beside the caller's.
pub(super) struct Steps {
    steps: VecDeque<Step>,
    _scratch: Pages,
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Steps({} left)", self.steps.len())
    }
}

impl Steps {
    /// Of a large all-reduce, broadcast or all-gather.
    pub(super) fn new(call: &Call, at: Position) -> Steps {
        let mut room = Room::default();
        let mut steps = VecDeque::new();
        let scratch = match call.kind {
            Kind::AllGather => all_gather(call, at, &mut room, &mut steps),
            Kind::Broadcast => broadcast(call, at, &mut room, &mut steps),
            _ => all_reduce(call, at, &mut room, &mut steps),
        };
        Steps { steps, _scratch: scratch }
    }

    pub(super) fn next(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }
}

/// Divides scratch memory, in multiples of a cache line.
#[derive(Default)]
struct Room(Vec<usize>);

impl Room {
    fn need(&mut self, bytes: usize) -> usize {
        self.0.push(bytes);
        self.0.len() - 1
    }

    /// The memory, and its parts in the order they were asked for.
    fn make(&self) -> (Pages, Vec<Region>) {
        let place = |bytes: &usize| bytes.next_multiple_of(64);
        let pages = Pages::new(self.0.iter().map(place).sum());
        let mut start = 0;
        let mut parts = Vec::with_capacity(self.0.len());
        for bytes in &self.0 {
            parts.push(pages.region().part(start, *bytes));
            start += place(bytes);
        }
        (pages, parts)
    }
}

fn act(steps: &mut VecDeque<Step>, action: impl FnOnce() + Send + 'static) {
    steps.push_back(Step::Do(Box::new(action)));
}

/// Each local rank combines its part of all local ranks' values with what comes along the column; the last host sends the
/// finished part back.
fn all_reduce(call: &Call, at: Position, room: &mut Room, steps: &mut VecDeque<Step>) -> Pages {
    let (dtype, wide, op, world) = (call.dtype, accumulator(call.dtype), call.op, at.hosts * at.each);
    let count = call.count.div_ceil(at.each);
    let bytes = count * wide.size();
    let asked = [
        room.need(bytes * at.each),
        room.need(bytes * at.each),
        room.need(bytes),
        room.need(count * dtype.size()),
        room.need(count * dtype.size() * at.each),
    ];
    let (pages, parts) = room.make();
    let [padded, gathered, sum, done, all] = asked.map(|i| parts[i]);
    let input = call.input;
    act(steps, move || widen(dtype, input, padded.part(0, input.len() / dtype.size() * wide.size())));
    steps.push_back(Step::Local(Call::new(Kind::AllToAll, wide, count).memory(padded, gathered)));
    let (first, last) = (at.host == 0, at.host + 1 == at.hosts);
    let mut back = Vec::new();
    for start in (0..count).step_by(PIECE / wide.size()) {
        let n = (count - start).min(PIECE / wide.size());
        let piece = |whole: Region, dtype: DType| whole.part(start * dtype.size(), n * dtype.size());
        let (sum, done) = (piece(sum, wide), piece(done, dtype));
        if !first {
            let from = Call::new(Kind::Recv, wide, n).root(at.host - 1);
            steps.push_back(Step::Column(from.memory(Region::EMPTY, sum)));
        }
        let own = (0..at.each).map(|i| piece(gathered.part(i * bytes, bytes), wide));
        let sources: Vec<Region> = (!first).then_some(sum).into_iter().chain(own).collect();
        let without_mean = if op == ReduceOp::Mean { ReduceOp::Sum } else { op };
        act(steps, move || combine(wide, without_mean, &sources, &[sum]));
        let mut result = Call::new(Kind::Broadcast, dtype, n).root(at.hosts - 1);
        if last {
            act(steps, move || finish(dtype, op, world, sum, done));
            result = result.memory(done, done);
            steps.push_back(Step::Column(result));
        } else {
            let to = Call::new(Kind::Send, wide, n).root(at.host + 1);
            steps.push_back(Step::Behind(to.memory(sum, Region::EMPTY)));
            back.push(Step::Column(result.memory(Region::EMPTY, done)));
        }
    }
    steps.extend(back);
    steps.push_back(Step::Local(Call::new(Kind::AllGather, dtype, count).memory(done, all)));
    let output = call.output;
    act(steps, move || output.copy_from(all.part(0, output.len())));
    pages
}

/// The root's host shares it; each local rank sends its part along the column; the other hosts put the parts together.
fn broadcast(call: &Call, at: Position, room: &mut Room, steps: &mut VecDeque<Step>) -> Pages {
    let (host, index) = (call.root / at.each, call.root % at.each);
    let count = call.count.div_ceil(at.each);
    let size = call.dtype.size();
    let start = (at.index * count).min(call.count);
    let mine = count.min(call.count - start);
    let along = Call::new(Kind::Broadcast, call.dtype, mine).root(host);
    if at.host == host {
        let share = Call::new(Kind::Broadcast, call.dtype, call.count).root(index);
        steps.push_back(Step::Local(share.memory(call.input, call.output)));
        let part = call.output.part(start * size, mine * size);
        steps.push_back(Step::Column(along.memory(part, part)));
        return Pages::new(0);
    }
    let asked = [room.need(count * size), room.need(count * size * at.each)];
    let (pages, parts) = room.make();
    let [part, all] = asked.map(|i| parts[i]);
    steps.push_back(Step::Column(along.memory(Region::EMPTY, part.part(0, mine * size))));
    steps.push_back(Step::Local(Call::new(Kind::AllGather, call.dtype, count).memory(part, all)));
    let output = call.output;
    act(steps, move || output.copy_from(all.part(0, output.len())));
    pages
}

/// Along the column first, then inside the host; then the blocks are put in order.
fn all_gather(call: &Call, at: Position, room: &mut Room, steps: &mut VecDeque<Step>) -> Pages {
    let bytes = call.bytes();
    let asked = [room.need(bytes * at.hosts), room.need(bytes * at.hosts * at.each)];
    let (pages, parts) = room.make();
    let [column, all] = asked.map(|i| parts[i]);
    let along = Call::new(Kind::AllGather, call.dtype, call.count);
    steps.push_back(Step::Column(along.memory(call.input, column)));
    let inside = Call::new(Kind::AllGather, call.dtype, call.count * at.hosts);
    steps.push_back(Step::Local(inside.memory(column, all)));
    let output = call.output;
    act(steps, move || {
        for index in 0..at.each {
            for host in 0..at.hosts {
                let from = all.part((index * at.hosts + host) * bytes, bytes);
                output.part((host * at.each + index) * bytes, bytes).copy_from(from);
            }
        }
    });
    pages
}

/// What sums of this type are kept in, so that they are rounded once.
fn accumulator(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

/// Copies values into their accumulator's type.
fn widen(dtype: DType, from: Region, to: Region) {
    let half = |convert: fn([u8; 2]) -> f32| {
        let bytes = from.to_vec();
        let wide: Vec<u8> = bytes.chunks_exact(2).flat_map(|b| convert([b[0], b[1]]).to_ne_bytes()).collect();
        to.write(&wide);
    };
    match dtype {
        DType::F16 => half(|b| f16::from_ne_bytes(b).to_f32()),
        DType::BF16 => half(|b| bf16::from_ne_bytes(b).to_f32()),
        _ => to.copy_from(from),
    }
}

/// Divides a mean, and rounds to the type of the result.
fn finish(dtype: DType, op: ReduceOp, world: usize, sum: Region, done: Region) {
    let mean = op == ReduceOp::Mean;
    if dtype == DType::F64 && mean {
        let share = 1.0 / world as f64;
        let scale = |b: &[u8; 8]| (f64::from_ne_bytes(*b) * share).to_ne_bytes();
        done.write(&sum.to_vec().as_chunks().0.iter().flat_map(scale).collect::<Vec<u8>>());
        return;
    }
    let share = if mean { 1.0 / world as f32 } else { 1.0 };
    let values = || {
        let bytes = sum.to_vec();
        bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b) * share).collect::<Vec<f32>>()
    };
    match dtype {
        DType::F16 => done.write(&flat(&values(), |x| f16::from_f32(x).to_ne_bytes())),
        DType::BF16 => done.write(&flat(&values(), |x| bf16::from_f32(x).to_ne_bytes())),
        DType::F32 if mean => done.write(&flat(&values(), f32::to_ne_bytes)),
        _ => done.copy_from(sum),
    }
}

fn flat<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|x| bytes(*x)).collect()
}
