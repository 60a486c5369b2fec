//! What can be moved and combined: element types, and the operations on them.

use half::{bf16, f16};
use std::fmt;

/// The type of one element, as it is known at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DType {
    /// 32-bit float.
    F32 = 0,
    /// 64-bit float.
    F64 = 1,
    /// IEEE half: accumulated in f32, rounded once.
    F16 = 2,
    /// Brain float: accumulated in f32, rounded once.
    BF16 = 3,
    /// 32-bit signed; wraps.
    I32 = 4,
    /// 64-bit signed; wraps.
    I64 = 5,
    /// Byte; wraps.
    U8 = 6,
    /// A byte that is 0 or 1. Has min (and), max (or) and product (and); no sum, no mean.
    Bool = 7,
}

impl DType {
    /// All of them, for tests and tables.
    pub const ALL: [DType; 8] =
        [DType::F32, DType::F64, DType::F16, DType::BF16, DType::I32, DType::I64, DType::U8, DType::Bool];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 | DType::Bool => 1,
        }
    }

    /// Whether `op` has a meaning for this type.
    pub const fn supports(self, op: ReduceOp) -> bool {
        match self {
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => true,
            DType::I32 | DType::I64 | DType::U8 => !matches!(op, ReduceOp::Mean),
            DType::Bool => !matches!(op, ReduceOp::Mean | ReduceOp::Sum),
        }
    }

    pub(crate) fn from_code(code: u64) -> Option<DType> {
        DType::ALL.into_iter().find(|d| *d as u64 == code)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::Bool => "bool",
        })
    }
}

/// How the contributions of the ranks become one value. Always combined in rank order 0, 1, 2, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReduceOp {
    /// The sum.
    Sum = 0,
    /// The sum times 1/world, floats only.
    Mean = 1,
    /// The least; NaN if any is NaN.
    Min = 2,
    /// The greatest; NaN if any is NaN.
    Max = 3,
    /// The product.
    Product = 4,
}

impl ReduceOp {
    /// All of them, for tests and tables.
    pub const ALL: [ReduceOp; 5] =
        [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Min, ReduceOp::Max, ReduceOp::Product];

    pub(crate) fn from_code(code: u64) -> Option<ReduceOp> {
        ReduceOp::ALL.into_iter().find(|o| *o as u64 == code)
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Mean => "mean",
            ReduceOp::Min => "min",
            ReduceOp::Max => "max",
            ReduceOp::Product => "product",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that has a [`DType`]. Sealed: its bytes are moved between processes as they are.
pub trait Element: Copy + Send + Sync + fmt::Debug + PartialEq + Default + 'static + sealed::Sealed {
    /// Its type at run time.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t { const DTYPE: DType = DType::$d; }
    )*};
}
elements!(f32 => F32, f64 => F64, f16 => F16, bf16 => BF16, i32 => I32, i64 => I64, u8 => U8, bool => Bool);
