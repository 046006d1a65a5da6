//! Errors of the cache crate.

use std::path::PathBuf;

use kvcsr_codec::{CodecError, Kind};

/// Errors of building or using a cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// Coding or restoring vectors failed.
    #[error("layer {layer}, {kind}s: {source}")]
    Codec {
        /// The layer.
        layer: usize,
        /// Keys or values.
        kind: Kind,
        /// The cause.
        source: CodecError,
    },
    /// A key or value that must be stored is NaN or infinite.
    #[error("layer {layer}, {kind}s: token {token} has a NaN or infinite element")]
    NotFinite {
        /// The layer.
        layer: usize,
        /// Keys or values.
        kind: Kind,
        /// The token's position.
        token: usize,
    },
    /// An input has another shape than the cache expects.
    #[error("{tensor}: expected shape {expected}, found {found:?}")]
    Shape {
        /// Which tensor.
        tensor: &'static str,
        /// The expected shape, in letters or numbers.
        expected: String,
        /// The shape found.
        found: Vec<usize>,
    },
    /// The given position is not the number of tokens that the cache has seen.
    #[error("the new tokens start at position {start}, but the cache holds {len} tokens")]
    Position {
        /// Position of the first new token.
        start: usize,
        /// Tokens held.
        len: usize,
    },
    /// More positions are needed than the rotary table has.
    #[error("position {position} is beyond the rotary table's {max} positions (the model's context length)")]
    ContextLength {
        /// The end of the requested positions, exclusive.
        position: usize,
        /// Positions in the table.
        max: usize,
    },
    /// The padding of a batch differs from the padding at its first tokens.
    #[error("layer {layer}: the batch was begun with padding {expected:?}, found {found:?}")]
    Padding {
        /// The layer.
        layer: usize,
        /// Padding tokens per row, as at the first call.
        expected: Vec<usize>,
        /// Padding tokens per row, as found.
        found: Vec<usize>,
    },
    /// A scheme cannot take over a padded prefill.
    #[error(
        "a prefill padded by {found:?} tokens cannot be taken over by this scheme; give each text a cache of its own"
    )]
    PaddedPrefill {
        /// Padding tokens per row.
        found: Vec<usize>,
    },
    /// The name of a scheme could not be understood.
    #[error("unknown scheme `{name}`: {reason}. Known schemes: {known}")]
    UnknownScheme {
        /// The name given.
        name: String,
        /// Why it was refused.
        reason: String,
        /// All registered patterns.
        known: String,
    },
    /// A scheme needs a dictionary set that was not given.
    #[error(
        "scheme `{scheme}` needs the dictionaries `{dictionaries}`, which were not given: train them first (`just train`)"
    )]
    MissingDictionaries {
        /// The scheme.
        scheme: String,
        /// The name of the dictionary set.
        dictionaries: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(CodecError),
    /// A file of a prompt is not as it should be.
    #[error("{}, {part}: expected {expected}, found {found}", path.display())]
    PromptFile {
        /// The file.
        path: PathBuf,
        /// Which part of the file.
        part: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A scheme cannot be used on the model.
    #[error("scheme `{scheme}` does not fit the model: {reason}")]
    Unsuitable {
        /// The scheme.
        scheme: String,
        /// What does not fit.
        reason: String,
    },
    /// A scheme has no codes in the form of tensors.
    #[error(
        "scheme `{scheme}` cannot be run with attention = \"tensor\": its codes are made on the host only. Take auto or codes, or one \
         of csr-S (without +stop), csr+@B, kivi-B, gear-B, lexico-S (without delta), q4_0, q8_0 and dense"
    )]
    NoTensors {
        /// The scheme.
        scheme: String,
    },
    /// A scheme needs codebooks that were not given.
    #[error(
        "scheme `{scheme}` needs the codebooks `{codebooks}`, which were not given: make them first \
         (`just train-plus` for csr+, `just calibrate-peers` for others)"
    )]
    MissingCodebooks {
        /// The scheme.
        scheme: String,
        /// The name of the codebooks.
        codebooks: String,
    },
    /// A scheme needs a plan that was not given.
    #[error("scheme `{scheme}` needs the plan `{plan}`, which was not given: `just kvcsr plan` writes one")]
    MissingPlan {
        /// The scheme.
        scheme: String,
        /// The name of the plan.
        plan: String,
    },
    /// A dictionary does not fit the model.
    #[error("scheme `{scheme}`, layer {layer}, {kind}s: {reason}")]
    Dictionary {
        /// The scheme.
        scheme: String,
        /// The layer.
        layer: usize,
        /// Keys or values.
        kind: Kind,
        /// What does not fit.
        reason: String,
    },
    /// A scheme's budget of atoms per layer is missing or does not fit.
    #[error("scheme `{scheme}`: {reason}")]
    Budget {
        /// The scheme.
        scheme: String,
        /// What does not fit, and how to fix it.
        reason: String,
    },
}
