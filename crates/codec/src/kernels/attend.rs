//! Bodies of the attention kernels, written so that the compiler vectorises them.
//!
//! Each instruction set inlines the same body, with the same order of additions in the source, so
//! all of them give the same bits.

/// Partial sums of a dot product: one AVX-512 register, two of AVX2.
const LANES: usize = 16;

/// See [`super::Isa::rotate`].
#[inline(always)]
pub(super) fn rotate(rows: &mut [f32], cos: &[f32], sin: &[f32], half: usize) {
    let tables = cos.chunks_exact(half).zip(sin.chunks_exact(half));
    for (row, (cos, sin)) in rows.chunks_exact_mut(2 * half).zip(tables) {
        let (first, second) = row.split_at_mut(half);
        for ((x, y), (&c, &s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
            let (a, b) = (*x, *y);
            *x = a.mul_add(c, -(b * s));
            *y = b.mul_add(c, a * s);
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for k in 0..LANES {
            sums[k] = a[k].mul_add(b[k], sums[k]);
        }
    }
    let mut step = LANES / 2;
    while step > 0 {
        for k in 0..step {
            sums[k] += sums[k + step];
        }
        step /= 2;
    }
    a_tail.iter().zip(b_tail).fold(sums[0], |sum, (&a, &b)| a.mul_add(b, sum))
}

/// See [`super::Isa::scores`].
#[inline(always)]
pub(super) fn scores(keys: &[f32], queries: &[f32], width: usize, out: &mut [f32]) {
    let count = queries.len() / width;
    for (key, out) in keys.chunks_exact(width).zip(out.chunks_exact_mut(count)) {
        for (query, out) in queries.chunks_exact(width).zip(out) {
            *out = dot(key, query);
        }
    }
}

/// See [`super::Isa::exponentials`].
#[inline(always)]
pub(super) fn exponentials(x: &mut [f32], reference: &[f32]) {
    for row in x.chunks_exact_mut(reference.len()) {
        for (x, reference) in row.iter_mut().zip(reference) {
            *x -= reference;
        }
    }
    for x in x {
        *x = exponential(*x);
    }
}

/// `e^x = 2^n e^r` with `n` the integer nearest to `x log2 e` and `|r| <= ln 2 / 2`.
#[inline(always)]
fn exponential(x: f32) -> f32 {
    /// Added to a small number, it leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let series = [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let e = series.into_iter().fold(1.0 / 720.0, |sum: f32, term| sum.mul_add(r, term));
    e * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// See [`super::Isa::scatter`].
#[inline(always)]
pub(super) fn scatter(
    sums: &mut [f32],
    queries: usize,
    chunks: usize,
    indices: &[u16],
    coefficients: &[f32],
    weights: &[f32],
) {
    match queries {
        1 => scatter_some::<1>(sums, chunks, indices, coefficients, weights),
        2 => scatter_some::<2>(sums, chunks, indices, coefficients, weights),
        3 => scatter_some::<3>(sums, chunks, indices, coefficients, weights),
        4 => scatter_some::<4>(sums, chunks, indices, coefficients, weights),
        8 => scatter_some::<8>(sums, chunks, indices, coefficients, weights),
        _ => {
            let (codes, atoms) = (code_length(indices, weights, queries, chunks), sums.len() / queries / chunks);
            for (row, (indices, coefficients)) in
                indices.chunks_exact(codes).zip(coefficients.chunks_exact(codes)).enumerate()
            {
                let token = row / chunks;
                let weights = &weights[token * queries..(token + 1) * queries];
                let first = row % chunks * atoms;
                for (&index, &c) in indices.iter().zip(coefficients) {
                    let at = (first + usize::from(index)) * queries;
                    for (sum, &w) in sums[at..at + queries].iter_mut().zip(weights) {
                        *sum = c.mul_add(w, *sum);
                    }
                }
            }
        }
    }
}

/// Atoms per row of codes; 1 where there are no rows.
#[inline(always)]
fn code_length(indices: &[u16], weights: &[f32], queries: usize, chunks: usize) -> usize {
    (indices.len() / (weights.len() / queries * chunks).max(1)).max(1)
}

#[inline(always)]
fn scatter_some<const Q: usize>(
    sums: &mut [f32],
    chunks: usize,
    indices: &[u16],
    coefficients: &[f32],
    weights: &[f32],
) {
    let codes = code_length(indices, weights, Q, chunks);
    let (sums, weights) = (sums.as_chunks_mut::<Q>().0, weights.as_chunks::<Q>().0);
    let atoms = sums.len() / chunks;
    for (row, (indices, coefficients)) in indices.chunks_exact(codes).zip(coefficients.chunks_exact(codes)).enumerate()
    {
        let weights = &weights[row / chunks];
        let sums = &mut sums[row % chunks * atoms..][..atoms];
        for (&index, &c) in indices.iter().zip(coefficients) {
            let sum = &mut sums[usize::from(index)];
            for q in 0..Q {
                sum[q] = c.mul_add(weights[q], sum[q]);
            }
        }
    }
}

/// See [`super::Isa::score_codes`].
#[inline(always)]
pub(super) fn score_codes(
    products: &[f32],
    chunks: usize,
    indices: &[u16],
    coefficients: &[f32],
    out: &mut [f32],
    queries: usize,
) {
    match queries {
        1 => score_some::<1>(products, chunks, indices, coefficients, out),
        2 => score_some::<2>(products, chunks, indices, coefficients, out),
        3 => score_some::<3>(products, chunks, indices, coefficients, out),
        4 => score_some::<4>(products, chunks, indices, coefficients, out),
        8 => score_some::<8>(products, chunks, indices, coefficients, out),
        _ => {
            let (codes, atoms) = (code_length(indices, out, queries, chunks), products.len() / queries / chunks);
            out.fill(0.0);
            for (row, (indices, coefficients)) in
                indices.chunks_exact(codes).zip(coefficients.chunks_exact(codes)).enumerate()
            {
                let token = row / chunks;
                let out = &mut out[token * queries..(token + 1) * queries];
                let first = row % chunks * atoms;
                for (&index, &c) in indices.iter().zip(coefficients) {
                    let at = (first + usize::from(index)) * queries;
                    for (out, &p) in out.iter_mut().zip(&products[at..at + queries]) {
                        *out = c.mul_add(p, *out);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn score_some<const Q: usize>(products: &[f32], chunks: usize, indices: &[u16], coefficients: &[f32], out: &mut [f32]) {
    let codes = code_length(indices, out, Q, chunks);
    let (products, out) = (products.as_chunks::<Q>().0, out.as_chunks_mut::<Q>().0);
    let atoms = products.len() / chunks;
    for (out, (indices, coefficients)) in
        out.iter_mut().zip(indices.chunks_exact(codes * chunks).zip(coefficients.chunks_exact(codes * chunks)))
    {
        let mut sums = [0.0f32; Q];
        let rows = indices.chunks_exact(codes).zip(coefficients.chunks_exact(codes));
        for (products, (indices, coefficients)) in products.chunks_exact(atoms).zip(rows) {
            for (&index, &c) in indices.iter().zip(coefficients) {
                let product = &products[usize::from(index)];
                for q in 0..Q {
                    sums[q] = c.mul_add(product[q], sums[q]);
                }
            }
        }
        *out = sums;
    }
}

/// See [`super::Isa::gather`].
#[inline(always)]
pub(super) fn gather(out: &mut [f32], stride: usize, atoms: &[f32], width: usize, sums: &[f32], queries: usize) {
    for (atom, sums) in atoms.chunks_exact(width).zip(sums.chunks_exact(queries)) {
        for (q, &sum) in sums.iter().enumerate() {
            if sum == 0.0 {
                continue;
            }
            for (out, &x) in out[q * stride..][..width].iter_mut().zip(atom) {
                *out = sum.mul_add(x, *out);
            }
        }
    }
}
