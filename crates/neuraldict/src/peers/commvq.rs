//! CommVQ's key codebooks by expectation maximisation (Li et al., ICML 2025, section 4.3).
//!
//! A step's codebook has `n` rows `z` of complex numbers and stands for the `n²` codewords `z_a + i z_b`. Given soft
//! assignments `w_{t,ab} ∝ exp(-||x_t - z_a - i z_b||² / temperature)`, the rows that minimise the expected squared error
//! solve one Hermitian system, the same for all channel pairs: with `N_a`, `N_b` and `W_ab` the sums of the weights over
//! vectors and `S_a`, `S_b` those of the weighted vectors,
//!
//! ```text
//! (diag(N_a + N_b) + i (W - Wᵀ)) z = S_a - i S_b
//! ```
//!
//! The next step is trained on what this one leaves over.

use kvcsr_codec::TiedCodebook;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::error::{NeuralDictError, Result};

/// Weights below `exp(-NEGLIGIBLE)` of the largest are left out.
const NEGLIGIBLE: f32 = 16.0;
/// How strongly rows are held where they are, as a share of the mean weight of a row: keeps the system regular.
const PROXIMAL: f64 = 1e-3;

/// How a step is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Annealing {
    /// Rows of a codebook, `n`.
    pub rows: usize,
    /// Most iterations.
    pub iterations: usize,
    /// Temperature of the first iteration, in the unit of squared distances.
    pub start: f32,
    /// The lowest temperature.
    pub end: f32,
    /// Iterations in which the temperature falls to a tenth.
    pub decade: f32,
    /// A step ends when an iteration's error is no better than the best and within this of it.
    pub tolerance: f64,
}

impl Default for Annealing {
    /// The published temperatures, 1e-3 to 1e-5, a tenth every 4 iterations; up to 100 iterations; 1e-5.
    fn default() -> Self {
        Self { rows: 64, iterations: 100, start: 1e-3, end: 1e-5, decade: 4.0, tolerance: 1e-5 }
    }
}

impl Annealing {
    fn temperature(&self, iteration: usize) -> f32 {
        (self.start * 0.1f32.powf(iteration as f32 / self.decade)).max(self.end)
    }
}

/// A trained step.
#[derive(Debug, Clone)]
pub struct Step {
    /// The codebook of the iteration with the least error.
    pub codebook: TiedCodebook,
    /// Mean squared distance to the nearest codeword, at the start of each iteration and after the last.
    pub errors: Vec<f64>,
}

/// Trains `steps` residual steps on `rows` `(n, width)`, which are replaced by what the last step leaves over.
///
/// # Errors
/// [`NeuralDictError::Codebooks`] without vectors, or if they do not fit an even `width`.
pub fn train(
    rows: &mut [f32],
    width: usize,
    steps: usize,
    annealing: &Annealing,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Step>> {
    if width == 0 || !width.is_multiple_of(2) || rows.is_empty() || !rows.len().is_multiple_of(width) {
        let reason = format!("{} numbers are no vectors of an even width {width}", rows.len());
        return Err(NeuralDictError::Codebooks { reason });
    }
    let (mut parts, mut scores) = (Vec::new(), Vec::new());
    (0..steps)
        .map(|_| {
            let step = train_step(rows, width, annealing, rng)?;
            for row in rows.chunks_exact_mut(width) {
                let code = step.codebook.find(row, &mut parts, &mut scores);
                step.codebook.add(code, -1.0, row);
            }
            Ok(step)
        })
        .collect()
}

fn train_step(rows: &[f32], width: usize, annealing: &Annealing, rng: &mut ChaCha8Rng) -> Result<Step> {
    let mut book = initial(rows, width, annealing.rows, rng)?;
    let mut best: Option<(f64, TiedCodebook)> = None;
    let mut errors = Vec::new();
    for iteration in 0..=annealing.iterations {
        let sums = Sums::gather(&book, rows, annealing.temperature(iteration));
        errors.push(sums.error);
        let least = best.as_ref().map_or(f64::INFINITY, |(error, _)| *error);
        if sums.error >= least && sums.error - least <= annealing.tolerance {
            break;
        }
        let next = if iteration < annealing.iterations { Some(sums.solve(&book)?) } else { None };
        if sums.error < least {
            best = Some((sums.error, book));
        }
        match next {
            Some(next) => book = next,
            None => break,
        }
    }
    let (_, codebook) =
        best.ok_or_else(|| NeuralDictError::Codebooks { reason: "the error is not a number".to_owned() })?;
    Ok(Step { codebook, errors })
}

/// Rows `(1 - i) / 2` times drawn vectors: the codeword of a row with itself is then the vector.
fn initial(rows: &[f32], width: usize, n: usize, rng: &mut ChaCha8Rng) -> Result<TiedCodebook> {
    let (count, half) = (rows.len() / width, width / 2);
    let mut drawn = Vec::with_capacity(n * width);
    for _ in 0..n {
        let at = rng.random_range(0..count);
        let (real, imaginary) = rows[at * width..(at + 1) * width].split_at(half);
        drawn.extend(real.iter().zip(imaginary).map(|(r, i)| 0.5 * (r + i)));
        drawn.extend(real.iter().zip(imaginary).map(|(r, i)| 0.5 * (i - r)));
    }
    Ok(TiedCodebook::new(width, drawn)?)
}

/// What an expectation step adds up, and what the objective is there.
struct Sums {
    /// `N_a`, `N_b`: `(n)` each.
    mass: [Vec<f64>; 2],
    /// `W`, `(n, n)`.
    joint: Vec<f64>,
    /// `S_a`, `S_b`: `(n, width)` each.
    vectors: [Vec<f64>; 2],
    /// Mean squared distance to the nearest codeword.
    error: f64,
    /// `-temperature mean ln sum exp(-distance / temperature)`, which maximisation lessens at a fixed temperature.
    free_energy: f64,
}

impl Sums {
    fn gather(book: &TiedCodebook, rows: &[f32], temperature: f32) -> Self {
        let (n, width) = (book.len(), book.width());
        let mut sums = Self {
            mass: [vec![0.0; n], vec![0.0; n]],
            joint: vec![0.0; n * n],
            vectors: [vec![0.0; n * width], vec![0.0; n * width]],
            error: 0.0,
            free_energy: 0.0,
        };
        let (mut parts, mut scores) = (Vec::new(), Vec::new());
        let mut near: Vec<(usize, f32)> = Vec::new();
        let mut shares = vec![0f64; 2 * n];
        for row in rows.chunks_exact(width) {
            book.scores(row, &mut parts, &mut scores);
            let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // A distance is ||x||² less twice the score.
            let floor = top - 0.5 * NEGLIGIBLE * temperature;
            near.clear();
            near.extend(
                scores
                    .iter()
                    .enumerate()
                    .filter(|(_, s)| **s >= floor)
                    .map(|(code, s)| (code, (2.0 * (s - top) / temperature).exp())),
            );
            let total: f32 = near.iter().map(|(_, w)| w).sum();
            let square: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
            let least = (square - 2.0 * f64::from(top)).max(0.0);
            sums.error += least;
            sums.free_energy += least - f64::from(temperature) * f64::from(total).ln();
            // Many codewords share a row of the codebook: its weight is gathered before the vector is added.
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
        let count = (rows.len() / width) as f64;
        sums.error /= count;
        sums.free_energy /= count;
        sums
    }

    /// The rows that lessen the expected error most, held a little to those of `book`.
    fn solve(&self, book: &TiedCodebook) -> Result<TiedCodebook> {
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
        // Right sides, (2n, D / 2).
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

/// Solves `system x = right` for `right` `(m, k)` in place; `system` `(m, m)` is positive definite.
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

    use super::*;

    fn vectors(n: usize, width: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let centres: Vec<f32> = (0..20 * width).map(|_| rng.random_range(-0.3f32..0.3)).collect();
        (0..n)
            .flat_map(|i| {
                let centre = &centres[i % 20 * width..][..width];
                centre.iter().map(|c| c + rng.random_range(-0.1f32..0.1)).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn maximisation_lessens_the_free_energy() {
        let rows = vectors(600, 8);
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for temperature in [1e-1f32, 1e-2, 1e-5] {
            let mut book = initial(&rows, 8, 8, &mut rng).unwrap();
            let mut last = f64::INFINITY;
            for iteration in 0..15 {
                let sums = Sums::gather(&book, &rows, temperature);
                assert!(
                    sums.free_energy <= last + 1e-6,
                    "{temperature} {iteration}: {} after {last}",
                    sums.free_energy
                );
                assert!(sums.free_energy <= sums.error + 1e-9);
                last = sums.free_energy;
                book = sums.solve(&book).unwrap();
            }
        }
    }

    #[test]
    fn a_row_with_itself_is_the_vector_it_was_made_of() {
        let rows = vectors(1, 6);
        let book = initial(&rows, 6, 1, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
        let mut rest = rows.clone();
        book.add((0, 0), -1.0, &mut rest);
        assert!(rest.iter().all(|x| x.abs() < 1e-6), "{rest:?}");
    }

    #[test]
    fn steps_lessen_the_error_and_the_seed_decides() {
        let run = |seed| {
            let mut rows = vectors(500, 8);
            let annealing = Annealing { rows: 16, iterations: 20, ..Annealing::default() };
            let steps = train(&mut rows, 8, 3, &annealing, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            let left = rows.iter().map(|x| f64::from(x * x)).sum::<f64>() / 500.0;
            (steps, left)
        };
        let (steps, left) = run(1);
        let least: Vec<f64> = steps.iter().map(|s| s.errors.iter().copied().fold(f64::MAX, f64::min)).collect();
        assert!(least.windows(2).all(|w| w[1] < w[0]), "{least:?}");
        assert!((left - least[2]).abs() < 1e-6, "{left} {least:?}");
        assert!(steps.iter().all(|s| s.errors[0] > *s.errors.iter().min_by(|a, b| a.total_cmp(b)).unwrap()));
        assert_eq!(run(1).1, left);
        assert_ne!(run(2).1, left);
        assert!(train(&mut [1.0, 2.0, 3.0], 3, 1, &Annealing::default(), &mut ChaCha8Rng::seed_from_u64(0)).is_err());
    }
}
