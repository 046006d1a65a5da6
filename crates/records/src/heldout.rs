//! Quality after compression, measured on held-out text.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The domain of rows over the documents of all domains.
pub const ALL: &str = "all";
/// The domain of passages that are repeated after thousands of tokens of other text.
pub const REPEAT: &str = "repeat";

/// How the dictionary of a row was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DictionarySource {
    /// Trained through matching pursuit (paper, Algorithm 1).
    #[serde(rename = "neuraldict")]
    NeuralDict,
    /// Cluster centroids only: the start of Algorithm 1.
    #[serde(rename = "kmeans")]
    KMeans,
    /// Trained with options beyond the paper.
    #[serde(rename = "best")]
    Best,
    /// The same as [`Self::NeuralDict`], for keys after position embedding.
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

    /// The name for readers: `NeuralDict`, `k-means`, `NeuralDict beyond the paper`, `NeuralDict after RoPE` or the empty
    /// string.
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
    /// The accepted names.
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

/// One document under one scheme, over all its windows. In each window the first `context` tokens are compressed and the
/// following tokens are read. `scored` counts the read tokens that are scored. The fields are sums, not means, so that rows
/// add up without bias.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldoutRow {
    /// The document.
    pub id: String,
    /// The kind of text, or [`REPEAT`].
    pub domain: String,
    /// The scheme's name in the registry of caches.
    pub scheme: String,
    /// How the scheme's dictionary was made.
    pub dictionary: DictionarySource,
    /// Maximum number of tokens of a context. Each document's own number is drawn from the 128 lengths up to this one.
    pub context: usize,
    /// Number of windows of the document.
    pub windows: usize,
    /// Number of positions scored.
    pub scored: usize,
    /// Sum of the negative log likelihood of the scored tokens, in nats.
    pub nll_sum: f64,
    /// Sum over the scored positions of KL(uncompressed || this scheme) of the next-token distribution, in nats.
    pub kl_sum: f64,
    /// The 99.9th percentile of that KL.
    pub kl_tail: f64,
    /// Number of scored positions whose most likely token is that of the uncompressed model.
    pub top1_agree: usize,
    /// Number of far tokens. At a far token the uncompressed model changes if all tokens except sinks and recent ones are hidden.
    pub far: usize,
    /// Sum of that KL over the far tokens.
    pub far_kl_sum: f64,
    /// The same sum for the model with those tokens hidden. Recovery is `1 - far_kl_sum / hidden_kl_sum`.
    pub hidden_kl_sum: f64,
    /// Bits per channel as the paper of the method counts them.
    pub nominal_bits: f64,
    /// Bits per channel from every byte that this document's cache holds, averaged over the read tokens.
    pub measured_bits: f64,
    /// Bytes of the offline tables as this program holds them. All sequences share them, and `measured_bits` does not include them.
    pub shared_bytes: usize,
    /// Bytes of the same tables as a deployment would store them: the learned numbers in f16, without tables derived from them.
    pub stored_bytes: usize,
    /// Channels per token in all layers. If layers have a sliding window, the mean over the tokens of the context.
    pub channels: usize,
    /// Time to compress the context, in milliseconds.
    pub encode_ms: f64,
    /// Time per token of decoding one token at a time after the context, in milliseconds. None if it was not measured.
    pub decode_ms_per_token: Option<f64>,
}

impl HeldoutRow {
    /// The scheme, with its dictionary if that is not the usual one: `csr-8@kmeans`.
    pub fn label(&self) -> String {
        label(&self.scheme, self.dictionary.as_str())
    }
}

/// The label of a scheme in tables: `csr-8`, or `csr-8@kmeans` if the dictionaries are not the usual ones. `dictionaries` is
/// the name of their set, and empty for a scheme without dictionaries.
pub fn label(scheme: &str, dictionaries: &str) -> String {
    if dictionaries.is_empty() || dictionaries == DictionarySource::NeuralDict.as_str() {
        scheme.to_owned()
    } else {
        format!("{scheme}@{dictionaries}")
    }
}

/// One scheme over all documents of one context length, or over those of one domain. Every domain has the same weight,
/// independent of its number of documents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchemeSummary {
    /// The scheme.
    pub scheme: String,
    /// Its dictionary.
    pub dictionary: DictionarySource,
    /// The domain, or [`ALL`] for all domains without [`REPEAT`].
    pub domain: String,
    /// Maximum number of tokens of a context.
    pub context: usize,
    /// Number of documents.
    pub n: usize,
    /// Number of positions scored, over all documents.
    pub scored: usize,
    /// Bits per channel as the paper of the method counts them.
    pub nominal_bits: f64,
    /// Bits per channel from every byte held, mean over documents.
    pub measured_bits: f64,
    /// Far-context recovery: 0 for deletion, 1 for the uncompressed cache. None if there are no far tokens.
    pub recovery: Option<f64>,
    /// Lower end of its interval. None for a domain with fewer than two documents.
    pub recovery_low: Option<f64>,
    /// Upper end of its interval, see `recovery_low`.
    pub recovery_high: Option<f64>,
    /// Fraction of the positions that are far.
    pub far_share: f64,
    /// Recovery minus the recovery of deletion at equal measured bits. Deletion is `evict` with as many recent tokens as these
    /// bits allow, interpolated between the two nearest measured rows. None if there are no such rows, for deletion itself, and
    /// for uncompressed caches.
    pub over_deletion: Option<f64>,
    /// Lower end of its paired interval.
    pub over_deletion_low: Option<f64>,
    /// Upper end, see `over_deletion_low`.
    pub over_deletion_high: Option<f64>,
    /// True if no scheme with at most as many measured bits recovers significantly more.
    pub frontier: bool,
    /// Mean KL to the uncompressed model per position, in nats.
    pub kl: f64,
    /// Lower end of its interval.
    pub kl_low: Option<f64>,
    /// Upper end, see `kl_low`.
    pub kl_high: Option<f64>,
    /// The 99.9th percentile of KL, mean over documents.
    pub kl_tail: f64,
    /// Fraction of the positions whose most likely token is that of the uncompressed model.
    pub top1: f64,
    /// Perplexity of the scored tokens.
    pub ppl: f64,
    /// Perplexity divided by that of the uncompressed model on the same documents. None without rows of that model.
    pub ppl_ratio: Option<f64>,
    /// Lower end of its paired interval.
    pub ppl_ratio_low: Option<f64>,
    /// Upper end, see `ppl_ratio_low`.
    pub ppl_ratio_high: Option<f64>,
    /// Mean score over the tasks of the suite, 0 to 100. It does not depend on the context. None if the tasks were not run, and
    /// for a single domain.
    pub task_score: Option<f64>,
    /// Measured bits per channel on the tasks' prompts, which are shorter than `context`.
    pub task_bits: Option<f64>,
    /// Number of prompts answered.
    pub task_n: Option<usize>,
    /// `task_score` minus that of the uncompressed cache, over the same prompts.
    pub task_difference: Option<f64>,
    /// Lower end of its paired interval.
    pub task_difference_low: Option<f64>,
    /// Upper end, see `task_difference_low`.
    pub task_difference_high: Option<f64>,
    /// Bytes of the offline tables as held. All sequences share them.
    pub shared_bytes: usize,
    /// Bytes of the same tables as a deployment would store them.
    pub stored_bytes: usize,
    /// Bits per channel including the stored bytes, for one sequence of this context.
    pub all_in_bits_1: f64,
    /// The same if 8 sequences share the tables.
    pub all_in_bits_8: f64,
    /// The same if 64 sequences share the tables.
    pub all_in_bits_64: f64,
    /// Time to compress a context, in milliseconds, mean over documents.
    pub encode_ms: f64,
    /// Time to decode a token, in milliseconds, mean over the documents for which it was measured.
    pub decode_ms_per_token: Option<f64>,
}

impl SchemeSummary {
    /// The scheme, with its dictionary if that is not the usual one: `csr-8@kmeans`.
    pub fn label(&self) -> String {
        label(&self.scheme, self.dictionary.as_str())
    }

    /// Fraction of the far context that is lost, `1 - recovery`: 1 for deletion, 0 for the uncompressed cache.
    pub fn loss(&self) -> Option<f64> {
        self.recovery.map(|recovery| 1.0 - recovery)
    }
}

/// The KL above which a position is far, for texts of one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThresholdRow {
    /// Maximum number of tokens of a context.
    pub context: usize,
    /// The threshold, in nats.
    pub threshold: f64,
    /// Number of positions from which the threshold was computed.
    pub positions: usize,
}

/// NeuralDict and k-means compared under equal conditions. Lower is better for every metric here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What is compared: [`ALL`], a domain, or a layer and kind.
    pub place: String,
    /// The scheme; `CSR-n` for reconstruction rows.
    pub scheme: String,
    /// `KL` or `relative error`.
    pub metric: String,
    /// The value for NeuralDict.
    pub neuraldict: f64,
    /// The value for k-means alone.
    pub kmeans: f64,
    /// True if NeuralDict is strictly better. Equal values and NaN give false.
    pub neuraldict_wins: bool,
}

impl Comparison {
    /// Compares two values of `metric`.
    pub fn new(place: String, scheme: String, metric: &str, neuraldict: f64, kmeans: f64) -> Self {
        let neuraldict_wins = neuraldict < kmeans;
        Self { place, scheme, metric: metric.to_owned(), neuraldict, kmeans, neuraldict_wins }
    }
}
