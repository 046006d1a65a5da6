//! The error type of this crate.

use std::path::PathBuf;

/// Error of a caller's tokenizer. It is passed on unchanged.
pub type TokensError = Box<dyn std::error::Error + Send + Sync>;

/// Errors of reading, prompting, running and scoring records and texts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file could not be read.
    #[error("{}: cannot read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// One line of a JSONL file is not valid.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What was expected and what was found.
        message: String,
    },

    /// Rows could not be read or written, or are not valid.
    #[error(transparent)]
    Records(#[from] kvcsr_records::RecordsError),

    /// A JSONL file has no records, so there is no mean.
    #[error("{}: no records", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },

    /// One of LongBench's config files is malformed, or an entry is missing.
    #[error("{}: {message}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },

    /// The table does not have this task.
    #[error("unknown task {name:?}; {table} has: {known}")]
    UnknownTask {
        /// The requested name.
        name: String,
        /// The name of the table.
        table: String,
        /// All names, separated by commas.
        known: String,
    },

    /// The task table does not have this task group.
    #[error("unknown task group {name:?}; the task table has: {known}")]
    UnknownGroup {
        /// The requested name.
        name: String,
        /// All names, separated by commas.
        known: String,
    },

    /// The embedded or supplied task table is inconsistent.
    #[error("task table: {0}")]
    TaskTable(String),

    /// A prompt template that cannot be filled by substituting `{context}` and `{input}`.
    #[error("prompt template: {0}")]
    Template(String),

    /// The checkpoint's own chat template was requested, but it has none.
    #[error("the checkpoint has no chat template: set longbench.chat to none, llama2, chatml or baichuan2")]
    NoTemplate,

    /// A pair of prediction and answer on which LongBench's own scorer would fail.
    #[error("metric {metric}: {reason}")]
    Unscorable {
        /// The metric.
        metric: &'static str,
        /// Why there is no score.
        reason: String,
    },

    /// A token limit that is too small for a head and a tail of the prompt.
    #[error("a prompt limit of {0} tokens leaves no room for a head and a tail; give at least 2")]
    PromptLimit(usize),

    /// A prompt is longer than the model's context length.
    #[error("{task}, record {id}: the prompt has {tokens} tokens, but the model has {positions} positions")]
    PromptTooLong {
        /// The task.
        task: String,
        /// The record.
        id: String,
        /// Number of tokens of the prompt.
        tokens: usize,
        /// Number of positions of the model.
        positions: usize,
    },

    /// The caller's tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokens(#[source] TokensError),

    /// A text of the suite is missing or has the wrong form.
    #[error("suite, text {text}: {message}")]
    Suite {
        /// The text's id in `data/sources.toml`.
        text: String,
        /// What was expected and what was found.
        message: String,
    },

    /// A held-out text has no continuation to score.
    #[error("a held-out text of {found} tokens is too short: {needed} are needed")]
    TooShort {
        /// Number of tokens of the text.
        found: usize,
        /// Minimum number of tokens.
        needed: usize,
    },

    /// The scheme has not compressed any token of the context. Its score would be that of uncompressed tokens.
    #[error(
        "scheme `{scheme}` has compressed none of the {tokens} tokens of context: all are in its exact window; \
         lengthen the context (evaluate.context) or shrink the window"
    )]
    NothingCompressed {
        /// The scheme.
        scheme: String,
        /// Number of tokens of the context.
        tokens: usize,
    },

    /// The model failed.
    #[error(transparent)]
    Model(#[from] kvcsr_model::ModelError),

    /// A cache scheme could not take over a prefill.
    #[error("scheme {scheme}: {source}")]
    Scheme {
        /// The scheme, including its dictionaries.
        scheme: String,
        /// The error of the scheme.
        source: Box<kvcsr_cache::CacheError>,
    },

    /// A cache failed.
    #[error(transparent)]
    Cache(Box<kvcsr_cache::CacheError>),

    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),

    /// Running one record failed.
    #[error("{task}, record {id}: {source}")]
    Sample {
        /// The task.
        task: String,
        /// The record's `_id`.
        id: String,
        /// The cause.
        source: Box<EvalError>,
    },
}

// Boxed because the error is large, and would make every result large.
impl From<kvcsr_cache::CacheError> for EvalError {
    fn from(error: kvcsr_cache::CacheError) -> Self {
        Self::Cache(Box::new(error))
    }
}

/// The result type of this crate.
pub type Result<T, E = EvalError> = std::result::Result<T, E>;
