//! Small values: element types, reductions, ids.

use std::fmt;

use crate::sys::{UNIQUE_ID_BYTES, ncclUniqueId};

/// The type of an element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(i32)]
#[non_exhaustive]
pub enum DataType {
    /// Signed, 8 bits.
    I8 = 0,
    /// Unsigned, 8 bits.
    U8 = 1,
    /// Signed, 32 bits.
    I32 = 2,
    /// Unsigned, 32 bits.
    U32 = 3,
    /// Signed, 64 bits.
    I64 = 4,
    /// Unsigned, 64 bits.
    U64 = 5,
    /// Half precision.
    F16 = 6,
    /// Single precision.
    F32 = 7,
    /// Double precision.
    F64 = 8,
    /// Brain float.
    Bf16 = 9,
    /// 8-bit float with 4 bits of exponent, since NCCL 2.24.
    F8E4M3 = 10,
    /// 8-bit float with 5 bits of exponent, since NCCL 2.24.
    F8E5M2 = 11,
}

impl DataType {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }
}

/// How elements of different ranks become one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(i32)]
pub enum ReduceOp {
    /// Sum.
    Sum = 0,
    /// Product.
    Product = 1,
    /// Largest.
    Max = 2,
    /// Smallest.
    Min = 3,
    /// Sum divided by the number of ranks.
    Mean = 4,
}

/// What the ranks of a new clique must share to find each other. One rank makes it, the others get its bytes.
#[derive(Clone, Copy)]
pub struct UniqueId(pub(crate) ncclUniqueId);

impl UniqueId {
    /// How many bytes it has.
    pub const BYTES: usize = UNIQUE_ID_BYTES;

    /// The id as bytes, to be sent to the other ranks.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        self.0.internal.map(|c| c as u8)
    }

    /// The id that another rank made.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(ncclUniqueId { internal: bytes.map(|b| b as std::ffi::c_char) })
    }
}

impl PartialEq for UniqueId {
    fn eq(&self, other: &Self) -> bool {
        self.to_bytes() == other.to_bytes()
    }
}

impl Eq for UniqueId {}

/// Does not show the bytes: they hold the secret that admits to the clique.
impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(..)")
    }
}
