//! Rows: what the pipeline measures, one struct for each table.
//!
//! A row is written down once. serde takes it to a line of JSON ([`files`]) and to a line of CSV ([`csv`]) and back, and
//! `kvcsr_report::tables` takes it to a data frame and to Parquet. The fields of a row are numbers, texts and names; lists are texts.
//! So a new column is a new field, and nothing else.
//!
//! | module | rows |
//! |---|---|
//! | [`journal`] | the file to which a running stage appends rows |
//! | [`heldout`] | a held-out document under a scheme, a scheme over documents, and where far tokens begin |
//! | [`tasks`] | scores of LongBench and of the suite, retrieval grids |
//! | [`training`] | epochs, reconstruction errors, divergences between layers, ablations |
//! | [`vectors`] | what notebooks show: patterns, usage and coefficients of codes, points in a plane, key biases, logits, energies |
//! | [`memory`] | bytes by length, and sweeps |
//! | [`mod@bench`] | speed beside named peers |
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
