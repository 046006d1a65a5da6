//! AVX-512F. A register of [`Simd`] is one register of the CPU.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::avx2::{self, sum_of_eight};
use super::limit::{Width, allows};
use super::simd::{Kernel, LANES, Simd, sealed::Sealed};

/// Proof that the CPU has AVX-512F, AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Whether the CPU has the instructions that [`run`] needs. The call is cheap, because the answer is cached.
pub(super) fn detected() -> bool {
    allows(Width::Avx512) && is_x86_feature_detected!("avx512f") && avx2::detected()
}

/// Runs a kernel compiled for these instructions.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// Calls intrinsics.
macro_rules! call {
    ($call:expr) => {
        // SAFETY: an `Avx512` exists only inside `run`, which may be called only if the CPU has the instructions.
        // The memory that is read or written is an array of one register.
        unsafe { $call }
    };
}

impl Sealed for Avx512 {}

impl Simd for Avx512 {
    type F32 = __m512;
    type U32 = __m512i;

    const SEARCHES: usize = 4;
    const SUMS: usize = 26;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        call!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        call!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32 {
        call!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F32 {
        // A bf16 is the upper half of an f32.
        call!({
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        })
    }

    #[inline(always)]
    fn store(self, x: Self::F32, to: &mut [f32; LANES]) {
        call!(_mm512_storeu_ps(to.as_mut_ptr(), x));
    }

    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        call!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        call!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        call!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        call!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        call!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        call!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        call!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn sum(self, a: Self::F32, b: Self::F32) -> f32 {
        call!({
            let (a, a_high) = (_mm512_castps512_ps256(a), upper(a));
            let (b, b_high) = (_mm512_castps512_ps256(b), upper(b));
            sum_of_eight(_mm256_add_ps(_mm256_add_ps(a, a_high), _mm256_add_ps(b, b_high)))
        })
    }

    #[inline(always)]
    fn largest(self, x: Self::F32) -> f32 {
        call!(_mm512_reduce_max_ps(x))
    }

    #[inline(always)]
    fn add_to_exponent(self, a: Self::F32, x: Self::F32) -> Self::F32 {
        call!({
            let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(x));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), power))
        })
    }

    #[inline(always)]
    fn splat_u32(self, x: u32) -> Self::U32 {
        call!(_mm512_set1_epi32(x.cast_signed()))
    }

    #[inline(always)]
    fn keep_larger(self, best: (Self::F32, Self::U32), x: Self::F32, index: Self::U32) -> (Self::F32, Self::U32) {
        let (magnitudes, indices) = best;
        call!({
            let new = _mm512_abs_ps(x);
            let larger = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(new, magnitudes);
            (_mm512_mask_mov_ps(magnitudes, larger, new), _mm512_mask_mov_epi32(indices, larger, index))
        })
    }

    #[inline(always)]
    fn first_of(self, x: Self::F32, value: f32, index: Self::U32, offset: u32) -> u32 {
        call!({
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let places = _mm512_add_epi32(index, _mm512_add_epi32(lanes, _mm512_set1_epi32(offset.cast_signed())));
            let equal = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(x, _mm512_set1_ps(value));
            _mm512_mask_reduce_min_epu32(equal, places)
        })
    }
}

/// Returns lanes 8 to 15.
#[target_feature(enable = "avx512f")]
#[inline]
fn upper(x: __m512) -> __m256 {
    _mm256_castsi256_ps(_mm512_extracti64x4_epi64::<1>(_mm512_castps_si512(x)))
}
