//! Trainer `mod`: computes the atoms in closed form from the codes (beyond the paper).
//!
//! MOD, the method of optimal directions (Engan, Aase, Husøy 1999), alternates sparse coding with the computation of the
//! dictionary that is optimal for the codes. For codes `r_x`, let `G = Σ w r rᵀ` and `C = Σ w r xᵀ`. The minimiser of
//! `Σ w ||x - W r||²` solves `G W = C`, where atoms are the rows of `W`. The sums are updated batch by batch, as in online
//! dictionary learning (Mairal et al. 2010). Older batches have less weight, because their codes come from older atoms.
//! The system that is solved is `(G + λ I) W = C + λ W_old`. With it, an atom that is rarely used stays where it is and
//! does not follow noise.

use tch::{Device, Kind, Tensor};

use crate::{
    coder::HostCodes,
    error::Result,
    optimiser::{renorm, row_norms},
};

/// Vectors encoded per atom between two solutions. A solution costs `N³ / 3`; encoding these vectors costs `8 N² D s`.
const VECTORS_PER_ATOM: usize = 8;
/// The `t`-th solution multiplies the earlier statistics by `(1 - 1/(t + 1))^FORGETTING`.
const FORGETTING: i32 = 3;
/// `λ`, as a fraction of the mean of `G`'s diagonal.
const PULL: f64 = 1e-2;
/// With more atoms than this the system is solved in f32, to save memory.
const DOUBLE_UP_TO: usize = 4096;

/// Sums over the vectors seen so far, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    pub(crate) atoms: usize,
    pub(crate) width: usize,
    /// `Σ w r rᵀ`, `(N, N)`. Only the lower triangle is updated.
    pub(crate) gram: Vec<f32>,
    /// `Σ w r xᵀ`, `(N, D)`.
    pub(crate) cross: Vec<f32>,
    /// Number of vectors since the last solution, and number of solutions so far.
    pub(crate) pending: usize,
    pub(crate) solutions: usize,
}

impl Closed {
    /// The state before any vector. It holds `4 N (N + D)` bytes.
    #[must_use]
    pub fn new(atoms: usize, width: usize) -> Self {
        Self { atoms, width, gram: vec![0.0; atoms * atoms], cross: vec![0.0; atoms * width], pending: 0, solutions: 0 }
    }

    /// Adds the codes of `rows (B, D)`, with their weights if there are any. The sums are in the order of the rows.
    pub(crate) fn absorb(&mut self, rows: &[f32], codes: &HostCodes, sparsity: usize, weights: Option<&[f32]>) {
        let (n, width) = (self.atoms, self.width);
        let coded = codes.indices.chunks_exact(sparsity).zip(codes.coefficients.chunks_exact(sparsity));
        for (at, (row, (indices, coefficients))) in rows.chunks_exact(width).zip(coded).enumerate() {
            let weight = weights.map_or(1.0, |w| w[at]);
            for (&i, &c) in indices.iter().zip(coefficients) {
                let (i, scaled) = (usize::from(i), weight * c);
                if scaled == 0.0 {
                    continue;
                }
                for (sum, &x) in self.cross[i * width..(i + 1) * width].iter_mut().zip(row) {
                    *sum += scaled * x;
                }
                for (&j, &other) in indices.iter().zip(coefficients) {
                    let j = usize::from(j);
                    if j <= i {
                        self.gram[i * n + j] += scaled * other;
                    }
                }
            }
        }
        self.pending += rows.len() / width;
    }

    /// Whether enough vectors were added since the last solution.
    pub(crate) fn is_due(&self) -> bool {
        self.pending >= VECTORS_PER_ATOM * self.atoms
    }

    /// Computes the atoms `(N, D)` of unit length for the codes seen so far, given the present atoms.
    ///
    /// # Errors
    /// If the system cannot be solved because its entries are not finite.
    pub(crate) fn solve(&mut self, atoms: &Tensor, device: Device) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let (n, width) = (self.atoms as i64, self.width as i64);
        let kind = if self.atoms <= DOUBLE_UP_TO { Kind::Double } else { Kind::Float };
        let on = |values: &[f32], columns: i64| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(values)?.f_view([n, columns])?.f_to_device(device)?.f_to_kind(kind)?)
        };
        let mean = (0..self.atoms).map(|i| f64::from(self.gram[i * self.atoms + i])).sum::<f64>() / n as f64;
        let pull = (PULL * mean).max(f64::from(f32::MIN_POSITIVE));
        let system = on(&self.gram, n)?;
        let mut diagonal = system.f_diagonal(0, 0, 1)?;
        let _ = diagonal.f_add_scalar_(pull)?;
        let right = on(&self.cross, width)?.f_add(&atoms.f_to_kind(kind)?.f_mul_scalar(pull)?)?;
        // This reads only the lower triangle.
        let factor = system.f_linalg_cholesky(false)?;
        let solved = right.f_cholesky_solve(&factor, false)?.f_to_kind(atoms.kind())?;
        self.pending = 0;
        self.solutions += 1;
        let lengths = row_norms(&solved)?;
        self.rescale(&lengths)?;
        renorm(&solved)
    }

    /// Converts the sums to those of codes over atoms of unit length, and reduces the weight of older vectors. If an atom is
    /// shortened by a factor, its coefficients grow by the same factor.
    fn rescale(&mut self, lengths: &Tensor) -> Result<()> {
        let mut scale = vec![0f32; self.atoms];
        lengths.f_to_kind(Kind::Float)?.f_view([-1])?.f_copy_data(&mut scale, self.atoms)?;
        let keep = (1.0 - 1.0 / (self.solutions as f32 + 1.0)).powi(FORGETTING);
        for (i, row) in self.gram.chunks_exact_mut(self.atoms).enumerate() {
            let own = keep * scale[i];
            row[..=i].iter_mut().zip(&scale).for_each(|(sum, other)| *sum *= own * other);
        }
        for (row, own) in self.cross.chunks_exact_mut(self.width).zip(&scale) {
            row.iter_mut().for_each(|sum| *sum *= keep * own);
        }
        Ok(())
    }

    /// Removes the statistics of one atom.
    pub(crate) fn forget(&mut self, atom: usize) {
        let n = self.atoms;
        self.gram[atom * n..(atom + 1) * n].fill(0.0);
        (atom..n).for_each(|row| self.gram[row * n + atom] = 0.0);
        self.cross[atom * self.width..(atom + 1) * self.width].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        coder::to_tensor,
        pursuit::{linear_residual, select_atoms},
        testing::{random_tensor, random_values, unit_rows},
    };

    fn codes_of(atoms: &Tensor, rows: &Tensor, sparsity: usize) -> HostCodes {
        let found = select_atoms(atoms, rows, sparsity).unwrap();
        let indices = Vec::<i64>::try_from(found.indices.flatten(0, -1)).unwrap();
        HostCodes {
            indices: indices.into_iter().map(|i| i as u16).collect(),
            coefficients: Vec::<f32>::try_from(found.coefficients.flatten(0, -1)).unwrap(),
        }
    }

    fn error(atoms: &Tensor, rows: &Tensor, codes: &HostCodes) -> f64 {
        let indices = codes.index_tensor(3, Device::Cpu).unwrap();
        let coefficients = codes.coefficient_tensor(3, Device::Cpu).unwrap();
        let left = linear_residual(atoms, rows, &indices, &coefficients).unwrap();
        left.square().sum(None::<Kind>).double_value(&[])
    }

    #[test]
    fn the_solution_is_the_least_squares_one_for_the_codes() {
        let atoms = unit_rows(&random_tensor(1, &[20, 6])).to_kind(Kind::Float);
        let values: Vec<f32> = random_values(2, 400 * 6).into_iter().map(|v| v as f32).collect();
        let rows = to_tensor(&values, 6, Device::Cpu).unwrap();
        let codes = codes_of(&atoms, &rows, 3);
        let mut closed = Closed::new(20, 6);
        closed.absorb(&values[..200 * 6], &part(&codes, 0, 200), 3, None);
        closed.absorb(&values[200 * 6..], &part(&codes, 200, 400), 3, None);
        assert!(closed.is_due());
        let before = closed.clone();
        let solved = closed.solve(&atoms, Device::Cpu).unwrap();
        // Coefficients that compensate for ReNorm: `G` is scaled by the lengths, as the statistics are.
        let lengths: Vec<f32> =
            (0..20).map(|i| (closed.gram[i * 20 + i] / before.gram[i * 20 + i] * 8.0).sqrt()).collect();
        let refitted = HostCodes {
            indices: codes.indices.clone(),
            coefficients: codes
                .indices
                .iter()
                .zip(&codes.coefficients)
                .map(|(&i, c)| c * lengths[usize::from(i)])
                .collect(),
        };
        let (old, new) = (error(&atoms, &rows, &codes), error(&solved, &rows, &refitted));
        assert!(new < 0.9 * old, "{old} -> {new}");
        // A small rotation of any atom increases the error, up to the effect of the pull.
        let turned = unit_rows(&(&solved + random_tensor(3, &[20, 6]).to_kind(Kind::Float) * 0.1));
        assert!(error(&turned, &rows, &refitted) > new);
    }

    fn part(codes: &HostCodes, from: usize, to: usize) -> HostCodes {
        HostCodes {
            indices: codes.indices[3 * from..3 * to].to_vec(),
            coefficients: codes.coefficients[3 * from..3 * to].to_vec(),
        }
    }

    #[test]
    fn an_atom_that_was_never_used_stays() {
        let atoms = Tensor::eye(3, (Kind::Float, Device::Cpu));
        let mut closed = Closed::new(3, 3);
        let codes = HostCodes { indices: vec![0, 1], coefficients: vec![1.0, 1.0] };
        closed.absorb(&[0.6, 0.8, 0.0, 0.0, 1.0, 0.0], &codes, 1, None);
        let solved = Vec::<f32>::try_from(closed.solve(&atoms, Device::Cpu).unwrap().flatten(0, -1)).unwrap();
        assert!((solved[0] - 0.6).abs() < 0.02 && (solved[1] - 0.8).abs() < 0.02, "{solved:?}");
        assert_eq!(solved[6..], [0.0, 0.0, 1.0]);
    }

    #[test]
    fn weights_decide_between_vectors() {
        let atoms = Tensor::from_slice(&[1f32, 0.0]).view([1, 2]);
        let mut closed = Closed::new(1, 2);
        let codes = HostCodes { indices: vec![0, 0], coefficients: vec![1.0, 1.0] };
        closed.absorb(&[1.0, 1.0, 1.0, -1.0], &codes, 1, Some(&[3.0, 1.0]));
        let solved = Vec::<f32>::try_from(closed.solve(&atoms, Device::Cpu).unwrap().flatten(0, -1)).unwrap();
        assert!((solved[1] / solved[0] - 0.5).abs() < 0.02, "{solved:?}");
        closed.forget(0);
        assert!(closed.gram.iter().chain(&closed.cross).all(|&sum| sum == 0.0));
    }
}
