//! One iteration of expectation maximisation: the sums over soft assignments, and the codebook rows computed from them.

use kvcsr_codec::TiedCodebook;

use crate::error::Result;

/// Weights below `exp(-NEGLIGIBLE)` of the largest weight are ignored.
const NEGLIGIBLE: f32 = 16.0;
/// How strongly rows are pulled to their old values, as a fraction of the mean weight of a row. It keeps the system regular.
const PROXIMAL: f64 = 1e-3;

/// The sums of an expectation step.
pub(super) struct Sums {
    /// `N_a`, `N_b`: `(n)` each.
    mass: [Vec<f64>; 2],
    /// `W`, `(n, n)`.
    joint: Vec<f64>,
    /// `S_a`, `S_b`: `(n, width)` each.
    vectors: [Vec<f64>; 2],
    /// Mean squared error per channel with the nearest codewords, in the unit of the vectors before they were scaled.
    pub(super) error: f64,
}

impl Sums {
    /// Computes the sums for `rows` `(n, width)`, whose norms were `norms`, over the codewords of `book`.
    pub(super) fn gather(book: &TiedCodebook, rows: &[f32], norms: &[f32], temperature: f32) -> Self {
        let (n, width) = (book.len(), book.width());
        let mut sums = Self {
            mass: [vec![0.0; n], vec![0.0; n]],
            joint: vec![0.0; n * n],
            vectors: [vec![0.0; n * width], vec![0.0; n * width]],
            error: 0.0,
        };
        let (mut parts, mut scores) = (Vec::new(), Vec::new());
        let mut near: Vec<(usize, f32)> = Vec::new();
        let mut shares = vec![0f64; 2 * n];
        for (row, &norm) in rows.chunks_exact(width).zip(norms) {
            book.scores(row, &mut parts, &mut scores);
            let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // A squared distance is ||x||² minus twice the score.
            let square = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() as f32;
            let least = (square - 2.0 * top).max(0.0);
            let shortest = least.sqrt();
            let reach = shortest + NEGLIGIBLE * temperature;
            // The nearest codeword is always included, even if the bound is rounded.
            let floor = (0.5 * (square - reach * reach)).min(top);
            near.clear();
            near.extend(scores.iter().enumerate().filter(|(_, s)| **s >= floor).map(|(code, s)| {
                let distance = (square - 2.0 * s).max(0.0).sqrt();
                (code, ((shortest - distance) / temperature).exp())
            }));
            let total: f32 = near.iter().map(|(_, w)| w).sum();
            sums.error += f64::from(least) * f64::from(norm).powi(2);
            // Many codewords share a row of the codebook. Sum the weights of the row first, then add the vector once.
            shares.fill(0.0);
            for &(code, weight) in &near {
                let w = f64::from(weight / total);
                sums.joint[code] += w;
                shares[code / n] += w;
                shares[n + code % n] += w;
            }
            for (place, &w) in shares.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                let (side, place) = (place / n, place % n);
                sums.mass[side][place] += w;
                let sum = &mut sums.vectors[side][place * width..(place + 1) * width];
                sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += w * f64::from(x));
            }
        }
        sums.error /= rows.len() as f64;
        sums
    }

    /// Computes the rows that minimise the expected error, with a small pull to the rows of `book`.
    pub(super) fn solve(&self, book: &TiedCodebook) -> Result<TiedCodebook> {
        let (n, width) = (book.len(), book.width());
        let half = width / 2;
        let hold = PROXIMAL * self.mass[0].iter().sum::<f64>() / n as f64;
        // Real form of the Hermitian system, (2n, 2n): [[N, -K], [K, N]] with K = W - Wᵀ.
        let m = 2 * n;
        let mut system = vec![0f64; m * m];
        for a in 0..n {
            let diagonal = self.mass[0][a] + self.mass[1][a] + hold;
            system[a * m + a] = diagonal;
            system[(n + a) * m + n + a] = diagonal;
            for b in 0..n {
                let k = self.joint[a * n + b] - self.joint[b * n + a];
                system[a * m + n + b] = -k;
                system[(n + a) * m + b] = k;
            }
        }
        // Right-hand sides, (2n, D / 2).
        let mut right = vec![0f64; m * half];
        let [first, second] = &self.vectors;
        for a in 0..n {
            for j in 0..half {
                let (real, imaginary) = (a * width + j, a * width + half + j);
                let old = |at: usize| hold * f64::from(book.rows()[at]);
                right[a * half + j] = first[real] + second[imaginary] + old(real);
                right[(n + a) * half + j] = first[imaginary] - second[real] + old(imaginary);
            }
        }
        cholesky(&mut system, &mut right, m, half);
        let mut rows = Vec::with_capacity(n * width);
        for a in 0..n {
            rows.extend(right[a * half..(a + 1) * half].iter().map(|&x| x as f32));
            rows.extend(right[(n + a) * half..(n + a + 1) * half].iter().map(|&x| x as f32));
        }
        Ok(TiedCodebook::new(width, rows)?)
    }
}

/// Solves `system x = right` for `right` `(m, k)` in place. `system` `(m, m)` must be positive definite.
fn cholesky(system: &mut [f64], right: &mut [f64], m: usize, k: usize) {
    for i in 0..m {
        let (above, rest) = system.split_at_mut(i * m);
        let row = &mut rest[..m];
        for j in 0..i {
            let other = &above[j * m..j * m + m];
            let sum: f64 = row[..j].iter().zip(&other[..j]).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - sum) / other[j];
        }
        let sum: f64 = row[..i].iter().map(|a| a * a).sum();
        row[i] = (row[i] - sum).max(f64::MIN_POSITIVE).sqrt();
    }
    for i in 0..m {
        let (done, rest) = right.split_at_mut(i * k);
        let row = &mut rest[..k];
        for (j, done) in done.chunks_exact(k).enumerate() {
            let factor = system[i * m + j];
            row.iter_mut().zip(done).for_each(|(x, y)| *x -= factor * y);
        }
        row.iter_mut().for_each(|x| *x /= system[i * m + i]);
    }
    for i in (0..m).rev() {
        let (head, done) = right.split_at_mut((i + 1) * k);
        let row = &mut head[i * k..];
        for (j, done) in done.chunks_exact(k).enumerate() {
            let factor = system[(i + 1 + j) * m + i];
            row.iter_mut().zip(done).for_each(|(x, y)| *x -= factor * y);
        }
        row.iter_mut().for_each(|x| *x /= system[i * m + i]);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::initial;
    use super::super::tests::vectors;
    use super::*;

    /// The expected squared error of a codebook under the weights of `sums`, minus a constant.
    fn expected_error(book: &TiedCodebook, sums: &Sums) -> f64 {
        let (n, d) = (book.len(), book.width());
        let mut error = 0.0;
        let (mut first, mut second) = (vec![0f32; d], vec![0f32; d]);
        for a in 0..n {
            // z_a alone and i z_a alone, as differences of codewords.
            first.fill(0.0);
            second.fill(0.0);
            let row = &book.rows()[a * d..(a + 1) * d];
            first.copy_from_slice(row);
            let (real, imaginary) = row.split_at(d / 2);
            second[..d / 2].iter_mut().zip(imaginary).for_each(|(x, y)| *x = -y);
            second[d / 2..].copy_from_slice(real);
            for (side, part) in [&first, &second].into_iter().enumerate() {
                let inner: f64 = part.iter().zip(&sums.vectors[side][a * d..]).map(|(&z, s)| f64::from(z) * s).sum();
                error -= 2.0 * inner;
            }
            for b in 0..n {
                let mut word = vec![0f32; d];
                book.add((a, b), 1.0, &mut word);
                let square: f64 = word.iter().map(|&x| f64::from(x).powi(2)).sum();
                error += sums.joint[a * n + b] * square;
            }
        }
        error
    }

    #[test]
    fn maximisation_finds_the_least_expected_error() {
        let rows = vectors(600, 8);
        let norms = vec![1.0; 600];
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for temperature in [1e-1f32, 1e-2, 1e-4] {
            let book = initial(&rows, 8, 8, &mut rng).unwrap();
            let sums = Sums::gather(&book, &rows, &norms, temperature);
            let found = sums.solve(&book).unwrap();
            let least = expected_error(&found, &sums);
            assert!(least < expected_error(&book, &sums), "{temperature}");
            // There is a small pull to the old rows, so a further step in any direction improves almost nothing.
            for at in 0..found.rows().len() {
                for by in [-0.02, 0.02] {
                    let mut moved = found.rows().to_vec();
                    moved[at] += by;
                    let moved = expected_error(&TiedCodebook::new(8, moved).unwrap(), &sums);
                    assert!(moved > least - 2e-2, "{temperature}, number {at}: {moved} after {least}");
                }
            }
        }
    }

    #[test]
    fn nearby_codewords_share_a_vector_by_their_distance() {
        // The codewords are a + i b, with z in {0, 1}. The vector has imaginary part 0.
        let book = TiedCodebook::new(2, vec![0.0, 0.0, 1.0, 0.0]).unwrap();
        let temperature = 0.5f32;
        let sums = Sums::gather(&book, &[0.25, 0.0], &[2.0], temperature);
        let weight = |distance: f32| (-distance / temperature).exp();
        // (0, 0), (0, 1) = i, (1, 0) = 1, (1, 1) = 1 + i
        let weights = [0.25, (0.0625f32 + 1.0).sqrt(), 0.75, (0.5625f32 + 1.0).sqrt()].map(weight);
        let total: f32 = weights.iter().sum();
        for (found, expected) in sums.joint.iter().zip(weights) {
            assert!((*found as f32 - expected / total).abs() < 1e-6, "{:?}", sums.joint);
        }
        // The squared distance 1/16, multiplied by the squared norm, divided by two channels.
        assert!((sums.error - 0.125).abs() < 1e-7, "{}", sums.error);
    }
}
