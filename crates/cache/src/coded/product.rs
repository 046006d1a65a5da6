//! Small matrix products on slices, on the calling thread alone.

use gemm::{Parallelism, gemm};

use crate::kernels::{self, Stored};

/// `out = a b` or `out += a b` with `a` `(m, k)`, `b` `(k, n)`, `out` `(m, n)`, all row-major.
///
/// # Panics
/// If the slices are shorter than these shapes.
pub fn multiply([m, k, n]: [usize; 3], a: &[f32], b: &[f32], out: &mut [f32], add: bool) {
    strided([m, k, n], a, k, b, [n, 1], out, n, add);
}

/// `out = a bᵀ` with `a` `(m, k)`, `b` `(n, k)`, `out` `(m, n)`, all row-major.
///
/// # Panics
/// If the slices are shorter than these shapes.
pub fn multiply_transposed([m, k, n]: [usize; 3], a: &[f32], b: &[f32], out: &mut [f32]) {
    strided([m, k, n], a, k, b, [1, k], out, n, false);
}

/// Query rows below which one row after the other is faster than a matrix product.
const FEW: usize = 4;

/// `out = queries keysᵀ` for queries `(rows, D)` and keys `(n, D)`; rows of `out` are `stride` apart.
pub(super) fn score(queries: &[f32], keys: &[f32], d: usize, out: &mut [f32], stride: usize) {
    let (rows, n) = (queries.len() / d, keys.len() / d);
    if rows >= FEW {
        strided([rows, d, n], queries, d, keys, [1, d], out, stride, false);
        return;
    }
    for (query, out) in queries.chunks_exact(d).zip(out.chunks_mut(stride)) {
        keys.chunks_exact(d).zip(out).for_each(|(key, out)| *out = f32::dot(query, key));
    }
}

/// `out += weights values` for values `(n, D)` and out `(rows, D)`; rows of weights are `stride` apart.
pub(super) fn sum_up(weights: &[f32], stride: usize, values: &[f32], d: usize, out: &mut [f32]) {
    let (rows, n) = (out.len() / d, values.len() / d);
    if rows >= FEW {
        strided([rows, n, d], weights, stride, values, [d, 1], out, d, true);
        return;
    }
    for (weights, out) in weights.chunks(stride).zip(out.chunks_exact_mut(d)) {
        kernels::add_weighted(&weights[..n], values, out);
    }
}

/// The general case: rows of `a` are `a_row` apart, element `(i, j)` of `b` is at `i · b_strides[0] + j · b_strides[1]`,
/// rows of `out` are `out_row` apart.
#[allow(clippy::too_many_arguments)]
fn strided(
    [m, k, n]: [usize; 3],
    a: &[f32],
    a_row: usize,
    b: &[f32],
    b_strides: [usize; 2],
    out: &mut [f32],
    out_row: usize,
    add: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(k > 0 && out_row >= n && a_row >= k);
    assert!(a.len() >= (m - 1) * a_row + k);
    assert!(b.len() > (k - 1) * b_strides[0] + (n - 1) * b_strides[1]);
    assert!(out.len() >= (m - 1) * out_row + n);
    // SAFETY: the assertions keep every element of the three matrices inside its slice, and `out` is borrowed
    // exclusively, so it overlaps neither input.
    unsafe {
        gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_row as isize,
            add,
            a.as_ptr(),
            1,
            a_row as isize,
            b.as_ptr(),
            b_strides[1] as isize,
            b_strides[0] as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_by_hand() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 2.0, 1.0, 0.0, 3.0]);
        let mut out = [0.0; 4];
        multiply([2, 3, 2], &a, &b, &mut out, false);
        assert_eq!(out, [5.0, 11.0, 14.0, 23.0]);
        multiply([2, 3, 2], &a, &b, &mut out, true);
        assert_eq!(out, [10.0, 22.0, 28.0, 46.0]);
        multiply_transposed([2, 3, 2], &a, &b, &mut out);
        assert_eq!(out, [7.0, 10.0, 16.0, 22.0]);
    }
}
