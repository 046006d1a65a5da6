//! Bytes of caches by length, and schemes at the points of a sweep.

use serde::{Deserialize, Serialize};

use kvcsr_codec::Footprint;

/// Bytes of one model's KV cache under one scheme at one sequence length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryPoint {
    /// The model.
    pub model: String,
    /// The scheme. Its ending ` with dictionaries` marks lines that count dictionaries and online atoms.
    pub scheme: String,
    /// Sequence length.
    pub tokens: usize,
    /// Bytes, keys and values of all layers.
    pub bytes: u64,
}

/// A prompt kept as a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestFileRow {
    /// The document.
    pub document: String,
    /// Most tokens of the prompt.
    pub context: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Bits per channel that were asked for.
    pub bits: f64,
    /// Bytes of the file.
    pub file_bytes: usize,
    /// Bytes of the same keys and values in f16.
    pub f16_bytes: usize,
    /// Time of the exact prefill, in milliseconds.
    pub prefill_ms: f64,
    /// Time to code and write, in milliseconds.
    pub write_ms: f64,
    /// Time to open, check and restore, in milliseconds.
    pub restore_ms: f64,
}

/// What one scheme's cache takes for one model's shape at one length, by formula. Bytes are those of all sequences and layers.
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
    /// All bytes: the sum of the parts that follow.
    pub total: usize,
    /// Indices of atoms.
    pub indices: usize,
    /// Sparse coefficients.
    pub coefficients: usize,
    /// Quantised integers.
    pub packed: usize,
    /// Scales and zero points.
    pub scales: usize,
    /// Lengths of rows.
    pub row_lengths: usize,
    /// Keys and values kept exactly.
    pub dense: usize,
    /// Sinks and recent tokens.
    pub window: usize,
    /// Atoms sampled from the prompt.
    pub online_atoms: usize,
    /// Atoms taken from outliers.
    pub guard: usize,
    /// Outlying values and their positions.
    pub outliers: usize,
    /// Low-rank factors and bases.
    pub low_rank: usize,
    /// Tables that make coding fast.
    pub tables: usize,
    /// Bytes of offline dictionaries in f16, once for all sequences; neither in `total` nor in `measured_bits`.
    pub dictionaries: usize,
}

impl FootprintRow {
    /// A row of `scheme` on `model` with the parts of `footprint`; the other figures are zero.
    pub fn of(model: &str, scheme: &str, footprint: &Footprint) -> Self {
        let Footprint {
            indices,
            coefficients,
            packed,
            scales,
            row_lengths,
            dense,
            window,
            online_atoms,
            guard,
            outliers,
            low_rank,
            tables,
        } = *footprint;
        Self {
            model: model.to_owned(),
            scheme: scheme.to_owned(),
            tokens: 0,
            batch: 0,
            nominal_bits: 0.0,
            measured_bits: 0.0,
            total: footprint.total(),
            indices,
            coefficients,
            packed,
            scales,
            row_lengths,
            dense,
            window,
            online_atoms,
            guard,
            outliers,
            low_rank,
            tables,
            dictionaries: 0,
        }
    }
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
    /// Far-context recovery: 0 as deleting the far context, 1 as the exact cache; none where no position is far.
    pub recovery: Option<f64>,
    /// Scored tokens whose most likely token is the uncompressed model's, in percent.
    pub top1_percent: f64,
}
