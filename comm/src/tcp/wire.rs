//! Half the bytes for the same gradients: f32 all-reduces that travel as bf16.

use crate::{Call, DType, Kind, Region};

/// What an all-reduce of f32 travels as, between ranks that are connected over TCP alone. All ranks must say the same, or they do
/// not meet.
///
/// Other calls and types are never touched, and memory that ranks share is always exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Wire {
    /// As it is.
    #[default]
    Exact,
    /// Each rank's values are rounded to bf16 (to nearest, ties to even), combined in f32 in rank order, and the result is rounded
    /// to bf16 once. Every rank takes that, so all have the same bits.
    Bf16,
}

impl Wire {
    /// Bytes of memory that this call needs to be narrowed; none if it travels as it is.
    pub(super) fn room(self, call: &Call) -> usize {
        let reduces = matches!(call.kind, Kind::AllReduce | Kind::BucketAllReduce);
        let narrow = self == Wire::Bf16 && reduces && call.dtype == DType::F32;
        if narrow { call.count * DType::BF16.size() } else { 0 }
    }
}

/// The call that moves in place of `call`, whose values are rounded into `room`.
pub(super) fn narrowed(call: &Call, room: Region) -> Call {
    crate::reduce::narrow(call.input, room);
    Call::new(call.kind, DType::BF16, call.count).op(call.op).memory(room, room)
}
