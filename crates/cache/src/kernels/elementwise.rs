//! Loops the compiler vectorises: the same source, compiled for each instruction set that inlines it.

const LANES: usize = 8;

/// `a b + c`, fused where the instruction set does it.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x`: `2^n` times a polynomial on half a power of two to either side (Cephes' `expf`). Clamped to -87..88.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    // Comparisons in this order keep a NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    // Adding 1.5 * 2^23 rounds to the nearest whole number and leaves it in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    // ln 2 in two parts: the first has few bits, so that n times it is exact.
    let r = multiply_add::<FUSED>(n, -0.693_359_4, x);
    let r = multiply_add::<FUSED>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = multiply_add::<FUSED>(p, r, coefficient);
    }
    let p = multiply_add::<FUSED>(p * r, r, r) + 1.0;
    let power = shifted.to_bits().wrapping_sub(SHIFT.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(power)
}

#[inline(always)]
pub(super) fn exponentials<const FUSED: bool>(x: &mut [f32], reference: f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (x, sum) in chunk.iter_mut().zip(&mut sums) {
            *x = exp::<FUSED>(*x - reference);
            *sum += *x;
        }
    }
    let mut sum = 0.0;
    for x in tail {
        *x = exp::<FUSED>(*x - reference);
        sum += *x;
    }
    sum + sums.iter().sum::<f32>()
}

#[inline(always)]
pub(super) fn swiglu<const FUSED: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp::<FUSED>(-gate)) * up;
    }
}

#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (x, largest) in chunk.iter().zip(&mut largest) {
            *largest = if *x > *largest { *x } else { *largest };
        }
    }
    largest.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max)
}
