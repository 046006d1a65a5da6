//! Intervals by the studentised bootstrap, with strata.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::normal::t_quantile;
use super::{moments, quantile};

/// A mean difference, and its interval. Both are in the unit of the input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The difference of the means over all records.
    pub difference: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether every difference in the interval has an absolute value larger than `floor`, and all have the same sign.
    /// With a floor of 0, this says whether the interval excludes zero. Training noise is an example of a floor.
    #[must_use]
    pub fn excludes(&self, floor: f64) -> bool {
        self.low > floor || self.high < -floor
    }
}

/// How intervals are computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    /// The number of draws.
    pub resamples: usize,
    /// The fraction of cases in which the interval should contain the true value, for example 0.95.
    pub level: f64,
    /// The seed of the generator. Equal seeds give equal intervals.
    pub seed: u64,
}

/// The number of records that every stratum must have for draws. With three records, one draw in nine has only one of
/// them.
const FEWEST: usize = 4;

/// The mean over the means of the strata, and its standard error.
struct Estimate {
    mean: f64,
    error: f64,
}

impl Estimate {
    /// From the number of records, the mean and the variance of each stratum.
    fn of(strata: impl Iterator<Item = (usize, (f64, f64))>) -> Self {
        let (mut count, mut mean, mut variance) = (0.0, 0.0, 0.0);
        for (n, (m, v)) in strata {
            count += 1.0;
            mean += m;
            variance += v / n as f64;
        }
        Self { mean: mean / count, error: variance.sqrt() / count }
    }
}

impl Bootstrap {
    /// The interval of the mean over strata of the mean over records. For each stratum, `strata` has the difference of
    /// every record. Returns `None` without strata, without draws, and if a stratum has fewer than two records, because
    /// it then shows no spread.
    ///
    /// Records are drawn with replacement within each stratum. For each draw, the difference between its mean and the
    /// mean of all records is divided by the draw's own standard error. The ends of the interval are the quantiles of
    /// this ratio times the standard error of all records (Efron and Tibshirani, An Introduction to the Bootstrap,
    /// 1993, section 12.5).
    ///
    /// In two cases, the ratio is assumed to follow Student's t with Welch and Satterthwaite's degrees of freedom.
    /// First, if a stratum has so few records that its draws often show no spread. Second, if so many draws show no
    /// spread that a quantile is not finite, as for scores that hardly differ.
    #[must_use]
    pub fn interval(&self, strata: &[Vec<f64>]) -> Option<Interval> {
        if strata.is_empty() || self.resamples == 0 || strata.iter().any(|stratum| stratum.len() < 2) {
            return None;
        }
        let all: Vec<(usize, (f64, f64))> = strata.iter().map(|s| (s.len(), moments(s))).collect();
        let Estimate { mean, error } = Estimate::of(all.iter().copied());
        if error == 0.0 {
            return Some(Interval { difference: mean, low: mean, high: mean });
        }
        let tail = (1.0 - self.level) / 2.0;
        let drawn = strata.iter().all(|stratum| stratum.len() >= FEWEST).then(|| {
            let ratios = self.ratios(strata, mean);
            (quantile(&ratios, tail), quantile(&ratios, 1.0 - tail))
        });
        let (low, high) = drawn.filter(|(low, high)| low.is_finite() && high.is_finite()).unwrap_or_else(|| {
            let t = t_quantile(1.0 - tail, freedom(&all));
            (-t, t)
        });
        Some(Interval { difference: mean, low: mean - high * error, high: mean - low * error })
    }

    /// The sorted ratios of difference to standard error, one per draw.
    fn ratios(&self, strata: &[Vec<f64>], mean: f64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut drawn = Vec::with_capacity(strata.iter().map(Vec::len).max().unwrap_or(0));
        let mut ratio = || {
            let draw = Estimate::of(strata.iter().map(|stratum| {
                drawn.clear();
                drawn.extend((0..stratum.len()).map(|_| stratum[rng.random_range(0..stratum.len())]));
                (stratum.len(), moments(&drawn))
            }));
            let distance = draw.mean - mean;
            if distance == 0.0 { 0.0 } else { distance / draw.error }
        };
        let mut ratios: Vec<f64> = (0..self.resamples).map(|_| ratio()).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }
}

/// Welch and Satterthwaite's degrees of freedom for a mean over strata.
fn freedom(strata: &[(usize, (f64, f64))]) -> f64 {
    let part = |&(n, (_, v)): &(usize, (f64, f64))| v / n as f64;
    let sum: f64 = strata.iter().map(part).sum();
    sum * sum / strata.iter().map(|s| part(s).powi(2) / (s.0 - 1) as f64).sum::<f64>()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 4000, level: 0.95, seed: 7 };

    /// Differences of -1 and +1 with standard deviation 1. The interval of the mean of `n` of them is about ±1.96 /
    /// sqrt(n).
    fn coin(n: usize) -> Vec<f64> {
        (0..n).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect()
    }

    #[test]
    fn the_interval_has_the_width_of_the_normal_one() {
        let found = BOOTSTRAP.interval(&[coin(400)]).unwrap();
        assert_eq!(found.difference, 0.0);
        for end in [-found.low, found.high] {
            assert!((end - 1.96 / 20.0).abs() < 0.01, "{found:?}");
        }
    }

    #[test]
    fn tasks_count_equally_whatever_their_size() {
        let found = BOOTSTRAP.interval(&[vec![0.5; 3], vec![-0.1; 300]]).unwrap();
        assert!((found.difference - 0.2).abs() < 1e-12);
        assert!((found.low - 0.2).abs() < 1e-12 && (found.high - 0.2).abs() < 1e-12, "{found:?}");
        // Two independent tasks halve the variance of their mean.
        let two = BOOTSTRAP.interval(&[coin(400), coin(400)]).unwrap();
        assert!((two.high - 1.96 / 20.0 / 2.0_f64.sqrt()).abs() < 0.01, "{two:?}");
    }

    #[test]
    fn the_seed_decides() {
        let tasks = [(0..50).map(|i| f64::from(i * i % 17).sqrt()).collect(), vec![0.3, 0.0, -0.7, 0.1]];
        assert_eq!(BOOTSTRAP.interval(&tasks), BOOTSTRAP.interval(&tasks));
        assert_ne!(BOOTSTRAP.interval(&tasks), Bootstrap { seed: 8, ..BOOTSTRAP }.interval(&tasks));
    }

    #[test]
    fn a_wider_level_gives_a_wider_interval() {
        let (half, most) = (Bootstrap { level: 0.5, ..BOOTSTRAP }, Bootstrap { level: 0.99, ..BOOTSTRAP });
        let (half, most) = (half.interval(&[coin(100)]).unwrap(), most.interval(&[coin(100)]).unwrap());
        assert!(most.low < half.low && half.high < most.high);
    }

    #[test]
    fn nothing_has_no_interval() {
        assert_eq!(BOOTSTRAP.interval(&[]), None);
        assert_eq!(BOOTSTRAP.interval(&[vec![0.1, 0.2], vec![0.3]]), None);
        assert_eq!(Bootstrap { resamples: 0, ..BOOTSTRAP }.interval(&[vec![0.1]]), None);
    }

    #[test]
    fn few_or_nearly_equal_records_fall_back_on_students_t() {
        // Half of the draws of two records have no spread. With one degree of freedom, the quantile is 12.706.
        let two = BOOTSTRAP.interval(&[vec![0.0, 2.0]]).unwrap();
        assert!((two.high - (1.0 + 12.706)).abs() < 1e-2 && (two.low - (1.0 - 12.706)).abs() < 1e-2, "{two:?}");
        // One of 50 records differs. A third of the draws do not contain it.
        let mut rare = vec![0.0; 50];
        rare[7] = 1.0;
        let rare = BOOTSTRAP.interval(&[rare]).unwrap();
        assert!((rare.high - (0.02 + 2.0096 * 0.02)).abs() < 1e-3 && rare.low < 0.0, "{rare:?}");
    }

    #[test]
    fn draws_of_equal_values_have_no_spread() {
        // Ten times 0.1 is not exactly 1 in binary. A draw of only these values must not seem to have a spread of
        // 1e-17.
        let mut rare = vec![0.1; 10];
        rare[3] = 1.1;
        let found = BOOTSTRAP.interval(&[rare]).unwrap();
        assert!(found.low > -0.1 && found.high < 0.5, "{found:?}");
    }

    #[test]
    fn a_floor_of_noise_is_kept() {
        let interval = Interval { difference: 0.3, low: 0.1, high: 0.5 };
        assert!(interval.excludes(0.0) && interval.excludes(0.05) && !interval.excludes(0.1));
        let below = Interval { difference: -0.3, low: -0.5, high: -0.1 };
        assert!(below.excludes(0.05) && !below.excludes(0.2));
        assert!(!Interval { difference: 0.0, low: -0.1, high: 0.1 }.excludes(0.0));
    }

    /// The interval of the percentile method, with which the studentised one is compared.
    fn percentile(values: &[f64], resamples: usize, rng: &mut ChaCha8Rng) -> (f64, f64) {
        let n = values.len();
        let mut means: Vec<f64> =
            (0..resamples).map(|_| (0..n).map(|_| values[rng.random_range(0..n)]).sum::<f64>() / n as f64).collect();
        means.sort_by(f64::total_cmp);
        (quantile(&means, 0.025), quantile(&means, 0.975))
    }

    /// Draws `n` records many times, and counts how often the 95 % intervals contain the true mean: percentile,
    /// studentised.
    fn coverage(n: usize, skewed: bool) -> (f64, f64) {
        const CASES: usize = 600;
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        let (mut plain, mut studentised) = (0, 0);
        for case in 0..CASES {
            let records: Vec<f64> = (0..n)
                .map(|_| {
                    let [a, b]: [f64; 2] = [rng.random(), rng.random()];
                    let radius = (-2.0 * (1.0 - a).ln()).sqrt();
                    // Exponential with mean 1, because KL over documents is skewed; or normal.
                    if skewed { -(1.0 - a).ln() } else { 1.0 + radius * (std::f64::consts::TAU * b).cos() }
                })
                .collect();
            let (low, high) = percentile(&records, 500, &mut rng);
            plain += usize::from(low <= 1.0 && 1.0 <= high);
            let bootstrap = Bootstrap { resamples: 500, level: 0.95, seed: case as u64 };
            let found = bootstrap.interval(&[records]).unwrap();
            studentised += usize::from(found.low <= 1.0 && 1.0 <= found.high);
        }
        (plain as f64 / CASES as f64, studentised as f64 / CASES as f64)
    }

    #[test]
    fn strata_of_two_records_are_covered_by_students_t() {
        const CASES: usize = 2000;
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut held = 0;
        for _ in 0..CASES {
            // Four domains of two documents each, whose KL is skewed.
            let strata: Vec<Vec<f64>> =
                (0..4).map(|_| (0..2).map(|_| -(1.0 - rng.random::<f64>()).ln()).collect()).collect();
            let found = BOOTSTRAP.interval(&strata).unwrap();
            held += usize::from(found.low <= 1.0 && 1.0 <= found.high);
        }
        let share = f64::from(u32::try_from(held).unwrap()) / CASES as f64;
        assert!((0.90..=0.99).contains(&share), "{share}");
    }

    #[test]
    fn an_interval_called_95_percent_holds_the_truth_about_as_often() {
        for (n, skewed) in [(4, false), (4, true), (8, false), (8, true), (16, true)] {
            let (plain, studentised) = coverage(n, skewed);
            println!("n = {n}, skewed: {skewed}: percentile {plain:.3}, studentised {studentised:.3}");
            assert!((0.89..=0.985).contains(&studentised), "n = {n}, skewed {skewed}: {studentised}");
            if n == 4 {
                assert!(plain < 0.83, "n = {n}, skewed {skewed}: {plain}");
            }
            assert!(studentised > plain, "n = {n}, skewed {skewed}: {studentised} against {plain}");
        }
    }
}
