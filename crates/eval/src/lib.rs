//! Evaluation of compressed caches: how much quality a scheme costs, on held-out text and on tasks.
//!
//! Each prompt is prefilled once without compression. All schemes start from this prefill
//! ([`kvcsr_cache::PrefillSnapshot::fork`]), so they see the same state and differ only in what they keep of it.
//!
//! - [`heldout`]: perplexity, divergence and agreement with the uncompressed cache, on the continuation of a text.
//! - [`longbench`]: LongBench v1 with exactly the prompts and scores of its authors.
//! - [`suite`]: our own tasks, for use without LongBench's data. They use LongBench's runner and metrics.
//! - [`stats`]: paired intervals for all three, from `kvcsr-stats`.
//! - [`jsonl`]: reads the JSON Lines files that they use.
//!
//! ```
//! use kvcsr_eval::longbench::metrics::MetricOptions;
//! use kvcsr_eval::longbench::score::sample_score;
//! use kvcsr_eval::longbench::tasks::TaskTable;
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

pub mod error;
pub mod heldout;
pub mod jsonl;
pub mod longbench;
pub mod suite;

pub use kvcsr_stats as stats;

pub use error::{EvalError, Result, TokensError};
