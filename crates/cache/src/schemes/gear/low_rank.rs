//! A low-rank factor of a head's residual, computed by power iteration.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvcsr_codec::kernels::{Isa, Matrix, MatrixMut, multiply, to_f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::coded::drop_front;

/// Iterations, as in the released code.
pub(super) const ITERATIONS: usize = 3;

/// The product `A Bᵀ`, `(tokens, D)`. `A` is `(tokens, r)` and `B` is `(D, r)`, in f16.
#[derive(Debug, Default)]
pub(super) struct LowRank {
    rank: usize,
    a: Vec<f16>,
    b: Vec<f16>,
}

impl LowRank {
    /// The best factor of rank at most `rank` for `residual` `(tokens, D)`, starting from random numbers.
    pub(super) fn of(residual: &[f32], d: usize, rank: usize, seed: u64) -> Self {
        let n = residual.len() / d;
        let rank = rank.min(n).min(d);
        if rank == 0 {
            return Self::default();
        }
        let mut b = start(d * rank, seed);
        let mut a = vec![0f32; n * rank];
        let mut transposed = vec![0f32; residual.len()];
        for (i, row) in residual.chunks_exact(d).enumerate() {
            row.iter().enumerate().for_each(|(j, &x)| transposed[j * n + i] = x);
        }
        for iteration in 0..ITERATIONS {
            let last = iteration + 1 == ITERATIONS;
            if last {
                orthonormalise(&mut b, rank);
            }
            multiply(MatrixMut::new(&mut a, n, rank), Matrix::new(residual, n, d), Matrix::new(&b, d, rank));
            if last {
                orthonormalise(&mut a, rank);
            }
            multiply(MatrixMut::new(&mut b, d, rank), Matrix::new(&transposed, d, n), Matrix::new(&a, n, rank));
        }
        Self { rank, a: halves(&a), b: halves(&b) }
    }

    /// Adds the rows of `tokens` to `out` `(n, D)`.
    pub(super) fn add(&self, tokens: std::ops::Range<usize>, d: usize, out: &mut [f32]) {
        if self.rank == 0 {
            return;
        }
        let mut a = vec![0f32; tokens.len() * self.rank];
        let mut b = vec![0f32; d * self.rank];
        self.a[tokens.start * self.rank..tokens.end * self.rank].convert_to_f32_slice(&mut a);
        self.b.convert_to_f32_slice(&mut b);
        // (r, D)
        let mut turned = vec![0f32; b.len()];
        for (i, row) in b.chunks_exact(self.rank).enumerate() {
            row.iter().enumerate().for_each(|(k, x)| turned[k * d + i] = *x);
        }
        for (row, a) in out.chunks_exact_mut(d).zip(a.chunks_exact(self.rank)) {
            Isa::detect().add_weighted(a, &turned, row);
        }
    }

    /// Drops the first `tokens` rows.
    pub(super) fn drop_first(&mut self, tokens: usize) {
        drop_front(&mut self.a, tokens * self.rank);
    }

    pub(super) fn bytes(&self) -> usize {
        (self.a.capacity() + self.b.capacity()) * size_of::<f16>()
    }
}

/// The random numbers with which the iteration starts.
pub(super) fn start(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(0.0f32..1.0)).collect()
}

fn halves(x: &[f32]) -> Vec<f16> {
    to_f16(x)
}

/// Gram-Schmidt in f64 on the columns of `x` `(n, rank)`. Columns that depend on earlier columns become zero.
fn orthonormalise(x: &mut [f32], rank: usize) {
    let column = |x: &[f32], c: usize| -> Vec<f64> { x.iter().skip(c).step_by(rank).map(|&v| f64::from(v)).collect() };
    let mut done: Vec<Vec<f64>> = Vec::with_capacity(rank);
    for c in 0..rank {
        let mut v = column(x, c);
        let length = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let before = length(&v);
        for _ in 0..2 {
            for u in &done {
                let along: f64 = v.iter().zip(u).map(|(a, b)| a * b).sum();
                v.iter_mut().zip(u).for_each(|(a, b)| *a -= along * b);
            }
        }
        let norm = length(&v);
        let factor = if norm > 1e-9 * before && norm > 0.0 { 1.0 / norm } else { 0.0 };
        v.iter_mut().for_each(|v| *v *= factor);
        x.iter_mut().skip(c).step_by(rank).zip(&v).for_each(|(x, &v)| *x = v as f32);
        done.push(v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_of_low_rank_comes_back() {
        let (n, d) = (30, 16);
        let part = |i: usize, k: usize| (i as f32 * (0.3 + k as f32) + k as f32).sin();
        let x: Vec<f32> =
            (0..n * d).map(|at| (0..3).map(|k| part(at / d, k) * part(at % d + 7, k + 3)).sum()).collect();
        let error = |rank: usize| {
            let low = LowRank::of(&x, d, rank, 1);
            let mut y = vec![0.0; x.len()];
            low.add(0..n, d, &mut y);
            x.iter().zip(&y).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / x.iter().map(|a| a * a).sum::<f32>()
        };
        assert!(error(3) < 1e-5, "{}", error(3));
        assert!(error(1) > error(2) && error(2) > 10.0 * error(3), "{} {}", error(1), error(2));
        assert_eq!(LowRank::of(&vec![0.0; 64], 16, 2, 1).bytes(), (4 * 2 + 16 * 2) * 2);
    }
}
