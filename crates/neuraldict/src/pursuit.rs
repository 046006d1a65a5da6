//! Matching pursuit in libtorch. It picks atoms on the training device, and computes the residual as a differentiable
//! function of the atoms (paper section 3.1; the gradient of Algorithm 1, step 4).
//!
//! A pick is an argmax and has no gradient. For given picks `i_1 .. i_s`, the residual
//! `R_{g+1} = R_g - <R_g, d_{i_g}> d_{i_g}` is a polynomial of the atoms. [`unrolled_residual`] computes this polynomial.

use tch::{Kind, Tensor};

use crate::{error::Result, optimiser::square_roots};

/// The atoms picked for each row, with their signed coefficients.
#[derive(Debug)]
pub struct AtomCodes {
    /// `(B, S)` int64, in the order of the picks.
    pub indices: Tensor,
    /// `(B, S)`, with the dtype of the rows.
    pub coefficients: Tensor,
}

/// Matching pursuit without gradient. Each row gets exactly `sparsity` picks.
///
/// `atoms` is `(N, D)` with unit rows, `rows` is `(B, D)`. Each pick is one `(B, D) x (D, N)` product with the residual. For
/// widths of 32 to 128, this costs no more than updating `B x N` correlations through the Gram matrix, and needs no `N x N`
/// memory. The picks are those of the codec's encoder, except if two atoms tie within rounding.
///
/// # Errors
/// Errors of libtorch.
pub fn select_atoms(atoms: &Tensor, rows: &Tensor, sparsity: usize) -> Result<AtomCodes> {
    let _guard = tch::no_grad_guard();
    let transposed = atoms.f_tr()?;
    let mut residual = rows.f_detach()?;
    let mut indices = Vec::with_capacity(sparsity);
    let mut coefficients = Vec::with_capacity(sparsity);
    for _ in 0..sparsity {
        let correlations = residual.f_matmul(&transposed)?;
        let index = correlations.f_abs()?.f_argmax(1, true)?;
        let coefficient = correlations.f_gather(1, &index, false)?;
        let picked = atoms.f_index_select(0, &index.f_squeeze_dim(1)?)?;
        residual = residual.f_sub(&picked.f_mul(&coefficient)?)?;
        indices.push(index);
        coefficients.push(coefficient);
    }
    Ok(AtomCodes { indices: Tensor::f_cat(&indices, 1)?, coefficients: Tensor::f_cat(&coefficients, 1)? })
}

/// Orthogonal matching pursuit without gradient. Each row gets exactly `sparsity` picks, with the coefficients that minimise
/// `||x - Σ_g c_g d_{i_g}||²`.
///
/// The part of each picked atom that is orthogonal to the previous ones joins an orthonormal basis (modified Gram-Schmidt).
/// The projection on it is subtracted from the residual. At the end one triangular system per row gives the coefficients.
/// The inverse-Cholesky form has the same minimiser, but needs the `N x N` Gram matrix. An atom that adds no direction gets
/// the coefficient 0.
///
/// # Errors
/// Errors of libtorch.
pub fn orthogonal_codes(atoms: &Tensor, rows: &Tensor, sparsity: usize) -> Result<AtomCodes> {
    /// If the squared length of the orthogonal part of a unit atom is below this, the part is only rounding error.
    const DEPENDENT: f64 = 1e-6;
    let _guard = tch::no_grad_guard();
    let rows = rows.f_detach()?;
    let (batch, _) = rows.size2()?;
    let transposed = atoms.f_tr()?;
    let along = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
        Ok(a.f_mul(b)?.f_sum_dim_intlist([1i64].as_slice(), true, None::<Kind>)?)
    };
    let mut residual = rows.shallow_clone();
    let mut indices = Vec::with_capacity(sparsity);
    let mut basis: Vec<Tensor> = Vec::with_capacity(sparsity);
    let mut projections = Vec::with_capacity(sparsity);
    // Upper triangle: atom g is the sum over h <= g of triangle[h][g] basis[h].
    let side = sparsity as i64;
    let triangle = Tensor::f_zeros([batch, side, side], (atoms.kind(), atoms.device()))?;
    for pick in 0..side {
        let index = residual.f_matmul(&transposed)?.f_abs()?.f_argmax(1, true)?;
        let mut direction = atoms.f_index_select(0, &index.f_squeeze_dim(1)?)?;
        for (before, earlier) in basis.iter().enumerate() {
            let part = along(&direction, earlier)?;
            direction = direction.f_sub(&earlier.f_mul(&part)?)?;
            triangle.f_select(2, pick)?.f_narrow(1, before as i64, 1)?.f_copy_(&part)?;
        }
        let squared = along(&direction, &direction)?;
        let new = squared.f_gt(DEPENDENT)?.f_to_kind(atoms.kind())?;
        let length = square_roots(&squared.f_clamp_min(DEPENDENT)?)?;
        direction = direction.f_div(&length)?.f_mul(&new)?;
        // A dependent atom gets a unit diagonal, so that the system stays solvable and its coefficient is 0.
        let diagonal = length.f_mul(&new)?.f_add(&new.f_neg()?.f_add_scalar(1.0)?)?;
        triangle.f_select(2, pick)?.f_narrow(1, pick, 1)?.f_copy_(&diagonal)?;
        let projection = along(&residual, &direction)?;
        residual = residual.f_sub(&direction.f_mul(&projection)?)?;
        indices.push(index);
        basis.push(direction);
        projections.push(projection);
    }
    // The column of a dependent atom above the diagonal is multiplied by its coefficient, which is 0.
    let right = Tensor::f_cat(&projections, 1)?.f_unsqueeze(2)?;
    let coefficients = triangle.f_linalg_solve_triangular(&right, true, true, false)?.f_squeeze_dim(2)?;
    Ok(AtomCodes { indices: Tensor::f_cat(&indices, 1)?, coefficients: coefficients.f_contiguous()? })
}

/// The atoms at `indices (B, S)`, as `S` tensors of `(B, D)`, differentiable with respect to `atoms (N, D)`.
///
/// This uses an embedding instead of an index. The backward pass of an embedding adds up the gradients of an atom in a fixed
/// order, on the CPU and on CUDA, so that training is reproducible.
fn picked_atoms(atoms: &Tensor, indices: &Tensor) -> Result<Vec<Tensor>> {
    let by_pick = indices.f_tr()?.f_contiguous()?;
    Ok(Tensor::f_embedding(atoms, &by_pick, -1, false, false)?.f_unbind(0)?)
}

/// `R_{s+1}`, shape `(B, D)`. The gradient flows through the coefficients
/// ([`GradientPath::Coefficients`](crate::GradientPath::Coefficients)).
///
/// `rows` is `(B, D)`. `indices` is `(B, S)` int64, as picked for `atoms (N, D)` by [`select_atoms`] or the codec.
///
/// # Errors
/// Errors of libtorch.
pub fn unrolled_residual(atoms: &Tensor, rows: &Tensor, indices: &Tensor) -> Result<Tensor> {
    let mut residual = rows.shallow_clone();
    for atom in picked_atoms(atoms, indices)? {
        let coefficient = residual.f_mul(&atom)?.f_sum_dim_intlist([1i64].as_slice(), true, None::<Kind>)?;
        residual = residual.f_sub(&atom.f_mul(&coefficient)?)?;
    }
    Ok(residual)
}

/// `x - Σ_g c_g d_{i_g}`, shape `(B, D)`, with constant `coefficients (B, S)`
/// ([`GradientPath::Atoms`](crate::GradientPath::Atoms)).
///
/// # Errors
/// Errors of libtorch.
pub fn linear_residual(atoms: &Tensor, rows: &Tensor, indices: &Tensor, coefficients: &Tensor) -> Result<Tensor> {
    let constants = coefficients.f_detach()?.f_split(1, 1)?;
    let mut residual = rows.shallow_clone();
    for (atom, coefficient) in picked_atoms(atoms, indices)?.iter().zip(&constants) {
        residual = residual.f_sub(&atom.f_mul(coefficient)?)?;
    }
    Ok(residual)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use kvcsr_codec::{Dictionary, Encoder};

    use super::*;
    use crate::testing::{random_tensor, unit_rows};

    fn setup() -> (Tensor, Tensor) {
        (unit_rows(&random_tensor(11, &[50, 12])), random_tensor(12, &[200, 12]))
    }

    #[test]
    fn picks_are_those_of_the_codec() {
        let (atoms, rows) = setup();
        let (atoms, rows) = (atoms.to_kind(Kind::Float), rows.to_kind(Kind::Float));
        let ours = select_atoms(&atoms, &rows, 5).unwrap();
        let dictionary = Dictionary::new(12, Vec::<f32>::try_from(atoms.flatten(0, -1)).unwrap()).unwrap();
        let (mut indices, mut coefficients) = (vec![0u16; 1000], vec![0f32; 1000]);
        let flat = Vec::<f32>::try_from(rows.flatten(0, -1)).unwrap();
        Encoder::new(Arc::new(dictionary)).encode(&flat, 5, &mut indices, &mut coefficients).unwrap();
        let our_indices = Vec::<i64>::try_from(ours.indices.flatten(0, -1)).unwrap();
        let our_coefficients = Vec::<f32>::try_from(ours.coefficients.flatten(0, -1)).unwrap();
        for at in 0..1000 {
            assert_eq!(our_indices[at], i64::from(indices[at]), "row {}, pick {}", at / 5, at % 5);
            assert!((our_coefficients[at] - coefficients[at]).abs() < 1e-5, "row {}, pick {}", at / 5, at % 5);
        }
    }

    #[test]
    fn both_residuals_are_what_pursuit_left() {
        let (atoms, rows) = setup();
        let codes = select_atoms(&atoms, &rows, 4).unwrap();
        let unrolled = unrolled_residual(&atoms, &rows, &codes.indices).unwrap();
        let linear = linear_residual(&atoms, &rows, &codes.indices, &codes.coefficients).unwrap();
        assert!((&unrolled - &linear).abs().max().double_value(&[]) < 1e-12);
        // Each step removes the energy c_g^2 from the residual.
        let energy = |t: &Tensor| t.square().sum_dim_intlist([1i64].as_slice(), false, None::<Kind>);
        let left = energy(&rows) - energy(&codes.coefficients);
        assert!((left - energy(&unrolled)).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn a_zero_row_gets_zero_coefficients() {
        let (atoms, _) = setup();
        let codes = select_atoms(&atoms, &Tensor::zeros([2, 12], (Kind::Double, tch::Device::Cpu)), 3).unwrap();
        assert_eq!(codes.coefficients.abs().max().double_value(&[]), 0.0);
    }

    #[test]
    fn orthogonal_codes_are_the_least_squares_answer_for_greedy_picks() {
        let (atoms, rows) = setup();
        let codes = orthogonal_codes(&atoms, &rows, 4).unwrap();
        let residual = linear_residual(&atoms, &rows, &codes.indices, &codes.coefficients).unwrap();
        // Least squares: the residual is orthogonal to every picked atom.
        let picked = Tensor::embedding(&atoms, &codes.indices, -1, false, false);
        let left = picked.bmm(&residual.unsqueeze(2)).abs().max().double_value(&[]);
        assert!(left < 1e-9, "{left}");
        // Greedy: the first pick is that of matching pursuit. Each pick is the atom with the largest correlation with the residual
        // of the earlier picks.
        let first = select_atoms(&atoms, &rows, 1).unwrap().indices;
        assert!(bool::try_from(codes.indices.narrow(1, 0, 1).eq_tensor(&first).all()).unwrap());
        let three = orthogonal_codes(&atoms, &rows, 3).unwrap();
        let after_three = linear_residual(&atoms, &rows, &three.indices, &three.coefficients).unwrap();
        let fourth = after_three.matmul(&atoms.tr()).abs().argmax(1, true);
        assert!(bool::try_from(codes.indices.narrow(1, 3, 1).eq_tensor(&fourth).all()).unwrap());
        // The total error is smaller than with the picks and coefficients of matching pursuit.
        let plain = select_atoms(&atoms, &rows, 4).unwrap();
        let plain = linear_residual(&atoms, &rows, &plain.indices, &plain.coefficients).unwrap();
        let energy = |t: &Tensor| t.square().sum(None::<Kind>).double_value(&[]);
        assert!(energy(&residual) < energy(&plain));
    }

    #[test]
    fn orthogonal_codes_survive_rows_that_fewer_atoms_explain() {
        let (atoms, _) = setup();
        // The rows are twice an atom, and zero. After one pick, or none, the residual is zero.
        let rows = Tensor::stack(&[atoms.get(7) * 2.0, atoms.get(7) * 0.0], 0);
        let codes = orthogonal_codes(&atoms, &rows, 3).unwrap();
        assert!(bool::try_from(codes.coefficients.isfinite().all()).unwrap());
        let left = linear_residual(&atoms, &rows, &codes.indices, &codes.coefficients).unwrap();
        assert!(left.abs().max().double_value(&[]) < 1e-9);
    }
}
