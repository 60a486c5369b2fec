//! What the caller hands over: names, element types, shapes, where the bytes come from, and which part of the global
//! tensor they are. Knows nothing of any tensor library.

use serde::{Deserialize, Serialize};

use crate::region::Region;

/// The element types of the safetensors format whose elements are whole bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, non_camel_case_types)]
#[non_exhaustive]
pub enum Dtype {
    BOOL,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

macro_rules! same_names {
    ($($name:ident = $size:literal),* $(,)?) => {
        impl Dtype {
            /// Bytes an element takes.
            pub fn size(self) -> u64 {
                match self { $(Dtype::$name => $size),* }
            }

            /// The name in the safetensors format.
            pub fn name(self) -> &'static str {
                match self { $(Dtype::$name => stringify!($name)),* }
            }

            pub(crate) fn to_safetensors(self) -> safetensors::Dtype {
                match self { $(Dtype::$name => safetensors::Dtype::$name),* }
            }

            pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Dtype> {
                match dtype { $(safetensors::Dtype::$name => Some(Dtype::$name),)* _ => None }
            }
        }
    };
}

same_names! {
    BOOL = 1, U8 = 1, I8 = 1, F8_E5M2 = 1, F8_E4M3 = 1, F8_E8M0 = 1, F8_E4M3FNUZ = 1, F8_E5M2FNUZ = 1,
    I16 = 2, U16 = 2, F16 = 2, BF16 = 2, I32 = 4, U32 = 4, F32 = 4, C64 = 8, F64 = 8, I64 = 8, U64 = 8,
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a tensor's bytes come from: host memory (any `[u8]`), or a device that copies on demand.
pub trait TensorSource: Sync {
    /// Copies the bytes from `offset` on into `to`, or starts to. Called from several threads.
    fn copy_to(&self, offset: usize, to: &mut [u8]) -> std::io::Result<()>;

    /// Waits for the copies that were only started. Called once all tensors' copies were asked for.
    fn finish(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// How many bytes there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl TensorSource for [u8] {
    fn copy_to(&self, offset: usize, to: &mut [u8]) -> std::io::Result<()> {
        to.copy_from_slice(&self[offset..offset + to.len()]);
        Ok(())
    }

    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

impl TensorSource for Vec<u8> {
    fn copy_to(&self, offset: usize, to: &mut [u8]) -> std::io::Result<()> {
        self.as_slice().copy_to(offset, to)
    }

    fn len(&self) -> usize {
        Vec::len(self)
    }
}

/// Which part of the global tensor this rank holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Every rank holds all of it; the ranks share the writing.
    Replicated,
    /// This rank holds this part, and is the only one to give it.
    Part(Region),
}

/// A tensor to save, as one rank sees it.
#[derive(Clone)]
pub struct Tensor<'a> {
    /// Its name, unique in the checkpoint.
    pub name: &'a str,
    /// Its element type.
    pub dtype: Dtype,
    /// Its global shape.
    pub shape: &'a [u64],
    /// What of it is here.
    pub placement: Placement,
    /// The bytes of what is here, row-major, little-endian.
    pub data: &'a dyn TensorSource,
}

impl<'a> Tensor<'a> {
    /// A tensor that every rank holds whole (or that there is only one rank to hold).
    pub fn replicated(name: &'a str, dtype: Dtype, shape: &'a [u64], data: &'a dyn TensorSource) -> Self {
        Tensor { name, dtype, shape, placement: Placement::Replicated, data }
    }

    /// A part of a tensor whose global shape is `shape`.
    pub fn part(
        name: &'a str,
        dtype: Dtype,
        shape: &'a [u64],
        part: Region,
        data: &'a dyn TensorSource,
    ) -> Self {
        Tensor { name, dtype, shape, placement: Placement::Part(part), data }
    }

    /// The region of the global tensor that is here.
    pub fn region(&self) -> Region {
        match &self.placement {
            Placement::Replicated => Region::whole(self.shape),
            Placement::Part(region) => region.clone(),
        }
    }
}

impl std::fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{:?} {:?}", self.name, self.dtype, self.shape, self.placement)
    }
}
