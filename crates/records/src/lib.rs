//! Rows: the measurements of the pipeline, one struct per table.
//!
//! Each row type is defined once. With serde a row is written as a line of JSON ([`files`]) or of CSV ([`csv`]) and read
//! back. `kvcsr_report::tables` converts rows to data frames and to Parquet. The fields of a row are numbers, texts and
//! names; a list is written as a text. To add a column, add a field. Nothing else has to change.
//!
//! | module | rows |
//! |---|---|
//! | [`journal`] | the file to which a running stage appends rows |
//! | [`heldout`] | one held-out document under one scheme, one scheme over documents, and the threshold of far tokens |
//! | [`tasks`] | scores of LongBench and of the suite, retrieval grids |
//! | [`training`] | epochs, reconstruction errors, divergences between layers, ablations |
//! | [`vectors`] | data for notebooks: patterns, usage and coefficients of codes, points in a plane, key biases, logits, energies |
//! | [`memory`] | bytes by length, and sweeps |
//! | [`mod@bench`] | speed compared with named peers |
//!
//! ```
//! use kvcsr_records::{MemoryPoint, csv};
//!
//! let rows = [MemoryPoint { model: "Llama2-7B".into(), scheme: "FP16".into(), tokens: 1000, bytes: 524_288_000 }];
//! assert_eq!(csv::to_string(&rows)?, "model,scheme,tokens,bytes\nLlama2-7B,FP16,1000,524288000\n");
//! # Ok::<(), kvcsr_records::RecordsError>(())
//! ```

#![deny(missing_docs)]

pub mod bench;
pub mod columns;
pub mod csv;
mod error;
pub mod files;
pub mod heldout;
pub mod journal;
pub mod memory;
pub mod tasks;
pub mod training;
pub mod vectors;

pub use bench::BenchRow;
pub use columns::Row;
pub use error::RecordsError;
pub use heldout::{Comparison, DictionarySource, HeldoutRow, SchemeSummary, ThresholdRow, UnknownName};
pub use journal::Journal;
pub use kvcsr_codec::Kind;
pub use memory::{FootprintRow, MemoryPoint, RestFileRow, SweepRow};
pub use tasks::{Bucket, LengthRow, OverallRow, RetrievalRow, TaskRow};
pub use training::{AblationRow, CeilingRow, DivergenceRow, EpochRow, ReconstructionRow, spaced};
pub use vectors::{CoefficientRow, EnergyRow, KeyBiasRow, LogitRow, PatternRow, ScatterRow, UsageRow};
