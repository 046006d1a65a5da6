//! A lower bound on the bits that vectors need for a given error. It shows what a transform can gain without any coding.
//!
//! A Gaussian vector with variances `λ` along its principal axes needs at least `Σ max(0, ½ log2(λ_j / θ))` bits for the
//! squared error `Σ min(θ, λ_j)` (reverse water-filling; Cover and Thomas, Elements of Information Theory, 10.3.3). Real
//! vectors are not Gaussian and need fewer bits than this bound. Atoms use structure that the bound ignores. Real codes
//! need more bits, because coordinates are quantised, scales are stored and there are gaps.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::axes::principal;
use crate::error::Result;

/// The mean and covariance of vectors of one width.
#[derive(Debug)]
pub struct Cloud {
    /// Sums of the vectors, `(n)`, and of their outer products, `(n, n)`, in double precision.
    sum: Tensor,
    second: Tensor,
    count: usize,
}

impl Cloud {
    /// No vectors yet. Vectors will have `width` channels.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn new(width: usize) -> Result<Self> {
        let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Double, Device::Cpu));
        Ok(Self { sum: zeros(&[width as i64])?, second: zeros(&[width as i64, width as i64])?, count: 0 })
    }

    /// Adds `rows` `(m, width)`.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn add(&mut self, rows: &[f32]) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let width = self.sum.size()[0];
        let rows = Tensor::f_from_slice(rows)?.f_view([-1, width])?.f_to_kind(Kind::Double)?;
        self.sum = self.sum.f_add(&rows.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?)?;
        self.second = self.second.f_add(&rows.f_tr()?.f_matmul(&rows)?)?;
        self.count += rows.size()[0] as usize;
        Ok(())
    }

    /// The covariance of the vectors added so far.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn covariance(&self) -> Result<Covariance> {
        let _guard = tch::no_grad_guard();
        let n = self.count.max(1) as f64;
        let mean = self.sum.f_div_scalar(n)?;
        let matrix = self.second.f_div_scalar(n)?.f_sub(&mean.f_outer(&mean)?)?;
        let diagonal = Vec::<f64>::try_from(matrix.f_diagonal(0, 0, 1)?.f_contiguous()?)?;
        // Rounding can make the variance of a constant channel slightly negative.
        Ok(Covariance { matrix, variances: diagonal.into_iter().map(|variance| variance.max(0.0)).collect() })
    }
}

/// The covariance of vectors.
#[derive(Debug)]
pub struct Covariance {
    matrix: Tensor,
    variances: Vec<f64>,
}

impl Covariance {
    /// Variances of the single channels.
    pub fn channels(&self, channels: Range<usize>) -> &[f64] {
        &self.variances[channels]
    }

    /// Variances along the principal axes of `channels`.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn axes(&self, channels: Range<usize>) -> Result<Vec<f64>> {
        self.principal(&[channels], |_| 1.0)
    }

    /// The factor that gives a block of channels a total variance of 1, or 0 if the block is constant.
    pub fn scale(&self, block: &Range<usize>) -> f64 {
        let total: f64 = self.variances[block.clone()].iter().sum();
        if total > 0.0 { total.sqrt().recip() } else { 0.0 }
    }

    /// Variances along the principal axes of all `blocks` together, with each block scaled by [`Covariance::scale`]. Errors
    /// are then relative to their block.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn relative_axes(&self, blocks: &[Range<usize>]) -> Result<Vec<f64>> {
        self.principal(blocks, |block| self.scale(block))
    }

    fn principal(&self, blocks: &[Range<usize>], scale: impl Fn(&Range<usize>) -> f64) -> Result<Vec<f64>> {
        let _guard = tch::no_grad_guard();
        let channels: Vec<i64> = blocks.iter().flat_map(|block| block.clone().map(|channel| channel as i64)).collect();
        let scales: Vec<f64> = blocks.iter().flat_map(|block| std::iter::repeat_n(scale(block), block.len())).collect();
        let (channels, scales) = (Tensor::f_from_slice(&channels)?, Tensor::f_from_slice(&scales)?);
        let part = self.matrix.f_index_select(0, &channels)?.f_index_select(1, &channels)?;
        let axes = principal(&part.f_mul(&scales.f_outer(&scales)?)?)?;
        Ok(axes.deviations.into_iter().map(|deviation| f64::from(deviation).powi(2)).collect())
    }
}

/// Bits for all axes together at the squared error `allowed`. Without any bits the squared error is the sum of `variances`.
pub fn bits(variances: &[f64], allowed: f64) -> f64 {
    let error = |level: f64| variances.iter().map(|&variance| variance.min(level)).sum::<f64>();
    let (mut low, mut high) = (0.0, variances.iter().copied().fold(0.0, f64::max));
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if error(middle) < allowed { low = middle } else { high = middle }
    }
    variances.iter().filter(|&&variance| variance > high).map(|variance| 0.5 * (variance / high).log2()).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bits_are_those_of_reverse_water_filling() {
        // A quarter of the variance, the same on every axis: 1 bit each.
        assert!((bits(&[3.0; 8], 6.0) - 8.0).abs() < 1e-9);
        // With a level of 1, the axes with 4 and 2 each leave an error of 1. The axis with 0.5 leaves all of its variance.
        assert!((bits(&[4.0, 2.0, 0.5], 2.5) - 1.5).abs() < 1e-9);
        assert!(bits(&[4.0, 2.0], 6.0) < 1e-9);
        assert_eq!(bits(&[0.0, 0.0], 0.1), 0.0);
    }

    #[test]
    fn channels_that_move_together_have_one_axis() {
        let mut cloud = Cloud::new(3).unwrap();
        let rows: Vec<f32> = (0..400)
            .flat_map(|i| {
                let (a, b) = ((i % 20) as f32 - 9.5, (i / 20) as f32 - 9.5);
                [100.0 + a, 2.0 * a, b]
            })
            .collect();
        cloud.add(&rows[..600]).unwrap();
        cloud.add(&rows[600..]).unwrap();
        let covariance = cloud.covariance().unwrap();
        let near = |found: &[f64], expected: &[f64]| {
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3 * b.max(1.0))
        };
        // Numbers from -9.5 to 9.5 in steps of 1 have a variance of 33.25.
        assert!(near(covariance.channels(0..3), &[33.25, 133.0, 33.25]), "{covariance:?}");
        let together = covariance.axes(0..3).unwrap();
        assert!(near(&together, &[166.25, 33.25, 0.0]), "{together:?}");
        let apart = covariance.relative_axes(&[0..2, 2..3]).unwrap();
        assert!(near(&apart, &[1.0, 1.0, 0.0]), "{apart:?}");
    }
}
