//! Every scheme on the same prompts.

use serde::{Deserialize, Serialize};

use crate::heldout::HeldoutRow;

/// One document under one scheme; sums, as in [`HeldoutRow`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareDocument {
    /// The document.
    pub id: String,
    /// What it is text of.
    pub domain: String,
    /// The scheme, with its artefacts where they are not the usual ones.
    pub scheme: String,
    /// Tokens compressed.
    pub context: usize,
    /// Tokens scored.
    pub scored: usize,
    /// Negative log likelihood of the scored tokens, summed, in nats.
    pub nll_sum: f64,
    /// KL(uncompressed || this scheme), summed over scored tokens, in nats.
    pub kl_sum: f64,
    /// Scored positions where the most likely token is the uncompressed model's.
    pub top1_agree: usize,
    /// Bits per channel as the method's paper counts them.
    pub nominal_bits: f64,
    /// Bits per channel from every byte held after `context` tokens.
    pub measured_bits: f64,
    /// Bytes of offline artefacts, shared by all sequences and not in `measured_bits`.
    pub shared_bytes: usize,
    /// Time to compress the context, in milliseconds.
    pub encode_ms: f64,
    /// Time per token of decoding one by one after the continuation, in milliseconds.
    pub decode_ms_per_token: f64,
}

impl From<&HeldoutRow> for CompareDocument {
    /// A document of the evaluation, which decodes nothing token by token: that time is 0.
    fn from(row: &HeldoutRow) -> Self {
        let scheme = match row.dictionary.as_str() {
            "" | "neuraldict" => row.scheme.clone(),
            dictionary => format!("{}@{dictionary}", row.scheme),
        };
        Self {
            id: row.id.clone(),
            domain: row.domain.clone(),
            scheme,
            context: row.context,
            scored: row.scored,
            nll_sum: row.nll_sum,
            kl_sum: row.kl_sum,
            top1_agree: row.top1_agree,
            nominal_bits: row.nominal_bits,
            measured_bits: row.measured_bits,
            shared_bytes: row.shared_bytes,
            encode_ms: row.encode_ms,
            decode_ms_per_token: 0.0,
        }
    }
}

/// A scheme over the documents of one context length: of one domain, or of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareRow {
    /// The scheme.
    pub scheme: String,
    /// The domain, or `all`.
    pub domain: String,
    /// Tokens compressed per document.
    pub context: usize,
    /// Documents.
    pub n: usize,
    /// Tokens scored, over all documents.
    pub scored: usize,
    /// Bits per channel as the method's paper counts them.
    pub nominal_bits: f64,
    /// Bits per channel from every byte held at this context, mean over documents.
    pub measured_bits: f64,
    /// Mean KL to the uncompressed model per token, in nats.
    pub kl: f64,
    /// Ends of its bootstrap interval over documents; none for fewer than two.
    pub kl_low: Option<f64>,
    /// See `kl_low`.
    pub kl_high: Option<f64>,
    /// Share of tokens whose most likely successor is the uncompressed model's.
    pub top1: f64,
    /// See `kl_low`.
    pub top1_low: Option<f64>,
    /// See `kl_low`.
    pub top1_high: Option<f64>,
    /// Perplexity of the scored tokens.
    pub ppl: f64,
    /// Perplexity over the uncompressed model's on the same documents.
    pub ppl_ratio: f64,
    /// Ends of its paired interval.
    pub ppl_ratio_low: Option<f64>,
    /// See `ppl_ratio_low`.
    pub ppl_ratio_high: Option<f64>,
    /// Mean score over the suite's tasks, 0 to 100, whatever the context; none where they have not been run, and for a single
    /// domain.
    pub task_score: Option<f64>,
    /// Prompts answered.
    pub task_n: Option<usize>,
    /// `task_score` less the uncompressed cache's, over the same prompts.
    pub task_difference: Option<f64>,
    /// Ends of its paired interval.
    pub task_difference_low: Option<f64>,
    /// See `task_difference_low`.
    pub task_difference_high: Option<f64>,
    /// Bytes of offline artefacts, shared by all sequences.
    pub shared_bytes: usize,
    /// Time to compress a context, in milliseconds, mean over documents.
    pub encode_ms: f64,
    /// Time to decode a token, in milliseconds, mean over documents.
    pub decode_ms_per_token: f64,
}
