//! Rotary frequencies and their rescaling for long contexts.

use std::f64::consts::{PI, TAU};

/// How rotary frequencies are rescaled for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// The frequencies `theta^(-2i/D)` are not changed.
    None,
    /// All frequencies are divided by one factor (position interpolation; Hugging Face `rope_type: linear`).
    Linear {
        /// The divisor of the frequencies.
        factor: f64,
    },
    /// Llama 3.1's piecewise rescaling: low frequencies are divided by `factor`, high ones are kept, and those between
    /// are blended linearly (Hugging Face `rope_type: llama3`).
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided by `factor`.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length in tokens with which the model was first trained.
        original_max_positions: usize,
    },
    /// YaRN (Peng et al., ICLR 2024; Hugging Face `rope_type: yarn`). Frequencies with many turns within the original
    /// context are kept. Frequencies with few turns are divided by `factor`. Between them there is a ramp over channel
    /// pairs. In addition, scores are sharpened.
    Yarn {
        /// The divisor of the low frequencies.
        factor: f64,
        /// The context length in tokens with which the model was first trained.
        original_max_positions: usize,
        /// A frequency with at least this many turns within the original context is kept.
        beta_fast: f64,
        /// A frequency with at most this many turns within the original context is divided.
        beta_slow: f64,
        /// Whether the ramp begins and ends at whole channel pairs.
        truncate: bool,
        /// The factor by which rotated queries and rotated keys are multiplied.
        attention_factor: f64,
    },
    /// Each frequency is divided by its own factor. GGUF files write a rescaling in this form (`rope_freqs.weight`).
    Divided(
        /// One divisor per channel pair, `D/2`.
        Vec<f32>,
    ),
}

impl RopeScaling {
    /// Rotary angular frequencies after rescaling, one per channel pair: `D/2` values in radians per token.
    pub fn frequencies(&self, theta: f64, head_dim: usize) -> Vec<f64> {
        let base = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
        match self {
            Self::None => base.collect(),
            Self::Linear { factor } => base.map(|freq| freq / factor).collect(),
            Self::Divided(factors) => base.zip(factors).map(|(freq, &factor)| freq / f64::from(factor)).collect(),
            &Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => base
                .map(|freq| {
                    let turns = original_max_positions as f64 * freq / TAU;
                    if turns > high_freq_factor {
                        freq
                    } else if turns < low_freq_factor {
                        freq / factor
                    } else {
                        let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - kept) * freq / factor + kept * freq
                    }
                })
                .collect(),
            &Self::Yarn { factor, original_max_positions, beta_fast, beta_slow, truncate, .. } => {
                // The channel pair, as a real number, that makes `beta` turns within the original context.
                let pair = |beta: f64| {
                    let turns = original_max_positions as f64 / (beta * 2.0 * PI);
                    head_dim as f64 * turns.ln() / (2.0 * theta.ln())
                };
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let low = low.max(0.0);
                let mut high = high.min(head_dim as f64 - 1.0);
                if high == low {
                    high += 0.001;
                }
                base.enumerate()
                    .map(|(i, freq)| {
                        let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        freq / factor * divided + freq * (1.0 - divided)
                    })
                    .collect()
            }
        }
    }

    /// The factor by which the scores of rotated queries and keys are multiplied.
    pub fn score_factor(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. } => attention_factor * attention_factor,
            _ => 1.0,
        }
    }

    /// The attention factor that YaRN's authors recommend for a factor: `0.1 m ln(factor) + 1`, where `m` is `mscale`.
    pub(super) fn yarn_attention(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    /// The number of positions of a model whose files say `max_positions`. With linear scaling it is `max_positions`
    /// times the factor. With YaRN it is at least the original length times the factor. Otherwise it is
    /// `max_positions`.
    pub(super) fn positions(&self, max_positions: usize) -> usize {
        match *self {
            Self::Linear { factor } => scaled(max_positions, factor),
            Self::Yarn { factor, original_max_positions, .. } => {
                max_positions.max(scaled(original_max_positions, factor))
            }
            _ => max_positions,
        }
    }

    /// Checks that the numbers are valid for heads of `head_dim` channels. The error says what would be valid.
    pub(super) fn check(&self, head_dim: usize) -> Result<(), String> {
        let refuse = |sound: bool, expected: &str| if sound { Ok(()) } else { Err(expected.to_owned()) };
        match self {
            Self::None => Ok(()),
            &Self::Linear { factor } => refuse(factor >= 1.0 && factor.is_finite(), "factor >= 1"),
            &Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_positions } => {
                let sound = factor >= 1.0 && factor.is_finite() && low > 0.0 && high > low && high.is_finite();
                refuse(
                    sound && original_max_positions > 0,
                    "factor >= 1, 0 < low_freq_factor < high_freq_factor, original length > 0",
                )
            }
            &Self::Yarn { factor, original_max_positions, beta_fast, beta_slow, attention_factor, .. } => {
                let betas = beta_slow > 0.0 && beta_fast >= beta_slow && beta_fast.is_finite();
                let factors = factor >= 1.0 && factor.is_finite() && attention_factor > 0.0;
                refuse(
                    betas && factors && attention_factor.is_finite() && original_max_positions > 0,
                    "factor >= 1, 0 < beta_slow <= beta_fast, attention_factor > 0, original length > 0",
                )
            }
            Self::Divided(factors) => {
                if factors.len() == head_dim / 2 && factors.iter().all(|f| *f > 0.0 && f.is_finite()) {
                    return Ok(());
                }
                Err(format!("{} positive numbers, one per channel pair", head_dim / 2))
            }
        }
    }
}

/// A length times a factor. [`super::Arch::validate`] refuses results that are huge or zero.
fn scaled(positions: usize, factor: f64) -> usize {
    (positions as f64 * factor).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let plain = RopeScaling::None.frequencies(1e4, 16);
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 64,
        };
        let scaled = scaling.frequencies(1e4, 16);
        assert_eq!(plain[0], 1.0);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[7], plain[7] / 8.0);
        let blended = scaled.iter().zip(&plain).filter(|(s, p)| **s < **p && **s > **p / 8.0).count();
        assert!(blended > 0);
    }

    #[test]
    fn yarn_keeps_high_and_divides_low_frequencies_and_extends_the_context() {
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            original_max_positions: 32_768,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.1,
        };
        let (plain, scaled) = (RopeScaling::None.frequencies(1e6, 128), yarn.frequencies(1e6, 128));
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 4.0);
        assert!(scaled.iter().zip(&plain).any(|(s, p)| *s < *p && *s > *p / 4.0));
        assert_eq!(yarn.positions(40_960), 131_072);
        assert!((yarn.score_factor() - 1.21).abs() < 1e-12);
        assert_eq!(RopeScaling::Linear { factor: 2.0 }.positions(4096), 8192);
    }

    #[test]
    fn factors_divide_and_must_be_one_per_pair() {
        let divided = RopeScaling::Divided(vec![1.0, 4.0]);
        assert_eq!(divided.frequencies(100.0, 4), [1.0, 0.025]);
        assert!(divided.check(4).is_ok() && divided.check(8).is_err());
        assert!(RopeScaling::Divided(vec![1.0, 0.0]).check(4).is_err());
    }
}
