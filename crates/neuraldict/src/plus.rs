//! The tables of CSR+: atoms for whole tokens, and the principal axes of what the atoms leave.
//!
//! A token is one vector: the keys and values of all heads of a layer. Everything is learned in a diagonal metric, in which a
//! squared error of 1 costs 1 nat. Atoms are returned in natural units.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::axes::{Axes, numbers, principal};
use crate::error::Result;
use crate::kmeans::{assign, kmeans};
use crate::optimiser::row_norms;

/// Rows whose products are summed at a time.
const CHUNK: i64 = 4096;

/// The size and the seed of the training.
#[derive(Debug, Clone, Copy)]
pub struct PlusConfig {
    /// Atoms, `N`.
    pub atoms: usize,
    /// Maximum number of k-means iterations.
    pub iterations: usize,
    /// Seed for the order of the tokens in k-means, and for its start.
    pub seed: u64,
}

/// The tables of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct PlusTables {
    /// `(N, n)`, in natural units.
    pub atoms: Vec<f32>,
    /// Orthonormal rows in the metric, sorted by decreasing standard deviation, `(n, n)`.
    pub basis: Vec<f32>,
    /// Standard deviation, along each row, of what the atoms leave, `(n)`.
    pub deviations: Vec<f32>,
}

/// Computes the tables for `tokens` `(m, n)`, in natural units. `metric` `(n)` are the weights of the channels.
///
/// # Errors
/// Errors of libtorch.
///
/// # Panics
/// If there are fewer tokens than atoms.
pub fn fit(tokens: &[f32], metric: &[f32], config: PlusConfig) -> Result<PlusTables> {
    let _guard = tch::no_grad_guard();
    let n = metric.len() as i64;
    let weights = Tensor::f_from_slice(metric)?;
    let count = tokens.len() as i64 / n;
    assert!(count >= config.atoms as i64, "{count} tokens make at most as many atoms");
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut order: Vec<i64> = (0..count).collect();
    rand::seq::SliceRandom::shuffle(&mut order[..], &mut rng);
    let order = Tensor::f_from_slice(&order)?;
    let rows = Tensor::f_from_slice(tokens)?.f_view([-1, n])?.f_index_select(0, &order)?.f_mul(&weights)?;
    let centroids = kmeans(&rows, config.atoms, config.iterations, &mut rng, &mut |_, _| {})?.centroids;
    let norms = row_norms(&rows)?.f_square()?.f_view([count])?;
    let (labels, _) = assign(&rows, &norms, &centroids)?;
    let mut second = Tensor::f_zeros([n, n], (Kind::Double, Device::Cpu))?;
    for start in (0..count).step_by(CHUNK as usize) {
        // What the atoms leave of each token.
        let part = |all: &Tensor| all.f_narrow(0, start, CHUNK.min(count - start));
        let left = part(&rows)?.f_sub(&centroids.f_index_select(0, &part(&labels)?)?)?;
        let part = left.f_to_kind(Kind::Double)?;
        second = second.f_add(&part.f_tr()?.f_matmul(&part)?)?;
    }
    let Axes { vectors, deviations } = principal(&second.f_div_scalar(count as f64)?)?;
    Ok(PlusTables { atoms: numbers(&centroids.f_div(&weights)?)?, basis: vectors, deviations })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn clouds_become_atoms_and_their_common_shape_the_basis() {
        // Two clouds. In the metric their deviation is 3 along (0.6, 0.8) and 1 across it. The metric halves the second channel.
        let metric = [1.0, 0.5];
        let tokens: Vec<f32> = (0..800)
            .flat_map(|i| {
                let (a, b) = (3.0 * ((i % 20) as f32 - 9.5) / 5.766, ((i / 20 % 20) as f32 - 9.5) / 5.766);
                let centre = if i < 400 { 50.0 } else { -50.0 };
                [centre + 0.6 * a - 0.8 * b, (0.8 * a + 0.6 * b) / 0.5]
            })
            .collect();
        let found = fit(&tokens, &metric, PlusConfig { atoms: 2, iterations: 10, seed: 1 }).unwrap();
        let mut centres = [found.atoms[0], found.atoms[2]];
        centres.sort_by(f32::total_cmp);
        assert!((centres[0] + 50.0).abs() < 1e-3 && (centres[1] - 50.0).abs() < 1e-3, "{:?}", found.atoms);
        assert!((found.deviations[0] - 3.0).abs() < 1e-2 && (found.deviations[1] - 1.0).abs() < 1e-2);
        assert!((found.basis[0] * 0.6 + found.basis[1] * 0.8).abs() > 0.9999);
    }
}
