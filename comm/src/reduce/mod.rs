//! Combining the ranks' values: in rank order, in the type's accumulator, with the widest vectors of this machine.
//!
//! The order of combination is fixed by the order of `sources`, and no kernel reassociates, so every kernel and every
//! vector width gives the same bits.

mod kernels;
mod numbers;

use crate::{DType, ReduceOp, Region};
pub(crate) use kernels::{narrow, widen};

/// Combines `sources` in order, element by element, and writes the result to each of `targets`. All regions have one length; a
/// target may be one of the sources. `ReduceOp::Mean` divides by the number of sources.
///
/// The caller has checked that `dtype` supports `op` and that the regions are aligned; no peer may write to them meanwhile.
pub(crate) fn combine(dtype: DType, op: ReduceOp, sources: &[Region], targets: &[Region]) {
    use half::{bf16, f16};
    match dtype {
        DType::F32 => kernels::combine::<f32>(op, sources, targets),
        DType::F64 => kernels::combine::<f64>(op, sources, targets),
        DType::F16 => kernels::combine::<f16>(op, sources, targets),
        DType::BF16 => kernels::combine::<bf16>(op, sources, targets),
        DType::I32 => kernels::combine::<i32>(op, sources, targets),
        DType::I64 => kernels::combine::<i64>(op, sources, targets),
        DType::U8 => kernels::combine::<u8>(op, sources, targets),
        DType::Bool => kernels::combine::<numbers::Bit>(op, sources, targets),
    }
}
