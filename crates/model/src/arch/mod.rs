//! What distinguishes one Llama-family model from another, as data.
//!
//! A family is a way to fill an [`Arch`] from a file's metadata (one file per family); the decoder reads nothing else.

mod llama;

use std::path::Path;

use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;

pub use llama::HF_MODEL_TYPES;

/// GGUF `general.architecture` values that [`Arch::from_gguf`] understands.
pub const GGUF_ARCHITECTURES: &[&str] = &["llama"];

/// How rotary frequencies are rescaled for long contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
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
}

/// Shape and constants of one decoder of the Llama family.
///
/// Build it from a file ([`Arch::from_gguf`], [`Arch::from_hf_config`]), or by hand and call [`Arch::validate`].
#[derive(Debug, Clone, PartialEq)]
pub struct Arch {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads per layer, `H`.
    pub heads: usize,
    /// Key and value heads per layer, `Hkv`; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head, `D`.
    pub head_dim: usize,
    /// Width of the MLP's inner layer.
    pub intermediate: usize,
    /// Rows of the embedding, `V`.
    pub vocab: usize,
    /// Epsilon inside the RMSNorm's square root.
    pub rms_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Rescaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Longest context, in tokens; the rotary tables have this many rows.
    pub max_positions: usize,
    /// The output projection is the embedding matrix.
    pub tied_head: bool,
    /// The q, k and v projections add a bias.
    pub qkv_bias: bool,
}

impl Arch {
    /// Reads the architecture from a GGUF file's metadata and validates it.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for an architecture outside [`GGUF_ARCHITECTURES`]; missing, mistyped, absurd or
    /// contradictory keys by name.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let arch = match file.str("general.architecture")? {
            "llama" => llama::from_gguf(file)?,
            other => {
                return Err(ModelError::Unsupported {
                    path: file.path().to_owned(),
                    what: "architecture",
                    found: other.to_owned(),
                    supported: GGUF_ARCHITECTURES.join(", "),
                });
            }
        };
        arch.validate(file.path())?;
        Ok(arch)
    }

    /// Reads the architecture from the text of a Hugging Face `config.json`; `path` is only named in errors.
    ///
    /// Both the `rope_theta` + `rope_scaling` and the newer `rope_parameters` spellings are understood.
    ///
    /// # Errors
    /// As [`Arch::from_gguf`], with the JSON's keys.
    pub fn from_hf_config(json: &str, path: &Path) -> Result<Self> {
        let arch = llama::from_hf_config(json, path)?;
        arch.validate(path)?;
        Ok(arch)
    }

    /// Rows of the fused q, k, v projection: `(H + 2 Hkv) D`.
    pub fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Scale of the attention scores, `1/sqrt(D)`.
    pub fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// Rotary angular frequencies, one per channel pair: `D/2` values in radians per token, after rescaling.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let base = (0..self.head_dim / 2).map(|i| self.rope_theta.powf(-2.0 * i as f64 / self.head_dim as f64));
        match self.rope_scaling {
            RopeScaling::None => base.collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => base
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

    /// Every tensor of the checkpoint with its shape, under Hugging Face names, linear weights as `(out, in)`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, hidden])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[hidden]);
            for (name, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                add(&format!("self_attn.{name}.weight"), &[rows, hidden]);
                if self.qkv_bias {
                    add(&format!("self_attn.{name}.bias"), &[rows]);
                }
            }
            add("self_attn.o_proj.weight", &[hidden, q]);
            add("post_attention_layernorm.weight", &[hidden]);
            add("mlp.gate_proj.weight", &[self.intermediate, hidden]);
            add("mlp.up_proj.weight", &[self.intermediate, hidden]);
            add("mlp.down_proj.weight", &[hidden, self.intermediate]);
        }
        all.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tied_head {
            all.push(("lm_head.weight".to_owned(), vec![self.vocab, hidden]));
        }
        all
    }

    /// Checks ranges and agreement between fields; `path` is only named in errors.
    ///
    /// The bounds are far above any published model: they exist so that a damaged file is refused before it is
    /// believed about how much memory to allocate.
    ///
    /// # Errors
    /// [`ModelError::BadValue`] naming the field.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let within = |key: &str, value: usize, most: usize| {
            if (1..=most).contains(&value) {
                return Ok(());
            }
            let expected = format!("between 1 and {most}");
            Err(ModelError::bad_value(path, key, expected, value.to_string()))
        };
        within("hidden", self.hidden, 1 << 16)?;
        within("layers", self.layers, 1 << 10)?;
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
        agree(
            self.rope_theta >= 1.0 && self.rope_theta.is_finite(),
            "rope_theta",
            "a finite number of at least 1".to_owned(),
            self.rope_theta.to_string(),
        )?;
        if let RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_positions } =
            self.rope_scaling
        {
            let sound = factor >= 1.0 && factor.is_finite() && low > 0.0 && high > low;
            agree(
                sound && high.is_finite() && original_max_positions > 0,
                "rope_scaling",
                "factor >= 1, 0 < low_freq_factor < high_freq_factor, original length > 0".to_owned(),
                format!("{:?}", self.rope_scaling),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            max_positions: 64,
            tied_head: true,
            qkv_bias: false,
        }
    }

    #[test]
    fn every_contradiction_is_refused_by_name() {
        arch().validate(Path::new("f")).unwrap();
        type Break = fn(&mut Arch);
        let cases: [(&str, Break); 12] = [
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
            ("rope_theta", |a| a.rope_theta = f64::INFINITY),
            ("rope_scaling", |a| {
                a.rope_scaling = RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 4.0,
                    high_freq_factor: 4.0,
                    original_max_positions: 64,
                }
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

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let mut arch = arch();
        let plain = arch.inverse_frequencies();
        arch.rope_scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 64,
        };
        let scaled = arch.inverse_frequencies();
        assert_eq!(plain[0], 1.0);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[7], plain[7] / 8.0);
        let blended = scaled.iter().zip(&plain).filter(|(s, p)| **s < **p && **s > **p / 8.0).count();
        assert!(blended > 0);
    }
}
