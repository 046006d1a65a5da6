//! k-means, which initialises `W_D` (Algorithm 1, step 3). It finds plain Euclidean clusters of the raw vectors. Their
//! centroids are then scaled to unit norm.
//!
//! The seeding is k-means++ (Arthur and Vassilvitskii 2007) on a part of the sample. Lloyd's iterations then use the whole
//! sample. Distances are computed as blocked matrix products. On the CPU these are the products of the codec, whose bits
//! are the same on every CPU. On CUDA the prefix sums of the seeding may be rounded differently from run to run.

use kvcsr_codec::kernels::{Isa, Matrix, MatrixMut, multiply};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tch::{IndexOp, Kind, Tensor};

use crate::{
    axes::numbers,
    device::is_on_host,
    error::Result,
    optimiser::{renorm, row_norms},
};

/// Entries of the distance matrix that are held at once on the CPU. 8 MB stay in the cache, and the allocator reuses them.
const BLOCK_CPU: i64 = 1 << 21;
/// The same on CUDA, where fewer and larger products are faster.
const BLOCK_CUDA: i64 = 1 << 26;
/// Vectors per cluster that k-means++ uses. Seeding costs `clusters x (this x clusters) x D` multiplications.
const SEEDING_VECTORS_PER_CLUSTER: i64 = 16;
/// Lloyd's iterations stop when the inertia falls by less than this fraction.
const TOLERANCE: f64 = 1e-4;
/// Centroids shorter than this fraction of the longest one are treated as zero: they have no direction.
const ZERO_NORM: f64 = 1e-6;

/// The result of k-means.
#[derive(Debug)]
pub struct Clusters {
    /// `(N, D)`: means of the clusters.
    pub centroids: Tensor,
    /// `(M)` int64: each vector's cluster in the last assignment.
    pub labels: Tensor,
    /// `(M)`: squared distance of each vector to the centroid it was assigned to.
    pub costs: Tensor,
    /// Sum of the costs after each assignment.
    pub inertia: Vec<f64>,
    /// Number of empty clusters that were seeded again, over all iterations.
    pub reseeded: usize,
}

/// Clusters `vectors (M, D)`, `M >= clusters`, into `clusters` groups. The vectors must be in random order.
///
/// There are at most `iterations` rounds of assignment and update. The centroid of a cluster without vectors moves to one
/// of the vectors that are farthest from their centroids. `observer` gets the number and the inertia of each iteration.
///
/// # Errors
/// Errors of libtorch.
pub fn kmeans(
    vectors: &Tensor,
    clusters: usize,
    iterations: usize,
    rng: &mut ChaCha8Rng,
    observer: &mut dyn FnMut(usize, f64),
) -> Result<Clusters> {
    let _guard = tch::no_grad_guard();
    let (count, width) = vectors.size2()?;
    let n = clusters as i64;
    let seeding = count.min(SEEDING_VECTORS_PER_CLUSTER * n);
    let mut centroids = seed_plus_plus(&vectors.f_narrow(0, 0, seeding)?, clusters, rng)?;
    let norms = row_norms(vectors)?.f_square()?.f_view([count])?;
    let mut inertia: Vec<f64> = Vec::new();
    let mut reseeded = 0;
    let (mut labels, mut costs) = assign(vectors, &norms, &centroids)?;
    for iteration in 0..iterations {
        let total = costs.f_sum(Kind::Double)?.f_double_value(&[])?;
        observer(iteration, total);
        let settled = inertia.last().is_some_and(|last| last - total <= TOLERANCE * last);
        inertia.push(total);
        // Means of the assigned vectors. The embedding's backward pass adds rows up in a fixed order on any device.
        let sums = Tensor::f_embedding_dense_backward(vectors, &labels, n, -1, false)?;
        let sizes = labels.f_bincount(None::<Tensor>, n)?;
        let empty = sizes.f_eq(0)?;
        let divisor = sizes.f_clamp_min(1)?.f_to_kind(vectors.kind())?.f_view([n, 1])?;
        centroids = sums.f_div(&divisor)?;
        let vacant = empty.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        if vacant > 0 {
            let (_, farthest) = costs.f_topk(vacant.min(count), 0, true, true)?;
            let vacancies = empty.f_nonzero()?.f_view([vacant])?.f_narrow(0, 0, farthest.size()[0])?;
            let moved = vectors.f_index_select(0, &farthest)?;
            centroids = centroids.f_index_copy(0, &vacancies, &moved)?;
            reseeded += vacant as usize;
        } else if settled {
            break;
        }
        if iteration + 1 < iterations {
            (labels, costs) = assign(vectors, &norms, &centroids)?;
        }
    }
    debug_assert_eq!(centroids.size(), [n, width]);
    Ok(Clusters { centroids, labels, costs, inertia, reseeded })
}

/// k-means++: the first centre is drawn uniformly. Each further centre is drawn with a probability proportional to the
/// squared distance to the nearest centre so far. `vectors` is `(M, D)` with `M >= 1`; the result is `(clusters, D)`.
///
/// If all vectors coincide with a centre, the next centre is drawn uniformly.
///
/// # Errors
/// Errors of libtorch.
pub fn seed_plus_plus(vectors: &Tensor, clusters: usize, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let (count, _) = vectors.size2()?;
    let norms = row_norms(vectors)?.f_square()?.f_view([count])?;
    let rows = if is_on_host(vectors) { Some(numbers(vectors)?) } else { None };
    let mut nearest: Option<Tensor> = None;
    let mut chosen = Vec::with_capacity(clusters);
    for _ in 0..clusters {
        let index = match &nearest {
            None => rng.random_range(0..count),
            Some(nearest) => {
                let cumulative = nearest.f_cumsum(0, Kind::Double)?;
                let total = cumulative.f_double_value(&[count - 1])?;
                let draw: f64 = rng.random();
                if total > 0.0 {
                    let at = Tensor::f_from_slice(&[draw * total])?.f_to_device(vectors.device())?;
                    let found = at.f_searchsorted(&cumulative, false, true, "right", None::<Tensor>)?;
                    found.f_int64_value(&[0])?.min(count - 1)
                } else {
                    ((draw * count as f64) as i64).min(count - 1)
                }
            }
        };
        let centre = vectors.f_i(index)?;
        let squared = norms.f_i(index)?;
        let products = match &rows {
            Some(rows) => along(rows, &numbers(&centre)?)?,
            None => vectors.f_mv(&centre)?,
        };
        let distances = norms.f_add(&squared)?.f_sub(&products.f_mul_scalar(2.0)?)?.f_clamp_min(0.0)?;
        let mut distances = match &nearest {
            None => distances,
            Some(nearest) => nearest.f_minimum(&distances)?,
        };
        // Rounding leaves a distance of about 1e-7 of the squared norm from a vector to itself.
        let _ = distances.f_narrow(0, index, 1)?.f_zero_()?;
        nearest = Some(std::mem::replace(&mut distances, Tensor::new()));
        chosen.push(index);
    }
    let chosen = Tensor::f_from_slice(&chosen)?.f_to_device(vectors.device())?;
    Ok(vectors.f_index_select(0, &chosen)?)
}

/// The dot product of each row with `direction`.
fn along(rows: &[f32], direction: &[f32]) -> Result<Tensor> {
    let (count, width) = (rows.len() / direction.len(), direction.len());
    let mut products = vec![0f32; count];
    let column = Matrix::new(direction, 1, width).transposed();
    multiply(MatrixMut::new(&mut products, count, 1), Matrix::new(rows, count, width), column);
    Ok(Tensor::f_from_slice(&products)?)
}

/// The nearest centroid of each vector, the first among equals, and the squared distance to it.
pub(crate) fn assign(vectors: &Tensor, norms: &Tensor, centroids: &Tensor) -> Result<(Tensor, Tensor)> {
    if is_on_host(vectors) {
        assign_on_host(vectors, norms, centroids)
    } else {
        assign_on_device(vectors, norms, centroids)
    }
}

/// [`assign`] with the products of the codec.
fn assign_on_host(vectors: &Tensor, norms: &Tensor, centroids: &Tensor) -> Result<(Tensor, Tensor)> {
    let (clusters, width) = (centroids.size()[0] as usize, centroids.size()[1] as usize);
    let (rows, centres) = (numbers(vectors)?, numbers(centroids)?);
    let (norms, squared) = (numbers(norms)?, numbers(&row_norms(centroids)?.f_square()?)?);
    let block = (BLOCK_CPU as usize / clusters).max(64);
    let mut closeness = vec![0f32; block * clusters];
    let (mut labels, mut costs) = (Vec::with_capacity(norms.len()), Vec::with_capacity(norms.len()));
    let (isa, columns) = (Isa::detect(), Matrix::new(&centres, clusters, width).transposed());
    for (rows, norms) in rows.chunks(block * width).zip(norms.chunks(block)) {
        let closeness = &mut closeness[..norms.len() * clusters];
        let rows = Matrix::new(rows, norms.len(), width);
        multiply(MatrixMut::new(closeness, norms.len(), clusters), rows, columns);
        for (row, norm) in closeness.chunks_exact_mut(clusters).zip(norms) {
            // ||x - c||^2 = ||x||^2 - (2 <x, c> - ||c||^2). The nearest centroid has the largest value in brackets.
            row.iter_mut().zip(&squared).for_each(|(product, squared)| *product = 2.0 * *product - squared);
            let best = isa.max(row);
            labels.push(row.iter().position(|&of| of == best).unwrap_or(0) as i64);
            costs.push((norm - best).max(0.0));
        }
    }
    Ok((Tensor::f_from_slice(&labels)?, Tensor::f_from_slice(&costs)?))
}

/// [`assign`] in libtorch, block by block.
fn assign_on_device(vectors: &Tensor, norms: &Tensor, centroids: &Tensor) -> Result<(Tensor, Tensor)> {
    let count = vectors.size()[0];
    let entries = if vectors.device().is_cuda() { BLOCK_CUDA } else { BLOCK_CPU };
    let block = (entries / centroids.size()[0]).max(64);
    // ||x - c||^2 = ||x||^2 - 2 <x, c> + ||c||^2. The first term does not affect the minimum.
    let scaled = centroids.f_mul_scalar(-2.0)?.f_tr()?;
    let squared = row_norms(centroids)?.f_square()?.f_view([1, -1])?;
    let (mut labels, mut costs) = (Vec::new(), Vec::new());
    let mut start = 0;
    while start < count {
        let length = block.min(count - start);
        let mut distances = vectors.f_narrow(0, start, length)?.f_matmul(&scaled)?;
        let (distance, label) = distances.f_add_(&squared)?.f_min_dim(1, false)?;
        costs.push(distance.f_add(&norms.f_narrow(0, start, length)?)?.f_clamp_min(0.0)?);
        labels.push(label);
        start += length;
    }
    Ok((Tensor::f_cat(&labels, 0)?, Tensor::f_cat(&costs, 0)?))
}

/// Computes unit-norm atoms from centroids (ReNorm). Returns `None` if all vectors are zero.
///
/// A centroid that is zero up to rounding has no direction. It comes from a cluster of zero vectors or of vectors that
/// cancel out. It is replaced by the worst-fitted vector that is not zero.
///
/// # Errors
/// Errors of libtorch.
pub fn centroids_to_atoms(vectors: &Tensor, clusters: &Clusters) -> Result<Option<Tensor>> {
    let _guard = tch::no_grad_guard();
    let lengths = row_norms(vectors)?.f_view([-1])?;
    let longest = lengths.f_max()?.f_double_value(&[])?;
    if longest <= 0.0 {
        return Ok(None);
    }
    let norms = row_norms(&clusters.centroids)?.f_view([-1])?;
    let directionless = norms.f_le(ZERO_NORM * norms.f_max()?.f_double_value(&[])?)?.f_nonzero()?.f_view([-1])?;
    let missing = directionless.size()[0];
    if missing == 0 {
        return Ok(Some(renorm(&clusters.centroids)?));
    }
    let usable = lengths.f_gt(ZERO_NORM * longest)?;
    let ranked = clusters.costs.f_where_self(&usable, &clusters.costs.f_full_like(-1.0)?)?;
    let available = usable.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    let (_, worst) = ranked.f_topk(missing.min(available), 0, true, true)?;
    // There are fewer usable vectors than places, so some are used more than once.
    let repeats = (missing + available - 1) / available;
    let worst = worst.f_repeat([repeats])?.f_narrow(0, 0, missing)?;
    let replaced = clusters.centroids.f_index_copy(0, &directionless, &vectors.f_index_select(0, &worst)?)?;
    Ok(Some(renorm(&replaced)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::SeedableRng;

    use super::*;
    use crate::testing::{random_tensor, random_values};

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::<f32>::try_from(tensor.to_kind(Kind::Float).flatten(0, -1)).unwrap()
    }

    /// `each` vectors around each of the 8 corners of a cube of side 20, shuffled together.
    fn cube(each: usize) -> Tensor {
        let noise = random_values(7, 8 * each * 3);
        let rows: Vec<f32> = (0..8 * each)
            .flat_map(|row| (0..3).map(move |axis| (row, axis)))
            .map(|(row, axis)| {
                let corner = if (row % 8) >> axis & 1 == 1 { 10.0 } else { -10.0 };
                (corner + noise[row * 3 + axis]) as f32
            })
            .collect();
        Tensor::from_slice(&rows).view([-1, 3])
    }

    #[test]
    fn separated_clusters_are_found() {
        let vectors = cube(50);
        let found = kmeans(&vectors, 8, 20, &mut rng(1), &mut |_, _| {}).unwrap();
        let mut corners: Vec<u32> = values(&found.centroids)
            .chunks(3)
            .map(|c| {
                assert!(c.iter().all(|v| (v.abs() - 10.0).abs() < 0.5), "{c:?}");
                c.iter().enumerate().map(|(axis, v)| u32::from(*v > 0.0) << axis).sum()
            })
            .collect();
        corners.sort_unstable();
        assert_eq!(corners, (0..8).collect::<Vec<_>>());
        assert!(found.inertia.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-6)), "{:?}", found.inertia);
    }

    #[test]
    fn centroids_are_the_means_of_their_vectors() {
        let vectors = random_tensor(3, &[400, 5]).to_kind(Kind::Float);
        let found = kmeans(&vectors, 10, 4, &mut rng(2), &mut |_, _| {}).unwrap();
        let labels = Vec::<i64>::try_from(&found.labels).unwrap();
        let rows = values(&vectors);
        for (cluster, centroid) in values(&found.centroids).chunks(5).enumerate() {
            let members: Vec<&[f32]> = rows
                .chunks(5)
                .zip(&labels)
                .filter(|(_, label)| **label == cluster as i64)
                .map(|(row, _)| row)
                .collect();
            for axis in 0..5 {
                let mean = members.iter().map(|row| row[axis]).sum::<f32>() / members.len() as f32;
                assert!((mean - centroid[axis]).abs() < 1e-5, "cluster {cluster}, axis {axis}");
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_and_another_seed_others() {
        let vectors = random_tensor(3, &[500, 6]).to_kind(Kind::Float);
        let seeds = |seed| values(&seed_plus_plus(&vectors, 20, &mut rng(seed)).unwrap());
        assert_eq!(seeds(5), seeds(5));
        assert_ne!(seeds(5), seeds(6));
        let run = |seed| values(&kmeans(&vectors, 20, 6, &mut rng(seed), &mut |_, _| {}).unwrap().centroids);
        assert_eq!(run(5), run(5));
    }

    #[test]
    fn seeding_prefers_far_vectors() {
        // 990 vectors near the origin and 10 distant groups. Uniform draws would miss most of the groups.
        let mut rows = vec![0f32; 1000 * 2];
        for (row, value) in random_values(9, 2000).into_iter().enumerate() {
            rows[row] = value as f32 * 0.01;
        }
        for group in 0..10 {
            rows[2 * group] = 100.0 * (group as f32 + 1.0);
        }
        let chosen = values(&seed_plus_plus(&Tensor::from_slice(&rows).view([-1, 2]), 11, &mut rng(4)).unwrap());
        let mut found: Vec<i32> = chosen.chunks(2).map(|c| (c[0] / 100.0).round() as i32).collect();
        found.sort_unstable();
        assert_eq!(found, (0..=10).collect::<Vec<_>>());
    }

    #[test]
    fn seeding_survives_fewer_distinct_vectors_than_clusters() {
        let vectors = Tensor::from_slice(&[1f32, 0.0, 0.0, 1.0, 1.0, 0.0]).view([3, 2]);
        assert_eq!(seed_plus_plus(&vectors, 3, &mut rng(1)).unwrap().size(), [3, 2]);
        let found = kmeans(&vectors, 3, 5, &mut rng(1), &mut |_, _| {}).unwrap();
        assert!(values(&found.centroids).iter().all(|v| v.is_finite()));
    }

    #[test]
    fn an_empty_cluster_moves_to_the_worst_fitted_vector() {
        // Two equal vectors seed two clusters at the same place. One of these clusters must end at the distant vector.
        let vectors = Tensor::from_slice(&[1f32, 1.0, 1.0, 1.0, 1.0, 9.0]).view([6, 1]);
        for seed in 0..8 {
            let found = kmeans(&vectors, 3, 6, &mut rng(seed), &mut |_, _| {}).unwrap();
            assert!(values(&found.centroids).contains(&9.0), "seed {seed}");
            assert!(found.reseeded > 0, "seed {seed}");
        }
    }

    #[test]
    fn atoms_have_unit_norm_and_zero_centroids_give_way() {
        let mut vectors = (random_tensor(6, &[300, 4]) + 5.0).to_kind(Kind::Float);
        let _ = vectors.narrow(0, 0, 150).zero_();
        let found = kmeans(&vectors, 12, 5, &mut rng(3), &mut |_, _| {}).unwrap();
        let zeroes = values(&row_norms(&found.centroids).unwrap()).iter().filter(|norm| **norm == 0.0).count();
        assert!(zeroes > 0, "the zero vectors should form a cluster");
        let atoms = centroids_to_atoms(&vectors, &found).unwrap().unwrap();
        assert!(values(&row_norms(&atoms).unwrap()).iter().all(|norm| (norm - 1.0).abs() < 1e-5));
        let _ = vectors.zero_();
        let found = kmeans(&vectors, 4, 2, &mut rng(3), &mut |_, _| {}).unwrap();
        assert!(centroids_to_atoms(&vectors, &found).unwrap().is_none());
    }
}
