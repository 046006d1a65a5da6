//! The rows that the pipeline writes and that figures and tables read. Plain data: one JSON object per line in the pipeline's `.jsonl` files.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use kvcsr_codec::Footprint;
pub use kvcsr_codec::Kind;

/// How a row's dictionary came to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DictionarySource {
    /// Trained through matching pursuit (paper, Algorithm 1).
    #[serde(rename = "neuraldict")]
    NeuralDict,
    /// Cluster centroids only: Algorithm 1's starting point.
    #[serde(rename = "kmeans")]
    KMeans,
    /// Trained with options beyond the paper.
    #[serde(rename = "best")]
    Best,
    /// As [`Self::NeuralDict`], with keys after position embedding.
    #[serde(rename = "neuraldict-rope")]
    NeuralDictRope,
    /// The scheme has no dictionary.
    #[default]
    #[serde(rename = "")]
    None,
}

impl DictionarySource {
    /// The name in files: `neuraldict`, `kmeans`, `best`, `neuraldict-rope` or the empty string.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeuralDict => "neuraldict",
            Self::KMeans => "kmeans",
            Self::Best => "best",
            Self::NeuralDictRope => "neuraldict-rope",
            Self::None => "",
        }
    }

    /// The name for readers: `NeuralDict`, `k-means`, `NeuralDict beyond the paper`, `NeuralDict after RoPE` or the empty string.
    pub fn label(self) -> &'static str {
        match self {
            Self::NeuralDict => "NeuralDict",
            Self::KMeans => "k-means",
            Self::Best => "NeuralDict beyond the paper",
            Self::NeuralDictRope => "NeuralDict after RoPE",
            Self::None => "",
        }
    }
}

impl fmt::Display for DictionarySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that is not a [`DictionarySource`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown name `{found}`; expected {expected}")]
pub struct UnknownName {
    /// The text.
    pub found: String,
    /// The names that would have been understood.
    pub expected: &'static str,
}

impl FromStr for DictionarySource {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        [Self::NeuralDict, Self::KMeans, Self::Best, Self::NeuralDictRope, Self::None]
            .into_iter()
            .find(|source| source.as_str() == name)
            .ok_or_else(|| UnknownName {
                found: name.to_owned(),
                expected: "neuraldict, kmeans, best, neuraldict-rope or nothing",
            })
    }
}

/// One held-out document under one scheme: the first `context` tokens are compressed, the next `scored` tokens are predicted.
/// Sums, not means, so that rows of unequal length add up without bias.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldoutRow {
    /// The document.
    pub id: String,
    /// What it is text of (wiki, code, ...).
    pub domain: String,
    /// The scheme's name in the registry of caches.
    pub scheme: String,
    /// Where the scheme's dictionary came from.
    pub dictionary: DictionarySource,
    /// Tokens compressed.
    pub context: usize,
    /// Tokens scored.
    pub scored: usize,
    /// Negative log likelihood of the scored tokens, summed, in nats.
    pub nll_sum: f64,
    /// KL(uncompressed || this scheme) of the next-token distribution, summed over scored tokens, in nats.
    pub kl_sum: f64,
    /// Scored positions where the most likely token is the uncompressed model's.
    pub top1_agree: usize,
    /// Bits per channel by the paper's formula, codes only.
    pub nominal_bits: f64,
    /// Bits per channel from every byte that this document's cache holds after `context` tokens.
    pub measured_bits: f64,
    /// Bytes of offline dictionaries, shared by all documents and not in `measured_bits`.
    pub shared_bytes: usize,
    /// Time to compress the context, in milliseconds.
    pub encode_ms: f64,
    /// Time to score, in milliseconds.
    pub score_ms: f64,
}

/// Reconstruction of one layer's held-out vectors of one kind at one sparsity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReconstructionRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// Where the dictionary came from.
    pub dictionary: DictionarySource,
    /// Matching-pursuit steps per chunk, the paper's `s`.
    pub sparsity: usize,
    /// Chunks per head vector, the paper's `s_n`.
    pub chunks: usize,
    /// `sum |x - x'|^2 / sum |x|^2`.
    pub relative: f64,
    /// Mean over vectors of `|x - x'|^2`.
    pub mse: f64,
    /// Vectors measured.
    pub vectors: usize,
}

impl ReconstructionRow {
    /// The `n` of CSR-n that this row's kind has under the paper's rule: keys use `(n, 1)`, values `(n / 2, 2)`, so `sparsity * chunks`.
    pub fn level(&self) -> usize {
        self.sparsity * self.chunks
    }
}

/// One epoch of one group's dictionary training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRow {
    /// The group's name.
    pub group: String,
    /// Keys or values.
    pub kind: Kind,
    /// The merged layers.
    pub layers: Vec<usize>,
    /// The epoch; 0 is the state before training, if it was measured.
    pub epoch: usize,
    /// `L_MSE` per vector.
    pub mse: f64,
    /// `L_div`.
    pub diversity: f64,
    /// The weight of `L_div` in the loss.
    pub beta: f64,
    /// Relative squared error on training vectors.
    pub train_relative: f64,
    /// Relative squared error on held-out vectors.
    pub heldout_relative: f64,
    /// Atoms that no training vector used in this epoch.
    pub dead_atoms: usize,
    /// Entropy of the atoms' usage, in nats; `ln N` when all are used alike.
    pub usage_entropy: f64,
    /// Wall time of the epoch.
    pub seconds: f64,
}

/// How far apart the spaces of two layers are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DivergenceRow {
    /// Keys or values.
    pub kind: Kind,
    /// The layer.
    pub layer: usize,
    /// The layer it is compared with.
    pub other: usize,
    /// Number of the group that `layer` was put in.
    pub group: usize,
    /// Jensen-Shannon divergence in nats, 0 to ln 2.
    pub divergence: f64,
}

/// One scheme in one cell of a retrieval grid: a fact at a depth of a text of a length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetrievalRow {
    /// What is retrieved from what, for example `passkey`.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// Tokens of the prompt, about.
    pub tokens: usize,
    /// Share of the text before the fact, 0 to 1.
    pub depth: f64,
    /// Prompts answered.
    pub n: usize,
    /// Mean score, 0 to 1.
    pub score: f64,
}

/// Bytes of one model's KV cache under one scheme at one sequence length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryPoint {
    /// The model.
    pub model: String,
    /// The scheme; [`crate::memory::WITH_DICTIONARIES`] marks the lines which count dictionaries and online atoms.
    pub scheme: String,
    /// Sequence length.
    pub tokens: usize,
    /// Bytes, keys and values of all layers.
    pub bytes: u64,
}

/// One scheme at one point of a sweep, over all held-out documents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepRow {
    /// The swept parameters and their values, `train.atoms = 512`.
    pub point: String,
    /// The scheme with its dictionaries.
    pub scheme: String,
    /// Bits per channel by the paper's formula, codes only.
    pub nominal_bits: f64,
    /// Bits per channel from every byte that the documents' caches hold.
    pub measured_bits: f64,
    /// Bytes of offline dictionaries, shared by all documents.
    pub shared_bytes: usize,
    /// Perplexity of the scored tokens.
    pub perplexity: f64,
    /// Mean KL to the uncompressed model per scored token, in nats.
    pub kl: f64,
    /// Scored tokens whose most likely token is the uncompressed model's, in percent.
    pub top1_percent: f64,
}

/// One atom in one token's code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PatternRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// The key-value head.
    pub head: usize,
    /// The token's position.
    pub token: usize,
    /// The chunk of the head vector.
    pub chunk: usize,
    /// The atom.
    pub atom: usize,
    /// Atoms of the dictionary.
    pub atoms: usize,
    /// Its coefficient.
    pub coefficient: f32,
}

/// How often one atom is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UsageRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// The atom.
    pub atom: usize,
    /// Times that it was picked.
    pub uses: usize,
}

/// How often coefficients of a size are picked at one step of pursuit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoefficientRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// The step of pursuit that picked the atom, from 1.
    pub step: usize,
    /// Lower end of the bin: coefficient over the length of the vector that it codes, -1 to 1.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Share of the step's coefficients that lie in the bin.
    pub share: f64,
}

/// What one scheme's cache takes for one model's shape at one length, by formula.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FootprintRow {
    /// The shape's name.
    pub model: String,
    /// The scheme.
    pub scheme: String,
    /// Tokens of every sequence.
    pub tokens: usize,
    /// Sequences.
    pub batch: usize,
    /// Bits per channel by the method's own count.
    pub nominal_bits: f64,
    /// Bits per channel from every byte of the sequences.
    pub measured_bits: f64,
    /// Bytes of all sequences and layers, by part.
    pub footprint: Footprint,
    /// Bytes of offline dictionaries in f16, once for all sequences and not in `measured_bits`.
    pub dictionaries: usize,
}
