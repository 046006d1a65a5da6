//! What distinguishes one decoder of the Llama kind from another, as data.
//!
//! A family is a way to fill an [`Arch`] from a file's metadata (one file per family); the decoder reads nothing else.

mod baichuan;
mod config;
mod gemma3;
mod llama;
mod metadata;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;
mod rope_config;
mod rope_metadata;
mod sliding_metadata;
mod tensors;
mod validate;

use std::path::Path;

use kvcsr_cache::Reach;

use self::config::Config;
use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;

pub use rope::RopeScaling;

/// `model_type` values of Hugging Face configurations that [`Arch::from_hf_config`] understands.
pub const HF_MODEL_TYPES: &[&str] =
    &["llama", "mistral", "qwen2", "qwen3", "baichuan", "gemma3_text", "olmo2", "olmo3", "phi3"];

/// GGUF `general.architecture` values that [`Arch::from_gguf`] understands. Mistral's files say `llama`.
pub const GGUF_ARCHITECTURES: &[&str] = &["llama", "qwen2", "qwen3", "gemma3", "olmo2", "phi3"];

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
#[derive(Debug, Clone, PartialEq)]
pub struct SlidingLayers {
    /// Tokens that a token sees, itself included.
    pub tokens: usize,
    /// Per layer, whether it is one of them.
    pub layers: Vec<bool>,
    /// How they tell positions, where the other layers do otherwise.
    pub position: Option<Position>,
}

impl SlidingLayers {
    /// The layers from `first` on, of `layers`.
    pub fn from_layer(first: usize, layers: usize, tokens: usize) -> Self {
        Self { tokens, layers: (0..layers).map(|layer| layer >= first).collect(), position: None }
    }

    /// All but every `period`th layer: with 6, layers 5, 11, .. see everything.
    pub(crate) fn but_every(period: usize, layers: usize, tokens: usize) -> Self {
        Self { tokens, layers: (1..=layers).map(|layer| !layer.is_multiple_of(period)).collect(), position: None }
    }

    /// Itself, or nothing if no layer slides.
    pub(crate) fn unless_none(self) -> Option<Self> {
        Some(self).filter(|sliding| sliding.layers.contains(&true))
    }
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
    /// One matrix `qkv_proj`: rows of q, then k, then v.
    Joined,
}

/// Where a layer has its RMSNorms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and before the MLP.
    Before,
    /// After attention and after the MLP, before they are added to the residual stream.
    After,
    /// Both.
    Around,
}

/// RMSNorms of queries and keys before their position is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Every head by itself, with one weight of `D`.
    PerHead,
    /// All heads of a token together.
    Whole,
}

/// What the gate of the MLP passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
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
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Where the norms of a layer are.
    pub norms: Norms,
    /// The files hold the weights of norms less one.
    pub norms_less_one: bool,
    /// What the MLP's gate passes through.
    pub activation: Activation,
    /// Gate and up of the MLP are one matrix in the files: `gate_up_proj`, gate first.
    pub packed_mlp: bool,
    /// What embeddings are multiplied by.
    pub embedding_scale: f64,
    /// What scores are multiplied by, where it is not `1/sqrt(D)`.
    pub score_scale: Option<f64>,
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
        let arch = metadata::read(file)?;
        arch.validate(file.path())?;
        Ok(arch)
    }

    /// Reads the architecture from the text of a Hugging Face `config.json`; `path` is only named in errors.
    ///
    /// Both the `rope_theta` + `rope_scaling` and the newer `rope_parameters` spellings are understood, and
    /// `rope_scaling` wins.
    ///
    /// # Errors
    /// As [`Arch::from_gguf`], with the JSON's keys.
    pub fn from_hf_config(json: &str, path: &Path) -> Result<Self> {
        let malformed = |detail: String| ModelError::Malformed { path: path.to_owned(), format: "config.json", detail };
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| malformed(e.to_string()))?;
        let keys = value.as_object().ok_or_else(|| malformed("the top level is not an object".to_owned()))?;
        let config = Config { path, prefix: "", keys };
        config.refuse_quantised()?;
        let model_type = config.text("model_type")?;
        let arch = match model_type.as_str() {
            "llama" => llama::from_config(&config)?,
            "mistral" => mistral::from_config(&config)?,
            "qwen2" => qwen2::from_config(&config)?,
            "qwen3" => qwen3::from_config(&config)?,
            "baichuan" => baichuan::from_config(&config)?,
            "gemma3_text" => gemma3::from_config(&config)?,
            "olmo2" => olmo2::from_config(&config)?,
            "olmo3" => olmo2::third_from_config(&config)?,
            "phi3" => phi3::from_config(&config)?,
            _ => return Err(config.unsupported("model_type", model_type, &HF_MODEL_TYPES.join(", "))),
        };
        arch.validate(path)?;
        Ok(arch)
    }

    /// Rows of the fused q, k, v projection: `(H + 2 Hkv) D`.
    pub fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Scale of a layer's attention scores: `1/sqrt(D)` or the model's own, and what its positions ask for.
    pub fn scale(&self, layer: usize) -> f64 {
        let scale = self.score_scale.unwrap_or_else(|| 1.0 / (self.head_dim as f64).sqrt());
        match self.position_of(layer) {
            Position::Rope { scaling, .. } => scale * scaling.score_factor(),
            Position::Alibi => scale,
        }
    }

    /// How far back the tokens of a layer see.
    pub fn reach(&self, layer: usize) -> Reach {
        self.sliding_at(layer).map_or(Reach::Full, |sliding| Reach::Sliding(sliding.tokens))
    }

    /// How a layer tells positions.
    pub fn position_of(&self, layer: usize) -> &Position {
        self.sliding_at(layer).and_then(|sliding| sliding.position.as_ref()).unwrap_or(&self.position)
    }

    fn sliding_at(&self, layer: usize) -> Option<&SlidingLayers> {
        self.sliding.as_ref().filter(|sliding| sliding.layers.get(layer) == Some(&true))
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
