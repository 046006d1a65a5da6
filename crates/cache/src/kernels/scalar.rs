//! The versions for any machine.

use half::{bf16, f16};

use super::elementwise;

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of_products(a.iter().copied(), b)
}

pub(super) fn dot_bf16(a: &[bf16], b: &[f32]) -> f32 {
    sum_of_products(a.iter().map(|x| x.to_f32()), b)
}

pub(super) fn dot_f16(a: &[f16], b: &[f32]) -> f32 {
    sum_of_products(a.iter().map(|x| x.to_f32()), b)
}

/// Eight sums side by side, for their independence and their smaller rounding error.
fn sum_of_products(a: impl Iterator<Item = f32>, b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    for (i, (a, b)) in a.zip(b).enumerate() {
        sums[i % 8] += a * b;
    }
    sums.iter().sum()
}

pub(super) fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}

pub(super) fn add_weighted(weights: &[f32], rows: &[f32], out: &mut [f32]) {
    for (weight, row) in weights.iter().zip(rows.chunks_exact(out.len())) {
        for (out, x) in out.iter_mut().zip(row) {
            *out += weight * x;
        }
    }
}

pub(super) fn max(x: &[f32]) -> f32 {
    elementwise::max(x)
}

pub(super) fn exponentials(x: &mut [f32], reference: f32) -> f32 {
    elementwise::exponentials::<false>(x, reference)
}

pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    elementwise::swiglu::<false>(gate, up, out);
}
