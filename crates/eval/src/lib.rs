//! Evaluation of compressed caches: what a scheme costs a model, on held-out text and on tasks.
//!
//! One exact prefill of a prompt serves every scheme ([`kvcsr_cache::PrefillSnapshot::fork`]), so that all of them see the same
//! state and differ in nothing but what they keep of it.
//!
//! - [`heldout`]: perplexity, divergence and agreement with the uncompressed cache on the continuation of a text.
//! - [`longbench`]: LongBench v1 as its authors prompt and score it, detail by detail.
//! - [`suite`]: tasks of our own for machines without LongBench; LongBench's runner and metrics serve them too.
//! - [`stats`]: paired intervals, for all three, from `kvcsr-stats`.
//! - [`jsonl`]: the files that they read.
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
