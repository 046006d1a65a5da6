//! Weighted k-means, which learns the centroids of CQ: k-means++ (Arthur and Vassilvitskii 2007), then Lloyd's iterations.
//!
//! It minimises `sum_i w_i ||x_i - c(x_i)||²`. The paper weights a vector by the squared gradient of the loss at that
//! vector. This implementation accepts any weights.

use kvcsr_codec::Nearest;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::error::{NeuralDictError, Result};

/// The result of weighted k-means.
#[derive(Debug, Clone, PartialEq)]
pub struct Centroids {
    /// `(clusters, width)`.
    pub centroids: Vec<f32>,
    /// The weighted sum of squared distances after each assignment.
    pub objective: Vec<f64>,
    /// Number of empty clusters that were moved to a badly fitted vector, over all iterations.
    pub reseeded: usize,
}

/// Clusters `rows` `(n, width)` with `weights` `(n)` into `clusters` groups. There are at most `iterations` rounds. They stop
/// when the objective falls by less than the fraction `tolerance`.
///
/// If there are fewer vectors of positive weight than clusters, the remaining clusters repeat vectors.
///
/// # Errors
/// [`NeuralDictError::Codebooks`] if there are no vectors or no positive weights, or the sizes of the slices do not match.
pub fn weighted_kmeans(
    rows: &[f32],
    width: usize,
    weights: &[f32],
    clusters: usize,
    (iterations, tolerance): (usize, f64),
    rng: &mut ChaCha8Rng,
) -> Result<Centroids> {
    let bad = |reason: String| Err(NeuralDictError::Codebooks { reason });
    if width == 0 || clusters == 0 || rows.len() != weights.len() * width {
        return bad(format!("{} numbers, {} weights, width {width}, {clusters} clusters", rows.len(), weights.len()));
    }
    let finite = rows.iter().chain(weights).all(|x| x.is_finite());
    if !finite || weights.iter().any(|&w| w < 0.0) || weights.iter().all(|&w| w == 0.0) {
        return bad("numbers must be finite, weights not negative and not all zero".to_owned());
    }
    let mut centroids = seed(rows, width, weights, clusters, rng);
    let (mut labels, mut costs, mut scores) = (vec![0usize; weights.len()], vec![0f64; weights.len()], Vec::new());
    let (mut objective, mut reseeded) = (Vec::<f64>::new(), 0);
    for _ in 0..=iterations {
        let nearest = Nearest::new(width, centroids.clone())?;
        for ((row, &w), (label, cost)) in rows.chunks_exact(width).zip(weights).zip(labels.iter_mut().zip(&mut costs)) {
            *label = nearest.find(row, &mut scores);
            *cost = f64::from(w) * distance(row, nearest.centroid(*label));
        }
        let total = costs.iter().sum::<f64>();
        let settled = objective.last().is_some_and(|last| last - total <= tolerance * last);
        objective.push(total);
        if settled || objective.len() > iterations {
            break;
        }
        reseeded += update(rows, width, weights, &labels, &mut costs, &mut centroids);
    }
    Ok(Centroids { centroids, objective, reseeded })
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// k-means++: each seed is drawn with a probability proportional to weight times squared distance to the nearest seed so far.
fn seed(rows: &[f32], width: usize, weights: &[f32], clusters: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut share: Vec<f32> = weights.to_vec();
    let mut nearest = vec![f32::INFINITY; weights.len()];
    let mut centroids = Vec::with_capacity(clusters * width);
    for _ in 0..clusters {
        let total: f64 = share.iter().map(|&x| f64::from(x)).sum();
        // If every vector is a seed already, draw by weight alone.
        let from = if total > 0.0 { &share } else { weights };
        let total = if total > 0.0 { total } else { weights.iter().map(|&x| f64::from(x)).sum() };
        let mut left = rng.random_range(0.0..1.0) * total;
        let drawn = from.iter().position(|&x| {
            left -= f64::from(x);
            left < 0.0 && x > 0.0
        });
        let drawn = drawn.or_else(|| from.iter().rposition(|&x| x > 0.0)).unwrap_or(0);
        let picked = rows[drawn * width..(drawn + 1) * width].to_vec();
        for ((row, &w), (nearest, share)) in
            rows.chunks_exact(width).zip(weights).zip(nearest.iter_mut().zip(&mut share))
        {
            let d: f32 = row.iter().zip(&picked).map(|(a, b)| (a - b) * (a - b)).sum();
            *nearest = nearest.min(d);
            *share = w * *nearest;
        }
        centroids.extend(picked);
    }
    centroids
}

/// Moves centroids to the weighted means, and the centroids of empty clusters to the vectors with the largest cost. Returns
/// the number of empty clusters.
fn update(
    rows: &[f32],
    width: usize,
    weights: &[f32],
    labels: &[usize],
    costs: &mut [f64],
    centroids: &mut [f32],
) -> usize {
    let clusters = centroids.len() / width;
    let (mut sums, mut mass) = (vec![0f64; centroids.len()], vec![0f64; clusters]);
    for ((row, &w), &label) in rows.chunks_exact(width).zip(weights).zip(labels) {
        mass[label] += f64::from(w);
        let sum = &mut sums[label * width..(label + 1) * width];
        sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(w) * f64::from(x));
    }
    let mut empty = 0;
    for (cluster, centroid) in centroids.chunks_exact_mut(width).enumerate() {
        if mass[cluster] > 0.0 {
            let sum = &sums[cluster * width..(cluster + 1) * width];
            centroid.iter_mut().zip(sum).for_each(|(c, sum)| *c = (sum / mass[cluster]) as f32);
            continue;
        }
        empty += 1;
        let worst = costs.iter().enumerate().fold(0, |best, (i, &cost)| if cost > costs[best] { i } else { best });
        if costs[worst] > 0.0 {
            centroid.copy_from_slice(&rows[worst * width..(worst + 1) * width]);
            costs[worst] = 0.0;
        }
    }
    empty
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn known_clusters_are_found_and_weights_pull() {
        // Four clouds. The fourth is at (8, 8), and consists of two points with weights 3 and 1.
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut rows: Vec<f32> = Vec::new();
        for centre in [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]] {
            for _ in 0..100 {
                rows.extend(centre.map(|c: f32| c + rng.random_range(-0.5f32..0.5)));
            }
        }
        rows.extend([8.0, 8.0, 8.0, 9.0]);
        let mut weights = vec![1.0; 302];
        weights[300] = 3.0;
        let found = weighted_kmeans(&rows, 2, &weights, 4, (50, 1e-6), &mut rng).unwrap();
        let has = |x: f32, y: f32, off: f32| {
            found.centroids.chunks_exact(2).any(|c| (c[0] - x).abs() < off && (c[1] - y).abs() < off)
        };
        assert!(has(0.0, 0.0, 0.1) && has(10.0, 0.0, 0.1) && has(0.0, 10.0, 0.1), "{:?}", found.centroids);
        assert!(has(8.0, 8.25, 1e-5), "{:?}", found.centroids);
    }

    #[test]
    fn the_objective_falls_and_the_seed_decides() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let rows: Vec<f32> = (0..8 * 500).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        let weights: Vec<f32> = (0..500).map(|i| 0.1 + (i % 7) as f32).collect();
        let run =
            |seed| weighted_kmeans(&rows, 8, &weights, 32, (40, 0.0), &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
        let found = run(3);
        assert!(found.objective.len() > 3);
        assert!(found.objective.windows(2).all(|w| w[1] <= w[0] * (1.0 + 1e-6)), "{:?}", found.objective);
        assert_eq!(found, run(3));
        assert_ne!(found.centroids, run(4).centroids);
    }

    #[test]
    fn few_and_weightless_vectors() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let rows = [1.0, 2.0, 3.0];
        let found = weighted_kmeans(&rows, 1, &[1.0, 0.0, 1.0], 5, (10, 1e-4), &mut rng).unwrap();
        assert_eq!(found.objective.last(), Some(&0.0));
        assert!(found.centroids.iter().all(|c| [1.0, 3.0].contains(c)), "{:?}", found.centroids);
        assert!(weighted_kmeans(&rows, 1, &[0.0; 3], 2, (10, 1e-4), &mut rng).is_err());
        assert!(weighted_kmeans(&rows, 1, &[1.0; 2], 2, (10, 1e-4), &mut rng).is_err());
        assert!(weighted_kmeans(&[f32::NAN], 1, &[1.0], 1, (10, 1e-4), &mut rng).is_err());
    }
}
