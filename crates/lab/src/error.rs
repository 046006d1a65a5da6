//! Errors of the lab crate.

use std::path::PathBuf;

use kvcsr_eval::EvalError;
use kvcsr_model::ModelError;

/// What can go wrong when a model, a prompt or vectors are used.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The current folder is not inside a project.
    #[error("no data/sources.toml in {0} or above: run this inside a clone of the project")]
    NoProject(PathBuf),
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// `data/sources.toml` is not as it must be.
    #[error("{path}: {reason}")]
    Sources {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A long document does not have the form that `data/sources.toml` describes.
    #[error("{path}: {reason}")]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No variable says where downloads are.
    #[error("neither KVCSR_CACHE, XDG_CACHE_HOME nor HOME is set: set KVCSR_CACHE to a folder for downloads")]
    NoCache,
    /// The model was not downloaded.
    #[error(
        "{0} was not fetched yet: run `just fetch` (with profile=NAME for the model of that profile), \
         or `just smoke`, which trains small dictionaries as well"
    )]
    NotFetched(PathBuf),
    /// A text is too short to be split into a context and a continuation.
    #[error(
        "the text has {found} tokens; with {follows} tokens to score after the context it needs more than {follows}"
    )]
    TooShort {
        /// Tokens of the text.
        found: usize,
        /// The number of tokens to score.
        follows: usize,
    },
    /// A layer that the model does not have.
    #[error("there is no layer {layer}: the model has {layers}, counted from 0")]
    NoLayer {
        /// The requested layer.
        layer: usize,
        /// The number of layers of the model.
        layers: usize,
    },
    /// A layer without a dictionary.
    #[error("layer {layer} has no dictionary of {kind}s")]
    NoDictionary {
        /// The layer.
        layer: usize,
        /// Keys or values.
        kind: kvcsr_codec::Kind,
    },
    /// Vectors from which no plane can be computed.
    #[error("no principal plane: expected finite vectors of at least 2 channels, found {vectors} of {width}")]
    NoPlane {
        /// The number of vectors.
        vectors: usize,
        /// The number of their channels.
        width: usize,
    },
    /// A context that most schemes keep exactly as a whole.
    #[error("the context has {found} tokens, the first and last of which are left out: it needs at least {needed}")]
    ShortContext {
        /// Tokens of the context.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// A scheme whose caches hand out no keys.
    #[error("caches of `{scheme}` have no key of every token to compare")]
    NoKeys {
        /// The scheme.
        scheme: String,
    },
    /// Vectors without principal components.
    #[error("layer {layer}: the {kind}s have no principal components: are there enough of them, and all finite?")]
    NoComponents {
        /// The layer.
        layer: usize,
        /// Keys or values.
        kind: kvcsr_codec::Kind,
    },
    /// An error of dictionaries, codes or shards.
    #[error(transparent)]
    Codec(#[from] kvcsr_codec::CodecError),
    /// An error of a cache.
    #[error(transparent)]
    Cache(#[from] kvcsr_cache::CacheError),
    /// An error of the model.
    #[error(transparent)]
    Model(Box<ModelError>),
    /// An error of scoring.
    #[error(transparent)]
    Evaluation(Box<EvalError>),
    /// An error of a tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

// Boxed, because they are large and would make every result as large.
impl From<ModelError> for LabError {
    fn from(error: ModelError) -> Self {
        Self::Model(Box::new(error))
    }
}

impl From<EvalError> for LabError {
    fn from(error: EvalError) -> Self {
        Self::Evaluation(Box::new(error))
    }
}

/// The result of this crate's functions. `use kvcsr_lab::*` does not import it, because it would hide the standard one.
pub type Result<T> = std::result::Result<T, LabError>;
