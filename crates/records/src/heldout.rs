//! Quality after compression on held-out text.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The domain of rows over the documents of all domains.
pub const ALL: &str = "all";
/// The domain of passages that come back after thousands of tokens of other text.
pub const REPEAT: &str = "repeat";

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

/// One document under one scheme: all its windows together. The first `context` tokens are compressed, tokens after them are
/// read, and `scored` of these count. Sums, not means, so that rows add up without bias.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldoutRow {
    /// The document.
    pub id: String,
    /// What it is text of, or [`REPEAT`].
    pub domain: String,
    /// The scheme's name in the registry of caches.
    pub scheme: String,
    /// Where the scheme's dictionary came from.
    pub dictionary: DictionarySource,
    /// Most tokens of a context: each document's own is drawn from the 128 lengths up to it.
    pub context: usize,
    /// Windows of the document.
    pub windows: usize,
    /// Positions scored.
    pub scored: usize,
    /// Negative log likelihood of the scored tokens, summed, in nats.
    pub nll_sum: f64,
    /// KL(uncompressed || this scheme) of the next-token distribution, summed over scored positions, in nats.
    pub kl_sum: f64,
    /// The 99.9th percentile of that KL.
    pub kl_tail: f64,
    /// Scored positions where the most likely token is the uncompressed model's.
    pub top1_agree: usize,
    /// Far tokens: positions where the uncompressed model changes when all but sinks and recent tokens is hidden.
    pub far: usize,
    /// KL summed over them.
    pub far_kl_sum: f64,
    /// The same of the model with the rest hidden: recovery is `1 - far_kl_sum / hidden_kl_sum`.
    pub hidden_kl_sum: f64,
    /// Bits per channel as the method's paper counts them.
    pub nominal_bits: f64,
    /// Bits per channel from every byte that this document's cache holds, averaged over the tokens that are read.
    pub measured_bits: f64,
    /// Bytes of offline artefacts as this program holds them, shared by all sequences and not in `measured_bits`.
    pub shared_bytes: usize,
    /// Bytes of the same artefacts as a deployment would store them: what is learned, in f16, without tables made from it.
    pub stored_bytes: usize,
    /// Channels of all layers that one token takes; where layers have a sliding window, the mean of the context's tokens.
    pub channels: usize,
    /// Time to compress the context, in milliseconds.
    pub encode_ms: f64,
    /// Time per token of decoding one by one after that, in milliseconds; none where it was not measured.
    pub decode_ms_per_token: Option<f64>,
}

impl HeldoutRow {
    /// The scheme, with its dictionary where that is not the usual one: `csr-8@kmeans`.
    pub fn label(&self) -> String {
        label(&self.scheme, self.dictionary.as_str())
    }
}

/// The label of a scheme in tables: `csr-8`, or `csr-8@kmeans` where the dictionaries, by the name of their set, are not the usual
/// ones. Schemes without dictionaries name none.
pub fn label(scheme: &str, dictionaries: &str) -> String {
    if dictionaries.is_empty() || dictionaries == DictionarySource::NeuralDict.as_str() {
        scheme.to_owned()
    } else {
        format!("{scheme}@{dictionaries}")
    }
}

/// One scheme over all documents of one context, or over those of one domain. Every domain counts equally, whatever its number
/// of documents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchemeSummary {
    /// The scheme.
    pub scheme: String,
    /// Its dictionary.
    pub dictionary: DictionarySource,
    /// The domain; [`ALL`] for all of them without [`REPEAT`].
    pub domain: String,
    /// Most tokens of a context.
    pub context: usize,
    /// Documents.
    pub n: usize,
    /// Positions scored, over all documents.
    pub scored: usize,
    /// Bits per channel as the method's paper counts them.
    pub nominal_bits: f64,
    /// Bits per channel from every byte held, mean over documents.
    pub measured_bits: f64,
    /// Far-context recovery: 0 as deletion, 1 as the exact cache; none where no token is far.
    pub recovery: Option<f64>,
    /// Ends of its interval; none for a domain with fewer than two documents.
    pub recovery_low: Option<f64>,
    /// See `recovery_low`.
    pub recovery_high: Option<f64>,
    /// Share of the positions that are far.
    pub far_share: f64,
    /// Recovery less that of deletion at equal measured bits: of `evict` with as many recent tokens as the bits pay for,
    /// between the two nearest that were run. None without such rows, and for a cache with more bits than f16.
    pub over_deletion: Option<f64>,
    /// Ends of its paired interval.
    pub over_deletion_low: Option<f64>,
    /// See `over_deletion_low`.
    pub over_deletion_high: Option<f64>,
    /// Whether no scheme of at most as many measured bits recovers more beyond doubt.
    pub frontier: bool,
    /// Mean KL to the uncompressed model per position, in nats.
    pub kl: f64,
    /// Ends of its interval.
    pub kl_low: Option<f64>,
    /// See `kl_low`.
    pub kl_high: Option<f64>,
    /// The 99.9th percentile of KL, mean over documents.
    pub kl_tail: f64,
    /// Share of positions whose most likely token is the uncompressed model's.
    pub top1: f64,
    /// Perplexity of the scored tokens.
    pub ppl: f64,
    /// Perplexity over the uncompressed model's on the same documents; none without its rows.
    pub ppl_ratio: Option<f64>,
    /// Ends of its paired interval.
    pub ppl_ratio_low: Option<f64>,
    /// See `ppl_ratio_low`.
    pub ppl_ratio_high: Option<f64>,
    /// Mean score over the suite's tasks, 0 to 100, whatever the context; none where they have not been run, and for a single
    /// domain.
    pub task_score: Option<f64>,
    /// Measured bits per channel on the tasks' prompts, which are shorter than `context`.
    pub task_bits: Option<f64>,
    /// Prompts answered.
    pub task_n: Option<usize>,
    /// `task_score` less the uncompressed cache's, over the same prompts.
    pub task_difference: Option<f64>,
    /// Ends of its paired interval.
    pub task_difference_low: Option<f64>,
    /// See `task_difference_low`.
    pub task_difference_high: Option<f64>,
    /// Bytes of offline artefacts as held, shared by all sequences.
    pub shared_bytes: usize,
    /// Bytes of the same artefacts as a deployment would store them.
    pub stored_bytes: usize,
    /// Bits per channel with the stored bytes in them, for one sequence of this context.
    pub all_in_bits_1: f64,
    /// The same where 8 sequences share the artefacts.
    pub all_in_bits_8: f64,
    /// The same where 64 sequences share them.
    pub all_in_bits_64: f64,
    /// Time to compress a context, in milliseconds, mean over documents.
    pub encode_ms: f64,
    /// Time to decode a token, in milliseconds, mean over the documents where it was measured.
    pub decode_ms_per_token: Option<f64>,
}

impl SchemeSummary {
    /// The scheme, with its dictionary where that is not the usual one: `csr-8@kmeans`.
    pub fn label(&self) -> String {
        label(&self.scheme, self.dictionary.as_str())
    }

    /// Share of the far context that is lost, `1 - recovery`: 1 as deletion, 0 as the exact cache.
    pub fn loss(&self) -> Option<f64> {
        self.recovery.map(|recovery| 1.0 - recovery)
    }
}

/// Above which KL a position is far, in texts of one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThresholdRow {
    /// Most tokens of a context.
    pub context: usize,
    /// The threshold, in nats.
    pub threshold: f64,
    /// Positions that it was chosen on.
    pub positions: usize,
}

/// NeuralDict and k-means side by side under equal conditions. Lower is better for every metric here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Where: [`ALL`], a domain, or a layer and kind.
    pub place: String,
    /// The scheme, `CSR-n` for reconstruction rows.
    pub scheme: String,
    /// `KL` or `relative error`.
    pub metric: String,
    /// NeuralDict's figure.
    pub neuraldict: f64,
    /// The figure of k-means alone.
    pub kmeans: f64,
    /// Whether NeuralDict is strictly better. Equality and NaN are not.
    pub neuraldict_wins: bool,
}

impl Comparison {
    /// Compares two figures of `metric`.
    pub fn new(place: String, scheme: String, metric: &str, neuraldict: f64, kmeans: f64) -> Self {
        let neuraldict_wins = neuraldict < kmeans;
        Self { place, scheme, metric: metric.to_owned(), neuraldict, kmeans, neuraldict_wins }
    }
}
