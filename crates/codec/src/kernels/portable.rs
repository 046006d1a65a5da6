//! The implementation for any CPU. The other implementations are tested against it.

use std::array::from_fn;

use half::{bf16, f16};

use super::simd::{Kernel, LANES, Simd, sealed::Sealed};

/// Plain Rust, which needs no special instruction set.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// Runs a kernel.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Portable)
}

impl Sealed for Portable {}

impl Simd for Portable {
    type F32 = [f32; LANES];
    type U32 = [u32; LANES];

    const SEARCHES: usize = 1;
    const SUMS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        *from
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32 {
        from.map(f16::to_f32)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F32 {
        from.map(bf16::to_f32)
    }

    #[inline(always)]
    fn store(self, x: Self::F32, to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn sum(self, a: Self::F32, b: Self::F32) -> f32 {
        let x: [f32; 8] = from_fn(|i| (a[i] + a[i + 8]) + (b[i] + b[i + 8]));
        let x: [f32; 4] = from_fn(|i| x[i] + x[i + 4]);
        (x[0] + x[2]) + (x[1] + x[3])
    }

    #[inline(always)]
    fn largest(self, x: Self::F32) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn add_to_exponent(self, a: Self::F32, x: Self::F32) -> Self::F32 {
        from_fn(|i| f32::from_bits(a[i].to_bits().wrapping_add(x[i].to_bits() << 23)))
    }

    #[inline(always)]
    fn splat_u32(self, x: u32) -> Self::U32 {
        [x; LANES]
    }

    #[inline(always)]
    fn keep_larger(self, best: (Self::F32, Self::U32), x: Self::F32, index: Self::U32) -> (Self::F32, Self::U32) {
        let (mut magnitudes, mut indices) = best;
        for i in 0..LANES {
            if x[i].abs() > magnitudes[i] {
                (magnitudes[i], indices[i]) = (x[i].abs(), index[i]);
            }
        }
        (magnitudes, indices)
    }

    #[inline(always)]
    fn first_of(self, x: Self::F32, value: f32, index: Self::U32, offset: u32) -> u32 {
        let places = index.into_iter().zip(offset..);
        let equal = places.zip(x).filter(|&(_, x)| x == value);
        equal.map(|((index, lane), _)| index + lane).min().unwrap_or(u32::MAX)
    }
}
