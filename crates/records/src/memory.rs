//! Bytes of caches by length, and schemes at the points of a sweep.

use serde::{Deserialize, Serialize};

use kvcsr_codec::Footprint;

/// Bytes of one model's KV cache under one scheme at one sequence length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryPoint {
    /// The model.
    pub model: String,
    /// The scheme. The suffix ` with dictionaries` marks lines that include dictionaries and online atoms.
    pub scheme: String,
    /// Sequence length.
    pub tokens: usize,
    /// Bytes of the keys and values of all layers.
    pub bytes: u64,
}

/// A prompt that is stored as a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestFileRow {
    /// The document.
    pub document: String,
    /// Maximum number of tokens of the prompt.
    pub context: usize,
    /// Number of tokens of the prompt.
    pub tokens: usize,
    /// Requested bits per channel.
    pub bits: f64,
    /// Bytes of the file.
    pub file_bytes: usize,
    /// Bytes of the same keys and values in f16.
    pub f16_bytes: usize,
    /// Time of the uncompressed prefill, in milliseconds.
    pub prefill_ms: f64,
    /// Time to encode and write, in milliseconds.
    pub write_ms: f64,
    /// Time to open, check and decode, in milliseconds.
    pub restore_ms: f64,
}

/// Bytes of one scheme's cache for one model's shape at one length, by formula. Bytes are those of all sequences and layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FootprintRow {
    /// The shape's name.
    pub model: String,
    /// The scheme.
    pub scheme: String,
    /// Number of tokens of each sequence.
    pub tokens: usize,
    /// Number of sequences.
    pub batch: usize,
    /// Bits per channel as the method itself counts them.
    pub nominal_bits: f64,
    /// Bits per channel from every byte of the sequences.
    pub measured_bits: f64,
    /// All bytes: the sum of the following parts.
    pub total: usize,
    /// Atom indices.
    pub indices: usize,
    /// Sparse coefficients.
    pub coefficients: usize,
    /// Quantised integers.
    pub packed: usize,
    /// Scales and zero points.
    pub scales: usize,
    /// Lengths of rows.
    pub row_lengths: usize,
    /// Uncompressed keys and values.
    pub dense: usize,
    /// Uncompressed first tokens (sinks) and recent tokens.
    pub window: usize,
    /// Atoms sampled from the prompt.
    pub online_atoms: usize,
    /// Atoms taken from outliers.
    pub guard: usize,
    /// Outliers and their positions.
    pub outliers: usize,
    /// Low-rank factors and bases.
    pub low_rank: usize,
    /// Tables that make encoding fast.
    pub tables: usize,
    /// Bytes of the offline dictionaries in f16, once for all sequences. Not included in `total` or `measured_bits`.
    pub dictionaries: usize,
}

impl FootprintRow {
    /// A row for `scheme` on `model` with the parts of `footprint`. The other numbers are zero.
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
    /// The swept parameters and their values, for example `train.atoms = 512`.
    pub point: String,
    /// The scheme, including its dictionaries.
    pub scheme: String,
    /// Bits per channel by the paper's formula, codes only.
    pub nominal_bits: f64,
    /// Bits per channel from every byte that the caches of the documents hold.
    pub measured_bits: f64,
    /// Bytes of offline dictionaries, shared by all documents.
    pub shared_bytes: usize,
    /// Perplexity of the scored tokens.
    pub perplexity: f64,
    /// Mean KL to the uncompressed model per scored token, in nats.
    pub kl: f64,
    /// Far-context recovery: 0 for deletion of the far context, 1 for the uncompressed cache. None if no position is far.
    pub recovery: Option<f64>,
    /// Percentage of the scored tokens whose most likely token is that of the uncompressed model.
    pub top1_percent: f64,
}
