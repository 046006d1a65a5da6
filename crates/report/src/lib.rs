//! Tables and figures of CSR experiments.
//!
//! The pipeline writes rows ([`kvcsr_records`]) and passes them to this crate. Notebooks read the same rows and call the same
//! functions. Figures are generic over the drawing backend of plotters, so one function draws SVG files, PNG files and
//! notebook cells. The font is included, so figures look the same on every machine. Tables need polars (feature `tables`, on
//! by default). Notebooks turn this feature off, because building polars takes minutes.
//!
//! | module | what |
//! |---|---|
//! | [`records`] | the rows, and how to read and write them as JSON lines and CSV |
//! | [`aggregate`] | perplexity, KL, agreement and bits per scheme and domain; NeuralDict compared with k-means |
//! | [`ablation`] | tables of dictionary training: Table 3, trainer options, merged layers |
//! | [`compare`] | every scheme on the same prompts: summaries, frontier, table |
//! | [`figures`] | one figure per file, each with its caption |
//! | [`save`] | a figure as SVG, PNG and the CSV of its data, or inline in a notebook |
//! | [`table`] | a table in Markdown, row by row |
//! | `tables` | data frames: from rows, from CSV and Parquet, as Parquet and Markdown |
//! | [`longbench`] | LongBench scores in the layout of the paper, next to the paper's scores |
//! | [`memory`] | KV-cache bytes from published model shapes |
//! | [`page`], [`html`] | a report of sections, as Markdown and as one self-contained HTML file |
//! | [`notebook`] | helpers for notebooks: runs, vectors, codes, and values shown under a cell |
//! | [`splice`] | generated text between markers in a README |
//! | [`style`], [`canvas`], [`axes`], [`ticks`], [`labels`] | the common style of all figures |
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
