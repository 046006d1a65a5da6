//! The errors of this crate. Every variant names the file, key or tensor, what was expected, and what was found.

use std::path::{Path, PathBuf};

use kvcsr_cache::CacheError;

/// Result with [`ModelError`].
pub type Result<T> = std::result::Result<T, ModelError>;

/// What can go wrong while reading, building or running a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file could not be opened, read or mapped.
    #[error("{}: {source}", path.display())]
    Io {
        /// File concerned.
        path: PathBuf,
        /// Operating-system error.
        source: std::io::Error,
    },
    /// The file is not a well-formed container (truncated, wrong magic, absurd lengths).
    #[error("{}: malformed {format}: {detail}", path.display())]
    Malformed {
        /// File concerned.
        path: PathBuf,
        /// Container, such as `GGUF`.
        format: &'static str,
        /// The first inconsistency found.
        detail: String,
    },
    /// The file is not what its name or location suggests.
    #[error("{}: expected {expected}, found {found}: {remedy}", path.display())]
    WrongFile {
        /// File concerned.
        path: PathBuf,
        /// The kind of file that is read there.
        expected: &'static str,
        /// The kind of file that it is.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A model that is split over several files was not given as a whole.
    #[error("{}: part {number} of {count} of a split model: {reason}; {remedy}", path.display())]
    Split {
        /// File concerned.
        path: PathBuf,
        /// The number of the part, counted from one.
        number: usize,
        /// The number of parts of the model.
        count: usize,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// A key that the model needs is absent from the metadata or the configuration.
    #[error("{}: key `{key}` is missing", path.display())]
    MissingKey {
        /// File concerned.
        path: PathBuf,
        /// Full name of the key.
        key: String,
    },
    /// The value of a key has the wrong type, is out of range, or contradicts another key.
    #[error("{}: key `{key}`: expected {expected}, found {found}", path.display())]
    BadValue {
        /// File concerned.
        path: PathBuf,
        /// Full name of the key.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What the file holds.
        found: String,
    },
    /// The file is correct, but describes something that this crate does not implement.
    #[error("{}: {what} `{found}` is not supported (supported: {supported})", path.display())]
    Unsupported {
        /// File concerned.
        path: PathBuf,
        /// The feature, such as `architecture` or `pre-tokenizer`.
        what: &'static str,
        /// The value found.
        found: String,
        /// The values that work.
        supported: String,
    },
    /// Tensors that the architecture needs are absent.
    #[error("{}: missing tensors: {}", path.display(), name_some(tensors))]
    MissingTensors {
        /// File concerned.
        path: PathBuf,
        /// All missing tensors, in checkpoint order, with the names that the file format uses.
        tensors: Vec<String>,
    },
    /// Tensors that no part of the architecture would read. Ignoring them would silently change the model.
    #[error("{}: tensors without a place in this architecture: {}", path.display(), name_some(tensors))]
    UnexpectedTensors {
        /// File concerned.
        path: PathBuf,
        /// Every such tensor, sorted.
        tensors: Vec<String>,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("{}: tensor `{tensor}`: expected shape {expected:?}, found {found:?}", path.display())]
    TensorShape {
        /// File concerned.
        path: PathBuf,
        /// Name in the file.
        tensor: String,
        /// The shape that the configuration requires.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor could not be read or dequantised.
    #[error("{}: tensor `{tensor}`: {source}", path.display())]
    Tensor {
        /// File concerned.
        path: PathBuf,
        /// Name in the file.
        tensor: String,
        /// The underlying error.
        source: Box<candle_core::Error>,
    },
    /// The tokenizer could not be built, or failed on an input.
    #[error("tokenizer: {detail}")]
    Tokenizer {
        /// What failed.
        detail: String,
    },
    /// A chat template has an error, or it refused the conversation.
    #[error(
        "{}: chat template: {detail}; write the turn into the plain prompt yourself, or put a template of your own beside \
         the weights of a checkpoint folder as chat_template.jinja",
        path.display()
    )]
    Template {
        /// File concerned.
        path: PathBuf,
        /// What failed, and in which line.
        detail: String,
    },
    /// The caller's input does not fit the model.
    #[error("{what}: expected {expected}, found {found}")]
    Input {
        /// The argument concerned.
        what: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The device does not exist.
    #[error("device `{name}`: {reason}")]
    Device {
        /// The name that was given.
        name: String,
        /// The reason, and which devices exist.
        reason: String,
    },
    /// A layer's cache failed.
    #[error("layer {layer}: {source}")]
    Cache {
        /// The layer, counted from zero.
        layer: usize,
        /// The cache's error.
        source: Box<CacheError>,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl ModelError {
    pub(crate) fn bad_value(
        path: &Path,
        key: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::BadValue { path: path.to_owned(), key: key.into(), expected: expected.into(), found: found.into() }
    }

    pub(crate) fn cache(layer: usize) -> impl FnOnce(CacheError) -> Self {
        move |source| Self::Cache { layer, source: Box::new(source) }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

fn name_some(tensors: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown = tensors.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match tensors.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}
