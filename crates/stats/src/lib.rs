//! What a few records can show about two schemes: paired intervals, which scheme is best, and how many records are
//! needed.
//!
//! Two schemes read the same texts and answer the same prompts, so the difference per record matters. A mean over
//! several strata (tasks, or domains of text) is the mean of the strata's means. Records are drawn within each stratum,
//! each with both of its scores.
//!
//! - [`Bootstrap::interval`]: the interval of a mean difference, by the studentised bootstrap.
//! - [`Bootstrap::best`]: which of several schemes are not clearly beaten by another.
//! - [`needed`]: how many records are needed to detect a given difference.
//!
//! The plain percentile interval draws means and takes their quantiles. It is too narrow for few records: an interval
//! with the nominal level 95 % contains the true value in 80 % of the cases for 4 normal records, and in 71 % for 4
//! skewed ones. The studentised interval contains it in 90 to 96 %. A test in `bootstrap.rs` computes both.

mod best;
mod bootstrap;
mod needed;
mod normal;

pub use best::{Best, Column};
pub use bootstrap::{Bootstrap, Interval};
pub use needed::{Power, needed};

/// With fewer records per task than this, schemes are not ranked.
pub const RANKED_FROM: usize = 20;

/// The `share` quantile of sorted values, linear between neighbours. NaN if there are no values.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    if low == high { low } else { low + (high - low) * at.fract() }
}

/// The mean over strata of the mean over records. NaN without strata.
#[must_use]
pub fn mean_of_means(strata: &[Vec<f64>]) -> f64 {
    let mean = |stratum: &Vec<f64>| stratum.iter().sum::<f64>() / stratum.len() as f64;
    strata.iter().map(mean).sum::<f64>() / strata.len() as f64
}

/// The mean and the unbiased variance. The variance of one value is 0.
fn moments(values: &[f64]) -> (f64, f64) {
    // Equal values have no spread, whatever the rounding of their sum.
    if let Some(&first) = values.first().filter(|&first| values.iter().all(|value| value == first)) {
        return (first, 0.0);
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (mean, if values.len() > 1 { squares / (n - 1.0) } else { 0.0 })
}
