//! The error type of the crate.

use std::path::PathBuf;

/// Error of a caller's tokenizer, passed through unchanged.
pub type TokensError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong while records and texts are read, prompted, run and scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file could not be read.
    #[error("{}: cannot read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// One line of a JSONL file is not what it should be.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What was expected and what was found.
        message: String,
    },

    /// Rows could not be read or written, or are not what they should be.
    #[error(transparent)]
    Records(#[from] kvcsr_records::RecordsError),

    /// A JSONL file without a single record: there is no mean to take.
    #[error("{}: no records", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },

    /// One of LongBench's config files is malformed, or lacks an entry.
    #[error("{}: {message}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },

    /// A task that the table does not have.
    #[error("unknown task {name:?}; {table} has: {known}")]
    UnknownTask {
        /// The name asked for.
        name: String,
        /// What the table is of.
        table: String,
        /// All names, comma separated.
        known: String,
    },

    /// A task group that the task table does not have.
    #[error("unknown task group {name:?}; the task table has: {known}")]
    UnknownGroup {
        /// The name asked for.
        name: String,
        /// All names, comma separated.
        known: String,
    },

    /// The embedded or supplied task table is inconsistent.
    #[error("task table: {0}")]
    TaskTable(String),

    /// A prompt template that plain substitution of `{context}` and `{input}` cannot fill.
    #[error("prompt template: {0}")]
    Template(String),

    /// The checkpoint's own chat template was asked for, and it has none.
    #[error("the checkpoint has no chat template: set longbench.chat to none, llama2, chatml or baichuan2")]
    NoTemplate,

    /// A prediction and answer that LongBench's own scorer would fail on.
    #[error("metric {metric}: {reason}")]
    Unscorable {
        /// The metric.
        metric: &'static str,
        /// Why it has no value.
        reason: String,
    },

    /// A token limit too small to keep a head and a tail of the prompt.
    #[error("a prompt limit of {0} tokens leaves no room for a head and a tail; give at least 2")]
    PromptLimit(usize),

    /// A prompt that is longer than the model's context.
    #[error("{task}, record {id}: the prompt has {tokens} tokens, but the model has {positions} positions")]
    PromptTooLong {
        /// The task.
        task: String,
        /// The record.
        id: String,
        /// Tokens of the prompt.
        tokens: usize,
        /// The model's positions.
        positions: usize,
    },

    /// The caller's tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokens(#[source] TokensError),

    /// The suite lacks one of its texts, or a text does not have the form it should have.
    #[error("suite, text {text}: {message}")]
    Suite {
        /// Id of the text in `data/sources.toml`.
        text: String,
        /// What was expected and what was found.
        message: String,
    },

    /// A held-out text has no continuation to score.
    #[error("a held-out text of {found} tokens is too short: {needed} are needed")]
    TooShort {
        /// Tokens of the text.
        found: usize,
        /// Tokens needed at least.
        needed: usize,
    },

    /// The scheme has coded no token of the context, so its score would be that of exact tokens.
    #[error(
        "scheme `{scheme}` has compressed none of the {tokens} tokens of context: all are in its exact window; \
         lengthen the context (evaluate.context) or shrink the window"
    )]
    NothingCompressed {
        /// The scheme.
        scheme: String,
        /// Tokens of the context.
        tokens: usize,
    },

    /// The model failed.
    #[error(transparent)]
    Model(#[from] kvcsr_model::ModelError),

    /// A cache scheme failed to take over a prefill.
    #[error("scheme {scheme}: {source}")]
    Scheme {
        /// The scheme, with its dictionaries.
        scheme: String,
        /// What it said.
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
        /// What failed.
        source: Box<EvalError>,
    },
}

// Boxed, since it is large and every result would be as large.
impl From<kvcsr_cache::CacheError> for EvalError {
    fn from(error: kvcsr_cache::CacheError) -> Self {
        Self::Cache(Box::new(error))
    }
}

/// Result of this crate.
pub type Result<T, E = EvalError> = std::result::Result<T, E>;
