//! Paired bootstrap intervals of the difference between two runs over the same records.
//!
//! Two schemes answer the same prompts, so what matters is the difference per record: records are drawn with replacement, each
//! with both of its scores, and the mean difference of the draw is taken (Efron and Tibshirani, An Introduction to the
//! Bootstrap, 1993, percentile method). Over several tasks, records are drawn within each task and the task means are averaged,
//! as the overall score averages them.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// A mean difference and the interval it lies in, in the unit of what went in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The difference of the means over all records.
    pub difference: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How intervals are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    /// Draws.
    pub resamples: usize,
    /// Share of the draws inside the interval, for example 0.95.
    pub level: f64,
    /// Seed of the generator; equal seeds give equal intervals.
    pub seed: u64,
}

impl Bootstrap {
    /// The interval of the mean over tasks of the mean over records. `tasks` holds, per task, the difference of every record.
    /// `None` without tasks, without draws, and for a task with fewer than two records, which shows no spread.
    #[must_use]
    pub fn interval(&self, tasks: &[Vec<f64>]) -> Option<Interval> {
        if tasks.is_empty() || self.resamples == 0 || tasks.iter().any(|task| task.len() < 2) {
            return None;
        }
        let count = tasks.len() as f64;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut draw = |task: &Vec<f64>| {
            (0..task.len()).map(|_| task[rng.random_range(0..task.len())]).sum::<f64>() / task.len() as f64
        };
        let mut means: Vec<f64> =
            (0..self.resamples).map(|_| tasks.iter().map(&mut draw).sum::<f64>() / count).collect();
        means.sort_by(f64::total_cmp);
        let tail = (1.0 - self.level) / 2.0;
        let difference = tasks.iter().map(|task| task.iter().sum::<f64>() / task.len() as f64).sum::<f64>() / count;
        Some(Interval { difference, low: quantile(&means, tail), high: quantile(&means, 1.0 - tail) })
    }
}

/// The `share` quantile of sorted values, linear between neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 4000, level: 0.95, seed: 7 };

    /// Differences of -1 and +1 with standard deviation 1: the interval of the mean of `n` is about ±1.96 / sqrt(n).
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
        let tasks = [(0..50).map(|i| f64::from(i * i % 17).sqrt()).collect(), vec![0.3, 0.0, -0.7]];
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
}
