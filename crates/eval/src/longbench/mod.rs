//! LongBench v1 as its authors score it, bit for bit.
//!
//! Published numbers on long-context tasks depend on details that are easy to lose in a port: which ROUGE, what counts as a word,
//! where a prompt is cut, which line of a prediction is read. This module ports LongBench's `pred.py` and `eval.py`
//! (THUDM/LongBench at 2e00731) detail by detail, bugs included, so that a score here can stand next to a published one.
//!
//! - [`tasks`]: the 21 tasks and the groups that papers report, as versioned data.
//! - [`config`]: LongBench's own prompt templates and limits, read from its config folder.
//! - [`record`]: the eight-key records of its data files.
//! - [`prompt`]: template, middle truncation at token level, chat wrap.
//! - [`metrics`]: one file per family of scorers.
//! - [`score`]: prediction files to task scores, and LongBench-E's scores by length.
//! - [`average`]: the two overall averages in use.
//! - [`runner`]: one record through the model, prefilled once for all schemes.
//! - [`evaluate`]: many records under many schemes.
//! - [`predictions`]: what schemes answered, on disk, record by record.
//! - [`results`]: predictions to scores, differences and averages per scheme.

pub mod average;
pub mod config;
pub mod evaluate;
pub mod metrics;
pub mod predictions;
pub mod prompt;
pub mod record;
pub mod results;
pub mod runner;
pub mod score;
pub mod tasks;
