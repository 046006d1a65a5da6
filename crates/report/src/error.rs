//! The error type of this crate.

use std::error::Error;

use kvcsr_records::RecordsError;
use plotters::drawing::DrawingAreaErrorKind;

/// Errors of reading, drawing or writing a report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The drawing backend reported an error. The text is that of the backend.
    #[error("drawing failed: {0}")]
    Draw(String),
    /// The font compiled into the crate is not valid.
    #[error("the font {0} that ships with this crate cannot be parsed")]
    Font(&'static str),
    /// A figure or table was requested without any rows that it can show.
    #[error("{what}: nothing to show; expected {expected}")]
    Empty {
        /// The figure or table.
        what: &'static str,
        /// The rows it needs.
        expected: &'static str,
    },
    /// Rows that must have the same layer or group have different ones.
    #[error("{what}: expected rows of one {field}, found {first} and {second}")]
    Mixed {
        /// The figure or table.
        what: &'static str,
        /// The field that differs.
        field: &'static str,
        /// The first value seen.
        first: String,
        /// A later value that differs.
        second: String,
    },
    /// One document was measured twice under one scheme and context length. Sums would count it twice.
    #[error("document `{id}` occurs twice under scheme `{scheme}`; remove one of the rows")]
    Duplicate {
        /// The document.
        id: String,
        /// The scheme.
        scheme: String,
    },
    /// A file of rows or text could not be read or written.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// A `<!-- BEGIN name -->` ... `<!-- END name -->` pair is missing, duplicated or in the wrong order.
    #[error("marker `{marker}`: expected exactly once, BEGIN before END; {found}")]
    Marker {
        /// The marker's full text.
        marker: String,
        /// What was found instead.
        found: String,
    },
    /// polars reported an error.
    #[cfg(feature = "tables")]
    #[error("table: {0}")]
    Table(#[from] polars::error::PolarsError),
}

impl<E: Error + Send + Sync> From<DrawingAreaErrorKind<E>> for ReportError {
    fn from(error: DrawingAreaErrorKind<E>) -> Self {
        Self::Draw(error.to_string())
    }
}
