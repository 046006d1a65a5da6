//! Trains CommVQ's key codebooks by expectation maximisation (Li et al., ICML 2025, section 4.3).
//!
//! The codebook of a step has `n` rows `z` of complex numbers. It represents the `n²` codewords `z_a + i z_b`. The soft
//! assignments are `w_{t,ab} ∝ exp(-||x_t - z_a - i z_b|| / temperature)`. The distances are not squared, as in the released
//! trainer. The rows that minimise the expected squared error solve one Hermitian system, which is the same for all channel
//! pairs. Let `N_a`, `N_b` and `W_ab` be the sums of the weights over the vectors, and `S_a`, `S_b` the sums of the weighted
//! vectors. Then
//!
//! ```text
//! (diag(N_a + N_b) + i (W - Wᵀ)) z = S_a - i S_b
//! ```
//!
//! The next step is trained on the residual of this one.

mod sums;

use kvcsr_codec::TiedCodebook;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use self::sums::Sums;
use crate::error::{NeuralDictError, Result};

/// The training schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Annealing {
    /// Rows of a codebook, `n`.
    pub rows: usize,
    /// Maximum number of iterations.
    pub iterations: usize,
    /// Temperature of the first iteration of the first residual step, in the unit of distances.
    pub start: f32,
    /// Temperature of the last iteration of the first residual step. In between, the temperature falls exponentially.
    pub end: f32,
    /// Number of residual steps after which both temperatures are divided by ten. The first division is after one step.
    pub tenth: usize,
    /// A step ends when the error of an iteration is not better than the best error, and differs from it by less than this.
    pub tolerance: f64,
}

impl Default for Annealing {
    /// The settings of the released trainer: the temperature falls from 1e-3 to 1e-5 over 100 iterations and is divided by ten
    /// after the residual steps 0, 4, 8 and so on. The tolerance is 1e-5.
    fn default() -> Self {
        Self { rows: 64, iterations: 100, start: 1e-3, end: 1e-5, tenth: 4, tolerance: 1e-5 }
    }
}

impl Annealing {
    fn temperature(&self, step: usize, iteration: usize) -> f32 {
        let progress = iteration as f32 / self.iterations.saturating_sub(1).max(1) as f32;
        let decades = step.div_ceil(self.tenth.max(1));
        self.start * (self.end / self.start).powf(progress) * 0.1f32.powi(decades as i32)
    }
}

/// A trained step.
#[derive(Debug, Clone)]
pub struct Step {
    /// The codebook of the iteration with the smallest error.
    pub codebook: TiedCodebook,
    /// Mean squared error per channel with the nearest codewords, after each iteration. It is in the unit of the vectors before
    /// they were scaled.
    pub errors: Vec<f64>,
}

/// Trains `steps` residual steps on `rows` `(n, width)`. The rows are replaced by the residual of the last step. `norms`
/// `(n)` are the norms by which the caller divided the rows. Errors are those of the rows multiplied by these norms. They
/// decide when a step ends and which iteration is kept.
///
/// # Errors
/// [`NeuralDictError::Codebooks`] if there are no vectors or no iterations, `width` is odd, or the sizes of `rows` and
/// `norms` do not match.
pub fn train(
    rows: &mut [f32],
    norms: &[f32],
    width: usize,
    steps: usize,
    annealing: &Annealing,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Step>> {
    if width == 0 || !width.is_multiple_of(2) || rows.is_empty() || !rows.len().is_multiple_of(width) {
        let reason = format!("{} numbers are no vectors of an even width {width}", rows.len());
        return Err(NeuralDictError::Codebooks { reason });
    }
    if norms.len() * width != rows.len() || annealing.iterations == 0 {
        let (vectors, norms, rounds) = (rows.len() / width, norms.len(), annealing.iterations);
        let reason =
            format!("{vectors} vectors, {norms} norms, {rounds} iterations: one norm a vector, at least 1 iteration");
        return Err(NeuralDictError::Codebooks { reason });
    }
    let (mut parts, mut scores) = (Vec::new(), Vec::new());
    (0..steps)
        .map(|number| {
            let step = train_step(rows, norms, width, (number, annealing), rng)?;
            for row in rows.chunks_exact_mut(width) {
                let code = step.codebook.find(row, &mut parts, &mut scores);
                step.codebook.add(code, -1.0, row);
            }
            Ok(step)
        })
        .collect()
}

fn train_step(
    rows: &[f32],
    norms: &[f32],
    width: usize,
    (number, annealing): (usize, &Annealing),
    rng: &mut ChaCha8Rng,
) -> Result<Step> {
    let mut book = initial(rows, width, annealing.rows, rng)?;
    let mut best: Option<(f64, TiedCodebook)> = None;
    let mut errors = Vec::new();
    for iteration in 0..annealing.iterations {
        let sums = Sums::gather(&book, rows, norms, annealing.temperature(number, iteration));
        errors.push(sums.error);
        let least = best.as_ref().map_or(f64::INFINITY, |(error, _)| *error);
        if sums.error >= least && sums.error - least < annealing.tolerance {
            break;
        }
        let next = sums.solve(&book)?;
        let done = std::mem::replace(&mut book, next);
        if sums.error < least {
            best = Some((sums.error, done));
        }
    }
    let (_, codebook) =
        best.ok_or_else(|| NeuralDictError::Codebooks { reason: "the error is not a number".to_owned() })?;
    Ok(Step { codebook, errors })
}

/// The rows are random vectors multiplied by `(1 - i) / 2`. The codeword of a row with itself is then the vector.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::SeedableRng;

    use super::*;

    /// `n` vectors near twenty centres.
    pub(super) fn vectors(n: usize, width: usize) -> Vec<f32> {
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
    fn temperatures_fall_over_iterations_and_by_a_tenth_over_residual_steps() {
        let annealing = Annealing::default();
        let near = |step, iteration, expected: f32| {
            let found = annealing.temperature(step, iteration);
            assert!((found / expected - 1.0).abs() < 1e-3, "step {step}, iteration {iteration}: {found}");
        };
        near(0, 0, 1e-3);
        near(0, 99, 1e-5);
        near(0, 33, 1e-3 * 0.01f32.powf(1.0 / 3.0));
        // The temperature is divided by ten after the steps 0, 4 and 8.
        near(1, 0, 1e-4);
        near(4, 0, 1e-4);
        near(5, 0, 1e-5);
        near(9, 99, 1e-8);
        assert!(Annealing { iterations: 1, ..annealing }.temperature(0, 0) == 1e-3);
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
            let norms = vec![1.0; 500];
            let steps = train(&mut rows, &norms, 8, 3, &annealing, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            let left = rows.iter().map(|x| f64::from(x * x)).sum::<f64>() / 4000.0;
            (steps, left)
        };
        let (steps, left) = run(1);
        let least: Vec<f64> = steps.iter().map(|s| s.errors.iter().copied().fold(f64::MAX, f64::min)).collect();
        assert!(least.windows(2).all(|w| w[1] < w[0]), "{least:?}");
        assert!((left - least[2]).abs() < 1e-6, "{left} {least:?}");
        assert!(steps.iter().all(|s| s.errors[0] > *s.errors.iter().min_by(|a, b| a.total_cmp(b)).unwrap()));
        assert_eq!(run(1).1, left);
        assert_ne!(run(2).1, left);
        for (mut rows, norms, width) in [(vec![1.0; 3], vec![1.0], 3), (vec![1.0; 4], vec![1.0], 2)] {
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            assert!(train(&mut rows, &norms, width, 1, &Annealing::default(), &mut rng).is_err());
        }
    }
}
