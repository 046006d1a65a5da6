//! How many bits coordinates take at a given step, if they are normal with the deviations of the calibration.

use super::{FINER, RECENT, SINKS};

/// Levels on each side of 0 that are summed. For wide distributions, the entropy of a continuous distribution is used.
const LEVELS: usize = 40;

/// The length of the prompt for which the bits are requested.
const TOKENS: f64 = 4096.0;

/// The step at which all coordinates of all layers take `bits` per channel of a prompt of [`TOKENS`] tokens, including
/// its first and last tokens. `indices` are the bits of a token's atoms.
pub(super) fn step(deviations: &[Vec<f64>], indices: f64, bits: f64) -> f64 {
    let channels = deviations.iter().map(Vec::len).sum::<usize>().max(1) as f64;
    let largest = deviations.iter().flatten().fold(0f64, |a, b| a.max(*b)).max(1e-12);
    let each = |step: f64| (indices + deviations.iter().flatten().map(|d| entropy(d / step)).sum::<f64>()) / channels;
    let (first, last) = (SINKS as f64 / TOKENS, RECENT as f64 / TOKENS);
    let rate = |step: f64| 16.0 * first + last * each(step / f64::from(FINER)) + (1.0 - first - last) * each(step);
    // Wider steps take fewer bits.
    let (mut low, mut high) = ((largest * 1e-6).ln(), (largest * 100.0).ln());
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if rate(middle.exp()) > bits { low = middle } else { high = middle }
    }
    high.exp()
}

/// The entropy in bits of a normal variate with a deviation of `steps` steps, rounded to whole steps.
fn entropy(steps: f64) -> f64 {
    if steps < 0.1 {
        return 0.0;
    }
    if steps > 6.0 {
        // The entropy of a continuous variate, minus what the wider cell of 0 saves.
        let (tau, width) = (2.0 * std::f64::consts::PI, 1.0 + 2.0 * f64::from(super::DOWN));
        return steps.log2() + 0.5 * (tau * std::f64::consts::E).log2() - width / (steps * tau.sqrt()) * width.log2();
    }
    let up_to = |x: f64| normal(x / steps);
    let mut left = 1.0;
    let mut sum = 0.0;
    for level in 0..LEVELS {
        // For both signs. The rounding threshold is a little above one half.
        let high = 2.0 * up_to(level as f64 + 0.5 + f64::from(super::DOWN)) - 1.0;
        let p = if level == 0 { high } else { 0.5 * (high - (1.0 - left)) };
        let times = if level == 0 { 1.0 } else { 2.0 };
        if p > 1e-12 {
            sum -= times * p * p.log2();
        }
        left = 1.0 - high;
    }
    sum
}

/// The standard normal distribution function for `x >= 0`, within 1e-7 (Abramowitz and Stegun 26.2.17).
fn normal(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x);
    let polynomial =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    1.0 - (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt() * polynomial
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropies_are_those_of_rounded_normal_variates() {
        // A deviation of one step, with thresholds at 0.67, 1.67, ...: 0.4971 of all numbers are 0, 0.4079 are 1 or -1,
        // 0.0873 are 2 or -2, and 0.0075 are 3 or -3.
        assert!((normal(0.67) - 0.748_571).abs() < 1e-6);
        assert!((entropy(1.0) - 1.892).abs() < 0.01, "{}", entropy(1.0));
        assert!((entropy(5.99) - entropy(6.01)).abs() < 0.01);
        assert!(entropy(0.2) < 0.02 && entropy(0.05) == 0.0);
    }

    #[test]
    fn steps_meet_the_bits_that_are_asked_for() {
        let deviations = vec![vec![8.0, 4.0, 2.0, 1.0, 0.5, 0.1], vec![3.0; 6]];
        for bits in [0.5, 1.0, 3.0] {
            let step = step(&deviations, 2.0, bits);
            let each = |step: f64| (2.0 + deviations.iter().flatten().map(|d| entropy(d / step)).sum::<f64>()) / 12.0;
            let taken = (4.0 * 16.0 + 32.0 * each(step / 4.0) + 4060.0 * each(step)) / 4096.0;
            assert!((taken - bits).abs() < 0.01, "{bits}: {taken}");
        }
    }
}
