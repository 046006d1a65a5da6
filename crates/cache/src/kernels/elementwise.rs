//! The exponential and what is made of it, one number at a time: the scalar versions, and the ends of the others.

/// Arguments of [`exp`] are clamped to this range.
pub(super) const SMALLEST: f32 = -87.0;
pub(super) const LARGEST: f32 = 88.0;
/// Adding `1.5 * 2^23` rounds to the nearest whole number and leaves it in the low bits.
pub(super) const SHIFT: f32 = 12_582_912.0;
/// In two parts: the first has few bits, so that a whole number times it is exact.
pub(super) const MINUS_LN_2: [f32; 2] = [-0.693_359_4, 2.121_944_4e-4];
/// Of `(e^r - 1 - r) / r^2`, the highest power first (Cephes' `expf`).
pub(super) const POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5];

/// `a b + c`, fused where the instruction set does it.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x`: `2^n` times a polynomial on half a power of two to either side.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let x = x.clamp(SMALLEST, LARGEST);
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = multiply_add::<FUSED>(n, MINUS_LN_2[0], x);
    let r = multiply_add::<FUSED>(n, MINUS_LN_2[1], r);
    let p = POLYNOMIAL[1..].iter().fold(POLYNOMIAL[0], |p, &coefficient| multiply_add::<FUSED>(p, r, coefficient));
    let p = multiply_add::<FUSED>(p * r, r, r) + 1.0;
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[inline(always)]
pub(super) fn exponentials<const FUSED: bool>(x: &mut [f32], reference: f32) -> f32 {
    // Eight sums side by side, for their smaller rounding error.
    let mut sums = [0f32; 8];
    for (i, x) in x.iter_mut().enumerate() {
        *x = exp::<FUSED>(*x - reference);
        sums[i % 8] += *x;
    }
    sums.iter().sum()
}

#[inline(always)]
pub(super) fn swiglu<const FUSED: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp::<FUSED>(-gate)) * up;
    }
}
