//! The process group: every collective, typed and checked, over any back end.

use crate::backend::{Backend, Health, Ticket};
use crate::bucket::Bucket;
use crate::call::{Call, Kind, Place};
use crate::rendezvous::Rendezvous;
use crate::work::{Owned, Work};
use crate::{DType, Element, Error, ReduceOp, Region, Result};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a call waits unless told otherwise with [`ProcessGroup::within`].
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// This process's (or thread's) membership in a group of ranks that call collectives together.
///
/// Cloning gives another handle to the same membership; the rank leaves the group when the last one is dropped. All ranks must make the
/// same calls in the same order. No call waits longer than its deadline, and none outlives a peer by more than
/// a moment: see [the promises](crate::how_it_works).
#[derive(Debug, Clone)]
pub struct ProcessGroup {
    backend: Arc<dyn Backend>,
    pub(crate) origin: Option<Arc<Rendezvous>>,
    /// Unique in this process, so that a bucket of another group is told apart.
    id: u64,
    /// How many splits were made, the same on every rank.
    pub(crate) splits: Arc<AtomicU64>,
    within: Duration,
}

impl ProcessGroup {
    /// A group over a back end that was made by hand, like a [`Faulty`](crate::Faulty) one. It can neither split nor reform.
    pub fn new(backend: impl Backend + 'static) -> ProcessGroup {
        ProcessGroup::over(Arc::new(backend), None, DEFAULT_DEADLINE)
    }

    pub(crate) fn over(backend: Arc<dyn Backend>, origin: Option<Arc<Rendezvous>>, within: Duration) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        ProcessGroup { backend, origin, id, splits: Arc::default(), within }
    }

    pub(crate) fn with_origin(self, origin: Rendezvous) -> ProcessGroup {
        ProcessGroup { origin: Some(Arc::new(origin)), ..self }
    }

    /// The same membership behind another back end, like a [`Faulty`](crate::Faulty) one around this. Wrap before buckets are made.
    #[must_use]
    pub fn wrap<B: Backend + 'static>(self, outer: impl FnOnce(Arc<dyn Backend>) -> B) -> ProcessGroup {
        let ProcessGroup { backend, origin, id, splits, within } = self;
        ProcessGroup { backend: Arc::new(outer(backend)), origin, id, splits, within }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.backend.rank()
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.backend.world_size()
    }

    /// Which incarnation of the group this is. Grows with each [`reform`](ProcessGroup::reform).
    pub fn generation(&self) -> u64 {
        self.backend.generation()
    }

    /// The back end's name: `thread`, `shm`, ...
    pub fn backend_name(&self) -> &'static str {
        self.backend.name()
    }

    /// How the group is doing, as far as is known here. Never waits.
    pub fn health(&self) -> Health {
        self.backend.health()
    }

    /// Ends the group for all ranks; their calls return [`Error::Aborted`] with this reason. May be called from any thread.
    pub fn abort(&self, reason: &str) {
        self.backend.abort(reason);
    }

    /// The same membership with another deadline for its calls: `group.within(Duration::from_secs(5)).barrier()?`.
    #[must_use]
    pub fn within(&self, within: Duration) -> ProcessGroup {
        ProcessGroup { within, ..self.clone() }
    }

    /// The deadline of this handle's calls.
    pub fn deadline(&self) -> Duration {
        self.within
    }

    fn run(&self, call: Call) -> Result<()> {
        self.backend.run(call, self.within)?;
        if call.dtype == DType::Bool {
            call.output.normalise_bools();
        }
        Ok(())
    }

    /// Combines the ranks' values in place.
    pub fn all_reduce<T: Element>(&self, data: &mut [T], op: ReduceOp) -> Result<()> {
        let memory = writing(data);
        self.run(Call::new(Kind::AllReduce, T::DTYPE, data.len()).op(op).memory(memory, memory))
    }

    /// Combines the ranks' values of a whole bucket in place, without a copy.
    pub fn all_reduce_bucket<T: Element>(&self, bucket: &mut Bucket, op: ReduceOp) -> Result<()> {
        let count = bucket.len() / size_of::<T>();
        self.all_reduce_part::<T>(bucket, 0..count, op)
    }

    /// Combines a part of a bucket, given in elements, in place, without a copy. The same part on every rank.
    pub fn all_reduce_part<T: Element>(
        &self,
        bucket: &mut Bucket,
        part: Range<usize>,
        op: ReduceOp,
    ) -> Result<()> {
        self.backend.run(self.bucket_call(bucket, part, T::DTYPE, op)?, self.within)
    }

    /// The call behind [`all_reduce_part`](ProcessGroup::all_reduce_part), for [`submit`](ProcessGroup::submit).
    pub fn bucket_call(
        &self,
        bucket: &Bucket,
        part: Range<usize>,
        dtype: DType,
        op: ReduceOp,
    ) -> Result<Call> {
        let name = Kind::BucketAllReduce.name();
        if bucket.group() != self.id {
            return Err(Error::invalid(
                name,
                "the bucket belongs to another group; each group needs its own",
            ));
        }
        let size = dtype.size();
        if part.start > part.end || part.end > bucket.len() / size {
            let why = format!("{part:?} is not inside a bucket of {} {dtype}", bucket.len() / size);
            return Err(Error::invalid(name, why));
        }
        let (offset, bytes) = (part.start * size, part.len() * size);
        let memory = bucket.region().part(offset, bytes);
        let place = Place { bucket: bucket.id(), offset };
        Ok(Call::new(Kind::BucketAllReduce, dtype, part.len()).op(op).memory(memory, memory).at(place))
    }

    /// Combines `world` blocks of input; each rank gets its block, of `output.len()`.
    pub fn reduce_scatter<T: Element>(&self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        let call = Call::new(Kind::ReduceScatter, T::DTYPE, output.len()).op(op);
        self.run(call.memory(reading(input), writing(output)))
    }

    /// Each rank's input, in rank order, on every rank. `output` is `world` times as long as `input`.
    pub fn all_gather<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
        self.run(Call::new(Kind::AllGather, T::DTYPE, input.len()).memory(reading(input), writing(output)))
    }

    /// The root's values on every rank.
    pub fn broadcast<T: Element>(&self, data: &mut [T], root: usize) -> Result<()> {
        let memory = writing(data);
        let input = if self.rank() == root { memory } else { Region::EMPTY };
        self.run(Call::new(Kind::Broadcast, T::DTYPE, data.len()).root(root).memory(input, memory))
    }

    /// Combines the ranks' values in the root's memory. The other ranks' memory stays as it was.
    pub fn reduce<T: Element>(&self, data: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        let memory = writing(data);
        let output = if self.rank() == root { memory } else { Region::EMPTY };
        self.run(Call::new(Kind::Reduce, T::DTYPE, data.len()).op(op).root(root).memory(memory, output))
    }

    /// Each rank's input, in rank order, in the root's output, which is `world` times as long. Other ranks pass an empty output.
    pub fn gather<T: Element>(&self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        let call = Call::new(Kind::Gather, T::DTYPE, input.len()).root(root);
        self.run(call.memory(reading(input), writing(output)))
    }

    /// The root's blocks, one to each rank. Other ranks pass an empty input.
    pub fn scatter<T: Element>(&self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        let call = Call::new(Kind::Scatter, T::DTYPE, output.len()).root(root);
        self.run(call.memory(reading(input), writing(output)))
    }

    /// Block `i` of the input goes to rank `i`; block `i` of the output came from rank `i`.
    pub fn all_to_all<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
        let count = input.len() / self.world_size();
        self.run(Call::new(Kind::AllToAll, T::DTYPE, count).memory(reading(input), writing(output)))
    }

    /// Sends to one rank, which must call [`recv`](ProcessGroup::recv) with as many elements.
    pub fn send<T: Element>(&self, data: &[T], to: usize) -> Result<()> {
        self.run(Call::new(Kind::Send, T::DTYPE, data.len()).root(to).memory(reading(data), Region::EMPTY))
    }

    /// Receives what one rank [sends](ProcessGroup::send).
    pub fn recv<T: Element>(&self, data: &mut [T], from: usize) -> Result<()> {
        self.run(Call::new(Kind::Recv, T::DTYPE, data.len()).root(from).memory(Region::EMPTY, writing(data)))
    }

    /// Returns when all ranks have come.
    pub fn barrier(&self) -> Result<()> {
        self.run(Call::new(Kind::Barrier, DType::U8, 0))
    }

    /// Memory in which the group reduces without a copy, zeroed. All ranks call this together, with the same size.
    pub fn alloc_bucket(&self, bytes: usize) -> Result<Bucket> {
        Ok(Bucket::new(self.backend.alloc(bytes, self.within)?, self.id))
    }

    /// Starts [`all_reduce`](ProcessGroup::all_reduce) on a vector.
    pub fn start_all_reduce<T: Element>(&self, mut data: Vec<T>, op: ReduceOp) -> Result<Work<Vec<T>>> {
        let memory = writing(&mut data);
        self.start(Call::new(Kind::AllReduce, T::DTYPE, data.len()).op(op).memory(memory, memory), data)
    }

    /// Starts [`all_reduce_part`](ProcessGroup::all_reduce_part): whichever rank comes by reduces for all.
    pub fn start_all_reduce_part<T: Element>(
        &self,
        bucket: Bucket,
        part: Range<usize>,
        op: ReduceOp,
    ) -> Result<Work<Bucket>> {
        self.start(self.bucket_call(&bucket, part, T::DTYPE, op)?, bucket)
    }

    /// Starts [`broadcast`](ProcessGroup::broadcast).
    pub fn start_broadcast<T: Element>(&self, mut data: Vec<T>, root: usize) -> Result<Work<Vec<T>>> {
        let memory = writing(&mut data);
        let input = if self.rank() == root { memory } else { Region::EMPTY };
        self.start(Call::new(Kind::Broadcast, T::DTYPE, data.len()).root(root).memory(input, memory), data)
    }

    /// Starts [`all_gather`](ProcessGroup::all_gather); the output is made here and given back with the input.
    pub fn start_all_gather<T: Element>(&self, input: Vec<T>) -> Result<Work<(Vec<T>, Vec<T>)>> {
        let mut output = vec![T::default(); input.len() * self.world_size()];
        let call =
            Call::new(Kind::AllGather, T::DTYPE, input.len()).memory(reading(&input), writing(&mut output));
        self.start(call, (input, output))
    }

    /// Starts [`reduce_scatter`](ProcessGroup::reduce_scatter); the output is made here and given back with the input.
    pub fn start_reduce_scatter<T: Element>(
        &self,
        input: Vec<T>,
        op: ReduceOp,
    ) -> Result<Work<(Vec<T>, Vec<T>)>> {
        let mut output = vec![T::default(); input.len() / self.world_size()];
        let call = Call::new(Kind::ReduceScatter, T::DTYPE, output.len()).op(op);
        self.start(call.memory(reading(&input), writing(&mut output)), (input, output))
    }

    /// Starts [`all_to_all`](ProcessGroup::all_to_all); the output is made here and given back with the input.
    pub fn start_all_to_all<T: Element>(&self, input: Vec<T>) -> Result<Work<(Vec<T>, Vec<T>)>> {
        let mut output = vec![T::default(); input.len()];
        let call = Call::new(Kind::AllToAll, T::DTYPE, input.len() / self.world_size());
        self.start(call.memory(reading(&input), writing(&mut output)), (input, output))
    }

    /// Starts [`send`](ProcessGroup::send). It waits for no collective, and no collective waits for it.
    pub fn start_send<T: Element>(&self, data: Vec<T>, to: usize) -> Result<Work<Vec<T>>> {
        let call = Call::new(Kind::Send, T::DTYPE, data.len()).root(to);
        self.start(call.memory(reading(&data), Region::EMPTY), data)
    }

    /// Starts [`recv`](ProcessGroup::recv) into a vector of its own length.
    pub fn start_recv<T: Element>(&self, mut data: Vec<T>, from: usize) -> Result<Work<Vec<T>>> {
        let memory = writing(&mut data);
        let call = Call::new(Kind::Recv, T::DTYPE, data.len()).root(from);
        self.start(call.memory(Region::EMPTY, memory), data)
    }

    /// Starts [`barrier`](ProcessGroup::barrier).
    pub fn start_barrier(&self) -> Result<Work<()>> {
        self.start(Call::new(Kind::Barrier, DType::U8, 0), ())
    }

    fn start<B: Owned>(&self, call: Call, memory: B) -> Result<Work<B>> {
        let ticket = self.backend.submit(call, self.within)?;
        let bools = if call.dtype == DType::Bool { call.output } else { Region::EMPTY };
        Ok(Work::new(self.backend.clone(), ticket, memory, bools, self.within))
    }

    /// Starts any call on raw memory: for tensor libraries, whose memory is not a Rust vector. The promise that the memory lives until the
    /// call is finished was made where its [`Region`] was built.
    pub fn submit(&self, call: Call) -> Result<Ticket> {
        self.backend.submit(call, self.within)
    }

    /// Makes progress without waiting; true if the submitted call is finished.
    pub fn poll(&self, ticket: Ticket) -> Result<bool> {
        self.backend.poll(ticket)
    }

    /// Waits for a submitted call.
    pub fn wait(&self, ticket: Ticket) -> Result<()> {
        self.backend.wait(ticket, self.within)
    }
}

/// The region of a borrowed slice, for a call that ends before the borrow does.
fn reading<T: Element>(data: &[T]) -> Region {
    // SAFETY: used only by calls that return before the borrow ends, or that own the vector it came from; input is not written.
    unsafe { Region::reading(data) }
}

/// The region of a uniquely borrowed slice, for a call that ends before the borrow does.
fn writing<T: Element>(data: &mut [T]) -> Region {
    // SAFETY: as in `reading`; every bit pattern is a valid Element, but for bools, which are normalised before they are seen.
    unsafe { Region::writing(data) }
}
