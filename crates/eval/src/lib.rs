//! Evaluation of compressed caches: LongBench v1 as its authors score it, bit for bit, and held-out text.
//!
//! Published numbers on long-context tasks depend on details that are easy to lose in a port: which ROUGE, what counts as a word,
//! where a prompt is cut, which line of a prediction is read. Everything but [`heldout`] and [`suite`] ports LongBench's `pred.py` and `eval.py`
//! (THUDM/LongBench at 2e00731) detail by detail, bugs included, so that a score here can stand next to a published one.
//!
//! - [`tasks`]: the 21 tasks and the groups that papers report, as versioned data.
//! - [`config`]: LongBench's own prompt templates and limits, read from its config folder.
//! - [`record`]: the eight-key records of its data files.
//! - [`prompt`]: template, middle truncation at token level, chat wrap.
//! - [`metrics`]: one file per family of scorers.
//! - [`score`]: prediction files to task scores, and LongBench-E's scores by length.
//! - [`average`]: the two overall averages in use.
//! - [`evaluate`]: many records under many schemes, and [`shard`]: in parts.
//! - [`suite`]: tasks of our own for machines without LongBench, with passkey and needle grids and GSM8K-style arithmetic.
//! - [`runner`]: one record through the model, prefilled once for all schemes.
//! - [`predictions`]: what schemes answered, on disk, record by record.
//! - [`stats`]: paired bootstrap intervals.
//! - [`results`]: predictions to scores, differences and averages per scheme.
//! - [`heldout`]: perplexity, divergence and agreement on held-out text, which needs no LongBench.
//!
//! ```
//! use kvcsr_eval::metrics::MetricOptions;
//! use kvcsr_eval::score::sample_score;
//! use kvcsr_eval::tasks::TaskTable;
//!
//! # fn main() -> kvcsr_eval::Result<()> {
//! // Few-shot tasks score the first line of the prediction only, after its leading newlines.
//! let triviaqa = TaskTable::embedded().get("triviaqa")?;
//! let answers = ["Venice".to_owned(), "City of Venice".to_owned()];
//! let score = sample_score(
//!     triviaqa,
//!     "\nthe City of Venice\nQuestion: ...",
//!     &answers,
//!     None,
//!     MetricOptions::default(),
//! )?;
//! assert_eq!(score, 1.0);
//! # Ok(())
//! # }
//! ```

pub mod average;
pub mod config;
pub mod error;
pub mod evaluate;
pub mod heldout;
pub mod jsonl;
pub mod metrics;
pub mod predictions;
pub mod prompt;
pub mod record;
pub mod results;
pub mod runner;
pub mod score;
pub mod shard;
pub mod stats;
pub mod suite;
pub mod tasks;

pub use error::{LongBenchError, Result, TokensError};
