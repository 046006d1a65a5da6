//! Quality after compression on held-out text.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The domain of rows over the documents of all domains.
pub const ALL: &str = "all";

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

/// One scheme over all documents, or over those of one domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchemeSummary {
    /// The domain; [`ALL`] for all documents.
    pub domain: String,
    /// The scheme.
    pub scheme: String,
    /// Its dictionary.
    pub dictionary: DictionarySource,
    /// Documents.
    pub documents: usize,
    /// Tokens compressed, summed over documents.
    pub context: usize,
    /// Tokens scored, summed over documents.
    pub scored: usize,
    /// Nominal bits per channel, mean weighted by compressed tokens.
    pub nominal_bits: f64,
    /// Measured bits per channel, mean weighted by compressed tokens: all bytes over all channels.
    pub measured_bits: f64,
    /// Bytes of the shared dictionaries, counted once (the largest seen).
    pub shared_bytes: usize,
    /// `exp(sum nll / sum scored)`.
    pub perplexity: f64,
    /// Mean KL to the uncompressed model per scored token, in nats.
    pub kl: f64,
    /// Scored tokens whose most likely token is the uncompressed model's, in percent.
    pub top1_percent: f64,
    /// Compression time per 1000 tokens, in milliseconds.
    pub encode_ms_per_1k: f64,
    /// Time per scored token, in milliseconds.
    pub score_ms_per_token: f64,
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
