//! The loss of Algorithm 1: `L = L_MSE + beta * L_div`.
//!
//! Here atoms are the rows of an `(N, D)` tensor, so that one atom is contiguous. The paper's `W_D` is its transpose.

use tch::{Kind, Tensor};

use crate::{config::Reduction, error::Result};

/// `L_MSE = sum_x ||x - W_D r(x, W_D, s)||^2` for the residuals `(B, D)`, or its mean over the `B` vectors.
///
/// # Errors
/// Errors of libtorch.
pub fn reconstruction(residual: &Tensor, reduction: Reduction) -> Result<Tensor> {
    let total = residual.f_square()?.f_sum(None::<Kind>)?;
    Ok(match reduction {
        Reduction::Sum => total,
        Reduction::Mean => total.f_div_scalar(residual.size()[0].max(1))?,
    })
}

/// `L_div = (1/N^2) ||I - W_Dᵀ W_D||_F^2` for atoms `(N, D)`. It is differentiable. For `N > D` the `N x N` Gram matrix is
/// not computed.
///
/// Let `S = Σ_n d_n d_nᵀ`, of size `D x D`. Then `||I - G||_F^2 = N - 2 tr G + ||G||_F^2`, with `||G||_F = ||S||_F` and
/// `tr G = tr S`. This takes `N/D` times less work than the definition, for values and for gradients. It is valid for atoms
/// of any norm. For `N <= D` the definition is cheaper and has no cancellation, so it is used.
///
/// # Errors
/// Errors of libtorch.
pub fn diversity(atoms: &Tensor) -> Result<Tensor> {
    let (count, width) = atoms.size2()?;
    if count <= width {
        return diversity_by_gram(atoms);
    }
    let scatter = atoms.f_tr()?.f_matmul(atoms)?;
    let trace = scatter.f_trace()?;
    let frobenius = scatter.f_square()?.f_sum(None::<Kind>)?;
    let sum = frobenius.f_sub(&trace.f_mul_scalar(2.0)?)?.f_add_scalar(count as f64)?;
    Ok(sum.f_div_scalar((count * count) as f64)?)
}

/// `L_div` by its definition, with the `(N, N)` Gram matrix. Needs `4 N^2` bytes.
///
/// # Errors
/// Errors of libtorch.
pub fn diversity_by_gram(atoms: &Tensor) -> Result<Tensor> {
    let (count, _) = atoms.size2()?;
    let identity = Tensor::f_eye(count, (atoms.kind(), atoms.device()))?;
    let gram = atoms.f_matmul(&atoms.f_tr()?)?;
    Ok(identity.f_sub(&gram)?.f_square()?.f_sum(None::<Kind>)?.f_div_scalar((count * count) as f64)?)
}

/// `beta = clamp(0.1 * L_MSE / L_div, 0, 1)`. The inputs are plain numbers, so no gradient flows through `beta`.
///
/// Orthonormal atoms have `L_div = 0`. Then `beta` is 1, or 0 if `L_MSE` is zero too.
#[must_use]
pub fn beta(mse: f64, diversity: f64) -> f64 {
    if diversity > 0.0 {
        (0.1 * mse / diversity).clamp(0.0, 1.0)
    } else if mse > 0.0 {
        1.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::random_tensor;

    #[test]
    fn both_forms_of_diversity_agree_with_their_gradients() {
        for (count, width) in [(40, 7), (7, 7), (5, 12)] {
            // These atoms do not have unit norm, because the identity must also hold between a step and ReNorm.
            let leaf = || random_tensor(3, &[count, width]).set_requires_grad(true);
            let (fast, direct) = (leaf(), leaf());
            let a = diversity(&fast).unwrap();
            let b = diversity_by_gram(&direct).unwrap();
            a.backward();
            b.backward();
            let (a, b) = (a.double_value(&[]), b.double_value(&[]));
            assert!((a - b).abs() < 1e-10 * b, "{a} {b}");
            let difference = (fast.grad() - direct.grad()).abs().max().double_value(&[]);
            assert!(difference < 1e-10, "{difference}");
        }
    }

    #[test]
    fn diversity_of_known_dictionaries() {
        let eye = Tensor::eye(4, (Kind::Double, tch::Device::Cpu));
        assert_eq!(diversity(&eye).unwrap().double_value(&[]), 0.0);
        // Two equal unit atoms: I - G has two entries of -1 outside the diagonal.
        let twins = Tensor::from_slice(&[1.0f64, 1.0]).view([2, 1]);
        assert_eq!(diversity(&twins).unwrap().double_value(&[]), 0.5);
    }

    #[test]
    fn beta_is_clamped() {
        assert_eq!(beta(100.0, 0.01), 1.0);
        assert!((beta(0.05, 0.1) - 0.05).abs() < 1e-12);
        assert_eq!(beta(0.0, 0.1), 0.0);
        assert_eq!(beta(1.0, 0.0), 1.0);
        assert_eq!(beta(0.0, 0.0), 0.0);
    }

    #[test]
    fn sum_and_mean_differ_by_the_batch_size() {
        let residual = random_tensor(5, &[6, 3]);
        let sum = reconstruction(&residual, Reduction::Sum).unwrap().double_value(&[]);
        let mean = reconstruction(&residual, Reduction::Mean).unwrap().double_value(&[]);
        assert!((sum - 6.0 * mean).abs() < 1e-12 * sum);
    }
}
