//! One call of a collective, as a back end sees it: untyped memory, and a signature that all ranks must agree on.

use crate::{DType, Error, ReduceOp, Region, Result};
use std::fmt;

/// Which collective (or half of a point-to-point transfer) a [`Call`] is.
///
/// `n` is [`Call::count`], `P` the world's size; "blocks" are of `n` elements, one for each rank in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// `n` of input on each rank -> their combination, `n`, in every rank's output. Input and output may be the same.
    AllReduce = 0,
    /// `P` blocks of input -> this rank's block of the combination, `n`.
    ReduceScatter = 1,
    /// `n` of input -> `P` blocks of output.
    AllGather = 2,
    /// The root's `n` of input -> every rank's output, `n`. The same memory on the root.
    Broadcast = 3,
    /// `n` of input -> the combination in the root's output, `n`, which may be its input. Other ranks' output is empty.
    Reduce = 4,
    /// `n` of input -> `P` blocks of output on the root. Other ranks' output is empty.
    Gather = 5,
    /// `P` blocks of input on the root -> each rank's block, `n`. Other ranks' input is empty.
    Scatter = 6,
    /// `P` blocks of input, one for each rank -> `P` blocks of output, one from each rank.
    AllToAll = 7,
    /// No memory: nobody leaves before all have come.
    Barrier = 8,
    /// `n` of input to the rank `root`.
    Send = 9,
    /// `n` of output from the rank `root`.
    Recv = 10,
    /// [`Kind::AllReduce`] in place in a bucket.
    BucketAllReduce = 11,
    /// All ranks come for a bucket of `n` bytes.
    AllocBucket = 12,
}

impl Kind {
    const ALL: [(Kind, &'static str); 13] = [
        (Kind::AllReduce, "all_reduce"),
        (Kind::ReduceScatter, "reduce_scatter"),
        (Kind::AllGather, "all_gather"),
        (Kind::Broadcast, "broadcast"),
        (Kind::Reduce, "reduce"),
        (Kind::Gather, "gather"),
        (Kind::Scatter, "scatter"),
        (Kind::AllToAll, "all_to_all"),
        (Kind::Barrier, "barrier"),
        (Kind::Send, "send"),
        (Kind::Recv, "recv"),
        (Kind::BucketAllReduce, "all_reduce_bucket"),
        (Kind::AllocBucket, "alloc_bucket"),
    ];

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        Kind::ALL[self as usize].1
    }

    /// Whether it combines values.
    pub const fn reduces(self) -> bool {
        matches!(self, Kind::AllReduce | Kind::ReduceScatter | Kind::Reduce | Kind::BucketAllReduce)
    }

    /// Whether one rank is special.
    pub const fn has_root(self) -> bool {
        matches!(
            self,
            Kind::Broadcast | Kind::Reduce | Kind::Gather | Kind::Scatter | Kind::Send | Kind::Recv
        )
    }
}

/// Where in a group's bucket a [`Kind::BucketAllReduce`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The bucket: they are numbered in the order of allocation, the same on every rank.
    pub bucket: u32,
    /// Bytes from its start.
    pub offset: usize,
}

/// One call, complete: what a [`Backend`](crate::Backend) is asked to do.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Which collective.
    pub kind: Kind,
    /// Of which type.
    pub dtype: DType,
    /// How to combine; [`ReduceOp::Sum`] where nothing is combined.
    pub op: ReduceOp,
    /// The root, or the other end of a send or receive; 0 where there is none.
    pub root: usize,
    /// Elements in a block; see [`Kind`].
    pub count: usize,
    /// What is read.
    pub input: Region,
    /// What is written. Equal to `input` for a call in place; otherwise they must not overlap.
    pub output: Region,
    /// Where in a bucket, for [`Kind::BucketAllReduce`].
    pub place: Option<Place>,
}

impl Call {
    /// A call without memory, to be completed with the builder methods.
    pub const fn new(kind: Kind, dtype: DType, count: usize) -> Call {
        Call {
            kind,
            dtype,
            op: ReduceOp::Sum,
            root: 0,
            count,
            input: Region::EMPTY,
            output: Region::EMPTY,
            place: None,
        }
    }

    /// With this way to combine.
    #[must_use]
    pub const fn op(mut self, op: ReduceOp) -> Call {
        self.op = op;
        self
    }

    /// With this root or other end.
    #[must_use]
    pub const fn root(mut self, root: usize) -> Call {
        self.root = root;
        self
    }

    /// Reading and writing these.
    #[must_use]
    pub const fn memory(mut self, input: Region, output: Region) -> Call {
        self.input = input;
        self.output = output;
        self
    }

    /// In this place of a bucket.
    #[must_use]
    pub const fn at(mut self, place: Place) -> Call {
        self.place = Some(place);
        self
    }

    /// Bytes in a block.
    pub const fn bytes(&self) -> usize {
        self.count * self.dtype.size()
    }

    /// What all ranks must agree on.
    #[inline]
    pub fn signature(&self) -> Signature {
        Signature::new(self.kind, self.op, self.dtype, self.root, self.count)
    }

    /// Checks everything about the call that one rank can know alone. Back ends may rely on it.
    pub fn validate(&self, rank: usize, world: usize) -> Result<()> {
        let name = self.kind.name();
        if self.kind.reduces() && !self.dtype.supports(self.op) {
            return Err(Error::invalid(name, format!("{} has no meaning for {}", self.op, self.dtype)));
        }
        if self.kind.has_root() && self.root >= world {
            return Err(Error::invalid(name, format!("rank {} is not in a world of {world}", self.root)));
        }
        if matches!(self.kind, Kind::Send | Kind::Recv) && self.root == rank {
            return Err(Error::invalid(name, "a rank cannot send to itself"));
        }
        if self.count > Signature::MAX_COUNT || world > Signature::MAX_WORLD {
            return Err(Error::invalid(
                name,
                format!("{} elements in a world of {world}: too large", self.count),
            ));
        }
        let (input, output) = self.blocks(rank, world);
        for (what, region, blocks) in [("input", self.input, input), ("output", self.output, output)] {
            let need = blocks * self.bytes();
            if region.len() != need {
                let why = format!(
                    "{what} has {} bytes, not {need} ({blocks} x {} {})",
                    region.len(),
                    self.count,
                    self.dtype
                );
                return Err(Error::invalid(name, why));
            }
            if region.ptr().addr() % self.dtype.size() != 0 {
                return Err(Error::invalid(name, format!("{what} is not aligned for {}", self.dtype)));
            }
        }
        Ok(())
    }

    /// How many blocks of input and of output this rank has.
    pub const fn blocks(&self, rank: usize, world: usize) -> (usize, usize) {
        let at_root = (rank == self.root) as usize;
        match self.kind {
            Kind::AllReduce | Kind::BucketAllReduce => (1, 1),
            Kind::Broadcast => (at_root, 1),
            Kind::ReduceScatter => (world, 1),
            Kind::AllGather => (1, world),
            Kind::Reduce => (1, at_root),
            Kind::Gather => (1, at_root * world),
            Kind::Scatter => (at_root * world, 1),
            Kind::AllToAll => (world, world),
            Kind::Barrier | Kind::AllocBucket => (0, 0),
            Kind::Send => (1, 0),
            Kind::Recv => (0, 1),
        }
    }
}

/// What all ranks must agree on about a call, in one word that fits beside a flag.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature(u64);

impl Signature {
    /// The most elements in a block.
    pub const MAX_COUNT: usize = (1 << 40) - 1;
    /// The most ranks.
    pub const MAX_WORLD: usize = 1 << 13;

    #[inline]
    fn new(kind: Kind, op: ReduceOp, dtype: DType, root: usize, count: usize) -> Signature {
        Signature(
            (kind as u64) << 60
                | (op as u64) << 57
                | (dtype as u64) << 53
                | (root as u64) << 40
                | count as u64,
        )
    }

    /// As one word.
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// From one word, which may be anything: only [`fmt::Display`] looks inside.
    pub const fn from_word(word: u64) -> Signature {
        Signature(word)
    }

    /// Which collective, if the word names one.
    pub fn kind(self) -> Option<Kind> {
        Kind::ALL.get((self.0 >> 60) as usize).map(|k| k.0)
    }

    /// Elements in a block.
    pub const fn count(self) -> usize {
        (self.0 & ((1 << 40) - 1)) as usize
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(kind), Some(op), Some(dtype)) =
            (self.kind(), ReduceOp::from_code(self.0 >> 57 & 7), DType::from_code(self.0 >> 53 & 15))
        else {
            return write!(f, "an unknown call {:#x}", self.0);
        };
        let (root, count) = (self.0 >> 40 & 0x1fff, self.count());
        match kind {
            Kind::Barrier => return write!(f, "barrier()"),
            Kind::AllocBucket => return write!(f, "alloc_bucket({count} bytes)"),
            _ => write!(f, "{}({count} x {dtype}", kind.name())?,
        }
        if kind.reduces() {
            write!(f, ", {op}")?;
        }
        if kind.has_root() {
            write!(f, ", rank {root}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
