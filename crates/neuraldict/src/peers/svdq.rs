//! The singular vectors of centred vectors. This gives SVDq's basis from calibration text instead of the prompt.

use tch::{Kind, Tensor};

use crate::axes::{Axes, numbers, principal};
use crate::error::Result;

/// Rows whose products are summed at a time.
const CHUNK: usize = 4096;

/// A basis of all channels.
#[derive(Debug, Clone, PartialEq)]
pub struct SingularBasis {
    /// Mean vector, `(D)`.
    pub mean: Vec<f32>,
    /// Unit singular vectors, sorted by decreasing singular value, `(D, D)`.
    pub vectors: Vec<f32>,
    /// Standard deviation along each singular vector, `(D)`.
    pub deviations: Vec<f32>,
}

/// The basis of `rows` `(n, width)`, `n > 0`.
///
/// # Errors
/// Errors of libtorch.
pub fn singular_basis(rows: &[f32], width: usize) -> Result<SingularBasis> {
    let _guard = tch::no_grad_guard();
    let d = width as i64;
    let (mut sum, mut gram) = (Tensor::zeros([d], (Kind::Double, tch::Device::Cpu)), None::<Tensor>);
    for chunk in rows.chunks(CHUNK * width) {
        let x = Tensor::from_slice(chunk).f_view([-1, d])?.f_to_kind(Kind::Double)?;
        sum = sum.f_add(&x.f_sum_dim_intlist(&[0i64][..], false, Kind::Double)?)?;
        let product = x.f_tr()?.f_matmul(&x)?;
        gram = Some(match gram {
            Some(gram) => gram.f_add(&product)?,
            None => product,
        });
    }
    let n = (rows.len() / width).max(1) as f64;
    let mean = sum.f_div_scalar(n)?;
    let second = gram.unwrap_or_else(|| Tensor::zeros([d, d], (Kind::Double, tch::Device::Cpu))).f_div_scalar(n)?;
    let covariance = second.f_sub(&mean.f_outer(&mean)?)?;
    let Axes { vectors, deviations } = principal(&covariance)?;
    Ok(SingularBasis { mean: numbers(&mean)?, vectors, deviations })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn axes_of_a_stretched_cloud_are_found() {
        // A standard deviation of 3 along (0.6, 0.8) and of 1 across it, around (1, 2).
        let rows: Vec<f32> = (0..400)
            .flat_map(|i| {
                let (a, b) = (3.0 * ((i % 20) as f32 - 9.5) / 5.766, ((i / 20) as f32 - 9.5) / 5.766);
                [1.0 + 0.6 * a - 0.8 * b, 2.0 + 0.8 * a + 0.6 * b]
            })
            .collect();
        let basis = singular_basis(&rows, 2).unwrap();
        assert!((basis.mean[0] - 1.0).abs() < 1e-5 && (basis.mean[1] - 2.0).abs() < 1e-5);
        assert!((basis.deviations[0] - 3.0).abs() < 1e-2 && (basis.deviations[1] - 1.0).abs() < 1e-2);
        assert!((basis.vectors[0] * 0.6 + basis.vectors[1] * 0.8).abs() > 0.9999);
        assert!((basis.vectors[2] * 0.8 - basis.vectors[3] * 0.6).abs() > 0.9999);
    }
}
