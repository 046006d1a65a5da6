//! The differences between decoders of the Llama kind, as data.
//!
//! A family is a way to fill an [`Arch`] from a file's metadata, with one file per family. The decoder reads nothing
//! else.

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

/// GGUF `general.architecture` values that [`Arch::from_gguf`] understands. The files of Mistral models say `llama`.
pub const GGUF_ARCHITECTURES: &[&str] = &["llama", "qwen2", "qwen3", "gemma3", "olmo2", "phi3"];

/// The default rotary base of Llama 2 and of Hugging Face. It is used if a file gives none.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// How a model encodes positions.
#[derive(Debug, Clone, PartialEq)]
pub enum Position {
    /// Queries and keys are rotated.
    Rope {
        /// The base of the frequencies.
        theta: f64,
        /// How the frequencies are rescaled.
        scaling: RopeScaling,
    },
    /// Scores fall linearly with distance, see [`kvcsr_cache::Alibi`].
    Alibi,
}

/// Layers whose tokens see only the tokens just before them.
#[derive(Debug, Clone, PartialEq)]
pub struct SlidingLayers {
    /// The number of tokens that a token sees, including itself.
    pub tokens: usize,
    /// For each layer, whether it slides.
    pub layers: Vec<bool>,
    /// How sliding layers encode positions, if the other layers do this differently.
    pub position: Option<Position>,
}

impl SlidingLayers {
    /// Of `layers` layers, those from `first` on slide.
    pub fn from_layer(first: usize, layers: usize, tokens: usize) -> Self {
        Self { tokens, layers: (0..layers).map(|layer| layer >= first).collect(), position: None }
    }

    /// All layers slide except every `period`th one. With 6, layers 5, 11, .. see everything.
    pub(crate) fn but_every(period: usize, layers: usize, tokens: usize) -> Self {
        Self { tokens, layers: (1..=layers).map(|layer| !layer.is_multiple_of(period)).collect(), position: None }
    }

    /// `self`, or `None` if no layer slides.
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

/// RMSNorms of queries and keys, before position embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head separately, with one weight vector of size `D`.
    PerHead,
    /// All heads of a token together.
    Whole,
}

/// The activation function of the MLP's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// The shape and the constants of one decoder.
///
/// It is read from a file ([`Arch::from_gguf`], [`Arch::from_hf_config`]). It can also be built by hand; then call
/// [`Arch::validate`].
#[derive(Debug, Clone, PartialEq)]
pub struct Arch {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads per layer, `H`.
    pub heads: usize,
    /// Key-value heads per layer, `Hkv`. `heads` must be a multiple of it.
    pub kv_heads: usize,
    /// Width of one head, `D`.
    pub head_dim: usize,
    /// Width of the MLP's inner layer.
    pub intermediate: usize,
    /// Rows of the embedding, `V`.
    pub vocab: usize,
    /// Epsilon inside the RMSNorm's square root.
    pub rms_eps: f64,
    /// How positions are encoded.
    pub position: Position,
    /// Layers with a sliding window, if any.
    pub sliding: Option<SlidingLayers>,
    /// The longest context in tokens. The rotary tables have this many rows.
    pub max_positions: usize,
    /// The projections to queries, keys and values.
    pub qkv: Qkv,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Where the norms of a layer are.
    pub norms: Norms,
    /// Whether the files hold the weights of norms minus one.
    pub norms_less_one: bool,
    /// The activation function of the MLP's gate.
    pub activation: Activation,
    /// Whether gate and up of the MLP are one matrix in the files: `gate_up_proj`, with the gate first.
    pub packed_mlp: bool,
    /// The factor by which embeddings are multiplied.
    pub embedding_scale: f64,
    /// The factor by which scores are multiplied, if it is not `1/sqrt(D)`.
    pub score_scale: Option<f64>,
    /// Whether the output projection is the embedding matrix.
    pub tied_head: bool,
    /// Whether the rows of the output projection are scaled to length 1.
    pub normalised_head: bool,
}

impl Arch {
    /// Reads the architecture from a GGUF file's metadata and validates it.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for an architecture that is not in [`GGUF_ARCHITECTURES`]. Also errors for keys that
    /// are missing, have a wrong type, have absurd values or contradict each other. They name the key.
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

    /// Reads the architecture from the text of a Hugging Face `config.json`. `path` is only used in errors.
    ///
    /// Both spellings are understood: `rope_theta` + `rope_scaling`, and the newer `rope_parameters`. If both are
    /// present, `rope_scaling` is used.
    ///
    /// # Errors
    /// The errors of [`Arch::from_gguf`], with the JSON's keys.
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

    /// The factor on a layer's attention scores: `1/sqrt(D)` or the model's own factor, times the factor of its
    /// position encoding.
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

    /// How a layer encodes positions.
    pub fn position_of(&self, layer: usize) -> &Position {
        self.sliding_at(layer).and_then(|sliding| sliding.position.as_ref()).unwrap_or(&self.position)
    }

    fn sliding_at(&self, layer: usize) -> Option<&SlidingLayers> {
        self.sliding.as_ref().filter(|sliding| sliding.layers.get(layer) == Some(&true))
    }
}

/// The width of one head, for files that do not give it.
fn even_share(path: &Path, key: &str, hidden: usize, heads: usize) -> Result<usize> {
    if heads > 0 && hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    let expected = format!("a divisor of the hidden width {hidden}");
    Err(ModelError::bad_value(path, key, expected, heads.to_string()))
}
