//! AVX2, FMA and F16C versions, 8 lanes.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::elementwise;

const LANES: usize = 8;
/// Independent sums: enough to hide the latency of a fused multiply-add.
const SUMS: usize = 4;

#[target_feature(enable = "avx2,fma,f16c")]
fn lane_sum(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// A dot product in f32; `$load` reads 8 elements of `a` as f32.
macro_rules! dot {
    ($name:ident, $type:ty, $widen:expr, $load:expr) => {
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) fn $name(a: &[$type], b: &[f32]) -> f32 {
            let mut sums = [_mm256_setzero_ps(); SUMS];
            let (blocks, a_tail) = a.as_chunks::<{ SUMS * LANES }>();
            let (b_blocks, b_tail) = b.as_chunks::<{ SUMS * LANES }>();
            for (a, b) in blocks.iter().zip(b_blocks) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: a block holds SUMS times LANES elements.
                    let (a, b) =
                        unsafe { ($load(a.as_ptr().add(i * LANES)), _mm256_loadu_ps(b.as_ptr().add(i * LANES))) };
                    *sum = _mm256_fmadd_ps(a, b, *sum);
                }
            }
            let (lanes, a_tail) = a_tail.as_chunks::<LANES>();
            let (b_lanes, b_tail) = b_tail.as_chunks::<LANES>();
            for (a, b) in lanes.iter().zip(b_lanes) {
                // SAFETY: both hold LANES elements.
                let (a, b) = unsafe { ($load(a.as_ptr()), _mm256_loadu_ps(b.as_ptr())) };
                sums[0] = _mm256_fmadd_ps(a, b, sums[0]);
            }
            let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
            let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| $widen(*a) * b).sum();
            lane_sum(sum) + tail
        }
    };
}

/// # Safety
/// 8 elements can be read from `from`; so for all three.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_f32(from: *const f32) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_ps(from) }
}

/// # Safety
/// See [`load_f32`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_bf16(from: *const bf16) -> __m256 {
    // SAFETY: the caller's promise; a bf16 is the upper half of an f32.
    let halves = unsafe { _mm_loadu_si128(from.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}

/// # Safety
/// See [`load_f32`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_f16(from: *const f16) -> __m256 {
    // SAFETY: the caller's promise.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
}

dot!(dot, f32, |x: f32| x, load_f32);
dot!(dot_bf16, bf16, |x: bf16| x.to_f32(), load_bf16);
dot!(dot_f16, f16, |x: f16| x.to_f32(), load_f16);

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    let (lanes, tail) = from.as_chunks::<LANES>();
    let (to_lanes, to_tail) = to.as_chunks_mut::<LANES>();
    for (from, to) in lanes.iter().zip(to_lanes) {
        // SAFETY: both hold LANES elements.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), load_bf16(from.as_ptr())) };
    }
    for (from, to) in tail.iter().zip(to_tail) {
        *to = from.to_f32();
    }
}

/// Four rows at a time, so that `out` is read and written once for four products.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_weighted(weights: &[f32], rows: &[f32], out: &mut [f32]) {
    let width = out.len();
    let (fours, rest) = weights.as_chunks::<4>();
    let (whole, rest_rows) = rows.split_at(fours.len() * 4 * width);
    for (weights, rows) in fours.iter().zip(whole.chunks_exact(4 * width)) {
        let w = weights.map(|w| _mm256_set1_ps(w));
        let mut at = 0;
        while at + LANES <= width {
            // SAFETY: `rows` holds four rows of `width`, and at + LANES <= width.
            unsafe {
                let row = |j: usize| _mm256_loadu_ps(rows.as_ptr().add(j * width + at));
                let sum = _mm256_fmadd_ps(w[0], row(0), _mm256_loadu_ps(out.as_ptr().add(at)));
                let sum = _mm256_fmadd_ps(w[1], row(1), sum);
                let sum = _mm256_fmadd_ps(w[2], row(2), sum);
                _mm256_storeu_ps(out.as_mut_ptr().add(at), _mm256_fmadd_ps(w[3], row(3), sum));
            }
            at += LANES;
        }
        for c in at..width {
            out[c] += (0..4).map(|j| weights[j] * rows[j * width + c]).sum::<f32>();
        }
    }
    for (weight, row) in rest.iter().zip(rest_rows.chunks_exact(width)) {
        for (out, x) in out.iter_mut().zip(row) {
            *out = weight.mul_add(*x, *out);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn max(x: &[f32]) -> f32 {
    elementwise::max(x)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn exponentials(x: &mut [f32], reference: f32) -> f32 {
    elementwise::exponentials::<true>(x, reference)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    elementwise::swiglu::<true>(gate, up, out);
}
