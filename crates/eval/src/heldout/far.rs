//! Far tokens: positions at which the uncompressed model needs text beyond the recent tokens.
//!
//! Most next tokens can be predicted from the last few hundred tokens. A cache that deletes all others is therefore good on
//! the mean over all tokens, and this mean says nothing about compression. For this reason the model is run once more, with
//! all tokens hidden except the first [`SINKS`] and the last [`RECENT`]. A position at which its distribution changes by more
//! than a threshold is *far*. Over the far positions a scheme's recovery is `1 - sum KL(scheme) / sum KL(hidden)`. It is 0 for
//! deletion, 1 for the uncompressed cache, and below 0 for a scheme that is worse than deletion.

use std::ops::AddAssign;

use crate::stats::quantile;

/// Number of first tokens that stay visible.
pub const SINKS: usize = 4;
/// Number of last tokens that stay visible.
pub const RECENT: usize = 256;
/// The registered scheme that hides all other tokens.
pub const HIDDEN: &str = "evict(sinks=4,recent=256)";

/// Says which positions of a text are far.
#[derive(Debug, Clone, PartialEq)]
pub struct FarTokens {
    hidden_kl: Vec<f64>,
    threshold: f64,
}

impl FarTokens {
    /// `hidden_kl` is the KL at each position of the model with the far context hidden. Positions above `threshold` nats are far.
    #[must_use]
    pub fn new(hidden_kl: Vec<f64>, threshold: f64) -> Self {
        Self { hidden_kl, threshold }
    }

    /// The score of a scheme, given its KL at the same positions.
    ///
    /// # Panics
    /// If the number of positions is different.
    #[must_use]
    pub fn score(&self, kl: &[f64]) -> FarScore {
        assert_eq!(kl.len(), self.hidden_kl.len(), "KL at every position");
        let mut score = FarScore { scored: kl.len(), ..FarScore::default() };
        for (&own, &hidden) in kl.iter().zip(&self.hidden_kl).filter(|&(_, &hidden)| hidden > self.threshold) {
            score.far += 1;
            score.kl_sum += own;
            score.hidden_kl_sum += hidden;
        }
        score
    }
}

/// Sums over the far tokens of one text, or of several.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FarScore {
    /// Number of positions scored, far or not.
    pub scored: usize,
    /// Number of far positions.
    pub far: usize,
    /// Sum of the scheme's KL over the far positions, in nats.
    pub kl_sum: f64,
    /// Sum over the far positions of the KL with the far context hidden, in nats.
    pub hidden_kl_sum: f64,
}

impl FarScore {
    /// Fraction of the scored positions that are far, 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.far as f64 / self.scored as f64
    }

    /// Mean KL over far tokens, in nats. NaN if there are none.
    #[must_use]
    pub fn kl(&self) -> f64 {
        self.kl_sum / self.far as f64
    }

    /// Far-context recovery. NaN if there are no far tokens.
    #[must_use]
    pub fn recovery(&self) -> f64 {
        1.0 - self.kl_sum / self.hidden_kl_sum
    }
}

impl AddAssign for FarScore {
    fn add_assign(&mut self, other: Self) {
        self.scored += other.scored;
        self.far += other.far;
        self.kl_sum += other.kl_sum;
        self.hidden_kl_sum += other.hidden_kl_sum;
    }
}

/// The threshold for which the far positions are the fewest that hold the fraction `share` of the KL with the far context
/// hidden. Compute it on calibration text, and use it for every text that is scored. It is 0 if nothing changes at all.
#[must_use]
pub fn threshold(calibration_kl: &[f64], share: f64) -> f64 {
    let mut falling = calibration_kl.to_vec();
    falling.sort_by(|a, b| b.total_cmp(a));
    let wanted = share * falling.iter().sum::<f64>();
    let mut held = 0.0;
    for (at, kl) in falling.iter().enumerate() {
        held += kl;
        if held >= wanted {
            // The threshold is between this position, which is far, and the next, which is not.
            return falling.get(at + 1).map_or(0.0, |next| 0.5 * (kl + next));
        }
    }
    0.0
}

/// The 99.9th percentile of KL over positions, in nats.
#[must_use]
pub fn tail(kl: &[f64]) -> f64 {
    let mut sorted = kl.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletion_recovers_nothing_and_the_exact_cache_everything() {
        let hidden = vec![0.0, 2.0, 0.1, 1.0];
        let far = FarTokens::new(hidden.clone(), 0.5);
        let deletion = far.score(&hidden);
        assert_eq!((deletion.scored, deletion.far), (4, 2));
        assert_eq!((deletion.recovery(), deletion.share(), deletion.kl()), (0.0, 0.5, 1.5));
        assert_eq!(far.score(&[0.0; 4]).recovery(), 1.0);
        // Near tokens do not count, even if they are badly kept.
        assert_eq!(far.score(&[9.0, 1.0, 9.0, 0.5]).recovery(), 0.5);
        assert!(far.score(&[0.0, 4.0, 0.0, 2.0]).recovery() < 0.0);
        assert!(FarTokens::new(hidden, 5.0).score(&[0.0; 4]).recovery().is_nan());
    }

    #[test]
    fn texts_are_pooled_by_their_sums() {
        let mut sum = FarTokens::new(vec![1.0, 0.0], 0.5).score(&[0.5, 0.0]);
        sum += FarTokens::new(vec![3.0], 0.5).score(&[0.5]);
        assert_eq!((sum.scored, sum.far, sum.recovery()), (3, 2, 0.75));
    }

    #[test]
    fn the_threshold_holds_the_share_asked_for_with_the_fewest_positions() {
        let kl = [0.0, 0.01, 5.0, 0.02, 4.0, 0.97, 0.0];
        let found = threshold(&kl, 0.9);
        assert!(found > 0.97 && found < 4.0, "{found}");
        let held: f64 = kl.iter().filter(|&&kl| kl > found).sum();
        assert_eq!(held, 9.0);
        assert_eq!(threshold(&kl, 1.0), 0.005);
        assert_eq!(threshold(&[0.0; 5], 0.9), 0.0);
    }

    #[test]
    fn the_tail_is_where_one_in_a_thousand_lies() {
        let kl: Vec<f64> = (0..=1000).map(f64::from).collect();
        assert_eq!(tail(&kl), 999.0);
        assert!(tail(&[]).is_nan());
    }
}
