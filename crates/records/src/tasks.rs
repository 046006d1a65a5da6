//! Scores on the tasks of LongBench and of the suite.

use serde::{Deserialize, Serialize};

/// One scheme on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRow {
    /// The task.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// Number of records scored.
    pub n: usize,
    /// Number of records of the full task. If `n` is smaller, the score cannot be compared with published scores.
    pub samples: usize,
    /// The score, 0 to 100, with two decimals.
    pub score: f64,
    /// Difference to the uncompressed run over the same records, in points. None for that run itself, if that run is missing,
    /// and for fewer than two common records.
    pub difference: Option<f64>,
    /// Lower end of its paired interval.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Bits per channel as the scheme's paper counts them.
    pub nominal_bits: f64,
    /// Measured bits per channel, mean over the records.
    pub measured_bits: f64,
    /// Mean number of tokens of a prompt. The measured bits are per channel of these tokens.
    pub tokens: f64,
    /// Mean time to compress a prompt, in milliseconds.
    pub encode_ms: f64,
    /// Mean time per generated token, in milliseconds.
    pub decode_ms_per_token: f64,
    /// True if the scheme compresses and no other compressing scheme is significantly better on this task. False if there are
    /// too few records to decide.
    pub best: bool,
}

/// One scheme over all tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverallRow {
    /// The scheme's label.
    pub scheme: String,
    /// Number of tasks scored.
    pub tasks: usize,
    /// Number of records scored, over all tasks.
    pub n: usize,
    /// Mean over the task scores, as papers report it.
    pub task_mean: f64,
    /// Mean over the category means, as LongBench reports it.
    pub category_mean: f64,
    /// Difference of the task means to the uncompressed run, in points, over the tasks and records that both runs answered.
    pub difference: Option<f64>,
    /// Lower end of its paired interval.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Rank among the schemes, from 1: one plus the number of schemes that are better by an interval above zero. None if there
    /// are too few records to decide.
    pub rank: Option<usize>,
    /// Whether another scheme has the same rank.
    pub tied: bool,
    /// Bits per channel as the scheme's paper counts them.
    pub nominal_bits: f64,
    /// Measured bits per channel, mean over all records.
    pub measured_bits: f64,
    /// Mean tokens of a prompt.
    pub tokens: f64,
    /// Mean time to compress 1000 tokens, in milliseconds.
    pub encode_ms_per_1k: f64,
    /// Mean time per generated token, in milliseconds.
    pub decode_ms_per_token: f64,
    /// Number of answers that ended because the model had no more positions.
    pub cut: usize,
    /// The same as [`TaskRow::best`], over all tasks.
    pub best: bool,
}

/// One scheme on one task of LongBench-E, by sample length. It is written only as JSON, because the buckets are a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LengthRow {
    /// The task.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// `0-4k`, `4-8k` and `8k+` words or characters.
    pub buckets: [Bucket; 3],
}

/// The score of a task in one bucket of LongBench-E's lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Number of samples in the bucket.
    pub n: usize,
    /// Mean over the samples, 0 to 100, with two decimals. None for an empty bucket.
    pub score: Option<f64>,
}

/// One scheme in one cell of a retrieval grid. A cell is a length of the text and a depth of the fact in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetrievalRow {
    /// What is retrieved, for example `passkey`.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// Approximate number of tokens of the prompt.
    pub tokens: usize,
    /// Fraction of the text that is before the fact, 0 to 1.
    pub depth: f64,
    /// Number of prompts answered.
    pub n: usize,
    /// Mean score, 0 to 1.
    pub score: f64,
}
