//! Random orthogonal matrices.

use kvcsr_codec::kernels::{Matrix, MatrixMut, multiply};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::schemes::variates::normal;

/// A seeded random rotation for vectors of `size` channels.
#[derive(Debug)]
pub struct Rotation {
    size: usize,
    /// Orthonormal, `(size, size)`: row `i` says how channel `i` of a vector contributes to the rotated channels.
    matrix: Vec<f32>,
}

impl Rotation {
    /// The orthogonal factor of a matrix of independent normal variates. It is uniformly distributed over all rotations
    /// and reflections.
    pub fn new(size: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut rows: Vec<Vec<f64>> = Vec::with_capacity(size);
        while rows.len() < size {
            let mut row: Vec<f64> = (0..size).map(|_| normal(&mut rng)).collect();
            // Two passes, so that rounding leaves no part of the earlier rows.
            for _ in 0..2 {
                for before in &rows {
                    let along: f64 = row.iter().zip(before).map(|(a, b)| a * b).sum();
                    row.iter_mut().zip(before).for_each(|(a, b)| *a -= along * b);
                }
            }
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            if norm > 1e-6 {
                row.iter_mut().for_each(|x| *x /= norm);
                rows.push(row);
            }
        }
        Self { size, matrix: rows.into_iter().flatten().map(|x| x as f32).collect() }
    }

    /// Rotates each of the rows `(n, size)` into `out`. The result for a row does not depend on the other rows in the
    /// call: the code of a channel must not depend on how many tokens arrive together.
    pub fn apply(&self, rows: &[f32], out: &mut [f32]) {
        for (row, out) in rows.chunks_exact(self.size).zip(out.chunks_exact_mut(self.size)) {
            out.fill(0.0);
            for (&x, column) in row.iter().zip(self.matrix.chunks_exact(self.size)) {
                out.iter_mut().zip(column).for_each(|(out, w)| *out += x * w);
            }
        }
    }

    /// Rotates rows `(n, size)` back into `out`.
    pub fn undo(&self, rows: &[f32], out: &mut [f32]) {
        let n = rows.len() / self.size;
        let matrix = Matrix::new(&self.matrix, self.size, self.size).transposed();
        multiply(MatrixMut::new(out, n, self.size), Matrix::new(rows, n, self.size), matrix);
    }

    /// Bytes of the matrix.
    pub fn bytes(&self) -> usize {
        self.matrix.len() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_keep_lengths_and_turn_back() {
        let rotation = Rotation::new(48, 1);
        let rows: Vec<f32> = (0..96).map(|i| (i as f32 * 0.7).sin()).collect();
        let (mut turned, mut back) = (vec![0.0; 96], vec![0.0; 96]);
        rotation.apply(&rows, &mut turned);
        rotation.undo(&turned, &mut back);
        let length = |x: &[f32]| x[..48].iter().map(|x| x * x).sum::<f32>();
        assert!((length(&rows) - length(&turned)).abs() < 1e-4);
        assert!(rows.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-5));
        assert!(rows.iter().zip(&turned).any(|(a, b)| (a - b).abs() > 0.1));
        assert_ne!(rotation.matrix, Rotation::new(48, 2).matrix);
    }
}
