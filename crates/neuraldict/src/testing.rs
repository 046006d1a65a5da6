//! Seeded data for the unit tests.

#![allow(clippy::unwrap_used)]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

/// Uniform values in [-1, 1).
pub(crate) fn random_values(seed: u64, count: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A double tensor of uniform values in [-1, 1).
pub(crate) fn random_tensor(seed: u64, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    Tensor::from_slice(&random_values(seed, count)).view(shape)
}

/// Rows scaled to unit norm.
pub(crate) fn unit_rows(rows: &Tensor) -> Tensor {
    rows / rows.square().sum_dim_intlist([1i64].as_slice(), true, None::<tch::Kind>).sqrt()
}
