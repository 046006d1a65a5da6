//! Long documents, the units that evidence is taken on.

use serde::{Deserialize, Serialize};

/// One document under one scheme: all its windows together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitRow {
    /// The document.
    pub id: String,
    /// What it is text of, or `repeat` for passages that come back.
    pub domain: String,
    /// The scheme, with its artefacts where they are not the usual ones.
    pub scheme: String,
    /// Most tokens of a context.
    pub context: usize,
    /// Windows of the document.
    pub windows: usize,
    /// Positions scored.
    pub scored: usize,
    /// Negative log likelihood of the scored tokens, summed, in nats.
    pub nll_sum: f64,
    /// KL(uncompressed || this scheme), summed over scored positions, in nats.
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
    /// Bits per channel from every byte held, averaged over the continuation.
    pub measured_bits: f64,
    /// Bytes of offline artefacts, shared by all sequences and not in `measured_bits`.
    pub shared_bytes: usize,
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
