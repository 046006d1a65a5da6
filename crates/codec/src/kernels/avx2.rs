//! AVX2, FMA and F16C. A register of [`Simd`] is two registers of the CPU.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::limit::{Width, allows};
use super::simd::{Kernel, LANES, Simd, sealed::Sealed};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Whether the CPU has the instructions that [`run`] needs. The call is cheap, because the answer is cached.
pub(super) fn detected() -> bool {
    allows(Width::Avx2)
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// Runs a kernel compiled for these instructions.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Calls intrinsics on the two halves of a register.
macro_rules! halves {
    ($($half:ident),* => $call:expr) => {{
        let low = {
            $(let $half = $half[0];)*
            // SAFETY: an `Avx2` exists only inside `run`, which may be called only if the CPU has the instructions.
            unsafe { $call }
        };
        // SAFETY: as above.
        let high = { $(let $half = $half[1];)* unsafe { $call } };
        [low, high]
    }};
}

/// Pointers to the two halves of a register in memory.
#[inline(always)]
fn split<T>(from: &[T; LANES]) -> [*const T; 2] {
    [from.as_ptr(), from[LANES / 2..].as_ptr()]
}

impl Sealed for Avx2 {}

impl Simd for Avx2 {
    type F32 = [__m256; 2];
    type U32 = [__m256i; 2];

    const SEARCHES: usize = 2;
    const SUMS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        // SAFETY: `self` proves that the CPU has the instruction.
        [unsafe { _mm256_set1_ps(x) }; 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        let from = split(from);
        halves!(from => _mm256_loadu_ps(from))
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32 {
        let from = split(from);
        halves!(from => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F32 {
        let from = split(from);
        // A bf16 is the upper half of an f32.
        halves!(from => {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))
        })
    }

    #[inline(always)]
    fn store(self, x: Self::F32, to: &mut [f32; LANES]) {
        let to = to.as_mut_ptr();
        // SAFETY: `self` proves that the CPU has the instruction, and `to` holds two registers of 8.
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(LANES / 2), x[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(a, b => _mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(a, b => _mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(a, b => _mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(a, b => _mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        halves!(a, b, c => _mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(a, b => _mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(a, b => _mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn sum(self, a: Self::F32, b: Self::F32) -> f32 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { sum_of_eight(_mm256_add_ps(_mm256_add_ps(a[0], a[1]), _mm256_add_ps(b[0], b[1]))) }
    }

    #[inline(always)]
    fn largest(self, x: Self::F32) -> f32 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe {
            let x = _mm256_max_ps(x[0], x[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn add_to_exponent(self, a: Self::F32, x: Self::F32) -> Self::F32 {
        halves!(a, x => {
            let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(x));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), power))
        })
    }

    #[inline(always)]
    fn splat_u32(self, x: u32) -> Self::U32 {
        // SAFETY: `self` proves that the CPU has the instruction.
        [unsafe { _mm256_set1_epi32(x.cast_signed()) }; 2]
    }

    #[inline(always)]
    fn keep_larger(self, best: (Self::F32, Self::U32), x: Self::F32, index: Self::U32) -> (Self::F32, Self::U32) {
        let (magnitudes, indices) = best;
        let new = halves!(x => _mm256_andnot_ps(_mm256_set1_ps(-0.0), x));
        let larger = halves!(new, magnitudes => _mm256_cmp_ps::<_CMP_GT_OQ>(new, magnitudes));
        (
            halves!(magnitudes, new, larger => _mm256_blendv_ps(magnitudes, new, larger)),
            halves!(indices, index, larger => _mm256_blendv_epi8(indices, index, _mm256_castps_si256(larger))),
        )
    }

    #[inline(always)]
    fn first_of(self, x: Self::F32, value: f32, index: Self::U32, offset: u32) -> u32 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { first_equal(x, value, index, offset) }
    }
}

/// See [`Simd::first_of`].
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn first_equal(x: [__m256; 2], value: f32, index: [__m256i; 2], offset: u32) -> u32 {
    let value = _mm256_set1_ps(value);
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let mut least = _mm256_set1_epi32(-1);
    for (half, (x, index)) in x.into_iter().zip(index).enumerate() {
        let first = _mm256_set1_epi32(offset.cast_signed() + (half * LANES / 2) as i32);
        let place = _mm256_add_epi32(index, _mm256_add_epi32(lanes, first));
        let other = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_NEQ_UQ>(x, value));
        least = _mm256_min_epu32(least, _mm256_or_si256(place, other));
    }
    let least = _mm_min_epu32(_mm256_castsi256_si128(least), _mm256_extracti128_si256::<1>(least));
    let least = _mm_min_epu32(least, _mm_shuffle_epi32::<0b_01_00_11_10>(least));
    let least = _mm_min_epu32(least, _mm_shuffle_epi32::<0b_10_11_00_01>(least));
    _mm_cvtsi128_si32(least).cast_unsigned()
}

/// Adds up eight numbers: it adds the upper half to the lower half, and repeats this.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn sum_of_eight(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}
