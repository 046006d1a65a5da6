//! The error type of this crate.

use std::{io, path::PathBuf};

/// Errors of writing or reading rows.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line of a JSONL file is not a row of the expected type.
    #[error("{}:{line}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The cause.
        source: serde_json::Error,
    },
    /// A line of a CSV file is not a row of the expected type.
    #[error("{}:{line}: {reason}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with the line.
        reason: String,
    },
    /// A line of a journal is not allowed there.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with the line.
        reason: String,
    },
    /// A struct has fields that a table column cannot hold.
    #[error("{row} is not a row of a table: {reason}; fields are numbers, texts and names")]
    Row {
        /// The type.
        row: &'static str,
        /// The reason.
        reason: String,
    },
}

impl RecordsError {
    /// An error of the file `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
