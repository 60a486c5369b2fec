//! Arithmetic on elements and on what they are accumulated in.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A type that values are accumulated in.
pub(super) trait Number: Copy + Default {
    fn add(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn least(self, other: Self) -> Self;
    fn greatest(self, other: Self) -> Self;
    /// Times 1/count; the identity for types without a mean.
    fn over(self, count: usize) -> Self;
}

macro_rules! floats {
    ($($t:ty),*) => {$(
        impl Number for $t {
            #[inline(always)]
            fn add(self, other: Self) -> Self { self + other }
            #[inline(always)]
            fn multiply(self, other: Self) -> Self { self * other }
            // A NaN on either side wins, and the left one if there are two.
            #[inline(always)]
            fn least(self, other: Self) -> Self { if self <= other || self.is_nan() { self } else { other } }
            #[inline(always)]
            fn greatest(self, other: Self) -> Self { if self >= other || self.is_nan() { self } else { other } }
            #[inline(always)]
            fn over(self, count: usize) -> Self { self * (1.0 / count as $t) }
        }
    )*};
}
floats!(f32, f64);

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Number for $t {
            #[inline(always)]
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            #[inline(always)]
            fn multiply(self, other: Self) -> Self { self.wrapping_mul(other) }
            #[inline(always)]
            fn least(self, other: Self) -> Self { self.min(other) }
            #[inline(always)]
            fn greatest(self, other: Self) -> Self { self.max(other) }
            #[inline(always)]
            fn over(self, _: usize) -> Self { self }
        }
    )*};
}
integers!(i32, i64, u8);

/// A bool as it lies in memory that a peer may have written: any byte, of which zero is false.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct Bit(u8);

impl Number for Bit {
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.greatest(other)
    }
    #[inline(always)]
    fn multiply(self, other: Self) -> Self {
        self.least(other)
    }
    #[inline(always)]
    fn least(self, other: Self) -> Self {
        Bit(u8::from(self.0 != 0 && other.0 != 0))
    }
    #[inline(always)]
    fn greatest(self, other: Self) -> Self {
        Bit(u8::from(self.0 != 0 || other.0 != 0))
    }
    #[inline(always)]
    fn over(self, _: usize) -> Self {
        self
    }
}

/// An element: how it becomes its accumulator, and back.
pub(super) trait Value: Copy + Default + 'static {
    type Wide: Number;
    /// Whether widening is the identity, so that elements can be combined where they are.
    const NATIVE: bool;
    fn widen(from: &[Self], to: &mut [Self::Wide]);
    fn narrow(from: &[Self::Wide], to: &mut [Self]);
}

macro_rules! native {
    ($($t:ty),*) => {$(
        impl Value for $t {
            type Wide = $t;
            const NATIVE: bool = true;
            #[inline(always)]
            fn widen(from: &[Self], to: &mut [Self]) { to.copy_from_slice(from) }
            #[inline(always)]
            fn narrow(from: &[Self], to: &mut [Self]) { to.copy_from_slice(from) }
        }
    )*};
}
native!(f32, f64, i32, i64, u8, Bit);

impl Value for f16 {
    type Wide = f32;
    const NATIVE: bool = false;
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

impl Value for bf16 {
    type Wide = f32;
    const NATIVE: bool = false;
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) {
        for (t, f) in to.iter_mut().zip(from) {
            *t = f32::from_bits(u32::from(f.to_bits()) << 16);
        }
    }
    /// Rounds to nearest, ties to even, without a branch; a NaN stays one.
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        for (t, f) in to.iter_mut().zip(from) {
            let bits = f.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let nan = bits >> 16 | 0x40;
            *t = bf16::from_bits(if f.is_nan() { nan } else { rounded } as u16);
        }
    }
}
