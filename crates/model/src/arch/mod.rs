//! What distinguishes one decoder of the Llama kind from another, as data.
//!
//! A family is a way to fill an [`Arch`] from a file's metadata (one file per family); the decoder reads nothing else.

mod baichuan;
mod config;
mod llama;
mod metadata;
mod mistral;
mod qwen2;
mod qwen3;
mod rope;
mod validate;

use std::path::Path;

use kvcsr_cache::Reach;

use self::config::Config;
use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;

pub use rope::RopeScaling;

/// `model_type` values of Hugging Face configurations that [`Arch::from_hf_config`] understands.
pub const HF_MODEL_TYPES: &[&str] = &["llama", "mistral", "qwen2", "qwen3", "baichuan"];

/// GGUF `general.architecture` values that [`Arch::from_gguf`] understands. Mistral's files say `llama`.
pub const GGUF_ARCHITECTURES: &[&str] = &["llama", "qwen2", "qwen3"];

/// Llama 2's and Hugging Face's default rotary base, used where a file names none.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// How a model tells positions.
#[derive(Debug, Clone, PartialEq)]
pub enum Position {
    /// Queries and keys are rotated.
    Rope {
        /// Base of the frequencies.
        theta: f64,
        /// Their rescaling.
        scaling: RopeScaling,
    },
    /// Scores fall linearly with distance, see [`kvcsr_cache::Alibi`].
    Alibi,
}

/// Layers whose tokens see only the tokens just before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlidingLayers {
    /// Tokens that a token sees, itself included.
    pub tokens: usize,
    /// The first such layer; those above are too.
    pub from_layer: usize,
}

/// The projections to queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qkv {
    /// Three matrices.
    Separate,
    /// Three matrices with biases.
    Biased,
    /// One matrix `W_pack`: rows of q, then k, then v.
    Packed,
}

/// Shape and constants of one decoder.
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
    /// How positions are told.
    pub position: Position,
    /// Layers with a sliding window, if any.
    pub sliding: Option<SlidingLayers>,
    /// Longest context, in tokens; the rotary tables have this many rows.
    pub max_positions: usize,
    /// The projections to queries, keys and values.
    pub qkv: Qkv,
    /// Every query and key head passes an RMSNorm before its position is told.
    pub qk_norm: bool,
    /// The output projection is the embedding matrix.
    pub tied_head: bool,
    /// The rows of the output projection are scaled to length 1.
    pub normalised_head: bool,
}

impl Arch {
    /// Reads the architecture from a GGUF file's metadata and validates it.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for an architecture outside [`GGUF_ARCHITECTURES`]; missing, mistyped, absurd or
    /// contradictory keys by name.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let architecture = file.str("general.architecture")?;
        if !GGUF_ARCHITECTURES.contains(&architecture) {
            return Err(ModelError::Unsupported {
                path: file.path().to_owned(),
                what: "architecture",
                found: architecture.to_owned(),
                supported: GGUF_ARCHITECTURES.join(", "),
            });
        }
        let arch = metadata::common(file)?;
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
        let malformed = |detail: String| ModelError::Malformed { path: path.to_owned(), format: "config.json", detail };
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| malformed(e.to_string()))?;
        let keys = value.as_object().ok_or_else(|| malformed("the top level is not an object".to_owned()))?;
        let config = Config { path, prefix: "", keys };
        let model_type = config.text("model_type")?;
        let arch = match model_type.as_str() {
            "llama" => llama::from_config(&config)?,
            "mistral" => mistral::from_config(&config)?,
            "qwen2" => qwen2::from_config(&config)?,
            "qwen3" => qwen3::from_config(&config)?,
            "baichuan" => baichuan::from_config(&config)?,
            _ => return Err(config.unsupported("model_type", model_type, &HF_MODEL_TYPES.join(", "))),
        };
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

    /// How far back the tokens of a layer see.
    pub fn reach(&self, layer: usize) -> Reach {
        match self.sliding {
            Some(SlidingLayers { tokens, from_layer }) if layer >= from_layer => Reach::Sliding(tokens),
            _ => Reach::Full,
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
            if self.qkv == Qkv::Packed {
                add("self_attn.W_pack.weight", &[self.qkv_rows(), hidden]);
            } else {
                for (name, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                    add(&format!("self_attn.{name}.weight"), &[rows, hidden]);
                    if self.qkv == Qkv::Biased {
                        add(&format!("self_attn.{name}.bias"), &[rows]);
                    }
                }
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
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
}

/// Width of one head where a file does not say it.
fn even_share(path: &Path, key: &str, hidden: usize, heads: usize) -> Result<usize> {
    if heads > 0 && hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    let expected = format!("a divisor of the hidden width {hidden}");
    Err(ModelError::bad_value(path, key, expected, heads.to_string()))
}
