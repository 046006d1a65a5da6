//! The exponential function that all softmax and activation code uses.

use super::simd::{Kernel, LANES, Simd, padded};

/// Arguments are clamped to this range.
const SMALLEST: f32 = -87.0;
const LARGEST: f32 = 88.0;
/// Adding `1.5 * 2^23` to a number rounds it to the nearest integer and leaves that integer in the low bits.
const SHIFT: f32 = 12_582_912.0;
/// `-ln 2` in two parts. The first part has few bits, so its product with an integer is exact.
const MINUS_LN_2: [f32; 2] = [-0.693_359_4, 2.121_944_4e-4];
/// Coefficients of `(e^r - 1 - r) / r^2`, the highest power first (Cephes' `expf`).
const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5];

/// Computes `e^x` in every lane as `2^n e^r` with a polynomial for `e^r`, where `|r|` is at most `ln(2) / 2`.
///
/// The error is at most three units in the last place. `x` is clamped to the range from -87 to 88. NaN stays NaN.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    // If x is NaN, `min` and `max` return the second operand, x.
    let x = simd.min(simd.splat(LARGEST), simd.max(simd.splat(SMALLEST), x));
    let shifted = simd.mul_add(x, simd.splat(std::f32::consts::LOG2_E), simd.splat(SHIFT));
    let n = simd.sub(shifted, simd.splat(SHIFT));
    let r = simd.mul_add(n, simd.splat(MINUS_LN_2[0]), x);
    let r = simd.mul_add(n, simd.splat(MINUS_LN_2[1]), r);
    let mut p = simd.splat(POLYNOMIAL[0]);
    for &coefficient in &POLYNOMIAL[1..] {
        p = simd.mul_add(p, r, simd.splat(coefficient));
    }
    let p = simd.add(simd.mul_add(simd.mul(p, r), r, r), simd.splat(1.0));
    // The rounded integer is in the low bits of `shifted`.
    simd.add_to_exponent(p, shifted)
}

/// See [`super::Isa::exponentials`].
pub(super) struct Exponentials<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) reference: f32,
}

impl Kernel for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let reference = simd.splat(self.reference);
        let mut sum = simd.splat(0.0);
        let (registers, tail) = self.x.as_chunks_mut::<LANES>();
        for x in registers {
            let e = exp(simd, simd.sub(simd.load(x), reference));
            simd.store(e, x);
            sum = simd.add(sum, e);
        }
        let mut rest = 0.0;
        if !tail.is_empty() {
            let mut last = padded(tail);
            simd.store(exp(simd, simd.sub(simd.load(&last), reference)), &mut last);
            tail.copy_from_slice(&last[..tail.len()]);
            rest = tail_sum(tail);
        }
        simd.sum(sum, simd.splat(0.0)) + rest
    }
}

/// Adds up in eight separate sums, because their rounding error is smaller.
#[inline(always)]
fn tail_sum(tail: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (i, x) in tail.iter().enumerate() {
        sums[i % 8] += x;
    }
    let mut total = 0.0;
    for sum in sums {
        total += sum;
    }
    total
}
