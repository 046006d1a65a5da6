//! How similar the vectors of two layers are: the Jensen-Shannon divergence between 2-D histograms (paper, observation 3
//! and Figure 3).
//!
//! Vectors are scaled to unit length. A principal component analysis of both layers' vectors together defines a plane. Each
//! layer's vectors give a histogram over the same range of that plane. The divergence compares the two histograms, in nats.
//! It is 0 for equal histograms and `ln 2` for disjoint ones.

use kvcsr_codec::Shard;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::{Kind as Dtype, Tensor};

use crate::error::Result;
use crate::pool::VectorPool;

/// Unit vectors of one layer, with the sums that the principal components of any pair of layers need.
pub struct LayerSample {
    width: usize,
    /// `(n, width)`, row-major, without zero vectors.
    unit: Vec<f32>,
    /// Sum of the vectors, and sum of their outer products.
    sum: Vec<f64>,
    second: Vec<f64>,
}

impl LayerSample {
    /// Draws at most `count` of a layer's head vectors and scales them to unit length.
    ///
    /// # Errors
    /// Errors of reading the shard. The error names a vector that is not finite.
    pub fn draw(shard: &Shard, count: usize, seed: u64) -> Result<Self> {
        let pool = VectorPool::new(&[shard], 1, "calibration")?;
        let numbers = pool.sample(count, &mut ChaCha8Rng::seed_from_u64(seed));
        let mut rows = Vec::new();
        pool.gather(&numbers, &mut rows)?;
        Ok(Self::of(&rows, pool.width()))
    }

    /// Makes a sample from `(n, width)` rows.
    #[must_use]
    pub fn of(rows: &[f32], width: usize) -> Self {
        let mut unit = Vec::with_capacity(rows.len());
        for row in rows.chunks_exact(width) {
            let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            if norm > 0.0 {
                unit.extend(row.iter().map(|&x| (f64::from(x) / norm) as f32));
            }
        }
        let (mut sum, mut second) = (vec![0.0; width], vec![0.0; width * width]);
        for row in unit.chunks_exact(width) {
            for (i, &x) in row.iter().enumerate() {
                sum[i] += f64::from(x);
                for (s, &y) in second[i * width..=i * width + i].iter_mut().zip(row) {
                    *s += f64::from(x) * f64::from(y);
                }
            }
        }
        for i in 0..width {
            for j in 0..i {
                second[j * width + i] = second[i * width + j];
            }
        }
        Self { width, unit, sum, second }
    }

    /// Number of vectors, without zero vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.unit.len() / self.width
    }

    /// True if no vectors were drawn or all were zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unit.is_empty()
    }

    /// Two halves of the sample: every other vector, and the rest. They stand for two layers with the same distribution.
    #[must_use]
    pub fn halves(&self) -> [Self; 2] {
        [0, 1].map(|first| {
            let rows = self.unit.chunks_exact(self.width).skip(first).step_by(2);
            Self::of(&rows.flatten().copied().collect::<Vec<_>>(), self.width)
        })
    }

    /// Coordinates of every vector in a plane, `(x, y)`.
    fn projected(&self, plane: &Plane) -> Vec<(f64, f64)> {
        let dot = |row: &[f32], axis: &[f64]| row.iter().zip(axis).map(|(&x, a)| f64::from(x) * a).sum::<f64>();
        self.unit.chunks_exact(self.width).map(|row| (dot(row, &plane.first), dot(row, &plane.second))).collect()
    }
}

/// The two directions of largest variance of a set of vectors.
struct Plane {
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Plane {
    /// The principal components of two layers' vectors together, around their common mean.
    fn of_pair(a: &LayerSample, b: &LayerSample) -> Result<Self> {
        let (n, width) = ((a.len() + b.len()) as f64, a.width);
        let mean: Vec<f64> = a.sum.iter().zip(&b.sum).map(|(x, y)| (x + y) / n).collect();
        let covariance: Vec<f64> = (0..width * width)
            .map(|at| (a.second[at] + b.second[at]) / n - mean[at / width] * mean[at % width])
            .collect();
        let side = width as i64;
        let matrix = Tensor::from_slice(&covariance).to_kind(Dtype::Double).f_reshape([side, side])?;
        let (_, vectors) = matrix.f_linalg_eigh("L")?; // ascending; eigenvectors are columns
        let column = |from_last: i64| -> Result<Vec<f64>> {
            let at = (side - from_last).max(0);
            Ok(Vec::<f64>::try_from(vectors.f_select(1, at)?.f_contiguous()?)?)
        };
        Ok(Self { first: column(1)?, second: column(2)? })
    }
}

/// Jensen-Shannon divergence in nats between the `bins x bins` histograms of two layers.
///
/// The divergence of two empty layers is 0. The divergence of an empty layer and any other is `ln 2`.
///
/// # Errors
/// If the principal components cannot be computed.
pub fn jensen_shannon(a: &LayerSample, b: &LayerSample, bins: usize) -> Result<f64> {
    if a.is_empty() || b.is_empty() {
        return Ok(if a.is_empty() == b.is_empty() { 0.0 } else { std::f64::consts::LN_2 });
    }
    let plane = Plane::of_pair(a, b)?;
    let (a, b) = (a.projected(&plane), b.projected(&plane));
    let range = |of: fn(&(f64, f64)) -> f64| {
        a.iter().chain(&b).map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x, y) = (range(|p| p.0), range(|p| p.1));
    let (p, q) = (histogram(&a, x, y, bins), histogram(&b, x, y, bins));
    Ok(divergence(&p, &q))
}

/// The fraction of the points in each bin.
fn histogram(points: &[(f64, f64)], x: (f64, f64), y: (f64, f64), bins: usize) -> Vec<f64> {
    let bin = |value: f64, (low, high): (f64, f64)| {
        if high > low { (((value - low) / (high - low) * bins as f64) as usize).min(bins - 1) } else { 0 }
    };
    let mut shares = vec![0.0; bins * bins];
    for &(px, py) in points {
        shares[bin(px, x) * bins + bin(py, y)] += 1.0 / points.len() as f64;
    }
    shares
}

/// `½ KL(p ‖ m) + ½ KL(q ‖ m)` with `m = ½ (p + q)`, in nats.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let half = |p: f64, m: f64| if p > 0.0 { 0.5 * p * (p / m).ln() } else { 0.0 };
    p.iter().zip(q).map(|(&p, &q)| half(p, 0.5 * (p + q)) + half(q, 0.5 * (p + q))).sum::<f64>().max(0.0)
}

/// The divergence in nats between the histograms of two halves of one layer's vectors.
///
/// With few vectors in many bins, two histograms differ by chance. A divergence at or below this value does not show that
/// two layers differ. Whole samples have twice as many vectors. Their divergence by chance is about half as large, while
/// most bins hold few vectors.
///
/// # Errors
/// The same as [`jensen_shannon`].
pub fn noise_floor(sample: &LayerSample, bins: usize) -> Result<f64> {
    let [first, second] = sample.halves();
    jensen_shannon(&first, &second, bins)
}

/// The divergence of every pair of layers, `(layers, layers)` row-major, symmetric, with a zero diagonal.
///
/// # Errors
/// The same as [`jensen_shannon`].
pub fn divergence_matrix(samples: &[LayerSample], bins: usize) -> Result<Vec<f64>> {
    let layers = samples.len();
    let pairs: Vec<(usize, usize)> = (0..layers).flat_map(|a| (a + 1..layers).map(move |b| (a, b))).collect();
    let found: Vec<f64> =
        pairs.par_iter().map(|&(a, b)| jensen_shannon(&samples[a], &samples[b], bins)).collect::<Result<_>>()?;
    let mut matrix = vec![0.0; layers * layers];
    for ((a, b), value) in pairs.into_iter().zip(found) {
        matrix[a * layers + b] = value;
        matrix[b * layers + a] = value;
    }
    Ok(matrix)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand::RngExt;

    fn cloud(seed: u64, centre: [f32; 4], spread: f32) -> LayerSample {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows: Vec<f32> =
            (0..20_000).flat_map(|_| centre.map(|c| c + spread * rng.random_range(-1.0f32..1.0))).collect();
        LayerSample::of(&rows, 4)
    }

    #[test]
    fn divergence_by_hand() {
        assert_eq!(divergence(&[0.5, 0.5], &[0.5, 0.5]), 0.0);
        assert!((divergence(&[1.0, 0.0], &[0.0, 1.0]) - std::f64::consts::LN_2).abs() < 1e-12);
        // p = (3/4, 1/4), q = (1/4, 3/4), m = (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2.
        let want = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((divergence(&[0.75, 0.25], &[0.25, 0.75]) - want).abs() < 1e-12);
    }

    #[test]
    fn like_clouds_are_near_and_unlike_ones_far() {
        let a = cloud(1, [1.0, 0.0, 0.0, 0.0], 0.3);
        let same = cloud(2, [2.0, 0.0, 0.0, 0.0], 0.6); // the same directions at twice the length
        let other = cloud(3, [0.0, 1.0, 0.0, 0.0], 0.3);
        let near = jensen_shannon(&a, &same, 20).unwrap();
        let far = jensen_shannon(&a, &other, 20).unwrap();
        assert!(near < 0.02, "{near}");
        assert!(far > 0.6 && far <= std::f64::consts::LN_2 + 1e-12, "{far}");
        let matrix = divergence_matrix(&[a, same, other], 20).unwrap();
        assert_eq!((matrix[0], matrix[1], matrix[2], matrix[6]), (0.0, near, far, far));
    }

    #[test]
    fn a_layer_differs_from_itself_by_chance_the_less_the_more_vectors_it_has() {
        let whole = cloud(4, [1.0, 0.5, 0.0, 0.0], 0.8);
        let [half, other] = whole.halves();
        assert_eq!((half.len(), other.len()), (10_000, 10_000));
        let quarter = &half.halves()[0];
        let floor = noise_floor(&whole, 100).unwrap();
        assert!(floor > 0.03, "{floor}");
        let fewer = noise_floor(quarter, 100).unwrap();
        assert!(fewer > 1.5 * floor, "{fewer} of a quarter, {floor}");
        // The floor is the divergence of another sample from the same distribution.
        let again = jensen_shannon(&half, &cloud(5, [1.0, 0.5, 0.0, 0.0], 0.8).halves()[0], 100).unwrap();
        assert!((again / floor - 1.0).abs() < 0.1, "{again} and {floor}");
        assert_eq!(noise_floor(&LayerSample::of(&[0.0; 40], 4), 10).unwrap(), 0.0);
    }

    #[test]
    fn zero_vectors_and_constant_layers_are_handled() {
        let zero = LayerSample::of(&[0.0; 40], 4);
        let constant = LayerSample::of(&[1.0, 2.0, 3.0, 4.0].repeat(10), 4);
        assert_eq!((zero.len(), constant.len()), (0, 10));
        assert_eq!(jensen_shannon(&zero, &zero, 10).unwrap(), 0.0);
        assert_eq!(jensen_shannon(&zero, &constant, 10).unwrap(), std::f64::consts::LN_2);
        assert_eq!(jensen_shannon(&constant, &constant, 10).unwrap(), 0.0);
    }
}
