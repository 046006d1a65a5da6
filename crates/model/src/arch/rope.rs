//! Rotary frequencies and their rescaling for long contexts.

/// How rotary frequencies are rescaled for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies `theta^(-2i/D)` unchanged.
    None,
    /// Llama 3.1's piecewise rescaling: low frequencies divided by `factor`, high ones kept, a linear blend between
    /// (Hugging Face `rope_type: llama3`).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided by `factor`.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length the model was first trained with, in tokens.
        original_max_positions: usize,
    },
    /// Each frequency divided by its own factor: how GGUF files spell out a rescaling (`rope_freqs.weight`).
    Divided(
        /// One divisor per channel pair, `D/2`.
        Vec<f32>,
    ),
}

impl RopeScaling {
    /// Rotary angular frequencies, one per channel pair: `D/2` values in radians per token, after rescaling.
    pub fn frequencies(&self, theta: f64, head_dim: usize) -> Vec<f64> {
        let base = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
        match self {
            Self::None => base.collect(),
            Self::Divided(factors) => base.zip(factors).map(|(freq, &factor)| freq / f64::from(factor)).collect(),
            &Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => base
                .map(|freq| {
                    let turns = original_max_positions as f64 * freq / std::f64::consts::TAU;
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
        }
    }

    /// Whether the numbers make sense for heads of `head_dim` channels; the error says what would.
    pub(super) fn check(&self, head_dim: usize) -> Result<(), String> {
        match self {
            Self::None => Ok(()),
            &Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_positions } => {
                let sound = factor >= 1.0 && factor.is_finite() && low > 0.0 && high > low && high.is_finite();
                if sound && original_max_positions > 0 {
                    return Ok(());
                }
                Err("factor >= 1, 0 < low_freq_factor < high_freq_factor, original length > 0".to_owned())
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
    fn factors_divide_and_must_be_one_per_pair() {
        let divided = RopeScaling::Divided(vec![1.0, 4.0]);
        assert_eq!(divided.frequencies(100.0, 4), [1.0, 0.025]);
        assert!(divided.check(4).is_ok() && divided.check(8).is_err());
        assert!(RopeScaling::Divided(vec![1.0, 0.0]).check(4).is_err());
    }
}
