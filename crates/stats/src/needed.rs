//! How many records are needed.

use super::moments;
use super::normal::{normal_quantile, t_quantile};

/// How certain a comparison should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Power {
    /// The level of the interval, for example 0.95.
    pub level: f64,
    /// The fraction of repetitions in which the interval excludes zero, for example 0.8.
    pub power: f64,
}

impl Default for Power {
    fn default() -> Self {
        Self { level: 0.95, power: 0.8 }
    }
}

/// How many records are needed to distinguish a scheme from `reference`, if their means differ by the fraction
/// `relative`, for example 0.2.
///
/// `scheme` and `reference` are values of a pilot over the same records. Their paired differences, scaled to the
/// requested difference, give the spread. The result is the smallest n with
/// `n >= ((t(level, n - 1) + z(power)) sd / (relative mean))^2`. Returns `None` if the pilot has fewer than two
/// records, if the lengths differ, or if the mean of the reference is not above zero.
#[must_use]
pub fn needed(scheme: &[f64], reference: &[f64], relative: f64, power: Power) -> Option<usize> {
    let mean = moments(reference).0;
    if scheme.len() != reference.len() || scheme.len() < 2 || mean <= 0.0 || relative <= 0.0 {
        return None;
    }
    let differences: Vec<f64> = scheme.iter().zip(reference).map(|(a, b)| a - b).collect();
    let deviation = moments(&differences).1.sqrt();
    let ratio = deviation / (relative * mean);
    let tail = 1.0 - (1.0 - power.level) / 2.0;
    let asked = normal_quantile(power.power);
    let enough = |n: usize| {
        let wanted = (t_quantile(tail, (n - 1) as f64) + asked) * ratio;
        n as f64 >= wanted * wanted
    };
    // t is at most 12.71, and falls to the normal quantile. This gives a bracket for n.
    let mut high = 2;
    while !enough(high) {
        high = high.checked_mul(2)?;
    }
    let mut low = 1;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if enough(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_that_of_the_tables_of_the_paired_t_test() {
        // Differences with standard deviation 1 and a reference with mean 1: the effect is d standard deviations.
        let n = 40;
        let scale = (39.0f64 / 40.0).sqrt();
        let scheme: Vec<f64> = (0..n).map(|i| 1.0 + if i % 2 == 0 { scale } else { -scale }).collect();
        let reference = vec![1.0; n];
        let power = Power::default();
        // Cohen (1988): 34 pairs for d = 0.5 and 199 pairs for 0.2, at 5 % and a power of 0.8. The result may differ by
        // one.
        let half = needed(&scheme, &reference, 0.5, power);
        assert!(half.is_some_and(|n| (33..=35).contains(&n)), "{half:?}");
        let fifth = needed(&scheme, &reference, 0.2, power);
        assert!(fifth.is_some_and(|n| (197..=200).contains(&n)), "{fifth:?}");
    }

    #[test]
    fn pilots_that_tell_nothing_give_nothing() {
        let power = Power::default();
        assert_eq!(needed(&[1.0], &[1.0], 0.2, power), None);
        assert_eq!(needed(&[1.0, 2.0], &[1.0], 0.2, power), None);
        assert_eq!(needed(&[1.0, 2.0], &[0.0, 0.0], 0.2, power), None);
        assert_eq!(needed(&[1.0, 2.0], &[1.0, 2.0], 0.2, power), Some(2));
    }
}
