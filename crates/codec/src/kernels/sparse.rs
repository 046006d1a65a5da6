//! Attention on sparse codes: look up scores, scatter weights to atoms, gather atoms.
//!
//! A pass over codes touches a few numbers per atom, one per query. The bodies are therefore written for fixed numbers
//! of queries, and the compiler vectorises them.

use super::simd::{Kernel, Simd};

/// A body for a number of queries that the compiler knows, and one for any number.
trait ByQueries: Sized {
    fn some<const Q: usize>(self);
    fn any(self);
}

/// Runs the body for this number of queries. It is unrolled for 1 to 4 and 8, the usual numbers of heads per group.
#[inline(always)]
fn by_queries(queries: usize, body: impl ByQueries) {
    match queries {
        1 => body.some::<1>(),
        2 => body.some::<2>(),
        3 => body.some::<3>(),
        4 => body.some::<4>(),
        8 => body.some::<8>(),
        _ => body.any(),
    }
}

/// See [`super::Isa::scatter`].
pub(super) struct Scatter<'a> {
    pub(super) sums: &'a mut [f32],
    pub(super) queries: usize,
    pub(super) chunks: usize,
    pub(super) indices: &'a [u16],
    pub(super) coefficients: &'a [f32],
    pub(super) weights: &'a [f32],
}

impl Kernel for Scatter<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        by_queries(self.queries, self);
    }
}

impl ByQueries for Scatter<'_> {
    #[inline(always)]
    fn any(self) {
        let (queries, chunks) = (self.queries, self.chunks);
        let codes = code_length(self.indices, self.weights, queries, chunks);
        let atoms = self.sums.len() / queries / chunks;
        let rows = self.indices.chunks_exact(codes).zip(self.coefficients.chunks_exact(codes));
        for (row, (indices, coefficients)) in rows.enumerate() {
            let token = row / chunks;
            let weights = &self.weights[token * queries..(token + 1) * queries];
            let first = row % chunks * atoms;
            for (&index, &c) in indices.iter().zip(coefficients) {
                let at = (first + usize::from(index)) * queries;
                for (sum, &w) in self.sums[at..at + queries].iter_mut().zip(weights) {
                    *sum = c.mul_add(w, *sum);
                }
            }
        }
    }

    #[inline(always)]
    fn some<const Q: usize>(self) {
        let codes = code_length(self.indices, self.weights, Q, self.chunks);
        let (sums, weights) = (self.sums.as_chunks_mut::<Q>().0, self.weights.as_chunks::<Q>().0);
        let atoms = sums.len() / self.chunks;
        let rows = self.indices.chunks_exact(codes).zip(self.coefficients.chunks_exact(codes));
        for (row, (indices, coefficients)) in rows.enumerate() {
            let weights = &weights[row / self.chunks];
            let sums = &mut sums[row % self.chunks * atoms..][..atoms];
            for (&index, &c) in indices.iter().zip(coefficients) {
                let sum = &mut sums[usize::from(index)];
                for q in 0..Q {
                    sum[q] = c.mul_add(weights[q], sum[q]);
                }
            }
        }
    }
}

/// Atoms per row of codes, or 1 if there are no rows.
#[inline(always)]
fn code_length(indices: &[u16], weights: &[f32], queries: usize, chunks: usize) -> usize {
    (indices.len() / (weights.len() / queries * chunks).max(1)).max(1)
}

/// See [`super::Isa::score_codes`].
pub(super) struct ScoreCodes<'a> {
    pub(super) products: &'a [f32],
    pub(super) chunks: usize,
    pub(super) indices: &'a [u16],
    pub(super) coefficients: &'a [f32],
    pub(super) out: &'a mut [f32],
    pub(super) queries: usize,
}

impl Kernel for ScoreCodes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        by_queries(self.queries, self);
    }
}

impl ByQueries for ScoreCodes<'_> {
    #[inline(always)]
    fn any(self) {
        let (queries, chunks) = (self.queries, self.chunks);
        let codes = code_length(self.indices, self.out, queries, chunks);
        let atoms = self.products.len() / queries / chunks;
        self.out.fill(0.0);
        let rows = self.indices.chunks_exact(codes).zip(self.coefficients.chunks_exact(codes));
        for (row, (indices, coefficients)) in rows.enumerate() {
            let token = row / chunks;
            let out = &mut self.out[token * queries..(token + 1) * queries];
            let first = row % chunks * atoms;
            for (&index, &c) in indices.iter().zip(coefficients) {
                let at = (first + usize::from(index)) * queries;
                for (out, &p) in out.iter_mut().zip(&self.products[at..at + queries]) {
                    *out = c.mul_add(p, *out);
                }
            }
        }
    }

    #[inline(always)]
    fn some<const Q: usize>(self) {
        let of_token = code_length(self.indices, self.out, Q, self.chunks) * self.chunks;
        let (products, out) = (self.products.as_chunks::<Q>().0, self.out.as_chunks_mut::<Q>().0);
        let atoms = products.len() / self.chunks;
        let tokens = self.indices.chunks_exact(of_token).zip(self.coefficients.chunks_exact(of_token));
        for (out, (indices, coefficients)) in out.iter_mut().zip(tokens) {
            let mut sums = [0.0f32; Q];
            let codes = of_token / self.chunks;
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
}

/// See [`super::Isa::gather`].
pub(super) struct Gather<'a> {
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) atoms: &'a [f32],
    pub(super) width: usize,
    pub(super) sums: &'a [f32],
    pub(super) queries: usize,
}

impl Kernel for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (atom, sums) in self.atoms.chunks_exact(self.width).zip(self.sums.chunks_exact(self.queries)) {
            for (q, &sum) in sums.iter().enumerate() {
                if sum == 0.0 {
                    continue;
                }
                for (out, &x) in self.out[q * self.stride..][..self.width].iter_mut().zip(atom) {
                    *out = sum.mul_add(x, *out);
                }
            }
        }
    }
}
