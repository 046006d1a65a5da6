//! Tables and figures of CSR experiments.
//!
//! The pipeline writes rows ([`kvcsr_records`]) and hands them here; notebooks read the same rows and call the same functions. Figures are generic over
//! plotters' drawing backend, so one function serves SVG files, PNG files and notebook cells; they carry their own font and look alike on every
//! machine. Tables need polars (feature `tables`, on by default); notebooks leave it off, because building it takes minutes.
//!
//! | module | what |
//! |---|---|
//! | [`records`] | the rows, and reading and writing them as JSON lines and CSV |
//! | [`aggregate`] | perplexity, KL, agreement, bits per scheme and domain; NeuralDict against k-means |
//! | [`ablation`] | tables of dictionary training: Table 3, trainer options, merged layers |
//! | [`compare`] | every scheme on the same prompts: summaries, frontier, table |
//! | [`figures`] | one figure per file, each with its caption |
//! | [`save`] | a figure as SVG, PNG and the CSV of its data, or inline in a notebook |
//! | [`table`] | a table in Markdown, row by row |
//! | `tables` | data frames: from rows, from CSV and Parquet, as Parquet and Markdown |
//! | [`longbench`] | LongBench scores in the paper's layout, beside the paper's |
//! | [`memory`] | KV-cache bytes from published model shapes |
//! | [`page`], [`html`] | a report of sections, as Markdown and as one self-contained HTML file |
//! | [`notebook`] | what notebooks share: runs, vectors, codes, and values shown under a cell |
//! | [`splice`] | generated text between markers in a README |
//! | [`style`], [`canvas`], [`axes`], [`ticks`], [`labels`] | how all figures look |
//!
//! ```
//! use kvcsr_report::{figures::MemoryLength, memory, save};
//!
//! let svg = save::svg::<MemoryLength>(&memory::paper_points())?;
//! assert!(svg.contains("Llama2-7B"));
//! # Ok::<(), kvcsr_report::ReportError>(())
//! ```

#![deny(missing_docs)]

pub mod ablation;
pub mod aggregate;
pub mod axes;
pub mod canvas;
pub mod ceiling;
pub mod claims;
pub mod compare;
mod error;
pub mod evidence;
pub mod figures;
mod group;
mod grouping;
pub mod html;
pub mod labels;
pub mod longbench;
pub mod memory;
pub mod notebook;
pub mod page;
pub mod save;
pub mod splice;
pub mod style;
mod svg;
pub mod sweep;
pub mod table;
#[cfg(feature = "tables")]
pub mod tables;
pub mod ticks;

pub use error::ReportError;
pub use kvcsr_records as records;
pub use kvcsr_records::{
    AblationRow, CeilingRow, CoefficientRow, DictionarySource, DivergenceRow, EnergyRow, EpochRow, FootprintRow,
    HeldoutRow, KeyBiasRow, Kind, LogitRow, MemoryPoint, PatternRow, ReconstructionRow, RestFileRow, RetrievalRow,
    ScatterRow, SchemeSummary, SweepRow, UsageRow, csv, files,
};
