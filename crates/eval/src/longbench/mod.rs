//! LongBench v1 with exactly the scores of its authors.
//!
//! Published numbers on long-context tasks depend on details that a port can easily change: which ROUGE is used, what counts as
//! a word, where a prompt is cut, and which line of a prediction is read. This module ports all details of LongBench's `pred.py`
//! and `eval.py` (THUDM/LongBench at 2e00731), including their bugs, so that its scores can be compared with published ones.
//!
//! - [`tasks`]: the 21 tasks and the groups that papers report, as versioned data.
//! - [`config`]: LongBench's own prompt templates and limits, read from its config folder.
//! - [`record`]: the eight-key records of its data files.
//! - [`prompt`]: template, middle truncation at token level, chat wrap.
//! - [`metrics`]: one file per family of scorers.
//! - [`score`]: task scores from prediction files, and LongBench-E's scores by length.
//! - [`average`]: the two overall averages in use.
//! - [`runner`]: runs one record through the model, with one prefill for all schemes.
//! - [`evaluate`]: runs many records under many schemes.
//! - [`predictions`]: the answers of the schemes on disk, record by record.
//! - [`results`]: scores, differences and averages per scheme from predictions.

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
