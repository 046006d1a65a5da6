//! Least squares over a few atoms for many rows at once, and orthogonal matching pursuit, on tensors.
//!
//! The atoms of each row are made orthogonal one after the other (Gram and Schmidt, with two passes). So no matrix is
//! inverted. If an atom is almost in the span of the atoms before it, its coefficient is 0.

use candle_core::{D, DType, Tensor};

use super::pursuit::TensorAtoms;
use crate::CacheError;

/// If the squared length of an atom outside the span of the atoms before it is below this, the atom adds nothing. It is
/// the same limit as in [`kvcsr_codec`]'s pursuit.
const DEPENDENT: f64 = 1e-6;

/// The orthogonal directions of the atoms picked so far, for each row.
struct Basis {
    /// Rows `(n, width)`.
    x: Tensor,
    steps: Vec<Step>,
}

/// One atom for each row.
struct Step {
    /// `(n, width)`, of length 1 or 0.
    direction: Tensor,
    /// `(n, 1)` each: the atom's part along each earlier direction, then along its own.
    parts: Vec<Tensor>,
    /// `(n, 1)`: 1 where the atom adds something, else 0.
    alive: Tensor,
    /// `(n, 1)`: the row's part along the direction.
    along: Tensor,
}

fn product(a: &Tensor, b: &Tensor) -> Result<Tensor, CacheError> {
    Ok((a * b)?.sum_keepdim(1)?)
}

impl Basis {
    fn new(x: &Tensor) -> Self {
        Self { x: x.clone(), steps: Vec::new() }
    }

    /// Adds one atom to each row, `(n, width)`. `wanted` `(n, 1)` is 0 where the atom must not be used. Returns the
    /// part of the row that this atom explains in addition.
    fn add(&mut self, atom: &Tensor, wanted: &Tensor) -> Result<Tensor, CacheError> {
        let mut rest = atom.clone();
        let mut parts: Vec<Tensor> = Vec::with_capacity(self.steps.len() + 1);
        for pass in 0..2 {
            for (at, step) in self.steps.iter().enumerate() {
                let part = product(&rest, &step.direction)?;
                rest = (rest - step.direction.broadcast_mul(&part)?)?;
                if pass == 0 {
                    parts.push(part);
                } else {
                    parts[at] = (&parts[at] + part)?;
                }
            }
        }
        let square = rest.sqr()?.sum_keepdim(1)?;
        let alive = (square.gt(DEPENDENT)?.to_dtype(DType::F32)? * wanted)?;
        let length = square.maximum(f32::MIN_POSITIVE)?.sqrt()?;
        let direction = rest.broadcast_mul(&(&alive / &length)?)?;
        let along = product(&direction, &self.x)?;
        let explained = direction.broadcast_mul(&along)?;
        parts.push(length);
        self.steps.push(Step { direction, parts, alive, along });
        Ok(explained)
    }

    /// Least-squares coefficients of the atoms, in the order of the atoms, `(n, s)`.
    fn solve(&self) -> Result<Tensor, CacheError> {
        let mut found: Vec<Tensor> = Vec::with_capacity(self.steps.len());
        for (at, step) in self.steps.iter().enumerate().rev() {
            let mut rest = step.along.clone();
            // The later atoms, beginning with the last one, which is the order in which they were solved.
            for (later, coefficient) in self.steps.iter().rev().zip(&found) {
                rest = (rest - (&later.parts[at] * coefficient)?)?;
            }
            let length = step.parts.last().ok_or_else(|| candle_core::Error::Msg("an atom without a length".into()))?;
            found.push(((rest / length)? * &step.alive)?);
        }
        found.reverse();
        Ok(Tensor::cat(&found, 1)?)
    }
}

impl TensorAtoms {
    /// Least-squares coefficients `(n, s)` of `rows` `(n, width)` for atoms that are already picked:
    /// [`kvcsr_codec::refit`]. If an atom was picked twice, the first one takes the whole coefficient. A coefficient
    /// that was 0 stays 0.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn refit(&self, rows: &Tensor, indices: &Tensor, coefficients: &Tensor) -> Result<Tensor, CacheError> {
        let mut basis = Basis::new(rows);
        for step in 0..indices.dim(1)? {
            let atom = self.select(&indices.narrow(1, step, 1)?.contiguous()?.flatten_all()?)?;
            let wanted = coefficients.narrow(1, step, 1)?.ne(0f32)?.to_dtype(DType::F32)?;
            basis.add(&atom, &wanted)?;
        }
        basis.solve()
    }

    /// Codes `rows` `(n, width)` f32 by orthogonal matching pursuit, as [`kvcsr_codec::Encoder::encode_orthogonal`]
    /// does without a threshold. Returns indices `(n, s)` u32 and coefficients `(n, s)` f32. Each step takes, among the
    /// atoms not yet taken, the one with the largest product with the residual. Then it solves for all coefficients
    /// again.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn pursue_orthogonal(&self, rows: &Tensor, sparsity: usize) -> Result<(Tensor, Tensor), CacheError> {
        self.in_chunks(rows, |rows| self.pursue_orthogonal_at_once(rows, sparsity))
    }

    fn pursue_orthogonal_at_once(&self, rows: &Tensor, sparsity: usize) -> Result<(Tensor, Tensor), CacheError> {
        let rows = rows.contiguous()?;
        let mut basis = Basis::new(&rows);
        let (mut residual, mut indices) = (rows.clone(), Vec::<Tensor>::with_capacity(sparsity));
        for _ in 0..sparsity {
            let mut size = self.products(&residual)?.abs()?;
            if !indices.is_empty() {
                let taken = Tensor::cat(&indices, 1)?;
                size = size.scatter(&taken, &Tensor::full(-1f32, taken.shape(), rows.device())?, 1)?;
            }
            let index = size.argmax_keepdim(D::Minus1)?;
            let helps = size.gather(&index, 1)?.gt(0f32)?.to_dtype(DType::F32)?;
            let explained = basis.add(&self.select(&index.flatten_all()?)?, &helps)?;
            residual = (residual - explained)?;
            indices.push(index);
        }
        Ok((Tensor::cat(&indices, 1)?, basis.solve()?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use candle_core::Device;
    use kvcsr_codec::{Atoms, Dictionary, Encoder, OrthogonalCodes, refit};

    use super::*;
    use crate::conformance::noise;

    fn both(width: usize, atoms: usize) -> (Arc<Dictionary>, TensorAtoms) {
        let dictionary = Arc::new(Dictionary::normalised(width, noise(3, width * atoms)).unwrap());
        let table = Tensor::from_slice(dictionary.atoms(), (atoms, width), &Device::Cpu).unwrap();
        (dictionary, TensorAtoms::new(table))
    }

    fn numbers(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn orthogonal_pursuit_picks_what_the_kernels_pick() {
        for (width, atoms, sparsity) in [(64, 300, 8), (128, 700, 5), (16, 40, 1)] {
            let (dictionary, tensors) = both(width, atoms);
            let n = 60;
            let rows = noise(4, width * n);
            let (mut indices, mut coefficients) = (vec![0; n * sparsity], vec![0.0; n * sparsity]);
            let (mut lengths, mut residuals) = (vec![0; n], vec![0.0; n]);
            let codes = OrthogonalCodes {
                indices: &mut indices,
                coefficients: &mut coefficients,
                lengths: &mut lengths,
                residuals: &mut residuals,
            };
            let encoder = Encoder::new(dictionary.clone());
            encoder.encode_orthogonal(Atoms::from(dictionary.as_ref()), &rows, sparsity, 0.0, codes).unwrap();
            let x = Tensor::from_vec(rows, (n, width), &Device::Cpu).unwrap();
            let (i, c) = tensors.pursue_orthogonal(&x, sparsity).unwrap();
            let found: Vec<u32> = i.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(found, indices.iter().map(|&i| u32::from(i)).collect::<Vec<_>>());
            for (found, expected) in numbers(&c).iter().zip(&coefficients) {
                assert!((found - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
    }

    #[test]
    fn least_squares_are_those_of_the_kernels_with_atoms_picked_twice_or_not_used() {
        let (dictionary, tensors) = both(32, 50);
        let rows = noise(5, 32 * 3);
        let indices: [u16; 12] = [3, 9, 3, 20, 7, 8, 9, 10, 1, 1, 2, 4];
        let mut coefficients = [0.5, 0.2, -0.1, 0.3, 1.0, 0.0, 0.4, 0.1, 0.2, 0.1, 0.0, 0.6];
        let c = Tensor::from_slice(&coefficients, (3, 4), &Device::Cpu).unwrap();
        let i = Tensor::from_vec(indices.map(u32::from).to_vec(), (3, 4), &Device::Cpu).unwrap();
        let x = Tensor::from_slice(&rows, (3, 32), &Device::Cpu).unwrap();
        let found = numbers(&tensors.refit(&x, &i, &c).unwrap());
        refit(Atoms::from(dictionary.as_ref()), &rows, &indices, &mut coefficients).unwrap();
        for (found, expected) in found.iter().zip(&coefficients) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn rows_of_zeros_have_no_atoms() {
        let (_, tensors) = both(16, 20);
        let x = Tensor::zeros((2, 16), DType::F32, &Device::Cpu).unwrap();
        let (_, coefficients) = tensors.pursue_orthogonal(&x, 3).unwrap();
        assert_eq!(numbers(&coefficients), [0.0; 6]);
    }
}
