//! Checks whether the numbers of an [`Arch`] are plausible.

use std::path::Path;

use super::{Arch, Position};
use crate::error::{ModelError, Result};

/// The largest number of layers. It is checked before any list with one entry per layer is made.
const MOST_LAYERS: usize = 1 << 10;

fn within(path: &Path, key: &str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(ModelError::bad_value(path, key, format!("between 1 and {most}"), value.to_string()))
}

/// Checks the number of layers that `key` of a file gives.
///
/// # Errors
/// [`ModelError::BadValue`] if no model has this number of layers.
pub(super) fn layers(path: &Path, key: &str, value: usize) -> Result<usize> {
    within(path, key, value, MOST_LAYERS)?;
    Ok(value)
}

impl Arch {
    /// Checks ranges, and that fields agree with each other. `path` is only used in errors.
    ///
    /// The bounds are far above any published model. Their purpose is to refuse a damaged file before its numbers
    /// decide how much memory is allocated.
    ///
    /// # Errors
    /// [`ModelError::BadValue`], with the name of the field.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let within = |key: &str, value: usize, most: usize| within(path, key, value, most);
        within("hidden", self.hidden, 1 << 16)?;
        within("layers", self.layers, MOST_LAYERS)?;
        within("heads", self.heads, 1 << 10)?;
        within("kv_heads", self.kv_heads, self.heads)?;
        within("head_dim", self.head_dim, 1 << 10)?;
        within("intermediate", self.intermediate, 1 << 19)?;
        within("vocab", self.vocab, 1 << 21)?;
        within("max_positions", self.max_positions, (1 << 28) / self.head_dim)?;
        let agree = |ok: bool, key: &str, expected: String, found: String| {
            if ok { Ok(()) } else { Err(ModelError::bad_value(path, key, expected, found)) }
        };
        agree(
            self.heads.is_multiple_of(self.kv_heads),
            "kv_heads",
            format!("a divisor of heads = {}", self.heads),
            self.kv_heads.to_string(),
        )?;
        agree(
            self.head_dim.is_multiple_of(2),
            "head_dim",
            "an even number (rotary pairs)".to_owned(),
            self.head_dim.to_string(),
        )?;
        agree(
            self.rms_eps > 0.0 && self.rms_eps < 1.0,
            "rms_eps",
            "a number in (0, 1)".to_owned(),
            self.rms_eps.to_string(),
        )?;
        let factors = [("embedding_scale", Some(self.embedding_scale)), ("score_scale", self.score_scale)];
        for (key, factor) in factors.into_iter().filter_map(|(key, factor)| Some((key, factor?))) {
            agree(factor > 0.0 && factor.is_finite(), key, "a positive number".to_owned(), factor.to_string())?;
        }
        let position = |position: &Position| {
            let Position::Rope { theta, scaling } = position else { return Ok(()) };
            agree(
                *theta >= 1.0 && theta.is_finite(),
                "rope_theta",
                "a finite number of at least 1".to_owned(),
                theta.to_string(),
            )?;
            let check = scaling.check(self.head_dim);
            check.map_err(|expected| ModelError::bad_value(path, "rope_scaling", expected, format!("{scaling:?}")))
        };
        position(&self.position)?;
        let Some(sliding) = &self.sliding else { return Ok(()) };
        within("sliding.tokens", sliding.tokens, usize::MAX)?;
        agree(
            sliding.layers.len() == self.layers && sliding.layers.contains(&true),
            "sliding.layers",
            format!("one of layers = {} or more", self.layers),
            format!("{} of {}", sliding.layers.iter().filter(|slides| **slides).count(), sliding.layers.len()),
        )?;
        sliding.position.as_ref().map_or(Ok(()), position)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Activation, Norms, QkNorm, Qkv, RopeScaling, SlidingLayers};
    use super::*;

    fn arch() -> Arch {
        Arch {
            hidden: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            intermediate: 96,
            vocab: 128,
            rms_eps: 1e-5,
            position: Position::Rope { theta: 1e4, scaling: RopeScaling::None },
            sliding: None,
            max_positions: 64,
            qkv: Qkv::Separate,
            qk_norm: QkNorm::None,
            norms: Norms::Before,
            norms_less_one: false,
            activation: Activation::Silu,
            packed_mlp: false,
            embedding_scale: 1.0,
            score_scale: None,
            tied_head: true,
            normalised_head: false,
        }
    }

    #[test]
    fn every_contradiction_is_refused_by_name() {
        arch().validate(Path::new("f")).unwrap();
        type Break = fn(&mut Arch);
        let cases: [(&str, Break); 17] = [
            ("hidden", |a| a.hidden = 1 << 40),
            ("layers", |a| a.layers = 0),
            ("heads", |a| a.heads = usize::MAX),
            ("kv_heads", |a| a.kv_heads = 3),
            ("kv_heads", |a| a.kv_heads = 8),
            ("head_dim", |a| a.head_dim = 15),
            ("intermediate", |a| a.intermediate = 0),
            ("vocab", |a| a.vocab = usize::MAX),
            ("max_positions", |a| a.max_positions = 1 << 28),
            ("rms_eps", |a| a.rms_eps = f64::NAN),
            ("sliding.layers", |a| a.sliding = Some(SlidingLayers::from_layer(2, 2, 8))),
            ("sliding.layers", |a| a.sliding = Some(SlidingLayers::from_layer(0, 3, 8))),
            ("sliding.tokens", |a| a.sliding = Some(SlidingLayers::from_layer(0, 2, 0))),
            ("embedding_scale", |a| a.embedding_scale = f64::NAN),
            ("score_scale", |a| a.score_scale = Some(0.0)),
            ("rope_theta", |a| a.position = Position::Rope { theta: f64::INFINITY, scaling: RopeScaling::None }),
            ("rope_scaling", |a| {
                let (low_freq_factor, high_freq_factor) = (4.0, 4.0);
                let (factor, original_max_positions) = (8.0, 64);
                let scaling = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions };
                a.position = Position::Rope { theta: 1e4, scaling };
            }),
        ];
        for (field, broken) in cases {
            let mut arch = arch();
            broken(&mut arch);
            match arch.validate(Path::new("some.gguf")) {
                Err(ModelError::BadValue { key, .. }) => assert_eq!(key, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }
}
