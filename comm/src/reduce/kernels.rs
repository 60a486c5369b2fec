//! The inner loops. Unsafe, because the memory is shared with other processes and known only by address.

use super::numbers::{Number, Value};
use crate::{ReduceOp, Region};
use half::bf16;

/// Elements combined at a time where the accumulator is a scratch in the first-level cache.
const BLOCK: usize = 512;
/// Elements combined at a time in registers.
const STRIP: usize = 16;

/// How two accumulators become one.
trait Rule {
    fn join<N: Number>(a: N, b: N) -> N;
}
struct Add;
struct Least;
struct Greatest;
struct Multiply;
impl Rule for Add {
    #[inline(always)]
    fn join<N: Number>(a: N, b: N) -> N {
        a.add(b)
    }
}
impl Rule for Least {
    #[inline(always)]
    fn join<N: Number>(a: N, b: N) -> N {
        a.least(b)
    }
}
impl Rule for Greatest {
    #[inline(always)]
    fn join<N: Number>(a: N, b: N) -> N {
        a.greatest(b)
    }
}
impl Rule for Multiply {
    #[inline(always)]
    fn join<N: Number>(a: N, b: N) -> N {
        a.multiply(b)
    }
}

/// See [`super::combine`].
pub(super) fn combine<V: Value>(op: ReduceOp, sources: &[Region], targets: &[Region]) {
    let bytes = sources.first().map_or(0, |s| s.len());
    for region in sources.iter().chain(targets) {
        assert_eq!(region.len(), bytes, "all regions of a combination have one length");
        debug_assert_eq!(region.ptr().addr() % align_of::<V>(), 0);
    }
    let job = Job { count: bytes / size_of::<V>(), sources, targets };
    match op {
        ReduceOp::Sum => vectorised::<V, Add, false>(job),
        ReduceOp::Mean => vectorised::<V, Add, true>(job),
        ReduceOp::Min => vectorised::<V, Least, false>(job),
        ReduceOp::Max => vectorised::<V, Greatest, false>(job),
        ReduceOp::Product => vectorised::<V, Multiply, false>(job),
    }
}

#[derive(Clone, Copy)]
struct Job<'a> {
    count: usize,
    sources: &'a [Region],
    targets: &'a [Region],
}

/// Runs the loops compiled for the widest vectors that this machine has.
fn vectorised<V: Value, R: Rule, const MEAN: bool>(job: Job<'_>) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<V: Value, R: Rule, const MEAN: bool>(job: Job<'_>) {
            all::<V, R, MEAN>(job);
        }
        #[target_feature(enable = "avx2")]
        fn avx2<V: Value, R: Rule, const MEAN: bool>(job: Job<'_>) {
            all::<V, R, MEAN>(job);
        }
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the features were just found on this machine.
            return unsafe { avx512::<V, R, MEAN>(job) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found on this machine.
            return unsafe { avx2::<V, R, MEAN>(job) };
        }
    }
    all::<V, R, MEAN>(job);
}

#[inline(always)]
fn all<V: Value, R: Rule, const MEAN: bool>(job: Job<'_>) {
    let mut from = 0;
    if let (true, &[a, b], &[first, ref rest @ ..]) = (V::NATIVE, job.sources, job.targets)
        && rest.len() <= 1
    {
        from = pair::<V, R, MEAN>(job.count, a, b, first, rest.first().copied());
    }
    blocks::<V, R, MEAN>(job, from);
}

/// Two sources into one or two targets, in registers; returns how many elements were done (all but a rest).
#[inline(always)]
fn pair<V: Value, R: Rule, const MEAN: bool>(
    count: usize,
    a: Region,
    b: Region,
    first: Region,
    second: Option<Region>,
) -> usize {
    let load = |r: Region, at: usize| -> [V::Wide; STRIP] {
        // SAFETY: `at + STRIP <= count`, and the region holds `count` elements; V is its own Wide where NATIVE.
        unsafe { r.ptr().cast::<V::Wide>().add(at).cast::<[V::Wide; STRIP]>().read_unaligned() }
    };
    let store = |r: Region, at: usize, x: [V::Wide; STRIP]| {
        // SAFETY: as for loads; both sources of these elements were read before.
        unsafe { r.ptr().cast::<V::Wide>().add(at).cast::<[V::Wide; STRIP]>().write_unaligned(x) }
    };
    let whole = count - count % STRIP;
    let mut at = 0;
    while at < whole {
        let (mut x, y) = (load(a, at), load(b, at));
        for i in 0..STRIP {
            x[i] = R::join(x[i], y[i]);
            if MEAN {
                x[i] = x[i].over(2);
            }
        }
        store(first, at, x);
        if let Some(second) = second {
            store(second, at, x);
        }
        at += STRIP;
    }
    whole
}

/// Rounds f32 values to bf16: to nearest, ties to even. The caller has checked alignment.
pub(crate) fn narrow(from: Region, to: Region) {
    assert_eq!(from.len(), 2 * to.len(), "every value keeps its place");
    let count = to.len() / 2;
    // SAFETY: inside the regions, which do not overlap; the calls they belong to let nobody else touch them now.
    let (from, to) = unsafe {
        (
            std::slice::from_raw_parts(from.ptr().cast::<f32>(), count),
            std::slice::from_raw_parts_mut(to.ptr().cast::<bf16>(), count),
        )
    };
    bf16::narrow(from, to);
}

/// The f32 values of bf16 ones. The caller has checked alignment.
pub(crate) fn widen(from: Region, to: Region) {
    assert_eq!(2 * from.len(), to.len(), "every value keeps its place");
    let count = from.len() / 2;
    // SAFETY: as for `narrow`.
    let (from, to) = unsafe {
        (
            std::slice::from_raw_parts(from.ptr().cast::<bf16>(), count),
            std::slice::from_raw_parts_mut(to.ptr().cast::<f32>(), count),
        )
    };
    bf16::widen(from, to);
}

/// Any number of sources and targets, through a scratch.
#[inline(always)]
fn blocks<V: Value, R: Rule, const MEAN: bool>(job: Job<'_>, from: usize) {
    let mut sum = [V::Wide::default(); BLOCK];
    let mut next = [V::Wide::default(); BLOCK];
    let mut at = from;
    while at < job.count {
        let n = BLOCK.min(job.count - at);
        let (sum, next) = (&mut sum[..n], &mut next[..n]);
        for (i, source) in job.sources.iter().enumerate() {
            // SAFETY: `at + n <= count`, inside the region; nobody writes to it during the call, and the slice is dropped
            // before the targets are written.
            let source = unsafe { std::slice::from_raw_parts(source.ptr().cast::<V>().add(at), n) };
            if i == 0 {
                V::widen(source, sum);
                continue;
            }
            V::widen(source, next);
            for (s, x) in sum.iter_mut().zip(&*next) {
                *s = R::join(*s, *x);
            }
        }
        if MEAN {
            for s in sum.iter_mut() {
                *s = s.over(job.sources.len());
            }
        }
        for target in job.targets {
            // SAFETY: as above; this call alone writes to these elements.
            let target = unsafe { std::slice::from_raw_parts_mut(target.ptr().cast::<V>().add(at), n) };
            V::narrow(sum, target);
        }
        at += n;
    }
}
