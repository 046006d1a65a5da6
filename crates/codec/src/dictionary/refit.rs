//! Least-squares coefficients for atoms that matching pursuit has picked.

use rayon::prelude::*;

use crate::{Atoms, CodecError};

/// Rows processed as one unit of parallel work.
const BLOCK: usize = 64;

/// Added to the unit diagonal of the normal equations, so that they stay solvable if two atoms are almost equal.
const RIDGE: f64 = 1e-6;

/// Replaces the coefficients `(n, s)` of `rows` `(n, width)` by those that minimise `||x - sum_j c_j d_{i_j}||²` over the
/// picked atoms, up to a ridge of `1e-6`. This is the last step of orthogonal matching pursuit. If an atom was picked more
/// than once, its first entry gets the whole coefficient and its other entries become 0. A row of zeros stays zero.
///
/// # Errors
/// If the sizes of the slices do not match, or a code names an unknown atom.
pub fn refit(atoms: Atoms<'_>, rows: &[f32], indices: &[u16], coefficients: &mut [f32]) -> Result<(), CodecError> {
    let width = atoms.width();
    let n = CodecError::multiple("rows", width, rows.len())?;
    CodecError::length("coefficients", indices.len(), coefficients.len())?;
    if n == 0 || indices.is_empty() {
        return Ok(());
    }
    CodecError::multiple("indices", n, indices.len())?;
    let s = indices.len() / n;
    if let Some(at) = indices.iter().position(|&i| usize::from(i) >= atoms.len()) {
        return Err(CodecError::UnknownAtom { row: at / s, index: indices[at].into(), atoms: atoms.len() });
    }
    rows.par_chunks(BLOCK * width)
        .zip(indices.par_chunks(BLOCK * s))
        .zip(coefficients.par_chunks_mut(BLOCK * s))
        .for_each_init(
            || System::new(s, width),
            |system, ((rows, indices), coefficients)| {
                let codes = indices.chunks_exact(s).zip(coefficients.chunks_exact_mut(s));
                for (row, (indices, coefficients)) in rows.chunks_exact(width).zip(codes) {
                    system.solve(atoms, row, indices, coefficients);
                }
            },
        );
    Ok(())
}

/// Normal equations of one row. The buffers are reused for the next row.
struct System {
    /// Atoms `(s, width)`.
    picked: Vec<f32>,
    /// Positions of the distinct atoms in the row's code.
    places: Vec<usize>,
    /// The lower triangle of the Gram matrix, later overwritten by its Cholesky factor, `(s, s)`.
    factor: Vec<f64>,
    right: Vec<f64>,
}

impl System {
    fn new(s: usize, width: usize) -> Self {
        Self {
            picked: vec![0.0; s * width],
            places: Vec::with_capacity(s),
            factor: vec![0.0; s * s],
            right: vec![0.0; s],
        }
    }

    fn solve(&mut self, atoms: Atoms<'_>, row: &[f32], indices: &[u16], coefficients: &mut [f32]) {
        let (s, width) = (indices.len(), row.len());
        self.places.clear();
        for place in 0..s {
            let repeated = self.places.iter().any(|&p| indices[p] == indices[place]);
            if coefficients[place] != 0.0 && !repeated {
                self.places.push(place);
            }
        }
        let n = self.places.len();
        for (i, &place) in self.places.iter().enumerate() {
            atoms.copy_atom(indices[place].into(), &mut self.picked[i * width..(i + 1) * width]);
        }
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let atom = |i: usize| &self.picked[i * width..(i + 1) * width];
        for i in 0..n {
            self.right[i] = dot(atom(i), row);
            for j in 0..=i {
                let ridge = if i == j { RIDGE } else { 0.0 };
                let sum: f64 = (0..j).map(|k| self.factor[i * s + k] * self.factor[j * s + k]).sum();
                let rest = dot(atom(i), atom(j)) + ridge - sum;
                self.factor[i * s + j] =
                    if i == j { rest.max(RIDGE * RIDGE).sqrt() } else { rest / self.factor[j * s + j] };
            }
        }
        for i in 0..n {
            let sum: f64 = (0..i).map(|k| self.factor[i * s + k] * self.right[k]).sum();
            self.right[i] = (self.right[i] - sum) / self.factor[i * s + i];
        }
        for i in (0..n).rev() {
            let sum: f64 = (i + 1..n).map(|k| self.factor[k * s + i] * self.right[k]).sum();
            self.right[i] = (self.right[i] - sum) / self.factor[i * s + i];
        }
        coefficients.fill(0.0);
        for (&place, &c) in self.places.iter().zip(&self.right) {
            coefficients[place] = c as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Dictionary;

    /// (1, 1) over e0 and (0.6, 0.8) is exactly 0.25 e0 + 1.25 (0.6, 0.8).
    #[test]
    fn least_squares_by_hand() {
        let dictionary = Dictionary::new(2, vec![1.0, 0.0, 0.6, 0.8]).unwrap();
        let mut coefficients = [1.4, 0.16, -0.096, 0.0, 0.0, 0.0];
        refit((&dictionary).into(), &[1.0, 1.0, 0.0, 0.0], &[1, 0, 1, 0, 0, 0], &mut coefficients).unwrap();
        for (found, expected) in coefficients.iter().zip([1.25, 0.25, 0.0, 0.0, 0.0, 0.0]) {
            assert!((found - expected).abs() < 1e-4, "{coefficients:?}");
        }
        let mut short = [1.0];
        assert!(refit((&dictionary).into(), &[1.0, 1.0], &[2], &mut short).is_err());
    }
}
